"""What the lab's guest can run: named workloads, and workloads drawn at random.

A workload is one call of `kvmwl` (src/kvmwl.c): a family, `w1` to `w14`, and its keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from attrs import evolve, frozen

from stress.scenario.errors import StressError
from stress.scenario.names import nearest


@frozen
class Workload:
    """One call of `kvmwl`: its name in results, its family, and its keys."""

    name: str
    family: str
    keys: dict[str, int | str]
    title: str = ""

    @property
    def arguments(self) -> str:
        """The arguments of `kvmwl`, as one would type them."""
        return " ".join([self.family, *(f"{key}={value}" for key, value in self.keys.items())])


def _known(*workloads: Workload) -> dict[str, Workload]:
    return {each.name: each for each in workloads}


WORKLOADS: Final = _known(
    Workload("w1_delete", "w1", {"pages": 16}, "one vCPU; a slot is deleted and made again"),
    Workload(
        "w2_touched",
        "w2",
        {"which": "touched", "vcpus": 2, "iters": 5, "pages": 4},
        "a slot is deleted and made again while two vCPUs write to it",
    ),
    Workload("w3_move", "w3", {"pages": 4, "vcpus": 2, "iters": 4}, "a slot is moved"),
    Workload("w4_dirty", "w4", {"pages": 16}, "dirty logging on, read, off"),
    Workload("w6_close", "w6", {"how": "close", "pages": 8}, "the VM is closed"),
    Workload(
        "w7_notifier",
        "w7",
        {"pages": 32, "vcpus": 1, "running": 0},
        "the host takes memory away: MADV_DONTNEED, mprotect, munmap, fork",
    ),
    Workload("w8_roots", "w8", {"pages": 4}, "roots shared, reset, and of system management mode"),
    Workload(
        "w10_adjacent",
        "w10",
        {"pages": 4, "vcpus": 2, "iters": 4, "seed": 1, "delay": 1000},
        "adjacent slots and an alias, all of one mapping; one is deleted while all are written",
    ),
    Workload(
        "w10_alias_quirkoff",
        "w10",
        {"pages": 4, "vcpus": 2, "iters": 4, "seed": 2, "which": 4, "quirk": 0, "delay": 1000},
        "the same with KVM_X86_QUIRK_SLOT_ZAP_ALL off (6.12 and later)",
    ),
    Workload(
        "w11_flags_manual3",
        "w11",
        {"pages": 5, "vcpus": 2, "iters": 3, "manual": 3, "seed": 3},
        "dirty logging switched while vCPUs write, initially all dirty",
    ),
    Workload(
        "w11_flags_delete",
        "w11",
        {"pages": 5, "vcpus": 2, "iters": 4, "manual": 1, "delete": 1, "seed": 4},
        "slots deleted while they log",
    ),
    Workload(
        "w12_two_slots",
        "w12",
        {"pages": 5, "vcpus": 2, "iters": 1},
        "the host invalidates ranges across two slots of one mapping",
    ),
    Workload(
        "w12_two_slots_order",
        "w12",
        {"pages": 5, "pages2": 9, "vcpus": 2, "iters": 1, "order": 1},
        "the same, the second slot first in the guest",
    ),
    Workload(
        "w12_hollow_par",
        "w12",
        {
            "hollow": 1,
            "pages": 16,
            "pages2": 16384,
            "vcpus": 3,
            "iters": 12,
            "wait": 3000,
            "par": 1,
            "par_us": 300,
        },
        "the same with a hardly touched slot, while another thread takes pages of the first",
    ),
    Workload(
        "w13_smm_delete",
        "w13",
        {"pages": 2, "vcpus": 2, "iters": 3, "seed": 5, "delay": 2000},
        "slots of both address spaces are deleted while vCPUs enter SMM",
    ),
    Workload(
        "w14_mixed",
        "w14",
        {"pages": 4, "vcpus": 2, "iters": 4, "seed": 6, "delay": 1000},
        "slots deleted, moved and made again beside invalidations by the host",
    ),
)
"""The named workloads, each of 2 to 20 seconds under emulation."""


def chosen(names: tuple[str, ...]) -> tuple[Workload, ...]:
    """The workloads of these names; `all` stands for every one. Raises `StressError`."""
    if not names or "all" in names:
        return tuple(WORKLOADS.values())
    for name in names:
        if name not in WORKLOADS:
            hint = nearest(name, WORKLOADS)
            known = ", ".join(WORKLOADS)
            raise StressError(
                f"there is no workload {name!r}{': ' + hint if hint else ''}; there are {known}"
            )
    return tuple(WORKLOADS[name] for name in names)


# Drawn workloads: each family with the keys that it may be drawn with.

Pick = Callable[[random.Random], int | str]


def _range(low: int, high: int) -> Pick:
    return lambda chance: chance.randint(low, high)


def _one_of(*values: int | str) -> Pick:
    return lambda chance: chance.choice(values)


_COMMON: Final[dict[str, Pick]] = {
    "vcpus": _range(1, 3),
    "pages": _range(1, 8),
    "thp": _one_of(0, 0, 0, 1),
}
_QUIRK: Final[dict[str, Pick]] = {"quirk": _one_of(1, 1, 0)}
_SEED: Final[dict[str, Pick]] = {"seed": _range(1, 1 << 16)}

FAMILIES: Final[dict[str, dict[str, Pick]]] = {
    "w2": {**_COMMON, **_QUIRK, "which": _one_of("touched", "dummy"), "iters": _range(1, 5)},
    "w3": {**_COMMON, **_QUIRK, "iters": _range(1, 4)},
    "w4": {"pages": _range(1, 16), "thp": _one_of(0, 1), "manual": _one_of(0, 1, 3)},
    "w6": {"how": _one_of("close", "exit", "kill"), "pages": _range(1, 8)},
    "w7": {"pages": _range(2, 32), "vcpus": _range(1, 2), "running": _one_of(0, 1)},
    "w10": {
        **_COMMON,
        **_QUIRK,
        **_SEED,
        "iters": _range(1, 4),
        "which": _one_of(2, 4, "both"),
        "delay": _range(0, 3000),
    },
    "w11": {
        **_COMMON,
        **_SEED,
        "iters": _range(1, 4),
        "manual": _one_of(0, 1, 3),
        "gets": _range(0, 3),
        "delete": _one_of(0, 1),
    },
    "w12": {
        **_COMMON,
        "pages2": _range(1, 16),
        "iters": _range(1, 2),
        "order": _one_of(0, 1),
        "par": _one_of(0, 1),
    },
    "w13": {"pages": _range(1, 3), "vcpus": _range(1, 2), **_SEED, "iters": _range(1, 4)},
    "w14": {
        **_COMMON,
        **_QUIRK,
        **_SEED,
        "iters": _range(1, 5),
        "notifiers": _range(0, 2),
        "move": _one_of(0, 1),
        "delay": _range(0, 2000),
    },
}


def drawn(count: int, seed: int) -> tuple[Workload, ...]:
    """`count` workloads drawn at random; the same seed draws the same ones."""
    chance = random.Random(seed)
    return tuple(_draw(chance, f"f{seed}_{number:03}") for number in range(count))


def _draw(chance: random.Random, name: str) -> Workload:
    family = chance.choice(sorted(FAMILIES))
    return Workload(
        f"{name}_{family}", family, {key: of(chance) for key, of in FAMILIES[family].items()}
    )


def smaller(workload: Workload) -> Iterator[Workload]:
    """Workloads that differ from this one in one key and do less."""
    least = {"vcpus": 1, "pages": 1, "pages2": 1, "iters": 1, "thp": 0, "notifiers": 0, "delay": 0}
    for key, low in least.items():
        value = workload.keys.get(key)
        if isinstance(value, int) and value > low:
            for less in dict.fromkeys((low, (low + value) // 2)):
                name = f"{workload.name}_{key}{less}"
                yield evolve(workload, name=name, keys={**workload.keys, key: less})
