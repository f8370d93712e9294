"""Workloads: named, drawn, and made smaller."""

from __future__ import annotations

import pytest

from stress.lab.workloads import FAMILIES, WORKLOADS, chosen, drawn, smaller
from stress.scenario.errors import StressError


def test_the_same_seed_draws_the_same_workloads() -> None:
    assert drawn(20, 7) == drawn(20, 7)
    assert drawn(20, 7) != drawn(20, 8)
    assert drawn(30, 7)[:20] == drawn(20, 7)


def test_drawn_workloads_have_names_of_their_own_and_come_from_every_family() -> None:
    found = drawn(300, 1)
    assert len({each.name for each in found}) == 300
    assert {each.family for each in found} == set(FAMILIES)


def test_smaller_workloads_differ_in_one_key_and_do_less() -> None:
    whole = WORKLOADS["w10_adjacent"]
    found = list(smaller(whole))
    assert found
    for each in found:
        (key,) = [key for key in whole.keys if whole.keys[key] != each.keys[key]]
        assert int(each.keys[key]) < int(whole.keys[key])


def test_what_cannot_get_smaller_is_the_end() -> None:
    (least,) = [each for each in smaller(WORKLOADS["w1_delete"]) if each.keys["pages"] == 1]
    assert list(smaller(least)) == []


def test_workloads_are_chosen_by_name() -> None:
    assert [each.name for each in chosen(("w3_move", "w1_delete"))] == ["w3_move", "w1_delete"]
    assert chosen(()) == chosen(("all",)) == tuple(WORKLOADS.values())
    with pytest.raises(StressError, match=r"no workload 'w3_mov'.*w3_move"):
        chosen(("w3_mov",))
