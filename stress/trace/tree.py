"""What the page tables of one VM must look like, as far as the recording has shown it.

A `Tree` holds the live tables of all roots of a VM. Two roots of an address space have tables for
the same guest frames; which one an event speaks of follows from the task (it zaps or faults on a
root that is known) or from the value that the event says was there. What the recording has never
shown is unknown, and unknown never contradicts anything.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from stress.trace.layouts import (
    ADDRESS,
    LARGE,
    PRESENT,
    WRITABLE,
    is_frozen,
    is_leaf,
    is_table,
    span,
)

UNKNOWN: Final = -1
"""What an entry holds of which nothing was seen."""
EMPTY: Final = 0
"""What an entry holds that maps nothing; the layouts' own non-present values are all this one."""


@define(eq=False)
class Root:
    """A root page: `pointer` is its struct kvm_mmu_page, `hpa` its address; 0 while the recording
    has not shown it."""

    level: int
    born: int
    """Line of its birth, 0 if it is older than the recording."""
    as_id: int = -1
    pointer: int = 0
    hpa: int = 0
    invalid: int = 0
    """Line at which it became invalid, or 0."""
    dead: int = 0
    """Line of its last put, or 0."""
    freed: int = 0
    """Line at which RCU freed it, or 0."""
    seen_invalid: int = 0
    """Line at which its role word said that it is invalid, or 0."""
    gets: int = 2
    puts: int = 0
    """References taken and dropped since birth: the TDP MMU's and the first vCPU's come with it."""
    tainted: bool = False
    """Whether something may have happened in it that was not attributed to it."""
    role: int = 0
    """Its role word at birth, 0 if unknown."""
    counted: bool = False
    """Whether `gets` and `puts` are complete."""

    def valid_at(self, line: int) -> bool:
        """Whether it was valid at a line, as far as its invalidation is known."""
        return not self.invalid or self.invalid > line

    @property
    def sure(self) -> bool:
        """Whether everything that ever happened in it is known."""
        return self.born > 0 and not self.tainted


@define(eq=False)
class TracedTable:
    """One table page. `entries` holds (value, line); what is not in it is `default`."""

    level: int
    base: int
    as_id: int
    root: Root | None
    address: int
    """Physical address, 0 if unknown."""
    line: int
    default: int
    parent: TracedTable | None = None
    split_of: int = 0
    """The huge leaf whose parts it began with."""
    entries: dict[int, tuple[int, int]] = field(factory=dict)
    removed: int = 0
    """Line at which its parent let go of it, or 0."""
    remover: int = 0
    """The task that did so."""
    emptied: int = 0
    """Line at which the task that removed it was done with it, or 0."""

    def get(self, index: int) -> tuple[int, int]:
        """The value of an entry and the line that said so."""
        found = self.entries.get(index)
        if found is not None:
            return found
        if self.split_of:
            return self._part(index), self.line
        return self.default, self.line

    def _part(self, index: int) -> int:
        """make_huge_page_split_spte()."""
        value = self.split_of + index * span(self.level) * 4096
        return value & ~LARGE if self.level == 1 else value

    def leaves(self) -> list[tuple[int, int, int]]:
        """(index, value, line) of everything in it that maps memory."""
        if self.split_of:
            return [(i, *self.get(i)) for i in range(512) if is_leaf(self.get(i)[0], self.level)]
        return [
            (i, value, line)
            for i, (value, line) in self.entries.items()
            if value > 0 and is_leaf(value, self.level)
        ]


def normal(spte: int) -> int:
    """An SPTE as the tree keeps it: every kernel's non-present value is `EMPTY`."""
    return EMPTY if spte in (0, 1 << 63) else spte


Where = tuple[int, int, int]
"""as_id, level and first guest frame of a table."""
NO_TABLES: Final[list[TracedTable]] = []


@define(eq=False)
class TracedTree:
    """All tables of one VM."""

    complete: bool = False
    """Whether the recording saw the VM's beginning: then a table that is not here does not
    exist."""
    proven: bool = False
    """Whether the recording saw the VM being made, and not only the first root of it."""
    renewed: int = 0
    """Line at which all valid roots there were became invalid: every valid root was born after
    it."""
    roots: list[Root] = field(factory=list)
    live: dict[Where, list[TracedTable]] = field(factory=dict)
    dying: dict[Where, list[TracedTable]] = field(factory=dict)
    linked: int = 0
    """Tables below a root that are linked now."""
    by_address: dict[int, TracedTable] = field(factory=dict)
    leaves: dict[int, int] = field(factory=lambda: {1: 0, 2: 0, 3: 0})
    root_level: int = 0

    def add(self, table: TracedTable) -> None:
        """A table is there from now on."""
        self.live.setdefault((table.as_id, table.level, table.base), []).append(table)
        if table.address:
            self.by_address[table.address] = table

    def knows(self, table: TracedTable) -> bool:
        """Whether everything in a table is known: nothing in it is older than the recording, or was
        attributed wrongly."""
        root = table.root
        return root is not None and not root.tainted and (self.complete or root.born > 0)

    def taint(self, as_id: int = -1) -> None:
        """Something happened in one of the trees (of an address space), and nothing says in
        which."""
        for root in self.roots:
            if as_id < 0 or root.as_id in (as_id, -1):
                root.tainted = True

    def untainted(self, as_id: int = -1) -> bool:
        """Whether everything that happened in the trees (of an address space) was attributed."""
        return not any(
            root.tainted for root in self.roots if as_id < 0 or root.as_id in (as_id, -1)
        )

    def born(self, level: int, line: int) -> Root:
        """A root page was made; its address space shows with its first entry."""
        root = Root(level, line, counted=True)
        self.roots.append(root)
        self.root_level = max(self.root_level, level)
        return root

    def table_of(self, root: Root) -> TracedTable | None:
        """The root page itself."""
        for table in self.live.get((root.as_id, root.level, 0), ()):
            if table.root is root:
                return table
        return None

    def settle(self, root: Root, as_id: int) -> TracedTable:
        """A root's address space is known now, so its page can be found."""
        root.as_id = as_id
        self.drop_emptied(as_id, root.level)
        table = TracedTable(
            root.level, 0, as_id, root, root.hpa, root.born, EMPTY if root.born else UNKNOWN
        )
        self.live.setdefault((as_id, root.level, 0), []).append(table)
        return table

    def drop_emptied(self, as_id: int, level: int) -> None:
        """Forget root pages that hold nothing any more and are not in use: those of invalid roots,
        and once there is a new root those of a VM that is gone."""
        where = (as_id, level, 0)
        pages = self.live.get(where)
        if pages:
            self.live[where] = [
                page
                for page in pages
                if page.default == UNKNOWN
                or not page.entries
                or any(value > 0 or value == UNKNOWN for value, _ in page.entries.values())
            ]

    def tables_at(self, as_id: int, level: int, gfn: int) -> list[TracedTable]:
        """The linked tables that can hold the entry for `gfn` at `level`."""
        where = (as_id, level, gfn >> 9 * level << 9 * level)
        if level == self.root_level:
            for root in self.roots:
                if root.as_id < 0 and root.level == level and not root.dead:
                    self.settle(root, as_id)
                    break
        return self.live.get(where, NO_TABLES)

    def removed_at(self, as_id: int, level: int, gfn: int) -> list[TracedTable]:
        """The tables for this place that were unlinked and are being emptied."""
        return self.dying.get((as_id, level, gfn >> 9 * level << 9 * level), NO_TABLES)

    def link(
        self, parent: TracedTable, index: int, value: int, line: int, split_of: int
    ) -> TracedTable:
        """A table is hung into `parent`: empty, or with the parts of the huge leaf that it
        replaces."""
        where = (parent.as_id, parent.level - 1, parent.base + index * span(parent.level))
        return self.link_at(where, value, line, split_of, parent, parent.root)

    def link_at(
        self,
        where: Where,
        value: int,
        line: int,
        split_of: int,
        parent: TracedTable | None,
        root: Root | None,
    ) -> TracedTable:
        """A table is linked; its parent and root may be unknown."""
        default = EMPTY if not split_of else UNKNOWN
        as_id, level, base = where
        table = TracedTable(
            level, base, as_id, root, value & ADDRESS, line, default, parent, split_of
        )
        self.add(table)
        return table

    def child(self, parent: TracedTable, index: int, value: int) -> TracedTable | None:
        """The table that the entry `index` of `parent` points to."""
        base = parent.base + index * span(parent.level)
        address = value & ADDRESS
        known = self.by_address.get(address)
        if known is not None and not known.removed and known.base == base:
            return known
        for table in self.live.get((parent.as_id, parent.level - 1, base), ()):
            if table.parent is parent or (table.parent is None and not table.address):
                return table
        return None

    def unlink(self, table: TracedTable, line: int, pid: int) -> None:
        """The entry that pointed to `table` is gone; what is below it goes entry by entry."""
        where = (table.as_id, table.level, table.base)
        tables = self.live.get(where, [])
        if table in tables:
            tables.remove(table)
            if not tables:
                del self.live[where]
        table.removed, table.remover = line, pid
        if self.by_address.get(table.address) is table:
            del self.by_address[table.address]
        self.dying.setdefault(where, []).append(table)

    def drop(self, table: TracedTable) -> None:
        """Nothing more can happen to a removed table."""
        where = (table.as_id, table.level, table.base)
        tables = self.dying.get(where, [])
        if table in tables:
            tables.remove(table)
            if not tables:
                del self.dying[where]

    def leaves_in(
        self, as_id: int, first: int, count: int
    ) -> list[tuple[TracedTable, int, int, int]]:
        """(table, gfn, value, line) of every leaf that maps something of a range."""
        found = []
        for (space, level, base), tables in self.live.items():
            if (
                space != as_id
                or level > 3
                or base + span(level + 1) <= first
                or base >= first + count
            ):
                continue
            size = span(level)
            for table in tables:
                for index, value, line in table.leaves():
                    gfn = base + index * size
                    if gfn < first + count and gfn + size > first:
                        found.append((table, gfn, value, line))
        return found


def agrees(known: int, said: int, vendor_volatile: int, writable_may_differ: int) -> bool:
    """Whether an entry known to hold `known` can be what the event says was there, `said`.

    Hardware sets accessed and dirty bits without an event; fast_page_fault() sets W without this
    event.
    """
    if known in (UNKNOWN, said):
        return True
    if known <= 0 or is_frozen(known):
        return is_frozen(known) and said == EMPTY  # whoever froze it lets go of it without an event
    if not (known & PRESENT and said & PRESENT):
        return False
    if known & WRITABLE and not said & WRITABLE:
        return False  # whoever takes W away reports it
    return not (known ^ said) & ~(vendor_volatile | writable_may_differ)


def kind(spte: int, level: int) -> str:
    """What an SPTE is, in a word."""
    if spte == UNKNOWN:
        return "unknown"
    if normal(spte) == EMPTY:
        return "empty"
    if is_frozen(spte):
        return "frozen"
    if is_table(spte, level):
        return "table"
    return "leaf" if is_leaf(spte, level) else "MMIO"
