"""One schedule's standard library: what its tasks get instead of threads, locks and clocks."""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Protocol, TypeVar

from stress.engines.steps import OWNER_SHIFT
from stress.engines.tasks import Abandoned
from stress.engines.timed import TimedScheduler
from stress.engines.timed_runtime import TimedRuntime

T = TypeVar("T")

PACKAGE: Final = f"{Path(__file__).resolve().parents[2]}{os.sep}"
MODEL: Final = f"{Path(PACKAGE).parent / 'mmu'}{os.sep}"
HARNESS: Final = (PACKAGE, MODEL)
"""Folders whose code is never under control itself."""
_NAMED: Final = 1 << 46
_VALUES: Final = (int, str, bytes, bool, type(None))


class ThreadWatch(Protocol):
    """Looks at what a thread does."""

    def on(self) -> AbstractContextManager[None]:
        """A block in which the calling thread is looked at."""
        ...


class PlainSession:
    """What belongs to one schedule. `idents` are the threads that are its tasks now."""

    def __init__(self, runtime: TimedRuntime, paths: dict[int, str]) -> None:
        self.runtime = runtime
        self.scheduler: TimedScheduler = runtime.scheduler
        self.idents: set[int] = set()
        self.sync: Any = None
        """What the program's `sync` is."""
        self.futures = 0
        """How many futures tasks have made."""
        self.pools = 0
        """How many pools of threads."""
        self.watch: ThreadWatch | None = None
        """Who looks at what tasks do to plain objects."""
        self.raw = 0
        """Not 0: what the running task makes now is the real thing."""
        self._paths = paths
        """Names of objects that were there before the exploration, by id."""
        self._twins: dict[int, tuple[object, Any]] = {}
        self._undo: list[Callable[[], object]] = []

    def twin(self, thing: object, make: Callable[[PlainSession, Any], T]) -> T:
        """The controlled state of an object of the standard library, made by `make` when it is
        first asked for."""
        known = self._twins.get(id(thing))
        if known is None:
            # the object must live as long as its id is used
            known = self._twins[id(thing)] = (thing, make(self, thing))
        found: T = known[1]
        return found

    def known(self, thing: object, kind: type[T]) -> T | None:
        """The controlled state of an object if there is one."""
        entry = self._twins.get(id(thing))
        return entry[1] if entry is not None and isinstance(entry[1], kind) else None

    def watched(self) -> AbstractContextManager[None]:
        """A block in which the calling thread is looked at, if anybody does."""
        return nullcontext() if self.watch is None else self.watch.on()

    @contextmanager
    def uncontrolled(self) -> Iterator[None]:
        """What the running task makes in the block is the real thing."""
        self.raw += 1
        try:
            yield
        finally:
            self.raw -= 1

    def path_of(self, thing: object) -> str | None:
        """The name of an object that was there before the exploration."""
        return self._paths.get(id(thing))

    def number(self, thing: object, path: str | None = None) -> int:
        """The number of a new word for `thing`. If the word was there before the exploration, it
        has a `path`, from which the number is made: which task comes to it first must not
        matter."""
        if path is None:
            return self.scheduler.number(1, thing)
        word = word_of(path)
        self.scheduler.registry.append((word, thing))
        return word

    def at_end(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the schedule is over, last first."""
        self._undo.append(undo)

    def close(self) -> None:
        """Put back what tasks have changed in objects that were there before."""
        self.idents.clear()
        while self._undo:
            self._undo.pop()()
        self._twins.clear()


class _Active:
    def __init__(self) -> None:
        self.session: PlainSession | None = None
        self.left_behind: set[int] = set()
        """Threads that did not end with their schedule: they end as soon as they do anything."""


_state = _Active()


def activate(session: PlainSession | None) -> None:
    """The schedule whose tasks are under control from now on; closes the one before."""
    before, _state.session = _state.session, session
    if before is not None:
        _state.left_behind |= before.idents
        before.close()


def inside() -> PlainSession | None:
    """The session whose task the calling thread is; None for every other thread."""
    session = _state.session
    if session is not None and get_ident() in session.idents:
        return session
    if _state.left_behind and get_ident() in _state.left_behind:
        _state.left_behind.discard(get_ident())
        raise Abandoned
    return None


def word_of(name: str) -> int:
    """A word's number, made from a name that is the same in every process."""
    digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
    return _NAMED | (digest & (_NAMED - 1)) | 1


assert _NAMED > 1 << OWNER_SHIFT


def is_harness(code: CodeType) -> bool:
    """Whether code is the harness's or the model's own."""
    return code.co_filename.startswith(HARNESS)


def called_by_harness(depth: int = 2) -> bool:
    """Whether the caller of a replaced function is the harness, which wants the real one."""
    return is_harness(sys._getframe(depth).f_code)


def called_by_stress(depth: int = 2) -> bool:
    """Whether the caller of a replaced method is this package, the model not counted: that serves
    the program."""
    return sys._getframe(depth).f_code.co_filename.startswith(PACKAGE)


def state_of_caller() -> Hashable:
    """What the calling task is about to do: the place in every function that it is in, and their
    local variables. Floats do not count, for they are mostly times."""
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not is_harness(frame.f_code):
            values = [_summary(value) for value in frame.f_locals.values()]
            frames.append((frame.f_code, frame.f_lasti, tuple(values)))
        frame = frame.f_back
    return tuple(frames)


def _summary(value: object) -> Hashable:
    if isinstance(value, float):
        return None
    if isinstance(value, _VALUES):
        return (type(value), value)
    if isinstance(value, list | tuple | set | dict):
        return (type(value), len(value), tuple(id(item) for item in list(value)[:8]))
    return id(value)
