"""`threading.Thread` under control: every thread that a task starts is a task."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from mmu.task import Task
from stress.testing.plain.session import PlainSession, state_of_caller

_UNNAMED: Final = re.compile(r"Thread-\d+( \(.*\))?")
_active: Any = threading._active  # type: ignore[attr-defined]  # threads by ident, for current_thread()


class ThreadState:
    """A thread that was started by a task."""

    def __init__(self, task: Task) -> None:
        self.task = task


class Crew:
    """The threads of one session: their names, and what `threading` knows about them."""

    def __init__(self, session: PlainSession) -> None:
        self.session = session
        self.names: dict[str, int] = {}
        self.unnamed = 0
        self.started: list[threading.Thread] = []

    def name_for(self, base: str, *, numbered: bool) -> str:
        """A name that no other task has; `numbered` names end in a number even if they are the
        first."""
        number = self.names.get(base, 0) + 1
        self.names[base] = number
        if numbered:
            return f"{base}{number}"
        return base if number == 1 else f"{base}#{number}"

    @contextmanager
    def as_thread(self, thread: Any) -> Iterator[None]:
        """Make the calling carrier `thread`, as far as `threading` can tell, and a task of the
        session."""
        ident = threading.get_ident()
        before = _active.get(ident)
        _active[ident] = thread
        thread._ident = ident
        self.session.idents.add(ident)
        try:
            with self.session.watched():
                yield
        finally:
            self.session.idents.discard(ident)
            thread._is_stopped = True
            if before is not None:
                _active[ident] = before
            else:
                _active.pop(ident, None)

    @contextmanager
    def as_main(self) -> Iterator[None]:
        """Make the calling thread the main thread, as far as `threading` can tell, and a task of
        the session."""
        ident = threading.get_ident()
        before = _active.get(ident)
        _active[ident] = threading.main_thread()
        self.session.idents.add(ident)
        try:
            with self.session.watched():
                yield
        finally:
            self.session.idents.discard(ident)
            if before is not None:
                _active[ident] = before
            else:
                _active.pop(ident, None)

    def dummy(self, name: str) -> Any:
        """A thread object for a task that was not made by one."""
        thread: Any = threading.Thread.__new__(threading.Thread)
        vars(thread).update(vars(_PROTOTYPE), _name=name)
        return thread


_PROTOTYPE: Final = threading.Thread(target=None, name="task", daemon=False)


def crew_of(session: PlainSession) -> Crew:
    """The session's threads."""
    return session.twin(session, lambda session, _: Crew(session))


def thread_init(
    session: PlainSession, original: Any, thread: Any, *args: Any, **options: Any
) -> None:
    """`Thread()`. Threads without a name are numbered in each schedule anew."""
    with session.uncontrolled():
        original(thread, *args, **options)
    named = options.get("name") or args[2:3]
    if not named:
        crew = crew_of(session)
        crew.unnamed += 1
        thread._name = re.sub(r"\d+", str(crew.unnamed), thread._name, count=1)


def thread_start(session: PlainSession, _: Any, thread: Any) -> None:
    """`Thread.start()`."""
    if not thread._initialized:
        raise RuntimeError("thread.__init__() not called")
    if thread._started._flag:
        raise RuntimeError("threads can only be started once")
    start(session, thread, thread.run, daemon=thread._daemonic)


def start(session: PlainSession, thread: Any, run: Callable[[], object], *, daemon: bool) -> None:
    """Make a task of `thread` that calls `run`."""
    session.scheduler.refuse_body("a thread")
    crew = crew_of(session)
    unnamed = _UNNAMED.fullmatch(thread._name)
    target = getattr(thread, "_target", None)
    base = getattr(target, "__name__", "") if unnamed else thread._name
    if base.startswith("<") or not base:
        base = "thread" if type(thread) is threading.Thread else type(thread).__name__
    name = crew.name_for(base, numbered=bool(unnamed))

    def body() -> None:
        with crew.as_thread(thread), suppress(SystemExit):  # which ends a thread without a word
            run()

    thread._started._flag = True
    crew.started.append(thread)
    task = session.runtime.start(name, body, daemon=daemon)
    session.twin(thread, lambda *_: ThreadState(task))


def thread_join(
    session: PlainSession, original: Any, thread: Any, timeout: float | None = None
) -> None:
    """`Thread.join()`."""
    state = _state_of(session, thread)
    if state is None:
        original(thread, timeout)
        return
    if thread._ident == threading.get_ident():
        raise RuntimeError("cannot join current thread")
    if timeout is not None:
        timeout = max(timeout, 0.0)
    session.runtime.join(state.task, timeout, state_of_caller() if timeout is not None else None)


def thread_is_alive(session: PlainSession, original: Any, thread: Any) -> bool:
    """`Thread.is_alive()`."""
    state = _state_of(session, thread)
    if state is None:
        return bool(original(thread))
    return not session.runtime.has_ended(state.task)


def _state_of(session: PlainSession, thread: Any) -> ThreadState | None:
    """What is known of a thread that a task has started."""
    return session.known(thread, ThreadState)


def enumerate_threads(session: PlainSession, _: Any) -> list[Any]:
    """`threading.enumerate()`."""
    crew = crew_of(session)
    living = [thread for thread in crew.started if thread_is_alive(session, None, thread)]
    return [threading.current_thread(), *(t for t in living if t is not threading.current_thread())]


def active_count(session: PlainSession, _: Any) -> int:
    """`threading.active_count()`."""
    return len(enumerate_threads(session, _))


def start_new_thread(
    session: PlainSession,
    _: Any,
    function: Callable[..., object],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> int:
    """`_thread.start_new_thread()`."""
    with session.uncontrolled():
        thread = threading.Thread(target=function, args=args, kwargs=kwargs, daemon=True)
    start(session, thread, thread.run, daemon=True)
    return len(crew_of(session).started)
