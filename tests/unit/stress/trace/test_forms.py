"""Recordings as tracefs, trace-cmd, perf and the kernel's log print them get the same answer."""

from __future__ import annotations

import pytest

from tests.forms import FORMS
from tests.recordings import judge, lines_of


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["w1_delete_thp", "w8_roots", "6.1/w1_delete", "7.2/w1_delete"])
def test_every_form_of_a_recording_gets_the_same_answer(name: str, form: str) -> None:
    lines = lines_of(name)
    expected, result = judge(lines), judge(FORMS[form](lines))
    held = {check: tally.held for check, tally in expected.tallies.items()}
    assert {check: tally.held for check, tally in result.tallies.items()} == held
    assert result.judgement.verdict is expected.judgement.verdict
    assert result.gaps == ()
