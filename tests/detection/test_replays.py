"""A schedule means the same elsewhere: failing schedules of many variants, kept as files, replayed
step by step in another process, with another hash seed, and with another Python where there is one
that can run the package."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest

from stress.results.schedule_file import stored
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load
from tests.command import ROOT, run

EXPLORE = ROOT / "configs" / "explore"
VARIANTS = {
    "exported-root-invalidated": "delete-vs-dma",
    "exported-zap-after-unlock": "delete-vs-dma",
    "importers-not-notified": "delete-vs-dma",
    "no-flush-after-exported-zap": "delete-vs-dma",
    "yield-in-exported-zap": "delete-vs-dma",
    "double-put-of-invalid-root": "two-deletes",
    "rcu-section-dropped": "fault-vs-delete",
    "stale-check-skipped": "fault-vs-delete",
    "srcu-wait-skipped": "fault-vs-delete",
    "table-freed-at-once": "two-vcpus",
    "put-before-zap": "obsolete-root",
    "r1-double-export": "exporters-race",
    "r12-mm-exit-without-flush": "exit-with-device",
    "r17-gup-under-slots-lock": "userfault-vs-delete",
}
SEARCHES = [
    ("portfolio", 1),
    ("random", 2),
    ("pct:2", 3),
    ("pct:4", 4),
    ("pos", 5),
    ("surw", 6),
    ("preemption:1", 0),
]
MOST = 60
"""Schedules of each search; a search that finds nothing with so many is left out."""
EACH = 4
"""So many of the searches are made for a variant, other ones for the next."""

SCRIPT = """
import json, sys
from pathlib import Path
from stress.engines.carrier import pinned
from stress.results.schedule_file import program_of
from stress.search.exploration import named_steps
from stress.search.replay import replay
from stress.search.schedule import check_of
from stress.results.schedule_file import read

with pinned():
    for name in sys.argv[1:]:
        kept = read(Path(name))
        explore = kept.scenario.explore
        replayed = replay(
            program_of(kept),
            kept.schedule,
            steps=kept.steps,
            predicted=kept.predicted,
            limit=explore.max_steps,
        )
        assert replayed.divergence is None, f"{name}: {replayed.divergence}"
        assert tuple(task for task, _, _ in replayed.run.trace) == kept.schedule.choices, name
        assert check_of(replayed.run.trace) == kept.schedule.check, name
        assert named_steps(replayed.run) == kept.steps, name
        assert replayed.signatures == kept.signatures, (name, replayed.signatures, kept.signatures)
        print(json.dumps([Path(name).name, len(replayed.run.trace)]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Failing schedules as files, with how many steps each has."""
    folder = tmp_path_factory.mktemp("schedules")
    found: dict[str, int] = {}
    searches = itertools.cycle(SEARCHES)
    for variant, name in VARIANTS.items():
        scenario = load(EXPLORE / f"{name}.toml", [f'vm.variants=["{variant}"]'])
        for strategy, seed in itertools.islice(searches, EACH):
            tally = explore(ExploreRequest(scenario, name, seed, strategy, schedules=MOST)).tally
            for failure in list(tally.failures.values())[:1]:
                path = folder / f"{variant}-{strategy.replace(':', '')}.json"
                path.write_text(stored(name, scenario, (), failure).text(), encoding="utf-8")
                found[str(path)] = len(failure.steps)
    return found


def replayed(interpreter: str, hash_seed: str, files: dict[str, int]) -> None:
    """All files in one process."""
    done = run(interpreter, "-c", SCRIPT, *files, PYTHONHASHSEED=hash_seed)
    assert done.code == 0, done.err
    lines = [tuple(json.loads(line)) for line in done.out.splitlines()]
    assert lines == [(Path(name).name, steps) for name, steps in files.items()]


def test_there_are_failing_schedules_of_many_variants(files: dict[str, int]) -> None:
    by_variant = [
        sum(Path(name).name.startswith(f"{variant}-") for name in files) for variant in VARIANTS
    ]
    assert sum(count >= EACH - 1 for count in by_variant) >= 10, by_variant
    assert len(files) >= 40
    assert {Path(name).stem.rsplit("-", 1)[1] for name in files} == {
        strategy.replace(":", "") for strategy, _ in SEARCHES
    }
    assert min(files.values()) > 30


def test_another_process_with_another_hash_seed_replays_them_exactly(files: dict[str, int]) -> None:
    replayed(sys.executable, "31337", files)


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_another_python_replays_them_exactly(request: pytest.FixtureRequest, version: str) -> None:
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    if run(interpreter, "-c", "import stress.runs.explore").code:
        pytest.skip(f"Python {version} does not have what the package needs")
    replayed(interpreter, "7", request.getfixturevalue("files"))
