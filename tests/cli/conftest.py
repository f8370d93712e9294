"""The command line, as a fixture."""

from __future__ import annotations

import pytest

from tests.command import ROOT, Stress


@pytest.fixture
def stress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Stress:
    """The command line, in this process, in the directory of the checkout."""
    monkeypatch.chdir(ROOT)
    return Stress(lambda: tuple(capsys.readouterr()))
