"""Bare words: under control memory is sequentially consistent, and read-modify-writes are one
step."""

from __future__ import annotations

from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)

FAMILY = Family("cells", "words")


@FAMILY.program(
    "store-buffering",
    title="store mine, then load yours (SB, Dekker)",
    rule=(
        "of two tasks that each store their word and then load the other's, at least one sees the "
        "other's store"
    ),
    source="tools/memory-model litmus SB+fencembonceonces; design 2.1",
    grades={
        "0, 1": acceptable("left was first"),
        "1, 0": acceptable("right was first"),
        "1, 1": acceptable("both stores came before both loads"),
        "0, 0": forbidden(
            "both loads overtook both stores: every handshake of the model would be broken"
        ),
    },
)
def store_buffering(bench: LitmusBench) -> Tasks:
    """The heart of the request handshake, of SRCU and of RCU readers."""
    x, y = bench.cell("x"), bench.cell("y")

    def left() -> int:
        x.value = 1
        return int(y.value)

    def right() -> int:
        y.value = 1
        return int(x.value)

    return Tasks(left, right)


@FAMILY.program(
    "message-passing",
    title="store data, then flag; load flag, then data (MP)",
    rule="who sees the flag sees the data that were stored before it",
    source="tools/memory-model litmus MP+pooncerelease+poacquireonce",
    grades={
        "0, 0": acceptable("the reader was first"),
        "0, 1": acceptable(
            "the flag was not up yet, the data were there by the time they were read"
        ),
        "1, 1": acceptable("the message arrived"),
        "1, 0": forbidden(
            "the flag without the data: an SPTE could be seen before the table that it points to"
        ),
    },
)
def message_passing(bench: LitmusBench) -> Tasks:
    """What publishing a page table relies on."""
    data, flag = bench.cell("data"), bench.cell("flag")

    def writer() -> None:
        data.value = 1
        flag.value = 1

    def reader() -> str:
        return f"{flag.value}, {data.value}"

    return Tasks(writer, reader)


@FAMILY.program(
    "load-buffering",
    title="load yours, then store mine (LB)",
    rule="no task sees a store that another makes only after it has seen the first one's",
    source="tools/memory-model litmus LB+poonceonces",
    grades={
        "0, 0": acceptable("both loads came first"),
        "0, 1": acceptable("left was first"),
        "1, 0": acceptable("right was first"),
        "1, 1": forbidden("each load has seen a store that came after it"),
    },
)
def load_buffering(bench: LitmusBench) -> Tasks:
    """The mirror of store buffering."""
    x, y = bench.cell("x"), bench.cell("y")

    def left() -> int:
        seen = int(x.value)
        y.value = 1
        return seen

    def right() -> int:
        seen = int(y.value)
        x.value = 1
        return seen

    return Tasks(left, right)


@FAMILY.program(
    "read-coherence",
    title="two loads of one word (CoRR)",
    rule="who has seen a new value never sees an older one again",
    source="tools/memory-model litmus CoRR+poonceonce+Once",
    grades={
        "0, 0": acceptable("both loads before the store"),
        "0, 1": acceptable("the store in between"),
        "1, 1": acceptable("both loads after the store"),
        "1, 0": forbidden("the word went backwards"),
    },
)
def read_coherence(bench: LitmusBench) -> Tasks:
    """What a re-check of an SPTE relies on."""
    x = bench.cell("x")

    def writer() -> None:
        x.value = 1

    def reader() -> str:
        return f"{x.value}, {x.value}"

    return Tasks(writer, reader)


@FAMILY.program(
    "lost-update",
    title="load, add, store",
    rule="a count that two tasks change needs a read-modify-write",
    source="mmu.runtime, memory order; atomic_t.txt",
    broken=True,
    grades={
        "2": acceptable("one after the other"),
        "1": forbidden("both have read 0: one addition is lost"),
    },
)
def lost_update(bench: LitmusBench) -> Tasks:
    """Two additions that are not atomic."""
    count = bench.cell("count")

    def add() -> None:
        count.value = count.value + 1

    def add_too() -> None:
        count.value = count.value + 1

    return Tasks(add, add_too, after=lambda: count.value)


@FAMILY.program(
    "atomic-add",
    title="atomic_add() from two sides",
    rule="additions commute and none is lost; a load sees some of them",
    source="atomic_t.txt; mmu.runtime.Counter.add",
    grades={
        "0, 2": acceptable("read before both"),
        "1, 2": acceptable("read in between"),
        "2, 2": acceptable("read after both"),
    },
)
def atomic_add(bench: LitmusBench) -> Tasks:
    """Two additions with a reader."""
    count = bench.counter("count")

    def add() -> None:
        count.add(1)

    def add_too() -> None:
        count.add(1)

    def read() -> int:
        return count.value

    return Tasks(add, add_too, read, after=lambda: count.value)


@FAMILY.program(
    "cmpxchg-loop",
    title="load, compare-exchange, again if it failed",
    rule="a compare-exchange loop loses nothing, and whoever fails has been overtaken",
    source="tdp_mmu_set_spte_atomic(), reference 2.6; try_cmpxchg()",
    grades={
        "1, 1, a b": acceptable("a was first, nobody was overtaken"),
        "1, 1, b a": acceptable("b was first, nobody was overtaken"),
        "1, 2, a b": acceptable("b was overtaken and tried again"),
        "2, 1, b a": acceptable("a was overtaken and tried again"),
    },
)
def cmpxchg_loop(bench: LitmusBench) -> Tasks:
    """Two tasks that add themselves to an immutable list, as vCPUs and importers are added."""
    names = bench.cell("names", "")

    def add(name: str) -> int:
        tries = 0
        while True:
            tries += 1
            seen = names.value
            if names.cmpxchg(seen, f"{seen} {name}".strip()) == seen:
                return tries

    def first() -> int:
        return add("a")

    def second() -> int:
        return add("b")

    return Tasks(first, second, after=lambda: names.value)


@FAMILY.program(
    "cmpxchg-aba",
    title="compare-exchange on a word that went away and came back (ABA)",
    rule=(
        "a compare-exchange sees values, not history; an SPTE's place fixes its gfn, so an SPTE "
        "that came back means the same"
    ),
    source="Documentation/virt/kvm/locking.rst, fast page fault; reference B63",
    grades={
        "True, W": interesting(
            "nobody was in the way, or the entry had gone and come back: to the compare-exchange "
            "it is the same"
        ),
        "False, A": acceptable("the entry was gone at that moment; it came back after"),
        "True, A": acceptable("made writable first; zapped and mapped again after"),
    },
)
def cmpxchg_aba(bench: LitmusBench) -> Tasks:
    """A fast page fault against a zap and a new fault that maps the same frame."""
    spte = bench.cell("spte", "A")

    def fast_page_fault() -> bool:
        seen = spte.value
        return bool(seen == "A" and spte.cmpxchg("A", "W") == "A")

    def zap_and_map() -> None:
        spte.xchg("none")
        spte.cmpxchg("none", "A")

    return Tasks(fast_page_fault, zap_and_map, after=lambda: spte.value)


@FAMILY.program(
    "xchg-ownership",
    title="two exchanges of one word",
    rule=(
        "what an exchange takes out nobody else gets: one of two takers finds it, the other does "
        "not"
    ),
    source="handle_removed_pt(), reference 2.6: exchange REMOVED for the old value",
    grades={
        "page, none": acceptable("left has it"),
        "none, page": acceptable("right has it"),
        "page, page": forbidden("both have it: the page would be freed twice"),
        "none, none": forbidden("nobody has it: the page would be leaked"),
    },
)
def xchg_ownership(bench: LitmusBench) -> Tasks:
    """Two zappers, one entry."""
    entry = bench.cell("entry", "page")

    def left() -> str:
        return str(entry.xchg("none"))

    def right() -> str:
        return str(entry.xchg("none"))

    return Tasks(left, right)


@FAMILY.program(
    "bits-of-one-word",
    title="bits of one word, set and cleared by different tasks",
    rule="atomic OR and AND change their own bits only",
    source="kvm_make_request(), kvm_check_request(); tdp_mmu_clear_spte_bits()",
    grades={
        "0, 3": acceptable("taken before either bit was set"),
        "1, 2": acceptable("the first bit was taken, the second stays for the next look"),
        "2, 1": acceptable("the second bit was taken, the first stays for the next look"),
        "3, 0": acceptable("both were taken"),
    },
)
def bits_of_one_word(bench: LitmusBench) -> Tasks:
    """Two senders of requests and the vCPU that takes them all."""
    requests = bench.counter("requests")

    def first_sender() -> None:
        requests.fetch_or(1)

    def second_sender() -> None:
        requests.fetch_or(2)

    def vcpu() -> int:
        return requests.fetch_and(0)

    return Tasks(first_sender, second_sender, vcpu, after=lambda: requests.value)
