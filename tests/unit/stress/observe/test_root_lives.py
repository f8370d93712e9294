"""The lives of roots: each event once, the newest kept, nothing touched after it was freed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stress.observe.root_lives import EMPTIED, KEPT, Lives


def root(address: int) -> Any:
    return SimpleNamespace(address=address, role="as0")


def test_a_life_from_its_beginning_to_its_end() -> None:
    clock = [0.0]
    lives = Lives(lambda: clock[0])
    kept, gone = root(0x1000), root(0x2000)
    for at_s, event in enumerate(
        (
            lambda: (lives.root_allocated(kept), lives.root_allocated(gone)),
            lambda: lives.root_invalidated(gone),
            lambda: lives.exported_zapped(kept, 5),
            lambda: lives.root_zapped(gone),
            lambda: lives.root_freed(gone),
        )
    ):
        clock[0] = float(at_s)
        event()
    first, second = lives.lives().lives
    assert (first.exported, first.emptied_s, first.invalidated_s, first.freed_s) == (
        True,
        (2.0,),
        None,
        None,
    )
    assert (second.allocated_s, second.invalidated_s, second.zapped_s, second.freed_s) == (
        0.0,
        1.0,
        3.0,
        4.0,
    )
    assert lives.lives().until_s == 4.0


def test_only_the_newest_are_kept_and_the_others_counted() -> None:
    lives = Lives(lambda: 1.0)
    for number in range(KEPT + 10):
        lives.root_allocated(root(number))
    lives.root_freed(root(3))
    found = lives.lives()
    assert (len(found.lives), found.left_out) == (KEPT, 10)
    assert found.lives[-1].address == KEPT + 9


def test_the_newest_leaf_zaps_of_a_root_are_kept() -> None:
    clock = [0.0]
    lives = Lives(lambda: clock[0])
    lives.root_allocated(root(1))
    for number in range(EMPTIED + 5):
        clock[0] = float(number)
        lives.exported_zapped(root(1), 1)
    assert lives.lives().lives[0].emptied_s[0] == 5.0
