"""What the tests share: a silent reporter, checked locks, and threads that stand exactly where a
test wants them.

No test sleeps to order threads. A thread is parked inside a section by `elsewhere`, awaited at the
lock it blocks on by `blocked`, and ended by `finish`, which raises what the thread raised.
`PATIENCE` only bounds a wait that is broken.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import psutil
import pytest
from hypothesis import HealthCheck, settings

from mmu.report import Report, Reporter
from mmu.runtime import Runtime
from mmu.sync import Rcu, RwLock, Srcu, Sync
from mmu.task import Task, current
from stress.engines.carrier_choice import VARIABLE
from tests import tiers
from tests.carriers import CARRIERS
from tests.patience import PATIENCE

# Collecting makes objects by the hundred thousand, and most of them stay: garbage is looked for
# among the newest, and not among all of them again and again.
gc.set_threshold(50000, 5, 1000)

# the tests run in the background of a shell; some are about Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "laws",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("laws")
"""How laws are tried: the same examples everywhere and always, and no clock. A law that needs more
examples says so."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests into tiers, before `-m` chooses among them."""
    tiers.mark(items)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Thrift(config))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument, not by what is in them: a gzip header has the time in it,
    and every worker has to collect the same names."""
    return argname if isinstance(val, bytes) else None


class Thrift:
    """Keeps the process small. A VM is few objects and much memory, so that garbage is looked for
    among what the tests make, without all that was collected, and after every test that has made
    the process grow."""

    GROWTH = 1 << 20
    """Bytes by which a test may make the process grow."""

    def __init__(self, config: pytest.Config) -> None:
        self._process = psutil.Process()
        self._size = 0
        self._config = config
        self._is_worker = hasattr(config, "workerinput")

    def pytest_collection_finish(self) -> None:
        """All that is there now stays."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(1000, 5, 2)
        gc.enable()

    def pytest_runtest_logfinish(self) -> None:
        """A test and its reports are done."""
        if self._is_worker:  # the main process has its reports, and nobody asks for them here
            self._config.pluginmanager.getplugin("terminalreporter").stats.clear()
        if self._process.memory_info().rss > self._size + self.GROWTH:
            gc.collect()
            self._size = self._process.memory_info().rss


class MakeSync(Protocol):
    """The fixture `make_sync`: `Sync` with options, all on the test's reporter, tidied up after the
    test."""

    def __call__(self, **options: Any) -> Sync: ...


class BoundedRuntime(Runtime):
    """The thread runtime, but a wait that outlasts the patience of a test is an error in its
    thread, so nothing hangs."""

    def wait_until(self, what: str, predicate: Callable[[], bool], **options: Any) -> None:
        """Wait as ever, and look at the clock beside."""
        deadline = time.monotonic() + PATIENCE

        def in_time() -> bool:
            done = predicate()
            assert done or time.monotonic() < deadline, f"waits for ever: {what}"
            return done

        super().wait_until(what, in_time, **options)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every carrier in turn: what the tasks of all schedules run on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, request.param)
        yield request.param


@pytest.fixture
def reporter() -> Reporter:
    """Collects reports and prints none."""
    return Reporter(sink=None)


@pytest.fixture
def make_sync(reporter: Reporter) -> Iterator[MakeSync]:
    """Make a `Sync` with options. Afterwards every thread that it spawned must have ended."""
    made: list[Sync] = []

    def make(**options: Any) -> Sync:
        defaults: dict[str, Any] = {"runtime": BoundedRuntime(), "stall_seconds": 10 * PATIENCE}
        made.append(Sync(reporter=reporter, **(defaults | options)))
        return made[-1]

    forget_held_locks()
    yield make
    forget_held_locks()
    for sync in made:
        sync.rcu.shutdown()
    stuck = [
        str(task)
        for sync in made
        for task in sync.runtime.tasks()
        if not sync.runtime.join(task, PATIENCE)
    ]
    assert not stuck, f"threads still run after the test: {stuck}"


@pytest.fixture
def sync(make_sync: MakeSync) -> Sync:
    """Checked locks with default options."""
    return make_sync()


@pytest.fixture
def runtime() -> Runtime:
    """A bare thread runtime."""
    return Runtime()


def forget_held_locks() -> None:
    """A test that failed inside a lock must not hand it to the next test: both run on the same
    thread."""
    current.task.chain = None
    current.task.held.clear()


# Reports


def codes(reporter: Reporter) -> list[str]:
    """Which checks have reported, in order."""
    return [report.code for report in reporter.reports]


def the_report(reporter: Reporter, code: str) -> Report:
    """The only report so far, which must come from the check `code`."""
    assert codes(reporter) == [code], "\n".join(report.render() for report in reporter.reports)
    return reporter.reports[0]


def evidence(report: Report, title: str) -> str:
    """The text of the one section of `report` that has `title` in its title."""
    (found,) = [part for part in report.sections if title in part.title]
    return "\n".join(found.lines)


# Threads


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for: {what}"
        time.sleep(0.0005)


def finish(runtime: Runtime, *tasks: Task) -> None:
    """Wait for `tasks` to end and raise the first error among theirs."""
    for task in tasks:
        assert runtime.join(task, PATIENCE), (
            f"{task} does not end; it waits for {task.waiting_for or 'something unnamed'}"
        )
    for task in tasks:
        if task.error is not None:
            raise task.error


def together(runtime: Runtime, *bodies: Callable[[], None]) -> None:
    """Run each of `bodies` in a thread of its own, all at once; wait for all and raise the first
    error."""
    finish(runtime, *[runtime.spawn(body.__name__, body) for body in bodies])


def blocked(
    runtime: Runtime, body: Callable[[], None], at: Callable[[Task], object] | None = None
) -> Task:
    """A new thread that runs `body` and has come to where it blocks: at a wait that it names, or
    where `at` says."""
    is_there = at or (lambda task: task.waiting_for)
    task = runtime.spawn(body.__name__, body)
    eventually(lambda: is_there(task) or runtime.join(task, 0), f"{task} to block")
    if runtime.join(task, 0):
        finish(runtime, task)
        raise AssertionError(f"{task} ended, but it had to block")
    return task


@contextmanager
def elsewhere(
    runtime: Runtime, section: AbstractContextManager[object], name: str = "elsewhere"
) -> Iterator[Task]:
    """While the block runs, another thread is inside `section`; it leaves when the block ends."""
    entered, leave = threading.Event(), threading.Event()

    def stay_inside() -> None:
        with section:
            entered.set()
            assert leave.wait(2 * PATIENCE)

    task = runtime.spawn(name, stay_inside)
    try:
        eventually(
            lambda: entered.is_set() or runtime.join(task, 0), f"{task} to enter its section"
        )
        yield task
    finally:
        leave.set()
        finish(runtime, task)


# Sections


@contextmanager
def reading(lock: RwLock) -> Iterator[None]:
    """`lock` held for read."""
    lock.read_lock()
    try:
        yield
    finally:
        lock.read_unlock()


@contextmanager
def writing(lock: RwLock) -> Iterator[None]:
    """`lock` held for write."""
    lock.write_lock()
    try:
        yield
    finally:
        lock.write_unlock()


@contextmanager
def rcu_section(rcu: Rcu) -> Iterator[None]:
    """Inside an RCU read section."""
    rcu.read_lock()
    try:
        yield
    finally:
        rcu.read_unlock()


@contextmanager
def srcu_section(srcu: Srcu) -> Iterator[None]:
    """Inside a read section of `srcu`."""
    token = srcu.read_lock()
    try:
        yield
    finally:
        srcu.read_unlock(token)
