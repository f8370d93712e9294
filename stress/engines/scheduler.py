"""The scheduler: exactly one task runs, and every operation on a shared word or lock asks who runs
next.

A task announces the operation it is about to do, a strategy picks one of the runnable tasks, and
the picked task's announced operation is executed. What cannot be done now (a lock that is held, a
predicate that is false) makes its task not runnable until a write makes it possible, so nothing
ever spins or polls, and "nobody is runnable" is a fact.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NoReturn

from mmu.task import Task, current
from stress.engines.carrier import POOL
from stress.engines.spins import read_since_relaxed
from stress.engines.steps import (
    LOAD,
    NO_WORD,
    OWNER_SHIFT,
    RELAX,
    SPAWN,
    START,
    STORE,
    TASK_LIST,
    WAIT,
    Access,
    Event,
    Look,
)
from stress.engines.stuck import await_turn
from stress.engines.tasks import Abandoned, Carries, ControlledTask, Gate, nobody, nothing

Picker = Callable[[], ControlledTask]
MOST_UNEXPLORED = 1_000_000
"""Operations of one schedule that are no steps; the largest shipped scenario has 150,000."""


class Scheduler:
    """Runs tasks one at a time. `pick` is the strategy's choice; `trace` the events of the current
    phase."""

    unending = False
    """What is not explored went on and on, so the schedule was given up."""
    crash: Exception | None = None
    """What the strategy raised."""
    stuck = False
    """The phase ended with nobody runnable, although somebody was not done."""

    def __init__(self, limit: int, fair_steps: int) -> None:
        self.limit = limit
        self.fair_steps = fair_steps
        self.tasks: list[ControlledTask] = []
        self.runnable: list[ControlledTask] = []
        self.trace: list[Event] = []
        self.extras: dict[int, list[Access]] = {}
        """Further words that an event touched: what observers read after it, or a predicate."""
        self.looks: dict[int, list[Look]] = {}
        """How a WAIT has looked before it went on; a latched one, which is no race, has none."""
        self.follows: dict[int, int] = {}
        """Of events that could not come before a certain earlier one: which. That is no race."""
        self.barriers: dict[int, int] = {}
        """Of events that come only when no task can run: after how many events that was."""
        self.buffers: dict[int, int] = {}
        """Each task that is a store buffer with the task whose it is, by number."""
        self.registry: list[tuple[int, Any]] = []
        """Every object with its first word, oldest first."""
        self.quiet = 1
        """Not 0: operations are done at once, within the current step."""
        self.watched: dict[int, list[ControlledTask]] = {}
        self.serial = False
        """In a phase that is not explored: no steps, only waits count."""
        self.keep_extras = False
        self.unobserved: set[int] = set()
        """Words whose loads by observers do not count: their read sections are not the model's."""
        self.on_error: Callable[[ControlledTask, BaseException], None] | None = None
        self.exit_checks: list[Callable[[Task], None]] = []
        self.limit_hit = False
        self.progress: Callable[[], int] | None = None
        """A number that changes as long as somebody gets anywhere; without it no work counts."""
        self.moving = False
        """The limit was hit and the fair turns did not end it, but a task still got somewhere, or
        at least did what it had not done before, or nobody has looked."""
        self._reached = 0
        self.unexplored = 0
        """Operations so far that were no steps: of what is not explored, and of observers."""
        self.given_up = False
        self.task_errors: list[str] = []
        self.pick: Picker = self.first
        self.steps_before = 0
        self._noting: list[Access] | None = None
        self._outside = ControlledTask(0, "main", POOL.main, nothing, daemon=True)
        self._outside.made = 2
        self._outside.enabled = False
        self.running = self._outside
        """Whose turn it is. A wake-up alone says nothing: an interrupt may swallow one, or leave
        one behind."""
        self._aborting = False
        self._halting = False
        """Interrupted: whoever runs stops at the next step."""
        self._foreground = 0

    # Making tasks and words.

    def number(self, count: int, thing: object) -> int:
        """Numbers for `count` new words of `thing`; the first of them."""
        owner = self.running
        word = owner.index << OWNER_SHIFT | owner.made
        owner.made += count
        self.registry.append((word, thing))
        return word

    def spawn(
        self, name: str, body: Callable[[], None], daemon: bool, identity: Task
    ) -> ControlledTask:
        """A new task, runnable at once, that is `identity` to itself and others. Daemons are not
        waited for."""
        self.step(SPAWN, TASK_LIST)
        index = len(self.tasks) + 1
        if not self.quiet:
            self.trace[-1] = (self.running.index, SPAWN, index << OWNER_SHIFT)
            self.extras[len(self.trace) - 1] = [(SPAWN, TASK_LIST)]
        carrier = self._carrier(index)
        task = ControlledTask(index, name, carrier.signal, body, daemon)
        task.carrier = carrier
        identity.number = index
        identity.thread = carrier.thread
        identity.ident = carrier.thread.ident or 0
        task.task = identity
        task.word = index << OWNER_SHIFT
        task.made = 1
        self.tasks.append(task)
        carrier.load(lambda: self._carry(task))
        self.runnable.append(task)
        if not daemon:
            self._foreground += 1
        return task

    def _carrier(self, index: int) -> Carries:
        """What task number `index` runs on."""
        return POOL.carrier(index)

    # Phases; called by the thread that owns the scheduler.

    def run(self, pick: Picker | None = None) -> None:
        """Run until nobody can: every task is done, or only daemons wait, or (`stuck`) somebody
        waits for ever; or until the limit is hit. `trace` and `extras` start afresh. Without a
        picker nothing is explored: tasks go on while they can."""
        self.steps_before += len(self.trace)
        self.trace = []
        self.extras = {}
        self.looks = {}
        self.follows, self.barriers = {}, {}
        for task in self.tasks:
            task.relaxed_at = 0
            task.looks = [(0, result, reads) for _, result, reads in task.looks[-1:]]
        self.stuck = False
        self.serial = pick is None
        self.pick = pick = pick or self.first
        if not self.runnable and not self._revive():
            self.stuck = bool(self._foreground)
            return
        self.quiet = int(self.serial)
        try:
            first = pick()
        except Abandoned:
            self.quiet = 1
            return
        try:
            self._run_alone(first)
        except BaseException:  # Ctrl-C: nobody may run while others are unwound
            self._halt(first)
            raise
        self.quiet = 1
        self.serial = False
        if self.crash is not None:
            raise self.crash

    def abandon(self) -> None:
        """Give the schedule up: unwind every task that is not done, one after another."""
        if self.running is not self._outside:
            # an interrupt while somebody was to stop: they are left where they are, and the pool
            # gets other carriers
            return
        self._aborting = True
        self.serial = False
        self.quiet = MOST_UNEXPLORED  # observers may be unwound, too, each with its share
        self.unexplored = 0
        for task in self.tasks:
            if not task.done:
                self._run_alone(task)

    def first(self) -> ControlledTask:
        """The picker for what is not explored: go on while possible, else the first that can
        run."""
        running = self.running
        return (
            running
            if running.enabled and not running.done
            else min(self.runnable, key=attrgetter("index"))
        )

    def next_in_turn(self) -> ControlledTask:
        """The fair picker: the next task that can run, round and round."""
        after = self.running.index
        return min(self.runnable, key=lambda task: (task.index <= after, task.index))

    @property
    def waiting(self) -> list[ControlledTask]:
        """Tasks that are not done and cannot run."""
        return [task for task in self.tasks if not task.done and not task.enabled]

    @property
    def unfinished(self) -> int:
        """How many tasks are not done, daemons aside."""
        return self._foreground

    # What running tasks call.

    def step(self, kind: int, word: int) -> None:
        """The running task is about to do `kind` on `word`: the strategy says who goes first."""
        if self.quiet:
            self.unexplored += 1
            if self.unexplored > MOST_UNEXPLORED:
                self._unending()
            if self._noting is not None:
                self._noting.append((kind, word))
            elif (
                self.keep_extras
                and kind == LOAD
                and self.running is not self._outside
                and word not in self.unobserved
            ):
                self.extras.setdefault(len(self.trace) - 1, []).append((kind, word))
            return
        task = self.running
        task.kind = kind
        task.word = word
        try:
            chosen = self.pick()
        except Exception as error:
            self._crashed(error)
        if chosen is not task:
            self._switch(task, chosen)
        trace = self.trace
        trace.append((task.index, kind, word))
        if len(trace) >= self.limit:
            self._over()

    def pass_gate(self, kind: int, word: int, gate: Gate, what: str) -> None:
        """Like `step`, for an operation that may have to wait at `gate`."""
        if self.quiet and not (self.serial and self.quiet == 1):
            if self._aborting:
                raise Abandoned
            return
        task = self.running
        task.kind = kind
        task.word = word
        task.what = what
        gate.pending.append(task)
        if not gate.open_to(task):
            self._disable(task)
        elif self.serial:
            gate.pending.remove(task)
            return
        task.gate = gate
        self._hand_over(task)
        gate.pending.remove(task)
        task.gate = None
        self.trace.append((task.index, kind, word))
        if len(self.trace) >= self.limit:
            self._over()

    def gate_changed(self, gate: Gate) -> None:
        """The state of `gate` is another: look again who may pass."""
        for task in gate.pending:
            self._set_enabled(task, gate.open_to(task))

    def wait(self, what: str, predicate: Callable[[], bool], *, latched: bool = False) -> None:
        """Not runnable until `predicate` is true; of a `latched` one every write to what it reads
        is needed, and comes once."""
        if self.quiet and not (self.serial and self.quiet == 1):
            if self._aborting:
                raise Abandoned
            return
        task = self.running
        task.kind = WAIT
        task.predicate = predicate
        task.latched = latched
        task.what = what
        if not self._look(task):
            self._disable(task)
        if not (self.serial and task.enabled):
            self._hand_over(task)
        self._unwatch(task)
        task.predicate = None
        self._saw(task)

    def relax(self) -> None:
        """Not runnable until something that the task has read since it last relaxed is written by
        somebody else."""
        if self.quiet:
            if self._halting and self.serial and self.quiet == 1:
                self._leave(self.running)
            return
        task = self.running
        task.kind = RELAX
        task.what = "spinning"
        changed, task.reads = read_since_relaxed(task, self.trace)
        task.word = task.reads[0][1] if task.reads else NO_WORD
        if not changed:
            self._watch(task)
            self._disable(task)
        self._hand_over(task)
        self._unwatch(task)
        self._saw(task)
        task.relaxed_at = len(self.trace)

    def wrote(self, word: int) -> None:
        """`word` has a new value: whoever watches it looks again."""
        for task in tuple(self.watched.get(word, ())):
            if task is self.running:
                continue
            if task.predicate is None:
                task.revived = 0
                self._set_enabled(task, True)
            else:
                self._unwatch(task)
                self._set_enabled(task, self._look(task))

    def was_load(self) -> None:
        """The read-modify-write just done has changed nothing."""
        if not self.quiet:
            task, _, word = self.trace[-1]
            self.trace[-1] = (task, LOAD, word)

    def end(self, kind: int, word: int, accesses: list[Access]) -> None:
        """A step that touches many words."""
        self.step(kind, word)
        if not self.quiet:
            self.extras[len(self.trace) - 1] = accesses

    # Switching.

    def _run_alone(self, task: ControlledTask) -> None:
        """For the main thread: let `task` run, and whoever it hands over to, until it is the main
        thread's turn again."""
        self.running = task
        task.wake()
        self._await_turn()

    def _await_turn(self) -> None:
        await_turn(self, lambda: self.running is self._outside)

    def _halt(self, first: ControlledTask) -> None:
        """For the main thread, interrupted anywhere in `_run_alone(first)`: wait until whoever runs
        has come to a step."""
        self._halting = True
        self.limit = 0
        # it may have been its turn already, but not been told; to be told again does no harm
        first.wake()
        self._await_turn()
        self.quiet = 1
        self.serial = False

    def _back_to_main(self) -> None:
        """Nobody runs: the main thread's turn."""
        self._pass_turn(self._outside)

    def _pass_turn(self, chosen: ControlledTask) -> None:
        """It is the turn of `chosen` from now on; the caller does nothing more but wait, or end."""
        self.running = chosen
        chosen.wake()

    def _switch(self, task: ControlledTask, chosen: ControlledTask) -> None:
        self.running = chosen
        chosen.wake()
        self._park(task)

    def _park(self, task: ControlledTask) -> None:
        """Wait for the turn of `task`, which calls this."""
        task.sleep()
        while self.running is not task:
            task.sleep()
        if self._aborting:
            raise Abandoned

    def _hand_over(self, task: ControlledTask) -> None:
        """Go on with whoever is picked, which may be `task` itself if it can run."""
        if not self.runnable and not self._revive():
            self._rest(task)
            return
        try:
            chosen = self.pick()
        except Exception as error:
            self._crashed(error)
        if chosen is not task:
            self._switch(task, chosen)

    def _rest(self, task: ControlledTask) -> None:
        """Nobody can run: the phase is over."""
        self.stuck = self._foreground > 0
        self._back_to_main()
        self._park(task)

    def _over(self) -> None:
        """Too many steps: go on with fair turns for a while; after that the schedule is given
        up."""
        if self._halting:
            self._leave(self.running)
        reached = self.progress() if self.progress is not None else 0
        if not self.limit_hit:
            self.limit_hit = True
            if not self.fair_steps:
                self.moving = True
                self._leave(self.running)
            self.limit = len(self.trace) + self.fair_steps if not self._halting else 0
            self._reached = reached
            self.pick = self.next_in_turn
            return
        lately = self.trace[-self.fair_steps :]
        spinning = {task for task, kind, _ in lately if kind == RELAX}
        before = set(lately[: len(lately) // 2])
        working = {event[0] for event in lately if event not in before} - spinning
        self.moving = self.progress is not None and (reached != self._reached or bool(working))
        self._leave(self.running)

    def _unending(self) -> NoReturn:
        """What is not explored does not end: the schedule is given up."""
        self.unexplored = 0
        self.limit_hit = self.unending = True
        self._leave(self.running)

    def dispose(self) -> None:
        """The schedule is over and nobody needs it any more: let go of everything at once, without
        the garbage collector."""
        for task in self.tasks:
            task.body = nothing
            task.predicate = None
            task.gate = None
            if task.task is not None:  # which its carrier's thread knows until the next schedule
                task.task.let_go()
        self.tasks.clear()
        self.runnable.clear()
        self.registry.clear()
        self.watched.clear()
        self.on_error = self.progress = None
        self.exit_checks = []
        self.pick = nobody
        self.running = self._outside

    def _leave(self, task: ControlledTask) -> NoReturn:
        """The running task hands over to the main thread for good."""
        if task is self._outside:
            raise Abandoned
        self._back_to_main()
        if not task.done:
            self._park(task)
        raise Abandoned

    def _crashed(self, error: Exception) -> NoReturn:
        """The strategy has raised, in the middle of somebody's step: the model must not see it."""
        self.crash = error
        self._leave(self.running)

    def give_up(self) -> NoReturn:
        """For pickers: this schedule is not worth going on with."""
        self.given_up = True
        self._leave(self.running)

    def _carry(self, task: ControlledTask) -> None:
        """What the task's carrier runs."""
        assert task.task is not None
        while self.running is not task:
            task.sleep()
        current.task = mine = task.task
        try:
            if not self._aborting:
                self.trace.append((task.index, START, task.word))
                task.body()
        except Abandoned:
            pass
        except BaseException as error:
            # When the schedule is over, tasks are unwound wherever they are: what their own code
            # raises on the way out (a lock released that it never got back) is no finding.
            if not self._aborting:
                mine.error = error
                self.task_errors.append(f"{task.name} raised {error!r}")
                if self.on_error is not None:
                    self.on_error(task, error)
        try:
            if not self._aborting:
                for check in self.exit_checks:
                    check(mine)
                self._note_end(task)
        except Abandoned:
            pass
        self._ended(task)

    def _note_end(self, task: ControlledTask) -> None:
        """The end of a task belongs to its last operation: only who joins it cares, and can have
        come no sooner."""
        if not self.quiet:
            self.extras.setdefault(len(self.trace) - 1, []).append(
                (STORE, task.index << OWNER_SHIFT)
            )

    def _ended(self, task: ControlledTask) -> None:
        task.done = True
        self._disable(task)
        if not task.daemon:
            self._foreground -= 1
        assert task.carrier is not None
        task.carrier.busy = False
        if self._aborting:
            self._back_to_main()
            return
        self.wrote(task.index << OWNER_SHIFT)
        if not self.runnable and not self._revive():
            self.stuck = self._foreground > 0
            self._back_to_main()
            return
        try:
            chosen = self.pick()
        except Abandoned:
            return
        except Exception as error:
            self.crash = error
            self._back_to_main()
            return
        self._pass_turn(chosen)

    # Who can run.

    def _disable(self, task: ControlledTask) -> None:
        if task.enabled:
            task.enabled = False
            self.runnable.remove(task)

    def _set_enabled(self, task: ControlledTask, enabled: bool) -> None:
        if enabled is not task.enabled:
            task.enabled = enabled
            if enabled:
                self.runnable.append(task)
            else:
                self.runnable.remove(task)

    def _revive(self) -> bool:
        """Nobody can run: let those that spin look once more, twice in a row at most, in case they
        wait for more than words."""
        revived = False
        for task in self.tasks:
            if not task.done and not task.enabled and task.kind == RELAX and task.revived < 2:
                task.revived += 1
                self._set_enabled(task, True)
                revived = True
        return revived

    def _look(self, task: ControlledTask) -> bool:
        """Evaluate the predicate, and watch every word that it read."""
        assert task.predicate is not None
        noting, self._noting = self._noting, []
        self.quiet += 1
        try:
            result = bool(task.predicate())
        finally:
            self.quiet -= 1
            task.reads, self._noting = list(dict.fromkeys(self._noting)), noting
        task.word = task.reads[0][1] if task.reads else NO_WORD
        if not task.latched:
            task.looks.append((len(self.trace), result, task.reads))
        self._watch(task)
        return result

    def _watch(self, task: ControlledTask) -> None:
        for _, word in task.reads:
            tasks = self.watched.setdefault(word, [])
            if task not in tasks:
                tasks.append(task)

    def _unwatch(self, task: ControlledTask) -> None:
        for _, word in task.reads:
            tasks = self.watched.get(word)
            if tasks is not None and task in tasks:
                tasks.remove(task)
                if not tasks:
                    del self.watched[word]

    def _saw(self, task: ControlledTask) -> None:
        """Record a WAIT or RELAX with everything it has looked at."""
        self.trace.append((task.index, task.kind, task.word))
        if len(task.reads) > 1:
            self.extras[len(self.trace) - 1] = task.reads[1:]
        if task.kind == WAIT:
            self.looks[len(self.trace) - 1] = task.looks
            task.looks = []
            task.latched = False
        task.reads = []
        if len(self.trace) >= self.limit:
            self._over()
