"""What a recording is made of: one `Event` for each line, with its payload parsed on demand into a
frozen type.

    for event in Reader.open(path):
        match event.name:
            case "kvm_tdp_mmu_spte_changed":  # a tracepoint: its name
                change = event.fields()  # SpteChanged(as_id=0, gfn=0x40000, ...)
            case "put_root":  # a probe event: its own name
                probe = event.fields()  # ProbeEvent(function=..., caller="", args={...})
            case "kvm_mmu_load()":  # a function entry: name with "()"; text is the caller
                ...
            case events.LOST | events.ORDER | events.DAMAGE | ...:   # see `NOTICES`
                ...

`fields()` raises `FieldError` where the payload is not what the event's format says; the reader
never calls it. Formats: reference 3.1 for `kvmmmu`; the kernel's
Documentation/trace/kprobetrace.rst for probe events.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stress.scenario.errors import StressError

RECORDING: Final = "#recording"
"""A recording begins here (its header): in a file that is several, everything known so far belongs
to the one before."""
LOST: Final = "#lost"
"""The kernel dropped events of `cpu` before the next line; `text` says how many, or "" where it
does not know."""
ORDER: Final = "#order"
"""The next event is earlier than one before it: the order of the lines is not the order of the
events from here on."""
ORDERED: Final = "#ordered"
"""The next event is later than all before it: from here on the order of the lines is the order of
the events again."""
MISSING: Final = "#missing"
"""At the end: the header announces more events than the file has."""
DAMAGE: Final = "#damage"
"""A line that is no line of a recording, or the file cannot be read on from here; `text` says what
is wrong."""
NO_GFN: Final = -1
"""The gfn of a page whose event does not name one."""
MARKER: Final = "tracing_mark_write"
"""User space wrote `text` to `trace_marker`."""
NOTICES: Final = frozenset({RECORDING, LOST, MISSING, ORDER, ORDERED, DAMAGE})
"""The names of events that the reader itself makes: they have no task, and `text` is a sentence."""


class TraceError(StressError):
    """A recording that cannot be used at all: missing, of another format, or without a single
    event; exit code 4."""


class FieldError(ValueError):
    """The payload of an event does not fit its format: the line was damaged, or the format is
    unknown."""


class SpteChanged(NamedTuple):
    """`kvm_tdp_mmu_spte_changed`: bookkeeping after the write, and in some paths after the flush
    (reference 2.6)."""

    as_id: int
    gfn: int
    level: int
    old: int
    new: int


class SetSpte(NamedTuple):
    """`kvm_mmu_set_spte`: the leaf that a fault has left, with the physical address of its
    entry."""

    gfn: int
    spte: int
    level: int
    sptep: int


class SpteRequested(NamedTuple):
    """`kvm_mmu_spte_requested`: what a fault is about to map, and the level it aims at."""

    gfn: int
    pfn: int
    level: int
    access: int = -1
    """What the fault may do with the page, where the kernel says it (7.x), else -1."""


class ShadowPageEvent(NamedTuple):
    """`kvm_mmu_get_page`, `kvm_mmu_prepare_zap_page`: a table page is made, or about to be removed
    with all below it."""

    gfn: int
    level: int
    direct: bool
    invalid: bool
    root_count: int
    created: bool


class FastFault(NamedTuple):
    """`fast_page_fault`: an SPTE changed without `mmu_lock`, and without a
    `kvm_tdp_mmu_spte_changed` event."""

    vcpu: int
    address: int
    old: int
    new: int
    spurious: bool
    fixed: bool


class MarkMmio(NamedTuple):
    """`mark_mmio_spte`: an entry becomes an MMIO SPTE of this generation."""

    gfn: int
    access: int
    gen: int


class CheckMmio(NamedTuple):
    """`check_mmio_spte`: is the generation in an MMIO SPTE still the one of the memslots."""

    spte: int
    kvm_gen: int
    spte_gen: int
    valid: bool


class HvaRange(NamedTuple):
    """`kvm_unmap_hva_range`: an mmu notifier names host addresses, `end` exclusive."""

    start: int
    end: int


class ZapAllFast(NamedTuple):
    """`kvm_mmu_zap_all_fast`: the generation before it is flipped."""

    gen: int
    used_pages: int


class VcpuEvent(NamedTuple):
    """`kvm_entry`, `kvm_exit`, `kvm_page_fault`: which vCPU; `address` and `error` only where the
    event has them."""

    vcpu: int
    reason: str
    address: int
    error: int


class Function(NamedTuple):
    """A function was entered."""

    name: str
    caller: str


class ProbeEvent(NamedTuple):
    """A probe event: the function, its caller where the probe is on the return (else ""), and the
    named arguments."""

    function: str
    caller: str
    args: dict[str, int | str]

    def number(self, name: str, default: int | None = None) -> int:
        """The argument as a number; `FieldError` if it is missing and there is no default, or is no
        number."""
        value = self.args.get(name, default)
        if not isinstance(value, int):
            raise FieldError(f"{self.function} has no number {name}=")
        return value


class Text(NamedTuple):
    """Any other payload, user markers among them."""

    text: str


Fields = (
    SpteChanged
    | SetSpte
    | SpteRequested
    | ShadowPageEvent
    | FastFault
    | MarkMmio
    | CheckMmio
    | HvaRange
    | ZapAllFast
    | VcpuEvent
    | Function
    | ProbeEvent
    | Text
)


class Event(NamedTuple):
    """One line. `time` is in the last digit printed: ticks of `trace_clock=counter`, microseconds
    of the others.

    `line` counts from 1 over the whole file. `flags` is the column of irqs-off, need-resched,
    hardirq/softirq, preempt-depth ("" where the recording has none). `text` is the payload; of a
    function entry, its caller.
    """

    line: int
    cpu: int
    pid: int
    task: str
    time: int
    flags: str
    name: str
    text: str

    @property
    def function(self) -> bool:
        """Whether a function was entered (its name ends in `()`)."""
        return self.name.endswith("()")

    @property
    def in_interrupt(self) -> bool:
        """Whether it ran in hard or soft interrupt context: the task is only whoever was
        interrupted."""
        return len(self.flags) > 2 and self.flags[2] in "hHszZ"

    def fields(self) -> Any:
        """The parsed payload, one of `Fields`; raises `FieldError`."""
        parse = PARSERS.get(self.name)
        if parse is not None:
            return parse(self.text)
        if self.function:
            return Function(self.name[:-2], self.text)
        return parse_probe(self.text) if self.text.startswith("(") else Text(self.text)


_PROBE = re.compile(
    r"\(([^\s+()]+)(?:\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?)?(?: \[[^\]]*\])?(?: <- "
    r"([^\s+()]+)(?:\+\S+)?(?: \[[^\]]*\])?)?\)"
)
_ARGUMENT = re.compile(r' ([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|\S+)')
_HEADS: Final[dict[str, tuple[str, str]]] = {}
"""Function and caller by the text in parentheses: the same few come again and again."""
MOST_HEADS: Final = 10_000


def parse_probe(text: str) -> ProbeEvent:
    """`(FUNC+0x4/0xd0 [kvm]) root=0x... ref=1`, and of a return probe `(CALLER+... <- FUNC)
    ret=1`."""
    where, _, rest = text.partition(")")
    head = _HEADS.get(where)
    if head is None:
        head = _probe_head(text, where)
    args: dict[str, int | str] = {}
    if rest:
        pairs = _ARGUMENT.findall(rest) if '"' in rest else _plain_arguments(rest)
        for name, value in pairs:
            try:
                args[name] = int(value, 0)
            except ValueError:
                args[name] = value
    return ProbeEvent(head[0], head[1], args)


def _plain_arguments(rest: str) -> list[list[str]]:
    return [word.split("=", 1) for word in rest.split() if "=" in word]


def _probe_head(text: str, where: str) -> tuple[str, str]:
    found = _PROBE.match(text)
    if found is None:
        raise FieldError("not a probe event: it does not begin with (FUNCTION+OFFSET/SIZE)")
    first, second = found.groups()
    head = (second, first) if second else (first, "")
    if len(_HEADS) < MOST_HEADS and found.end() == len(where) + 1:
        _HEADS[where] = head
    return head


_RAW_FIELD: Final = re.compile(r"(\w+)=(0x[0-9a-fA-F]{1,16}|-?\d{1,20})(?![\w.])", re.ASCII)
"""trace-cmd and perf print fields where they cannot follow the kernel's format (`[FAILED TO PARSE]
gfn=1 ...`: pages without the KVM plugin) or are told to (`trace-cmd report -R`), and tracefs with
its option `fields`."""


def _raw(text: str, names: tuple[str, ...]) -> Any:
    """The values of a payload that is printed field by field; `FieldError` if one is missing."""
    said = {name: int(value, 0) for name, value in _RAW_FIELD.findall(text)}
    if not names or not said.keys() >= set(names):
        raise FieldError(f"the payload is not of the event's format: {text[:80]!r}")
    return [said[name] for name in names]


def _format(
    pattern: str,
    make: Callable[..., Fields],
    fields: str = "",
    of_fields: Callable[..., Fields] | None = None,
) -> Callable[[str], Fields]:
    """A parser for one format: the groups of `pattern` are the arguments of `make`, and where the
    payload is printed field by field, the values of `fields` those of `of_fields`."""
    match = re.compile(pattern, re.ASCII).match
    names = tuple(fields.split())

    def parse(text: str) -> Fields:
        found = match(text)
        if found is not None:
            return make(*found.groups())
        return (of_fields or make)(*_raw(text, names))

    return parse


def _parse_spte_changed(text: str) -> Fields:
    """`as id 0 gfn 1 level 1 old_spte 0 new_spte 1`, where it is just that, without a pattern."""
    words = text.split(" ")
    if words[1::2] == _SPTE_WORDS and len(words) == _SPTE_LENGTH and "-" not in text:
        try:
            return SpteChanged(
                int(words[2]),
                int(words[4], 16),
                int(words[6]),
                int(words[8], 16),
                int(words[10], 16),
            )
        except ValueError:
            pass
    return _parse_changed(text)


def _parse_entry(text: str) -> Fields:
    """`vcpu 0, rip 0x1000`: only the number matters."""
    vcpu, comma, _ = text.partition(",")
    if comma and vcpu[:5] == "vcpu " and vcpu[5:].isdigit():
        return VcpuEvent(int(vcpu[5:]), "", 0, 0)
    return _parse_plain_entry(text)


def _parse_exit(text: str) -> Fields:
    """`vcpu 0 reason npf rip ...`: only the number and the reason matter."""
    words = text.split(" ", 4)
    if len(words) > 4 and words[0] == "vcpu" and words[2] == "reason" and words[1].isdigit():
        return VcpuEvent(int(words[1]), words[3], 0, 0)
    return _parse_plain_exit(text)


def _spte_changed(as_id: str, gfn: str, level: str, old: str, new: str) -> SpteChanged:
    return SpteChanged(int(as_id), int(gfn, 16), int(level), int(old, 16), int(new, 16))


def _requested(gfn: str, pfn: str, level: str, access: str | None) -> SpteRequested:
    allowed = int(access, 16) if access is not None else -1
    return SpteRequested(int(gfn, 16), int(pfn, 16), int(level), allowed)


def _page(
    gfn: str, level: str, direct: str, invalid: str, count: str, created: str | None
) -> ShadowPageEvent:
    return ShadowPageEvent(
        int(gfn, 16), int(level), bool(direct), bool(invalid), int(count), created == "new"
    )


def _fast(vcpu: str, address: str, old: str, new: str, spurious: str, fixed: str) -> FastFault:
    return FastFault(
        int(vcpu), int(address, 16), int(old, 16), int(new, 16), spurious == "1", fixed == "1"
    )


def _check_mmio(spte: str, kvm_gen: str, spte_gen: str, valid: str) -> CheckMmio:
    return CheckMmio(int(spte, 16), int(kvm_gen, 16), int(spte_gen, 16), valid == "1")


_PLUGIN_PAGE = re.compile(
    r"(?:(new|existing) )?(?:sp gfn ([0-9a-f]{1,16}) )?(\d{1,2}) q\d+( direct)? \S+( invalid)? "
    r"!?pae .*\broot (\d{1,10}) ",
    re.ASCII,
)
"""trace-cmd prints pages with its KVM plugin, those that are removed without their gfn."""


def _parse_page(text: str) -> ShadowPageEvent:
    found = _PAGE.match(text)
    if found is not None:
        return _page(*found.groups())
    found = _PLUGIN_PAGE.match(text)
    if found is None:
        return _page_of_fields(text)
    created, gfn, level, direct, invalid, count = found.groups()
    return _page(gfn or str(NO_GFN), level, direct, invalid, count, created)


def _page_of_fields(text: str) -> ShadowPageEvent:
    """The role word holds the level in its lowest bits, and bit 7 says `direct`."""
    gfn, role, count = _raw(text, ("gfn", "role", "root_count"))
    return ShadowPageEvent(
        gfn, role & 0xF, bool(role & 1 << 7), False, count, " created=1" in f" {text}"
    )


_PAGE = re.compile(
    r"sp gen \w+ gfn ([0-9a-f]{1,16}) l(\d{1,2}) \S+ q\d+( direct)? \S+( invalid)? \S+ \S+ root "
    r"(\d{1,10}) "
    r"(?:un)?sync\W*(new|existing)?\W*",
    re.ASCII,
)

_SPTE_WORDS: Final = ["id", "gfn", "level", "old_spte", "new_spte"]
_SPTE_LENGTH: Final = 11
_parse_changed = _format(
    r"as id (\d{1,10}) gfn ([0-9a-f]{1,16}) level (\d{1,10}) old_spte ([0-9a-f]{1,16}) "
    r"new_spte ([0-9a-f]{1,16})(?!\S)",
    _spte_changed,
    "as_id gfn level old_spte new_spte",
    SpteChanged,
)
_parse_plain_entry = _format(
    r"vcpu (\d{1,10})\b", lambda vcpu: VcpuEvent(int(vcpu), "", 0, 0), "vcpu_id"
)
_parse_plain_exit = _format(
    r"(?:vcpu (\d{1,10}) )?reason (\S+)(?:.* vcpu (\d{1,10})\b)?",
    lambda vcpu, reason, last: VcpuEvent(int(vcpu or last or -1), reason, 0, 0),
    "vcpu_id exit_reason",
    lambda vcpu, reason: VcpuEvent(vcpu, f"{reason:#x}", 0, 0),
)

PARSERS: Final[dict[str, Callable[[str], Fields]]] = {
    "kvm_tdp_mmu_spte_changed": _parse_spte_changed,
    "kvm_mmu_set_spte": _format(
        r"gfn ([0-9a-f]{1,16}) spte ([0-9a-f]{1,16}) \(\S*\) level (\d{1,10}) at "
        r"([0-9a-f]{1,16})(?!\S)",
        lambda gfn, spte, level, at: SetSpte(int(gfn, 16), int(spte, 16), int(level), int(at, 16)),
        "gfn spte level sptep",
        SetSpte,
    ),
    "kvm_mmu_spte_requested": _format(
        r"gfn ([0-9a-f]{1,16}) pfn ([0-9a-f]{1,16}) level (\d{1,10})(?: access ([0-9a-f]{1,4}))?\b",
        _requested,
        "gfn pfn level",
        SpteRequested,
    ),
    "kvm_mmu_get_page": _parse_page,
    "kvm_mmu_prepare_zap_page": _parse_page,
    "fast_page_fault": _format(
        r"vcpu (\d{1,10}) gva ([0-9a-f]{1,16}) error_code \S* sptep \S+ old 0x([0-9a-f]{1,16}) new "
        r"([0-9a-f]{1,16}) "
        r"spurious ([01]) fixed ([01])(?!\S)",
        _fast,
    ),
    "mark_mmio_spte": _format(
        r"sptep: ?\S+ gfn ([0-9a-f]{1,16}) access (\w+) gen ([0-9a-f]{1,16})(?!\S)",
        lambda gfn, access, gen: MarkMmio(int(gfn, 16), int(access, 16), int(gen, 16)),
        "gfn access gen",
        MarkMmio,
    ),
    "check_mmio_spte": _format(
        r"spte ([0-9a-f]{1,16}) kvm_gen ([0-9a-f]{1,16}) spte-gen ([0-9a-f]{1,16}) valid "
        r"([01])(?!\S)",
        _check_mmio,
        "spte kvm_gen spte_gen",
        lambda spte, kvm_gen, spte_gen: CheckMmio(spte, kvm_gen, spte_gen, kvm_gen == spte_gen),
    ),
    "kvm_unmap_hva_range": _format(
        r"mmu notifier unmap range: 0x([0-9a-f]{1,16}) -- 0x([0-9a-f]{1,16})(?!\S)",
        lambda start, end: HvaRange(int(start, 16), int(end, 16)),
        "start end",
        HvaRange,
    ),
    "kvm_mmu_zap_all_fast": _format(
        r"kvm-mmu-valid-gen (\w+) used_pages ([0-9a-f]{1,16})(?!\S)",
        lambda gen, used: ZapAllFast(int(gen, 16), int(used, 16)),
        "mmu_valid_gen mmu_used_pages",
        ZapAllFast,
    ),
    "kvm_entry": _parse_entry,
    "kvm_exit": _parse_exit,
    "kvm_page_fault": _format(
        r"(?:vcpu (\d{1,10}) )?(?:rip 0x[0-9a-f]+ )?address 0x([0-9a-f]{1,16}) error_code "
        r"(?:0x)?([0-9a-f]{1,16})",
        lambda vcpu, address, error: VcpuEvent(
            int(vcpu or -1), "", int(address, 16), int(error, 16)
        ),
        "vcpu_id fault_address error_code",
        lambda vcpu, address, error: VcpuEvent(vcpu, "", address, error),
    ),
    "tracing_mark_write": Text,
    "print": Text,
}
"""The payload of each event whose format is known by its name; everything else is a probe event, a
function or text."""
