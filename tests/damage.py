"""Damage for copies of recordings: what a kernel with a bug, or a recording that lost something,
would have left. Each is drawn with a seed, and knows where it has to be found."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from attrs import frozen

from tests.recordings import find, header_for, pid_of

PRESENT = 1 << 11
WRITABLE = 0b10
HOST_WRITABLE, MMU_WRITABLE = 1 << 9, 1 << 10
ADDRESS = ((1 << 52) - 1) & ~0xFFF
VOLATILE = 0x360
"""Accessed and dirty of both vendors: hardware changes them without an event."""
CHANGE = re.compile(
    r"kvm_tdp_mmu_spte_changed: as id (\d+) gfn ([0-9a-f]+) level (\d) old_spte ([0-9a-f]+) "
    r"new_spte ([0-9a-f]+)"
)
FLUSH = re.compile(r"flush_remote|make_all_cpus_request|make_all_req")
IN_INVALID = re.compile(r"zap_root|zap_invalidated_roots|zap_all\b|flush_shadow_all|uninit_tdp")
OVER = re.compile(
    r"kvm_entry: |set_memslot_ret|mn_start_ret|tracing_mark_write: |invalidate_range_end|"
    r"kvm_userspace_exit|set_memslot|map_ret|page_fault_ret"
)


@frozen
class Damaged:
    """A damaged copy, and the first and the last line (from 1) that a report of it may name.
    Without them it only loses information."""

    lines: list[str]
    first: int = 0
    last: int = 0


Draw = Callable[[list[str], random.Random], Damaged | None]
Values = tuple[int, int, int, int, int]
"""as_id, gfn, level, old and new value of a change."""


def changes(lines: list[str]) -> Iterator[tuple[int, Values]]:
    """Every change with the index of its line."""
    for index, line in enumerate(lines):
        if found := CHANGE.search(line):
            as_id, gfn, level, old, new = found.groups()
            yield index, (int(as_id), int(gfn, 16), int(level), int(old, 16), int(new, 16))


def is_leaf(value: int, level: int) -> bool:
    return bool(value & PRESENT) and (level == 1 or bool(value & 1 << 7))


def replaced(lines: list[str], at: int, old: str, new: str) -> list[str]:
    """The lines with a pattern replaced once in one of them."""
    return [*lines[:at], re.sub(old, new, lines[at], count=1), *lines[at + 1 :]]


def chosen(chance: random.Random, found: list[int]) -> int | None:
    return chance.choice(found) if found else None


def next_of_task(lines: list[str], at: int, pattern: re.Pattern[str]) -> int:
    """The index of the next line of the same task that matches, or of the last line."""
    pid = pid_of(lines[at])
    for index in range(at + 1, len(lines)):
        if pattern.search(lines[index]) and pid_of(lines[index]) == pid:
            return index
    return len(lines) - 1


def altered(lines: list[str], at: int, old: str, new: str, last: int = 0) -> Damaged:
    return Damaged(replaced(lines, at, old, new), at + 1, last or len(lines))


def read_only(lines: list[str]) -> list[str]:
    """The same recording of a VM whose memory the host lets it only read."""
    return [
        re.sub(r"(?<=spte )[0-9a-f]{4,16}\b", _without_rights, line).replace("map_w=1", "map_w=0")
        for line in lines
    ]


def _without_rights(found: re.Match[str]) -> str:
    value = int(found[0], 16)
    rights = HOST_WRITABLE | MMU_WRITABLE
    return f"{value & ~(rights | WRITABLE):x}" if value & PRESENT and value & rights else found[0]


def flush_dropped(lines: list[str], chance: random.Random) -> Damaged | None:
    """A flush that was due never happened."""
    flushes = [index for index in find(lines, "flush_remote") if _owed(lines, index)]
    at = chosen(chance, flushes)
    if at is None:
        return None
    pid, gone, index = pid_of(lines[at]), set(), at
    while index < len(lines):
        if not lines[index].startswith("#") and pid_of(lines[index]) == pid:
            if not FLUSH.search(lines[index]):
                break
            gone.add(index)
        index += 1
    left = [line for number, line in enumerate(lines) if number not in gone]
    over = next_of_task(left, at - 1, OVER)
    if any("flush_remote" in line for line in left[at:over] if pid_of(line) == pid):
        return None  # flushed again before it was due
    return Damaged(header_for(left), at - 400, over + 2)


def _owed(lines: list[str], flush: int) -> bool:
    """Whether the first line of a flush pays for something that its task has taken away."""
    pid, taken = pid_of(lines[flush]), False
    for index in range(flush - 1, max(0, flush - 3000), -1):
        line = lines[index]
        if line.startswith("#") or pid_of(line) != pid:
            continue
        if FLUSH.search(line):
            return taken and index < flush - 1
        if IN_INVALID.search(line) or OVER.search(line):
            return taken
        if found := CHANGE.search(line):
            level, old, new = int(found[3]), int(found[4], 16), int(found[5], 16)
            zapped = is_leaf(old, level) and not new & PRESENT and new & 0xFFF == 0
            taken |= zapped or bool(is_leaf(new, level) and old & ~new & WRITABLE and old & PRESENT)
    return taken


def flush_lost(lines: list[str], chance: random.Random) -> Damaged | None:
    """The recording has lost the lines of a flush, and its header says how many there were."""
    at = chosen(chance, find(lines, "flush_remote"))
    if at is None:
        return None
    return Damaged([line for index, line in enumerate(lines) if not at <= index < at + 6])


def put_doubled(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chosen(chance, find(lines, r" put_root: .*ref="))
    if at is None:
        return None
    return Damaged(header_for([*lines[: at + 1], lines[at], *lines[at + 1 :]]), at + 1, at + 3)


def last_put_dropped(lines: list[str], chance: random.Random) -> Damaged | None:
    """A root never gets its last put."""
    if not find(lines, "uninit_tdp"):
        return None
    at = chosen(chance, find(lines, r" put_root: .*ref=1 "))
    if at is None:
        return None
    left = [line for index, line in enumerate(lines) if index not in (at - 1, at)]
    return Damaged(header_for(left), 1, len(left))


def leaf_revived(lines: list[str], chance: random.Random) -> Damaged | None:
    """A page of a slot is mapped again after the slot was deleted."""
    at = chosen(chance, find(lines, r" set_memslot: .*change=1 .*old_gfn="))
    if at is None:
        return None
    gfn = re.search(r"old_gfn=0x([0-9a-f]+)", lines[at])
    assert gfn is not None
    slot = int(gfn[1], 16)
    ret = next_of_task(lines, at, re.compile(r" set_memslot_ret: "))
    leaf = chosen(
        chance,
        [
            index
            for index, (as_id, page, level, old, new) in changes(lines[:at])
            if level == 1 and page == slot and is_leaf(new, 1) and not old & PRESENT
        ],
    )
    if leaf is None or "ret=0" not in lines[ret]:
        return None
    stamp = lines[ret].partition(": ")[0]
    revived = f"{stamp}: {lines[leaf].partition(': ')[2]}"
    return Damaged(header_for([*lines[: ret + 1], revived, *lines[ret + 1 :]]), ret + 2, ret + 2)


def leaf_kept(lines: list[str], chance: random.Random) -> Damaged | None:
    """A leaf was not zapped, and another change says that it was."""
    where: dict[tuple[int, ...], list[int]] = {}
    for index, (as_id, gfn, level, old, new) in changes(lines):
        if is_leaf(old, level) and not new & PRESENT and new & 0xFFF == 0:
            where.setdefault((as_id, gfn, level), []).append(index)
    zaps = [index for found in where.values() for index in found[:-1]]
    at = chosen(chance, zaps)
    if at is None:
        return None
    return Damaged(header_for([*lines[:at], *lines[at + 1 :]]), at + 1, len(lines))


def rights_widened(lines: list[str], chance: random.Random) -> Damaged | None:
    """A leaf is writable although the host did not let the fault write."""
    places = []
    for index in find(lines, r" map: .*\bmap_w=0"):
        set_at = next_of_task(lines, index, re.compile(r"spte_changed: |map_ret|kvm_entry: "))
        found = CHANGE.search(lines[set_at])
        if found and is_leaf(int(found[5], 16), int(found[3])) and not int(found[4], 16) & PRESENT:
            places.append(set_at)
    at = chosen(chance, places)
    if at is None:
        return None
    (_, (*_, new)) = next(changes(lines[at : at + 1]))
    wide = new | WRITABLE | HOST_WRITABLE | MMU_WRITABLE
    copy = replaced(lines, at, r"new_spte \w+", f"new_spte {wide:x}")
    said = next_of_task(lines, at, re.compile(r"kvm_mmu_set_spte: |map_ret|kvm_entry: "))
    return Damaged(replaced(copy, said, rf" spte {new:x} ", f" spte {wide:x} "), at + 1, at + 1)


def rights_denied(lines: list[str], chance: random.Random) -> Damaged | None:
    """The same, where the host's answer is what is changed."""
    places = []
    for index in find(lines, r" map: .*\bmap_w=1"):
        set_at = next_of_task(lines, index, re.compile(r"spte_changed: |map_ret|kvm_entry: "))
        found = CHANGE.search(lines[set_at])
        if found and is_leaf(int(found[5], 16), int(found[3])) and not int(found[4], 16) & PRESENT:
            places.append((index, set_at))
    if not places:
        return None
    at, set_at = chance.choice(places)
    return altered(replaced(lines, at, "map_w=1", "map_w=0"), at, "map_w=1", "", set_at + 1)


def writable_only(lines: list[str], chance: random.Random) -> Damaged | None:
    """A leaf is writable although the MMU does not allow writing."""
    at = chosen(
        chance,
        [
            index
            for index, (_, _, level, old, new) in changes(lines)
            if is_leaf(new, level) and not new & (MMU_WRITABLE | WRITABLE) and new >> 57 == 0
        ],
    )
    if at is None:
        return None
    (_, (*_, new)) = next(changes(lines[at : at + 1]))
    return altered(lines, at, r"new_spte \w+", f"new_spte {new | WRITABLE:x}", at + 1)


def zapped_to_garbage(lines: list[str], chance: random.Random) -> Damaged | None:
    """A leaf is replaced by a value that means nothing."""
    at = chosen(
        chance,
        [
            index
            for index, (_, _, level, old, new) in changes(lines)
            if is_leaf(old, level) and not new & PRESENT
        ],
    )
    if at is None:
        return None
    garbage = chance.choice([0xDEAD000, 1, 1 << 62, 0xFF000, (1 << 63) | 0x3A0, 0x5A1, 1 << 12, 3])
    return altered(lines, at, r"new_spte \w+", f"new_spte {garbage:x}", at + 1)


def value_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    """One bit of one value is another, of a table's address or a leaf's frame."""
    at = chosen(
        chance, [i for i, (_, _, _, old, new) in changes(lines) if old & new & PRESENT == 0]
    )
    if at is None:
        return None
    (_, (_, _, _, old, new)) = next(changes(lines[at : at + 1]))
    which, value = ("old_spte", old) if old & PRESENT else ("new_spte", new)
    if not value & PRESENT:
        return None
    bit = 1 << chance.randrange(12, 33)
    return altered(lines, at, rf"{which} \w+", f"{which} {value ^ bit:x}")


def gfn_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chosen(chance, [i for i, (_, _, _, old, new) in changes(lines) if (old | new) & PRESENT])
    if at is None:
        return None
    (_, (_, gfn, level, _, _)) = next(changes(lines[at : at + 1]))
    other = gfn ^ 1 << 9 * (level - 1) + chance.randrange(9)
    return altered(lines, at, r"gfn \w+", f"gfn {other:x}")


def level_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chosen(chance, [i for i, (_, _, _, old, new) in changes(lines) if (old | new) & PRESENT])
    if at is None:
        return None
    (_, (_, _, level, _, _)) = next(changes(lines[at : at + 1]))
    other = chance.choice([each for each in (0, 1, 2, 3, 4, 6) if each != level])
    return altered(lines, at, r"level \d", f"level {other}")


def space_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chosen(chance, [i for i, (_, _, _, old, new) in changes(lines) if (old | new) & PRESENT])
    if at is None:
        return None
    (_, (as_id, *_)) = next(changes(lines[at : at + 1]))
    return altered(lines, at, r"as id \d", f"as id {1 - as_id}")


def generation_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    """An MMIO SPTE is marked with another generation than it holds."""
    places = []
    for index in find(lines, r"mark_mmio_spte: "):
        before = [i for i in range(index - 1, max(0, index - 40), -1) if CHANGE.search(lines[i])]
        own = next((i for i in before if pid_of(lines[i]) == pid_of(lines[index])), None)
        gfn = re.search(r"gfn (\w+)", lines[index])
        assert gfn is not None
        if own is not None and f" gfn {gfn[1]} level 1" in lines[own]:
            places.append(index)
    at = chosen(chance, places)
    if at is None:
        return None
    generation = re.search(r"gen ([0-9a-f]+)", lines[at])
    assert generation is not None
    other = int(generation[1], 16) ^ 1 << chance.randrange(12)
    return altered(lines, at, r"gen \w+", f"gen {other:x}", at + 1)


def frame_changed(lines: list[str], chance: random.Random) -> Damaged | None:
    """A fault has found another frame than the one that it maps."""
    places = []
    for index in find(lines, r"kvm_mmu_spte_requested: "):
        said = next_of_task(lines, index, re.compile(r"spte_changed: .* level 1 |kvm_entry: "))
        if (found := CHANGE.search(lines[said])) and is_leaf(int(found[5], 16), int(found[3])):
            places.append(said)
    at = chosen(chance, places)
    if at is None:
        return None
    (_, (*_, new)) = next(changes(lines[at : at + 1]))
    return altered(lines, at, r"new_spte \w+", f"new_spte {new ^ 1 << 13:x}")


def entry_elsewhere(lines: list[str], chance: random.Random) -> Damaged | None:
    """A fault has written in another table than the one that is linked."""
    first: dict[str, int] = {}
    places = []
    for index in find(lines, r"kvm_mmu_set_spte: gfn \w+ .* level 1 "):
        page = re.search(r"at ([0-9a-f]+)[0-9a-f]{3}$", lines[index])
        if page is None:
            continue
        gfn = re.search(r"gfn (\w+)", lines[index])
        assert gfn is not None
        places.append(index)
        first.setdefault(page[1], index)
    at = chosen(chance, [index for index in places if index not in first.values()])
    if at is None:
        return None
    return altered(lines, at, r" at ([0-9a-f]+)", r" at 1\1")


def confirmed_otherwise(lines: list[str], chance: random.Random) -> Damaged | None:
    """A fault has left another value than its change says."""
    at = chosen(chance, find(lines, r"kvm_mmu_set_spte: "))
    if at is None:
        return None
    spte = re.search(r" spte ([0-9a-f]+)", lines[at])
    assert spte is not None
    value = int(spte[1], 16) ^ 1 << chance.randrange(12, 33)
    return altered(lines, at, r" spte \w+", f" spte {value:x}", at + 1)


def freed_while_linked(lines: list[str], chance: random.Random) -> Damaged | None:
    """RCU frees a page that is linked: its callback comes before its table is removed."""
    callbacks = find(lines, r" free_sp_rcu: ")
    changed = [index for index, _ in changes(lines)]
    if not callbacks or not changed or not find(lines, "put_root: .*ref="):
        return None
    at = changed[min(len(changed) - 1, 6)]
    head = lines[at].partition(": ")[0]
    early = f"{head}: {lines[callbacks[-1]].partition(': ')[2]}"
    return Damaged(header_for([*lines[: at + 1], early, *lines[at + 1 :]]), at + 2, at + 2)


def reload_dropped(lines: list[str], chance: random.Random) -> Damaged | None:
    """A vCPU that was told to drop its root goes on without loading another one."""
    loads = find(lines, r" kvm_mmu_load <-")[1:]
    at = chosen(chance, loads)
    if at is None or not find(lines[:at], "kvm_mmu_zap_all_fast"):
        return None
    pid = pid_of(lines[at])
    end = next_of_task(lines, at, re.compile(r"kvm_entry: "))
    gone = {
        index
        for index in range(at, end)
        if pid_of(lines[index]) == pid and "kvm_entry" not in lines[index]
    }
    left = [line for index, line in enumerate(lines) if index not in gone]
    return Damaged(header_for(left), 1, len(left))


def thawed(lines: list[str], chance: random.Random) -> Damaged | None:
    """A frozen entry is changed by a fault."""
    at = chosen(
        chance,
        [i for i, (*_, new) in changes(lines) if new & ~(1 << 63) in (0x5A0, 0x1A0)],
    )
    if at is None:
        return None
    (_, (*_, new)) = next(changes(lines[at : at + 1]))
    none = new & 1 << 63
    text = re.sub(r"old_spte .*", f"old_spte {new:x} new_spte {none:x}", lines[at])
    return Damaged(header_for([*lines[: at + 1], text, *lines[at + 1 :]]), at + 2, at + 2)


def line_lost(lines: list[str], chance: random.Random) -> Damaged | None:
    """One line is missing, and the header says how many there were."""
    at = chance.randrange(20, len(lines))
    return Damaged([*lines[:at], *lines[at + 1 :]])


def lines_lost(lines: list[str], chance: random.Random) -> Damaged | None:
    """The kernel says that it has dropped some events."""
    at = chance.randrange(20, len(lines))
    count = chance.randrange(1, 60)
    return Damaged([*lines[:at], f"CPU:0 [LOST {count} EVENTS]", *lines[at + count :]])


def beginning_lost(lines: list[str], chance: random.Random) -> Damaged | None:
    """The ring buffer was too small for the beginning."""
    head = [line for line in lines if line.startswith("#")]
    count = len(lines) - len(head)
    gone = chance.randrange(1, count)
    head = [
        re.sub(r"(entries-written: )\d+/\d+", rf"\g<1>{count - gone}/{count}", line)
        for line in head
    ]
    return Damaged([*head, *lines[len(head) + gone :]])


def end_cut(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chance.randrange(20, len(lines))
    return Damaged([*lines[:at], lines[at][: chance.randrange(4, 60)]])


def disordered(lines: list[str], chance: random.Random) -> Damaged | None:
    at = chance.randrange(20, max(21, len(lines) - 60))
    some = lines[at : at + 40]
    while some == lines[at : at + 40]:
        chance.shuffle(some)
    return Damaged([*lines[:at], *some, *lines[at + 40 :]])


BROKEN: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        flush_dropped, put_doubled, last_put_dropped, leaf_revived, leaf_kept, rights_widened,
        rights_denied, writable_only, zapped_to_garbage, value_changed, gfn_changed, level_changed,
        space_changed, generation_changed, frame_changed, entry_elsewhere, confirmed_otherwise,
        freed_while_linked, reload_dropped, thawed,
    )
}  # fmt: skip
"""What no healthy kernel leaves: every one has to be found."""
LOST: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (flush_lost, line_lost, lines_lost, beginning_lost, end_cut, disordered)
}
"""What a recording loses: nothing may be found, and it is INCONCLUSIVE."""
