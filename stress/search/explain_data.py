"""What an explanation of a failing schedule consists of, as values, and the kernel's words for what
a step does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from attrs import frozen

from mmu.kvm import ADDRESS_SPACES
from mmu.memory.host import AS_SHIFT, FREED, SEVERAL
from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS, KVM_MEMSLOT_INVALID
from mmu.memory.requests import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_UPDATE_CPU_DIRTY_LOGGING,
)
from mmu.paging.spte import (
    PRESENT_HIGH,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_MMIO,
    SPTE_PS,
    SPTE_R,
    SPTE_W,
    SPTE_X,
    SpteLayout,
    pfn_of,
)
from stress.engines.steps import (
    ACQUIRE,
    ADD,
    ENDING,
    FREE,
    LOAD,
    MB,
    READ_ACQUIRE,
    READ_RELEASE,
    RELAX,
    RELEASE,
    SPAWN,
    START,
    STORE,
    WAIT,
    YIELD,
)


@frozen
class ExplainedFinding:
    """A broken rule, and when it was reported: after `step`, where the number of all steps stands
    for the end. `waits` says who waits for whom then, if that is what is wrong. `stands_for` is the
    rule that was broken before, and its meaning, where what was reported is only the state that it
    led to."""

    rule: str
    meaning: str
    code: str
    headline: str
    sentence: str
    source: str
    task: str
    step: int
    waits: tuple[str, ...] = ()
    stands_for: str = ""

    @property
    def title(self) -> str:
        """The rule by number and name, or the one that an invariant stands for: "O4 REFCOUNT", "O4
        REFCOUNT (invariant I3)"."""
        if self.stands_for:
            return f"{self.stands_for.partition(':')[0]} (invariant {self.code})"
        return f"{self.rule} {self.meaning.partition(':')[0]}".rstrip()

    def when(self, steps: int) -> str:
        """When it was reported, in a schedule of `steps` steps."""
        if self.step < steps:
            return f"after step {self.step}"
        return (
            "at the end, when nobody could go on"
            if self.waits
            else "at the end, when everybody was done"
        )


@frozen
class StepRow:
    """A step of the interleaving. `function` is the kernel's name of where it happened, `operation`
    what the actor was asked to do, `partners` the steps of other tasks that it does not commute
    with and that came just before or after on the same word; `more` how many steps like it follow
    that are left out; `switches` the numbers of the switches since the row before."""

    step: int
    task: str
    what: str
    function: str
    operation: str
    partners: tuple[int, ...] = ()
    more: int = 0
    switches: tuple[int, ...] = ()


@frozen
class Picture:
    """Page tables, TLBs and memslots after a step; step -1 is the start."""

    step: int
    lines: tuple[str, ...]


@frozen
class Switch:
    """A switch before `step` away from a task that could have gone on, and what comes of the
    schedule without it: "no failure", "the same failure", or another one by its signature."""

    number: int
    step: int
    away_from: str
    to: str
    without: str

    @property
    def decisive(self) -> bool:
        """Whether nothing fails without it."""
        return self.without == NO_FAILURE


SHUTS: Final = " shuts others out"
"""The end of the text for the first half of taking a fair lock for write."""
NO_FAILURE: Final = "no failure"
SAME_FAILURE: Final = "the same failure"


@frozen
class Inevitable:
    """From which step on every continuation that was tried fails in the same way: `step` (-1: from
    the start), of `tried` random continuations and the default one; before that step
    `failed_before` of `tried` random ones fail."""

    step: int
    tried: int
    failed_before: int


@frozen
class Explanation:
    """A failing schedule, explained. `rows` are the steps that conflict with those of another task
    and lie before the finding, `columns` the tasks that they are of. `likelihood` is, for some
    numbers of first steps, how many of `tries` random continuations of them fail in the same
    way."""

    program: str
    seed: int
    steps: int
    turns: int
    summary: tuple[str, ...]
    finding: ExplainedFinding
    others: tuple[ExplainedFinding, ...]
    columns: tuple[str, ...]
    rows: tuple[StepRow, ...]
    left_out: int
    pictures: tuple[Picture, ...]
    switches: tuple[Switch, ...]
    untried_switches: int
    inevitable: Inevitable | None
    likelihood: tuple[tuple[int, int], ...]
    tries: int
    predicted: bool = False


# The kernel's words.


@frozen
class Doing:
    """A step as it is done: the operation's `kind` and `method`, on word `index` of `thing`, called
    `name`, with its value before and after; `owner` is whom the word belongs to, `role` what it is
    to him; `domain_calls` the primitives that the step is part of, innermost first; `waits_for`
    what the task says it waits for; `what` the object that is freed or given to RCU."""

    kind: int
    method: str
    name: str
    index: int = 0
    before: Any = None
    after: Any = None
    role: str = ""
    owner: Any = None
    maker: str = ""
    calls: tuple[str, ...] = ()
    waits_for: str = ""
    what: str = ""

    def called(self, *names: str) -> bool:
        """Whether the step is part of one of these primitives."""
        return any(name in self.calls for name in names)


raw: Final[Callable[[Any, str], Any]] = object.__getattribute__
"""An attribute of an object that may have been freed, without counting as a touch."""

NOISE: Final = re.compile(
    r"control\.|script\.|oracle\.|page_table_memory|page_table_pages|rcu\.(queued|done|stop|has_worker|callback_task|grace_periods)$"
    r"|.*\.(readers|last_put|done|gone)$|remote_tlb_flush|nx_lpage_splits|tdp_mmu_pages$|dirty_clock$|host\.(epoch|next_hva)"
    r"|frame index|frames\.out|exporter\.wrong_answers"
    r"|(kvm|vm)\.(vcpus|devices)|kvm->created_vcpus|vcpu\.exits$|mmu_valid_gen|.*\.asking$|start$"
)
"""Words of the harness and statistics: nobody's course depends on them, or only that of the
judges."""

MODES: Final = {0: "OUTSIDE_GUEST_MODE", 1: "IN_GUEST_MODE", 2: "EXITING_GUEST_MODE"}
REQUESTS: Final = {
    KVM_REQ_TLB_FLUSH: "TLB_FLUSH",
    KVM_REQ_TLB_FLUSH_CURRENT: "TLB_FLUSH_CURRENT",
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: "MMU_FREE_OBSOLETE_ROOTS",
    KVM_REQ_UPDATE_CPU_DIRTY_LOGGING: "UPDATE_CPU_DIRTY_LOGGING",
}
HEXADECIMAL: Final = re.compile("SPTE|host PTE|possible")
PREFIXES: Final = ("mmu_invalidate", "mn_active", "tdp_mmu_roots", "nx_huge_pages", "users_count")
"""Fields of struct kvm whose words do not say so."""


def bits_text(bits: int) -> str:
    """vcpu->requests by name."""
    return " | ".join(name for bit, name in REQUESTS.items() if bits & bit) or (
        f"{bits:#x}" if bits else "none"
    )


def rights_text(spte: int, layout: SpteLayout) -> str:
    """A leaf's rights and bits: "RW- AD"."""
    rights = "".join(
        letter if spte & bit else "-"
        for letter, bit in (("R", SPTE_R), ("W", SPTE_W), ("X", SPTE_X))
    )
    marks = (
        "".join(letter for letter, bit in (("A", SPTE_A), ("D", SPTE_D)) if spte & bit)
        if layout.ad_bits
        else ""
    )
    return f"{rights} {marks}".rstrip()


def spte_text(spte: int, level: int, layout: SpteLayout = PRESENT_HIGH) -> str:
    """The value of an SPTE: "0", "FROZEN", "table 0x105000", "leaf pfn 0x7 RWX AD"."""
    if not spte or spte == REMOVED_SPTE:
        return "FROZEN" if spte else "0"
    if spte & SPTE_MMIO:
        return f"MMIO, generation {layout.mmio_generation(spte)}"
    if not spte & layout.present:
        return f"{spte:#x}"
    if level > 1 and not spte & SPTE_PS:
        rights = rights_text(spte & ~(SPTE_A | SPTE_D), layout)
        return f"table {pfn_of(spte) << 12:#x}" + ("" if rights == "RWX" else f" {rights}")
    return (
        f"{'huge ' if spte & SPTE_PS else ''}leaf pfn {pfn_of(spte):#x} {rights_text(spte, layout)}"
    )


def tag_text(tag: int) -> str:
    """Whose a frame is."""
    if tag in (FREED, SEVERAL):
        return "nobody: it is free" if tag == FREED else "read-only, or several gfns"
    as_id, gfn = tag >> AS_SHIFT, tag & ((1 << AS_SHIFT) - 1)
    return f"{'SMM ' if as_id else ''}gfn {gfn:#x}"


def slot_text(slot: Any) -> str:
    """A memslot: "slot 10 at gfn 0x4..0x5 INVALID"."""
    first, pages = raw(slot, "base_gfn"), raw(slot, "npages")
    where = f"{first:#x}" if pages == 1 else f"{first:#x}..{first + pages - 1:#x}"
    return f"slot {raw(slot, 'id')} at gfn {where}" + (
        " INVALID" if raw(slot, "flags") & KVM_MEMSLOT_INVALID else ""
    )


def slots_text(index: Any) -> str:
    """The slots of a set."""
    return ", ".join(map(slot_text, index[1])) or "no slots"


def value_text(value: Any, hexadecimal: bool = False) -> str:
    """Any value, without anything that differs from run to run."""
    if value is None or isinstance(value, bool):
        return {None: "NULL", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return f"{value:#x}" if hexadecimal or abs(value) > 0xFFFF else str(value)
    if isinstance(value, str):
        return value or "nobody"
    if isinstance(value, tuple | list):
        return f"{len(value)} entries" if len(value) != 1 else "1 entry"
    return _object_text(value, type(value).__name__.removeprefix("Freed"))


def _object_text(value: Any, kind: str) -> str:
    if kind in ("RootPage", "ShadowPage"):
        return f"{'root' if kind == 'RootPage' else 'table'} {raw(value, 'address'):#x}"
    if kind == "MemslotSet":
        return f"set with {slots_text(raw(value, 'index').peek())}"
    return f"a {kind}"


def page_text(page: Any) -> str:
    """A table page by its place."""
    address, level = raw(page, "address"), raw(page, "level")
    if type(page).__name__.endswith("RootPage"):
        return f"root {address:#x}"
    return f"page-table page {address:#x}" + (
        f" (level {level}, gfn {raw(page, 'gfn'):#x})" if level else ""
    )


def generation_text(generation: int) -> str:
    """A memslot generation: its number, and whether an update is under way."""
    number = generation & ~GEN_UPDATE_IN_PROGRESS
    return f"{number}, update in progress" if generation & GEN_UPDATE_IN_PROGRESS else str(number)


class Words:
    """Says what a step does in the kernel's words; "" for what only the harness or a statistic
    does."""

    def __init__(
        self, layout: SpteLayout = PRESENT_HIGH, pages: Callable[[int], int] = lambda _: 1
    ) -> None:
        """`pages(level)` is how many frames an entry at `level` maps."""
        self._layout = layout
        self._pages = pages
        self._by_role: dict[str, Callable[[Doing], str]] = {
            "spt": self._spte,
            "mode": lambda it: self._plain(
                it, f"{it.owner}->mode", lambda value: MODES.get(value, str(value))
            ),
            "requests": self._requests,
            "immediate_exit": lambda it: self._plain(it, f"{it.owner}->run->immediate_exit"),
            "refcount": lambda it: self._count(it, f"{page_text(it.owner)}: refcount"),
            "root": self._root,
            "slots": lambda it: self._plain(it, it.owner, slots_text),
            "generation": lambda it: self._plain(it, f"{it.owner}.generation", generation_text),
            "lock": _lock,
        }

    def say(self, it: Doing) -> str:
        """The step in the kernel's words."""
        common = self._common(it)
        if common is not None:
            return common
        if NOISE.match(it.name) and it.kind != WAIT:
            return ""
        if it.name.endswith(".gp_seq"):
            return f"{_grace_period(it)} begins" if it.kind != LOAD else ""
        named = _BY_NAME.get(re.split(r"[\[#]", it.name)[0])
        handler = (
            self._by_role.get(it.role)
            or named
            or (_reader if it.name.endswith(".reader") else self._generic)
        )
        return handler(it)

    def _common(self, it: Doing) -> str | None:
        """What does not depend on the word."""
        if it.called("EpochDomain.inside", "EpochDomain.check_outlasted", "EpochDomain.enlist"):
            return ""
        if it.kind in (WAIT, RELAX):
            return _waited(it)
        if it.kind in (FREE, ENDING):
            return f"frees {it.what or it.name.split('[')[0]}"
        return {
            SPAWN: f"starts {it.name}",
            START: "",
            YIELD: "",
            MB: "smp_mb()",
        }.get(it.kind)

    def _spte(self, it: Doing) -> str:
        page, level = it.owner, raw(it.owner, "level")
        if not level:
            return ""
        gfn = raw(page, "gfn") + it.index * self._pages(level)
        name = f"SPTE(gfn {gfn:#x}, level {level})"
        said = self._plain(it, name, lambda value: spte_text(value, level, self._layout))
        return (
            f"{said}, was {spte_text(it.before, level, self._layout)}" if it.kind == STORE else said
        )

    def _requests(self, it: Doing) -> str:
        name = f"{it.owner}->requests"
        if it.method == "fetch_or":
            new = it.after & ~it.before
            return (
                f"{name} |= {bits_text(new)}"
                if new
                else f"{name} has {bits_text(it.after)} already"
            )
        if it.method == "fetch_and":
            return f"{name}: takes {bits_text(it.before & ~it.after)}"
        return self._plain(it, name, bits_text)

    def _count(self, it: Doing, name: str) -> str:
        if it.kind == LOAD:
            return f"{name} -> {it.after}"
        return f"{name} {it.before} -> {it.after}"

    def _root(self, it: Doing) -> str:
        """A field of a root; reaching the end of the list of roots says nothing."""
        ends = it.name == "root.next" and it.after is None
        return (
            ""
            if ends
            else self._plain(it, f"{page_text(it.owner)}: {it.name.removeprefix('root.')}")
        )

    def _generic(self, it: Doing) -> str:
        name = f"kvm->{it.name}" if it.name.startswith(PREFIXES) else it.name
        return self._plain(
            it, name, lambda value: value_text(value, bool(HEXADECIMAL.match(it.name)))
        )

    def _plain(self, it: Doing, name: str, text: Callable[[Any], str] = value_text) -> str:
        """Loads, stores and exchanges of any word."""
        if it.kind == LOAD:
            failed = "cmpxchg fails: " if it.method == "cmpxchg" else ""
            return f"{failed}{name} -> {text(it.after)}"
        if it.kind == STORE:
            return f"{name} = {text(it.after)}"
        if it.kind == ADD:
            return f"{name} += {it.after - it.before}" if isinstance(it.after, int) else name
        how = it.method if it.method in ("cmpxchg", "xchg") else ""
        return f"{how} {name}: {text(it.before)} -> {text(it.after)}".lstrip()


def _reader(it: Doing) -> str:
    """An RCU or SRCU reader's word: entering and leaving, or a grace period that looks at it."""
    domain = it.name.rsplit(".", 1)[0]
    if it.kind == STORE:
        if domain == "rcu":
            return "rcu_read_lock()" if it.after else "rcu_read_unlock()"
        return f"srcu_read_lock({domain})" if it.after else f"srcu_read_unlock({domain})"
    if it.kind == LOAD:
        return (
            f"{_grace_period(it)}: {it.maker} is "
            f"{'inside a read section' if it.after else 'outside'}"
        )
    return ""


def _grace_period(it: Doing) -> str:
    """Whose grace period a step is part of."""
    domain = re.sub(r"\.(reader|gp_seq)$", "", it.name)
    if it.called("Srcu.synchronize"):
        return f"synchronize_srcu({domain})"
    return "synchronize_rcu()" if it.called("Rcu.synchronize") else f"{domain} grace period"


def _waited(it: Doing) -> str:
    """The end of a wait."""
    what = it.waits_for
    if it.kind == RELAX:
        return ""
    if it.called("EpochDomain._wait_for"):
        return f"{_grace_period(it)}: waited for {it.maker} to leave its read section"
    if what == "rcu callbacks" or it.name.startswith(("control.", "start")):
        return ""
    return f"waited for {what}" if what else "waited"


def _lock(it: Doing) -> str:
    """Acquiring and releasing, with the names of mutexes, spinlocks and rwlocks."""
    name = it.name
    if it.kind in (READ_ACQUIRE, READ_RELEASE):
        return f"read_lock({name})" if it.kind == READ_ACQUIRE else f"read_unlock({name})"
    words = _LOCK
    if it.method in ("acquire", "release") and it.called("SpinLock"):
        words = _SPINLOCK
    elif it.called("Mutex"):
        words = _MUTEX
    return f"{words[_LOCK_KINDS.get(it.kind, 2)]}({name})"


_LOCK_KINDS = {ACQUIRE: 0, RELEASE: 1, LOAD: 3}
"""Where in the tuples below a kind of step is; any other is a trylock."""
_LOCK = ("lock", "unlock", "trylock", "is_locked")
_SPINLOCK = ("spin_lock", "spin_unlock", "spin_trylock", "spin_is_locked")
_MUTEX = ("mutex_lock", "mutex_unlock", "mutex_trylock", "mutex_is_locked")


def rwlock_words(kind: int, index: int, fair: bool, name: str, value: str) -> str:
    """The steps of a reader-writer lock, which has three words: its gate, who asks for it, and who
    is inside."""
    if index == 1:
        return (
            f"rwlock_needbreak({name}) -> {'true' if value != '0' else 'false'}"
            if kind == LOAD
            else ""
        )
    if kind == ACQUIRE:
        return f"write_lock({name})" if index == 2 or not fair else f"write_lock({name}){SHUTS}"
    if kind == RELEASE:
        return f"write_unlock({name})"
    return {READ_ACQUIRE: f"read_lock({name})", READ_RELEASE: f"read_unlock({name})"}.get(kind, "")


def _queue(what: str) -> Callable[[Doing], str]:
    """A queue whose items are called `what`."""

    def say(it: Doing) -> str:
        if it.kind == LOAD:
            return f"{what}: {it.after} queued"
        return f"queues {what}" if it.method == "put" else f"takes {what}"

    return say


def _callbacks(it: Doing) -> str:
    if it.method != "put":
        return "" if it.kind == LOAD else "takes the RCU callbacks that are queued"
    return f"call_rcu(): to free {it.what}" if it.what else "call_rcu()"


def _owner(it: Doing) -> str:
    if it.kind == LOAD:
        return f"uses frame {it.index:#x}, which belongs to {tag_text(it.after)}"
    return f"frame {it.index:#x} belongs to {tag_text(it.after)}"


def _data(it: Doing) -> str:
    if it.kind == LOAD:
        return f"reads frame {it.index:#x}"
    return f"frame {it.index:#x} is cleared" if not it.after else f"writes to frame {it.index:#x}"


def _dirty(it: Doing) -> str:
    return f"dirty_bitmap[{it.index:#x}] " + (
        f"-> {it.after}" if it.kind == LOAD else f"= {it.after}"
    )


def _host_pte(it: Doing) -> str:
    name = f"host PTE({it.owner}, page {it.index})" if it.owner else f"host PTE(page {it.index})"
    new = f"frame {it.after:#x}" if it.after else "none"
    return f"{name} -> {new}" if it.kind == LOAD else f"{name} = {new}"


def _host_level(it: Doing) -> str:
    """How large the host's own mapping of a page is."""
    size = {0: "not mapped", 1: "4K", 2: "2M", 3: "1G"}.get(it.after, str(it.after))
    return f"host level(page {it.index}) {'->' if it.kind == LOAD else '='} {size}"


def _mm_users(it: Doing) -> str:
    """Of the references on the process's memory only the last one to go matters, and who comes too
    late for it."""
    if it.after:
        return ""
    return "mm->mm_users -> 0" if it.kind == LOAD else f"mm->mm_users: {it.before} -> 0"


def _memslots(it: Doing) -> str:
    name = f"kvm->memslots[{it.name[-2]}]" if ADDRESS_SPACES > 1 else it.name
    return (
        f"{name} -> {value_text(it.after)}"
        if it.kind == LOAD
        else f"{name} = {value_text(it.after)}"
    )


_BY_NAME: Final[dict[str, Callable[[Doing], str]]] = {
    "rcu callbacks": _callbacks,
    "frame owner": _owner,
    "frame data": _data,
    "dirty bitmap": _dirty,
    "host PTE": _host_pte,
    "host level": _host_level,
    "kvm->memslots": _memslots,
    "mm->mm_users": _mm_users,
    "free frames": _queue("a free frame"),
    "IO page faults": _queue("an IO page fault"),
    "userfaults": _queue("a userfault"),
    "zap workqueue": _queue("a root to zap"),
    "pfn_dirtied": lambda it: f"kvm_set_pfn_dirty({it.index:#x})" if it.kind != LOAD else "",
}
"""Words by the name of their object, its index aside."""
