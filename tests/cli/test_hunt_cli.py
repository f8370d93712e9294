"""`stress hunt` as a user types it."""

from __future__ import annotations

from pathlib import Path

from tests.command import Stress


def test_a_mutant_is_found_made_small_and_can_be_replayed(stress: Stress, tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = stress(
        *("hunt", "--duration", "300", "--seed", "1", "--jobs", "2"),
        *("--set", 'vm.variants=["table-freed-at-once"]', "--results", results),
    )
    assert done.code == 1, done.out + done.err
    assert "FAIL  hunt, seed 1" in done.out
    assert "MINIMISED  " in done.out
    small = next((results / "latest").glob("*.min.json"))
    assert stress("replay", small, "-q").code == 1


def test_a_short_hunt_proves_nothing_and_says_what_is_missing(
    stress: Stress, tmp_path: Path
) -> None:
    done = stress("hunt", "--duration", "0.01", "--seed", "1", "--results", tmp_path)
    assert done.code == 2, done.out + done.err
    assert "prove nothing yet: hunt longer" in done.out.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
