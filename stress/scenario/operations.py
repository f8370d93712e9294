"""Operations: what an actor does, one by one, as values and as text; a script is a list of them.

A random step is made of the same operations, so what a random run has done can be written down and
done again.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from attrs import frozen

from mmu.machine.vcpu import FETCH
from stress.scenario.names import nearest

_ACCESS = re.compile(r"([rwx])(.+)", re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,18}", re.ASCII | re.IGNORECASE)


class OpError(ValueError):
    """A text that is no operation: what was found, what would be right, and the nearest valid
    name."""

    def __init__(self, found: str, expected: str, hint: str = "") -> None:
        super().__init__(f"{found}; expected {expected}" + (f" ({hint})" if hint else ""))
        self.found = found
        self.expected = expected
        self.hint = hint


@frozen
class Argument:
    """One argument of an operation: a number, one of `words` (which stand for 0, 1, ...), or memory
    accesses (`many`)."""

    name: str
    hexadecimal: bool = False
    words: tuple[str, ...] = ()
    many: bool = False

    def text(self, value: int) -> str:
        """The value as it is written."""
        if self.many:
            return access_text(value)
        if self.words and value < len(self.words):
            return self.words[value]
        return f"{value:#x}" if self.hexadecimal else str(value)

    def value(self, text: str) -> int:
        """The value of a text; a word's number will do, too."""
        if self.many:
            return _access(text)
        if text in self.words:
            return self.words.index(text)
        number = _number(text)
        if number is None or (self.words and number >= len(self.words)):
            hint = nearest(text, self.words)
            raise OpError(
                f"found {text!r} as {self.name}",
                " or ".join(self.words) or "a whole number from 0 on",
                hint,
            )
        return number


@frozen
class ScriptVerb:
    """What an operation is called with, and what it does."""

    arguments: tuple[Argument, ...]
    meaning: str

    def signature(self, name: str) -> str:
        """Name and arguments, such as "discard R FIRST LAST"."""
        return " ".join(
            [name, *("|".join(argument.words) or argument.name for argument in self.arguments)]
        )

    @property
    def many(self) -> bool:
        """Whether the last argument may be repeated."""
        return bool(self.arguments) and self.arguments[-1].many


GFN: Final = Argument("GFN", hexadecimal=True)
FIRST_GFN: Final = Argument("FIRST", hexadecimal=True)
LAST_GFN: Final = Argument("LAST", hexadecimal=True)
SWITCH: Final = Argument("on|off", words=("off", "on"))
HOW: Final = Argument("HOW", words=("flush", "clear", "test"))
PAGES: Final = Argument("N")
SLOT: Final = Argument("I")
CPU: Final = Argument("C")
REGION: Final = Argument("R")
FIRST: Final = Argument("FIRST")
LAST: Final = Argument("LAST")
ACCESSES: Final = Argument("ACCESS...", many=True)

VOCABULARY: Final[dict[str, dict[str, ScriptVerb]]] = {
    "vcpu": {
        "read": ScriptVerb((GFN,), "one KVM_RUN with one load"),
        "write": ScriptVerb((GFN,), "one KVM_RUN with one store"),
        "fetch": ScriptVerb((GFN,), "one KVM_RUN with one instruction fetch"),
        "run": ScriptVerb(
            (ACCESSES,),
            "one KVM_RUN with these accesses, such as run r0x4 w0x4 x0x5; an MMIO exit ends it",
        ),
        "smm": ScriptVerb(
            (SWITCH,), "enter or leave system management mode, unless that is so already"
        ),
        "nested": ScriptVerb(
            (SWITCH,),
            "enter or leave a nested guest, unless that is so already or the vCPU is in SMM",
        ),
        "shadow": ScriptVerb(
            (PAGES,),
            "a nested guest's own page tables, N of them, are shadowed, unless they are already",
        ),
        "cpu": ScriptVerb((CPU,), "the vCPU's thread goes on on physical CPU C"),
        "idle": ScriptVerb(
            (), "rest in user space with the root loaded, for up to actors.vcpu.idle_s"
        ),
    },
    "memslot-worker": {
        "create": ScriptVerb((SLOT,), "create churn slot I with fresh memory, unless it is there"),
        "delete": ScriptVerb((SLOT,), "delete churn slot I and release its memory, if it is there"),
        "move": ScriptVerb((SLOT,), "move churn slot I to its other home, if it is there"),
        "flags": ScriptVerb(
            (SLOT,), "toggle KVM_MEM_LOG_DIRTY_PAGES of churn slot I, if it is there"
        ),
        "get-log": ScriptVerb(
            (SLOT,),
            "KVM_GET_DIRTY_LOG of churn slot I (and KVM_CLEAR_DIRTY_LOG with manual_protect), if "
            "it exists and logs",
        ),
    },
    "device": {
        "dma-read": ScriptVerb(
            (GFN,), "one DMA load, with its IO page faults; nothing while detached"
        ),
        "dma-write": ScriptVerb((GFN,), "one DMA store, likewise"),
        "dma": ScriptVerb(
            (ACCESSES,), "a scatter list, such as dma r0x4 w0x5: what faults is one group"
        ),
        "prefetch-read": ScriptVerb(
            (GFN,), "a page request for a load, not waited for; nothing while detached"
        ),
        "prefetch-write": ScriptVerb((GFN,), "a page request for a store, not waited for"),
        "attach": ScriptVerb((), "open the TDP FD and bind the device to it, unless it is bound"),
        "detach": ScriptVerb((), "unbind the device and close its TDP FD, if it is bound"),
    },
    "engine": {
        "post": ScriptVerb(
            (ACCESSES,),
            "DMA that the device makes by itself, such as post r0x4 w0x5, attached or not: what "
            "faults is requested, and no answer is waited for",
        ),
    },
    "host": {
        "discard": ScriptVerb((REGION, FIRST, LAST), "reclaim pages FIRST to LAST - 1 of region R"),
        "migrate": ScriptVerb((REGION, FIRST, LAST), "move these pages to other frames"),
        "split": ScriptVerb((REGION, FIRST, LAST), "split the host's huge pages among them"),
        "collapse": ScriptVerb((REGION, FIRST, LAST), "make the block around FIRST one huge page"),
        "age": ScriptVerb(
            (REGION, FIRST, LAST, HOW),
            "clear_flush_young, clear_young or test_young of these pages",
        ),
    },
    "dirty-logger": {
        "log-on": ScriptVerb((), "KVM_MEM_LOG_DIRTY_PAGES of its fixed slot on, unless it is"),
        "log-off": ScriptVerb((), "and off, if it is on"),
        "read-log": ScriptVerb(
            (), "KVM_GET_DIRTY_LOG (and KVM_CLEAR_DIRTY_LOG with manual_protect), if logging is on"
        ),
    },
    "nx-admin": {
        "toggle": ScriptVerb((), "switch nx_huge_pages over"),
        "attributes": ScriptVerb(
            (FIRST_GFN, LAST_GFN),
            "change an attribute of guest frames FIRST to LAST - 1 (kvm_zap_gfn_range)",
        ),
    },
    "nx-recovery": {"recover": ScriptVerb((), "one turn of kvm-nx-lpage-recovery")},
    "exporter": {
        "export": ScriptVerb((), "create a TDP FD and keep it, unless one is kept; may be refused"),
        "close": ScriptVerb((), "close the TDP FD that is kept, if any"),
        "close-any": ScriptVerb((), "close every TDP FD in the file table, whoever made it"),
    },
}
"""What each kind of actor can do. A region R is a mapping of the host: first those of fixed memory
(normal, SMM unless it is an alias, read-only), then those of churn slots (one for all normal ones
if they share it); the pages of a region that is not there are left alone."""

VERBS: Final[dict[str, ScriptVerb]] = {
    name: verb for verbs in VOCABULARY.values() for name, verb in verbs.items()
}
"""Every operation by name: no two actors share one."""


@frozen
class Op:
    """One operation; `str(op)` is its text. Accesses among `args` are gfn << 1 | is_write, with
    `FETCH` added."""

    name: str
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        verb = VERBS.get(self.name)
        known = verb.arguments if verb is not None else ()
        texts = [_argument(known, index).text(value) for index, value in enumerate(self.args)]
        return " ".join([self.name, *texts])

    def pieces(self) -> tuple[Op, ...]:
        """The same accesses, each an operation of its own; an operation without accesses is one
        piece."""
        if self.name == "run":
            return tuple(access_op(access) for access in self.args)
        if self.name == "dma":
            return tuple(dma_op(access) for access in self.args)
        return (self,)


def _argument(known: tuple[Argument, ...], index: int) -> Argument:
    if index < len(known):
        return known[index]
    return known[-1] if known and known[-1].many else Argument("")


def kind_of(actor: str) -> str:
    """The kind of an actor by its name: "vcpu" of "vcpu0"; "" when there is no such kind."""
    if actor in VOCABULARY and not _numbered(actor):
        return actor
    kind = actor.rstrip("0123456789")
    return kind if kind != actor and kind in VOCABULARY and _numbered(kind) else ""


def _numbered(kind: str) -> bool:
    return kind in ("vcpu", "device", "engine", "host", "exporter")


@functools.lru_cache(maxsize=4096)
def parse(text: str, kind: str = "") -> Op:
    """The operation that a text stands for; with `kind` one that actors of this kind have. Raises
    `OpError`, a `ValueError`."""
    verbs = VOCABULARY[kind] if kind else VERBS
    name, *words = text.split() or [""]
    verb = verbs.get(name)
    if verb is None:
        raise OpError(
            f"unknown operation {name!r}", "one of " + ", ".join(verbs), nearest(name, verbs)
        )
    if len(words) < len(verb.arguments) or (len(words) > len(verb.arguments) and not verb.many):
        raise OpError(
            f"{name} with {len(words)} argument{'' if len(words) == 1 else 's'}",
            verb.signature(name),
        )
    op = Op(
        name,
        tuple(_argument(verb.arguments, index).value(word) for index, word in enumerate(words)),
    )
    if name in ("dma", "post") and any(access >= FETCH for access in op.args):
        raise OpError("a device that fetches instructions", "accesses such as r0x4 or w0x4")
    return op


def access_op(access: int) -> Op:
    """One access of a guest as an operation."""
    return Op("fetch" if access >= FETCH else "write" if access & 1 else "read", (_gfn(access),))


def dma_op(access: int) -> Op:
    """One access of a device as an operation."""
    return Op("dma-write" if access & 1 else "dma-read", (_gfn(access),))


def gfns_of(op: Op) -> list[int]:
    """The guest frames that an operation names as single ones."""
    arguments = VERBS[op.name].arguments
    if arguments == (GFN,):
        return list(op.args)
    return [_gfn(access) for access in op.args] if arguments == (ACCESSES,) else []


def access_text(access: int) -> str:
    """r, w or x, and the gfn."""
    return f"{'x' if access >= FETCH else 'w' if access & 1 else 'r'}{_gfn(access):#x}"


def _gfn(access: int) -> int:
    return (access & ~FETCH) >> 1


def _access(text: str) -> int:
    match = _ACCESS.fullmatch(text)
    gfn = _number(match.group(2)) if match else None
    if match is None or gfn is None or gfn << 1 >= FETCH:
        raise OpError(f"found {text!r} as an access", "r, w or x and a gfn, such as w0x4")
    return gfn << 1 | {"r": 0, "w": 1, "x": FETCH}[match.group(1)]


def _number(text: str) -> int | None:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10) if _NUMBER.fullmatch(text) else None
