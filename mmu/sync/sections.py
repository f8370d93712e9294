"""RCU for people who write `with`: read sections as contexts, and the pointer that they protect."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from mmu.stack import capture

if TYPE_CHECKING:
    from mmu.runtime import Cell
    from mmu.sync.lockdep import Hold
    from mmu.sync.rcu import Rcu, Srcu

T = TypeVar("T")


class RcuSection:
    """An RCU read section as a context."""

    __slots__ = ("_rcu",)

    def __init__(self, rcu: Rcu) -> None:
        self._rcu = rcu

    def __enter__(self) -> None:
        reader = self._rcu.local.mine
        if not reader.depth:
            reader.site = capture(2, 1)
        self._rcu.read_lock(reader)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        reader = self._rcu.local.mine
        if reader.depth == 1:
            reader.site = ()
        self._rcu.read_unlock(reader)


class SrcuSection:
    """An SRCU read section as a context; keeps the token."""

    __slots__ = ("_hold", "_srcu")

    def __init__(self, srcu: Srcu) -> None:
        self._srcu = srcu
        self._hold: Hold | None = None

    def __enter__(self) -> None:
        self._hold = self._srcu.read_lock()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._hold is not None
        self._srcu.read_unlock(self._hold)


class RcuPointer(Generic[T]):
    """A published reference: readers follow it inside a read section, an updater, who has a lock of his own, replaces it."""

    __slots__ = ("_rcu", "_word", "name")

    def __init__(self, rcu: Rcu, name: str, value: T) -> None:
        self.name = name
        self._rcu = rcu
        self._word: Cell[T] = rcu.runtime.cell(name, value)

    def dereference(self) -> T:
        """rcu_dereference(): outside a read section a report."""
        self._rcu.assert_held(self.name)
        return self._word.value

    def peek(self) -> T:
        """rcu_dereference_protected(): for the updater, whose lock keeps it from changing."""
        return self._word.value

    def replace(self, value: T) -> T:
        """rcu_replace_pointer(): publish `value`; returns the old one, which readers may still use for a grace period."""
        return self._word.xchg(value)
