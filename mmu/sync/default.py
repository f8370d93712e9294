"""The `Sync` that a whole program shares when it does not make its own, and what is done with what
it reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from mmu.errors import BrokenRule
from mmu.report import Report, print_report
from mmu.runtime import Runtime
from mmu.sync.factory import Sync
from mmu.sync.lockdep import NOTHING_HELD, describe_held
from mmu.task import Task, at_thread_exit, living_tasks

Handler = Literal["print", "raise"] | Callable[[Report], object]
"""What to do with a report: a splat on stderr, an exception in the thread that broke the rule, or a
function of yours."""


class ThreadSync(Sync):
    """A `Sync` for threads that the program starts itself: their ends are watched, whoever started
    them."""

    def watch_exits(self, *checks: Callable[[Task], None]) -> None:
        """Every thread's."""
        for check in checks:
            at_thread_exit(check)


def raise_report(report: Report) -> None:
    """A sink that raises `BrokenRule` in the thread that broke the rule, before it has taken,
    released or waited for anything."""
    raise BrokenRule(report)


def _task_failed(task: Task, error: BaseException) -> None:
    """A thread of the library's own, such as the one that runs RCU callbacks, has failed in the
    user's code."""
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, task.thread))
    )


def _make() -> ThreadSync:
    runtime = Runtime()
    runtime.on_task_error = _task_failed
    return ThreadSync(runtime)


_default = _make()
_instead: Callable[[], Sync | None] = lambda: None  # noqa: E731 - replaced by `serve_instead`


def default_sync() -> Sync:
    """The process's own: what `Lock()` and its relatives belong to when they are not told
    otherwise. A task of an engine may have another."""
    return _instead() or _default


@contextmanager
def serve_instead(by: Callable[[], Sync | None]) -> Iterator[None]:
    """While the block runs, `default_sync()` is what `by()` returns, unless that is None."""
    global _instead  # noqa: PLW0603 - one engine at a time
    before, _instead = _instead, by
    try:
        yield
    finally:
        _instead = before


def sink_of(handler: Handler) -> Callable[[Report], object]:
    """The function behind a handler's name."""
    if handler == "print":
        return print_report
    if handler == "raise":
        return raise_report
    if callable(handler):
        return handler
    raise ValueError(
        f"handler is {handler!r}; expected 'print', 'raise' or a function of one report"
    )


def on_report(handler: Handler) -> None:
    """What happens to every new report of the default `Sync` from now on; the default is "print".

    Printing lets the program go on, as the kernel does: an order that could deadlock some day has
    not done so today. In tests use "raise". What can never be granted raises `SelfDeadlock` in any
    case, after its report.
    """
    default_sync().reporter.redirect(sink_of(handler))


def reports() -> tuple[Report, ...]:
    """What the default `Sync` has reported so far; equal reports are one, with a count."""
    return default_sync().reporter.reports


@contextmanager
def collect() -> Iterator[list[Report]]:
    """While the block runs, reports go into the list it is given, from whatever thread, and nowhere
    else."""
    found: list[Report] = []
    before = default_sync().reporter.redirect(found.append)
    try:
        yield found
    finally:
        default_sync().reporter.redirect(before)


def show_locks() -> str:
    """Every lock held and every wait, by thread: the kernel's "Showing all locks held in the
    system" (SysRq d)."""
    lines = []
    for task in living_tasks():
        waits = task.waiting_for
        if waits or describe_held(task) != NOTHING_HELD:
            lines.append(f"{task}" + (f", waiting for {waits}" if waits else "") + ":")
            lines += [f"  {line}" for line in describe_held(task)]
    return "\n".join(lines) or NOTHING_HELD[0]


def might_sleep(doing: str) -> None:
    """Declare that the caller may block now: a report in atomic context or inside an RCU read
    section."""
    default_sync().might_sleep(doing)
