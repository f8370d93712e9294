"""What a task of the host is in the middle of, learnt from whatever shows it.

A frame opens with a probe or function entry, or with a tracepoint that stands inside the function.
It closes with the function's return where that is recorded; without one, when the task does
something that cannot happen inside (a call of the same rank, an entry to the guest, a marker).
Several events of one entry (a function entry and its probes) are one frame.
"""

from __future__ import annotations

from typing import Final

from attrs import define

from stress.trace.events import ProbeEvent
from stress.trace.tree import Root

RANKS: Final = {
    "fault": 1,
    "set_memslot": 1,
    "get_dirty_log": 1,
    "clear_dirty_log": 1,
    "mmu_load": 1,
    "mmu_unload": 1,
    "free_obsolete": 1,
    "recover_nx": 1,
    "destroy_vm": 1,
    "mn_release": 1,
    "mn_end": 1,
    "arch_destroy_vm": 2,
    "flush_shadow_all": 2,
    "tdp_page_fault": 2,
    "alloc_root": 2,
    "mn_start": 3,
    "swap_memslots": 3,
    "flush_shadow_memslot": 3,
    "zap_all": 4,
    "uninit_tdp": 4,
    "zap_all_fast": 4,
    "wrprot_slot": 4,
    "clear_dirty_pt": 4,
    "split": 4,
    "unmap_gfn_range": 4,
    "map": 4,
    "zap_invalidated_roots": 5,
    "zap_leafs_all": 5,
    "zap_root": 6,
    "zap_leafs": 6,
    "wrprot_range": 6,
    "next_root": 6,
    "__zap_root": 7,
}
"""How deep in the kernel's calls a function lies: a call of one rank is never inside one of the
same or of a higher rank, but for those that have a return."""

ENTRY: Final = {**{name: name for name in RANKS}, **{f"{name}()": name for name in RANKS}}
"""Events at the entry of these functions, probe or function."""

INSIDE: Final = {
    "kvm_page_fault": "fault",
    "kvm_mmu_spte_requested": "map",
    "kvm_mmu_zap_all_fast": "zap_all_fast",
    "kvm_unmap_hva_range": "mn_start",
}
"""Tracepoints that stand inside a function, once in each call."""

EXITS: Final = {f"{name}_ret": name for name in RANKS}

WORKS_ON: Final[dict[str, bool | None]] = {
    "map": True,
    "wrprot_slot": True,
    "clear_dirty_pt": True,
    "split": True,
    "wrprot_range": True,
    "zap_invalidated_roots": False,
    "zap_all_fast": False,
    "zap_root": False,
    "__zap_root": False,
    "uninit_tdp": False,
    "zap_all": None,
    "mn_start": None,
    "unmap_gfn_range": None,
    "zap_leafs_all": None,
}
"""Whether a function works on valid roots, on invalid ones, or on any."""

OUTSIDE: Final = frozenset({"kvm_entry", "kvm_exit", "kvm_userspace_exit", "tracing_mark_write"})
"""Where a task is in none of these functions."""

NO_ARGS: Final[dict[str, int | str]] = {}


@define(eq=False)
class Frame:
    """A function that a task has entered. `args` are those of all the probes on the entry."""

    name: str
    rank: int
    line: int
    args: dict[str, int | str]
    traced: bool
    """Whether the tracepoint inside it has been seen."""
    root: Root | None = None
    """The root that it works on, if it has named one."""

    def number(self, name: str, default: int = -1) -> int:
        """A numeric argument, or `default` where it was not recorded."""
        value = self.args.get(name, default)
        return value if isinstance(value, int) else default


def works_on(frames: list[Frame]) -> bool | None:
    """Whether a task works on valid roots or on invalid ones; None for any, or if it is unknown."""
    for frame in reversed(frames):
        if frame.name in WORKS_ON:
            return WORKS_ON[frame.name]
    return None


def enter(frames: list[Frame], name: str, line: int, fields: object, *, again: bool) -> None:
    """Open a frame; with `again`, add the arguments to the one that is open already."""
    args = fields.args if type(fields) is ProbeEvent else NO_ARGS
    if again and frames and frames[-1].name == name:
        if args:
            frames[-1].args = {**frames[-1].args, **args}
        return
    _push(frames, Frame(name, RANKS[name], line, args, traced=False))


def pass_inside(frames: list[Frame], name: str, line: int) -> None:
    """A tracepoint inside a function: open the frame if the entry was not recorded."""
    for frame in reversed(frames):
        if frame.name == name and not frame.traced:
            frame.traced = True
            return
    _push(frames, Frame(name, RANKS.get(name, 1), line, NO_ARGS, traced=True))


def _push(frames: list[Frame], frame: Frame) -> None:
    while frames and frames[-1].rank >= frame.rank:
        frames.pop()
    frames.append(frame)


def leave(frames: list[Frame], name: str) -> None:
    """A function has returned, and with it everything that it had called."""
    for index in range(len(frames) - 1, -1, -1):
        if frames[index].name == name:
            del frames[index:]
            return
