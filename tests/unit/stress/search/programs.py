"""Small programs for strategies: three with a bug, one without, and some whose schedules can be
counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

from attrs import define, field

from mmu.report import Report
from mmu.runtime import Cell, RawLock
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, Instance, ProgramTask, Run, Strategy


def broken(rule: str, code: str) -> Report:
    return Report(rule, code, f"BUG: {code}", "what a test program promises", "tests")


@define
class Body:
    """An instance that consists of closures."""

    parts: Sequence[ProgramTask]
    judge: Callable[[], Sequence[Report]] = tuple
    result: Callable[[], Hashable] = lambda: None
    has_start: bool = False
    problems: list[str] = field(factory=list)

    def start(self) -> None:
        """Nobody waits."""

    def closing(self) -> Sequence[ProgramTask]:
        return ()

    def reports(self) -> Sequence[Report]:
        return self.judge()

    def errors(self) -> Sequence[str]:
        return self.problems

    def outcome(self) -> Hashable:
        return self.result()


@define
class Small:
    """A program that consists of one function."""

    name: str
    make: Callable[[ControlledRuntime], Body]

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        instance = self.make(runtime)
        runtime.on_task_error = lambda task, error: instance.problems.append(
            f"{task.name}: {error!r}"
        )
        return instance


def _lost_update(runtime: ControlledRuntime, padding: int = 0) -> Body:
    counter = runtime.cell("counter", 0)
    seen: list[int] = []

    def add() -> None:
        own = runtime.cell("own", 0)
        for number in range(padding):
            own.value = number
        now = counter.value
        counter.value = now + 1
        for number in range(padding):
            own.value = number
        seen.append(now)

    def judge() -> Sequence[Report]:
        return [broken("O9", "lost-update")] if seen == [0, 0] else []

    return Body(
        [ProgramTask("one", add), ProgramTask("two", add)], judge, lambda: tuple(sorted(seen))
    )


def _deadlock(runtime: ControlledRuntime) -> Body:
    first, second = runtime.lock("A"), runtime.lock("B")

    def both(one: RawLock, other: RawLock) -> Callable[[], None]:
        def take() -> None:
            one.acquire()
            other.acquire()
            other.release()
            one.release()

        return take

    return Body(
        [
            ProgramTask("forwards", both(first, second)),
            ProgramTask("backwards", both(second, first)),
        ]
    )


class Thing:
    """An object that is alive until it is freed."""

    def __init__(self, runtime: ControlledRuntime, generation: int) -> None:
        self.alive = runtime.cell(f"alive{generation}", True)
        self.generation = runtime.cell(f"generation{generation}", generation)


def _use_after_free(runtime: ControlledRuntime) -> Body:
    old, new = Thing(runtime, 0), Thing(runtime, 1)
    pointer = runtime.cell("pointer", old)
    found: list[Report] = []

    def read() -> None:
        if not pointer.value.alive.value:
            found.append(broken("O2", "use-after-free"))

    def replace() -> None:
        was = pointer.value
        pointer.value = new
        was.alive.value = False

    return Body(
        [
            ProgramTask("reader1", read),
            ProgramTask("reader2", read),
            ProgramTask("writer", replace),
        ],
        lambda: found,
    )


def _protocol(runtime: ControlledRuntime) -> Body:
    """Readers announce themselves; the writer publishes, looks who is there, and frees only if
    nobody is. 20 accesses."""
    old, new = Thing(runtime, 0), Thing(runtime, 1)
    pointer = runtime.cell("pointer", old)
    version = runtime.counter("version")
    flags = [runtime.cell("flag0", False), runtime.cell("flag1", False)]
    deferred = [runtime.cell("deferred0", 0), runtime.cell("deferred1", 0)]
    found: list[Report] = []

    def reader(flag: Cell[bool]) -> Callable[[], None]:
        def read() -> None:
            flag.value = True
            thing = pointer.value
            if not (thing.alive.value and version.value >= 0 and thing.alive.value):
                found.append(broken("O2", "use-after-free"))
            flag.value = False

        return read

    def write() -> None:
        was = pointer.value
        pointer.value = new
        version.add(1)
        busy = [flag.value for flag in flags]
        if any(busy):
            deferred[0].value = 1
            deferred[1].value = 1
        else:
            was.alive.value = False
            deferred[0].value = 0
        version.add(1)

    return Body(
        [
            ProgramTask("reader0", reader(flags[0])),
            ProgramTask("reader1", reader(flags[1])),
            ProgramTask("writer", write),
        ],
        lambda: found,
    )


def independent(*steps: int) -> Small:
    """A task for each number, that writes so often to a word of its own."""

    def make(runtime: ControlledRuntime) -> Body:
        def body(count: int) -> Callable[[], None]:
            def work() -> None:
                own = runtime.cell("own", 0)
                for number in range(count):
                    own.value = number

            return work

        return Body(
            [ProgramTask(f"task{number}", body(count)) for number, count in enumerate(steps)]
        )

    return Small(f"independent{steps}", make)


def contended(*steps: int) -> Small:
    """A task for each number, that writes so often to one word; the outcome is who wrote when."""

    def make(runtime: ControlledRuntime) -> Body:
        word = runtime.cell("word", -1)
        order: list[int] = []

        def body(task: int, count: int) -> Callable[[], None]:
            def work() -> None:
                for _ in range(count):
                    word.value = task
                    order.append(task)

            return work

        return Body(
            [
                ProgramTask(f"task{number}", body(number, count))
                for number, count in enumerate(steps)
            ],
            tuple,
            lambda: tuple(order),
        )

    return Small(f"contended{steps}", make)


def _spinning(runtime: ControlledRuntime) -> Body:
    """One waits in a loop, giving way each time, for what the other does."""
    flag = runtime.cell("flag", False)

    def wait() -> None:
        while not flag.value:
            runtime.resched()

    def release() -> None:
        for _ in range(3):
            runtime.resched()
        flag.value = True

    return Body(
        [
            ProgramTask("waits", wait),
            ProgramTask("waits too", wait),
            ProgramTask("releases", release),
        ]
    )


def small_spawning() -> Small:
    """A task that makes two others, which do nothing."""

    def make(runtime: ControlledRuntime) -> Body:
        def parent() -> None:
            for number in range(2):
                runtime.start(f"child{number}", lambda: None)

        return Body([ProgramTask("parent", parent)])

    return Small("small spawning", make)


def padded_lost_update(padding: int) -> Small:
    return Small("padded lost update", lambda runtime: _lost_update(runtime, padding))


def _spawning(runtime: ControlledRuntime) -> Body:
    """A task that makes another, and both write to the same word."""
    word = runtime.cell("word", 0)
    order: list[str] = []

    def write(name: str, times: int) -> None:
        for number in range(times):
            word.value = number
            order.append(name)

    def parent() -> None:
        child = runtime.start("child", lambda: write("child", 3))
        write("parent", 1)
        runtime.join(child)

    other = ProgramTask("other", lambda: write("other", 2))
    return Body([ProgramTask("parent", parent), other], tuple, lambda: tuple(order))


LOST_UPDATE = Small("lost update", _lost_update)
DEADLOCK = Small("deadlock", _deadlock)
USE_AFTER_FREE = Small("use after free", _use_after_free)
PROTOCOL = Small("protocol", _protocol)
SPINNING = Small("spinning", _spinning)
SPAWNING = Small("spawning", _spawning)
BUGS = [LOST_UPDATE, DEADLOCK, USE_AFTER_FREE]


def runs(program: Small, strategy: Strategy, count: int, limit: int = 5_000) -> list[Run]:
    """So many schedules, or fewer if there are no more."""
    executor = Executor(program, limit=limit)
    done: list[Run] = []
    while len(done) < count and not strategy.exhausted:
        done.append(executor.execute(strategy))
        assert not done[-1].errors
    return done


def schedules_to_find(program: Small, strategy: Strategy, count: int) -> int:
    """How many schedules it takes until one fails; `count` + 1 if none of `count` does."""
    executor = Executor(program)
    for number in range(1, count + 1):
        if strategy.exhausted:
            break
        if executor.execute(strategy).failed:
            return number
    return count + 1


def preemptions(run: Run) -> int:
    """Switches away from a task that has not ended, in a program in which nobody ever waits."""
    last = {task: position for position, (task, _, _) in enumerate(run.trace)}
    tasks = [task for task, _, _ in run.trace]
    pairs = pairwise(tasks)
    return sum(one != other and last[one] > position for position, (one, other) in enumerate(pairs))
