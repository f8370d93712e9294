"""Reference counts: the last put, the get that comes too late, and misuse that is noticed."""

from __future__ import annotations

from mmu.sync.refcount import Refcount
from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden

FAMILY = Family("refcounts", "reference counts")


def _refcount(bench: LitmusBench, value: int) -> Refcount:
    return bench.sync().refcount("object", value)


@FAMILY.program(
    "last-put",
    title="two puts of two references",
    rule="exactly one of all puts is the last",
    source="refcount_dec_and_test(); invariant I1",
    grades={
        "True, False": acceptable("left was last"),
        "False, True": acceptable("right was last"),
        "True, True": forbidden("freed twice"),
        "False, False": forbidden("never freed"),
    },
)
def last_put(bench: LitmusBench) -> Tasks:
    """Who is last frees."""
    count = _refcount(bench, 2)

    def left() -> bool:
        return count.put()

    def right() -> bool:
        return count.put()

    return Tasks(left, right)


@FAMILY.program(
    "get-against-last-put",
    title="refcount_inc_not_zero() against the last put",
    rule="a get on the way to zero fails, or it keeps the object alive until its own put",
    source="refcount_inc_not_zero(); kvm_tdp_mmu_get_root(), reference 2.2",
    grades={
        "got, alive": acceptable("the get was first; the getter's own put was the last"),
        "got, last": acceptable("the get was first and given back before the other put"),
        "late, last": acceptable("the count was zero already"),
        "late, alive": forbidden("nobody has the object and nobody frees it"),
        "dead": forbidden("a reference was got on an object that was freed"),
        "refcount-underflow": forbidden("a reference was put twice"),
    },
)
def get_against_last_put(bench: LitmusBench) -> Tasks:
    """A walker of the root list against the last holder."""
    count = _refcount(bench, 1)
    freed = bench.cell("freed", False)

    def getter() -> str:
        if not count.inc_not_zero():
            return "late"
        state = "dead" if freed.value else "got"
        if count.put():
            freed.value = True
        return state

    def putter() -> str:
        if count.put():
            freed.value = True
            return "last"
        return "alive"

    return Tasks(getter, putter)


@FAMILY.program(
    "get-without-check",
    title="refcount_inc() against the last put",
    rule="who has no reference of his own must use refcount_inc_not_zero()",
    source="refcount_inc() on 0 is a WARN; lib/refcount.c",
    broken=True,
    grades={
        "alive": acceptable("the get was first"),
        "refcount-get-on-zero": forbidden("the count was zero already: use after free"),
    },
)
def get_without_check(bench: LitmusBench) -> Tasks:
    """The getter hopes for the best."""
    count = _refcount(bench, 1)

    def getter() -> str:
        count.get()
        return "alive"

    def putter() -> None:
        count.put()

    return Tasks(getter, putter)


@FAMILY.program(
    "double-put",
    title="three puts of two references",
    rule="every put needs its own get",
    source="refcount_t underflow; the shape of R4, R15 and B22",
    broken=True,
    grades={"refcount-underflow": forbidden("one put too many, in every order")},
)
def double_put(bench: LitmusBench) -> Tasks:
    """One side puts twice, as an error path after a destructor does."""
    count = _refcount(bench, 2)

    def left() -> None:
        count.put()

    def right() -> None:
        count.put()
        count.put()

    return Tasks(left, right)


@FAMILY.program(
    "close-twice",
    title="two closes of one file descriptor",
    rule=(
        "close() takes the descriptor out of the table in one step, so only one of two closes puts "
        "the reference"
    ),
    source="close_fd(), files->file_lock; Exporter.close()",
    grades={
        "True, False": acceptable("left closed it"),
        "False, True": acceptable("right closed it"),
        "True, True": forbidden("the reference was put twice"),
        "False, False": forbidden("nobody closed it"),
    },
)
def close_twice(bench: LitmusBench) -> Tasks:
    """Two threads of user space with the same number."""
    tiny = bench.vm()
    fd = tiny.export()

    def left() -> bool:
        return tiny.vm.close_tdp_fd(fd)

    def right() -> bool:
        return tiny.vm.close_tdp_fd(fd)

    return Tasks(left, right)
