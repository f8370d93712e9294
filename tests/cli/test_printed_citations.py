"""What a failing exploration prints and writes cites only what exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.command import Stress
from tests.house import citations


def test_every_citation_that_a_failing_exploration_writes_resolves(
    stress: Stress, tmp_path: Path
) -> None:
    config = "configs/BUSTED/put-before-zap.toml"
    done = stress("explore", "--config", config, "--seed", "1", "-v", "--results", tmp_path)
    assert done.code == 1
    assert re.search(r"reference \d", done.out), "nothing was cited"
    written = [path for path in tmp_path.rglob("*") if path.suffix in {".json", ".html", ".xml"}]
    assert len(written) > 2
    for text in (done.out, *(path.read_text("utf-8") for path in written)):
        assert citations.unresolved(text) == []
