"""Waiting: a wait ends when what it waits for is true, a spin when what it has read changes, and
nothing wakes in vain."""

from __future__ import annotations

from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden

FAMILY = Family("waits", "waiting, spinning and queues")


@FAMILY.program(
    "wait-wakes",
    title="wait for two words",
    rule=(
        "a wait ends once its condition is true, whoever makes it true last, and what was stored "
        "before is seen"
    ),
    source="rcuwait_wait_event(), swait; mmu.runtime.wait_until",
    grades={
        "7": acceptable("woken, and the data are there"),
        "0": forbidden("woken before the data were stored"),
        "deadlock": forbidden("a wake-up was lost"),
    },
)
def wait_wakes(bench: LitmusBench) -> Tasks:
    """The condition reads two words, which two tasks store."""
    left, right, data = bench.cell("left"), bench.cell("right"), bench.cell("data")

    def waiter() -> int:
        bench.runtime.wait_until("both", lambda: left.value == 1 and right.value == 1)
        return int(data.value)

    def first_waker() -> None:
        data.value = 7
        left.value = 1

    def second_waker() -> None:
        right.value = 1

    return Tasks(waiter, first_waker, second_waker)


@FAMILY.program(
    "wait-two-waiters",
    title="two waiters, one store",
    rule="a store wakes everybody whose condition it makes true",
    source="wake_up_all(); mmu.runtime.wait_until",
    grades={
        "1, 1": acceptable("both were woken"),
        "deadlock": forbidden("one of them was forgotten"),
    },
)
def wait_two_waiters(bench: LitmusBench) -> Tasks:
    """Grace periods and memslot updates may wait for one word together."""
    word = bench.cell("word")

    def one() -> int:
        bench.runtime.wait_until("the word", lambda: word.value == 1)
        return int(word.value)

    def two() -> int:
        bench.runtime.wait_until("the word", lambda: word.value == 1)
        return int(word.value)

    def waker() -> None:
        word.value = 1

    return Tasks(one, two, waker)


@FAMILY.program(
    "pulse-missed",
    title="wait for something that is true for a moment only",
    rule="what others wait for must stay true, or count",
    source=(
        "the reason for vcpu->exits beside vcpu->mode in kvm_make_all_cpus_request()'s wait; "
        "reference 2.16 P20"
    ),
    broken=True,
    grades={
        "": acceptable("it looked at the right moment"),
        "deadlock": forbidden("the moment was over: the waiter waits for ever"),
    },
)
def pulse_missed(bench: LitmusBench) -> Tasks:
    """A flag that goes up and down."""
    flag = bench.cell("flag")

    def waiter() -> None:
        bench.runtime.wait_until("the flag", lambda: flag.value == 1)

    def pulser() -> None:
        flag.value = 1
        flag.value = 0

    return Tasks(waiter, pulser)


@FAMILY.program(
    "spin-ends",
    title="spin with cpu_relax() until a word changes",
    rule="a spin ends once the word that it reads has changed, and sees what was stored before",
    source="cpu_relax(); a vCPU that repeats a fault, reference 2.8",
    grades={
        "7": acceptable("the spin has ended and the data are there"),
        "livelock": forbidden("the spin went on although the word had changed"),
    },
)
def spin_ends(bench: LitmusBench) -> Tasks:
    """One word, one spinner."""
    flag, data = bench.cell("flag"), bench.cell("data")

    def spinner() -> int:
        while not flag.value:
            bench.runtime.relax()
        return int(data.value)

    def setter() -> None:
        data.value = 7
        flag.value = 1

    return Tasks(spinner, setter)


@FAMILY.program(
    "spin-on-each-other",
    title="two tasks that each spin until the other has begun",
    rule="two spins that each wait for what comes after the other's spin never end",
    source="reference O10; R17 has the shape",
    broken=True,
    grades={"livelock": forbidden("both spin for ever")},
)
def spin_on_each_other(bench: LitmusBench) -> Tasks:
    """Found as a fact, not after a timeout."""
    left_ready, right_ready = bench.cell("left ready"), bench.cell("right ready")

    def left() -> None:
        while not right_ready.value:
            bench.runtime.relax()
        left_ready.value = 1

    def right() -> None:
        while not left_ready.value:
            bench.runtime.relax()
        right_ready.value = 1

    return Tasks(left, right)


@FAMILY.program(
    "queue-one-taker-each",
    title="two takers and one item after the other",
    rule="what is put into a queue is taken once, in order",
    source="kfifo; mmu.runtime.Queue",
    grades={
        "a, b": acceptable("left took first"),
        "b, a": acceptable("right took first"),
        "a, none": acceptable("right came before b was there"),
        "none, a": acceptable("left came too early, right took a"),
        "b, none": forbidden("b overtook a"),
        "none, b": forbidden("b overtook a"),
        "a, a": forbidden("taken twice"),
        "b, b": forbidden("taken twice"),
        "none, none": acceptable("both came too early"),
    },
)
def queue_one_taker_each(bench: LitmusBench) -> Tasks:
    """The queue of RCU callbacks and of frames."""
    queue = bench.queue("queue")

    def left() -> str:
        return queue.take() or "none"

    def right() -> str:
        return queue.take() or "none"

    def putter() -> None:
        queue.put("a")
        queue.put("b")

    return Tasks(left, right, putter)


@FAMILY.program(
    "queue-drain",
    title="drain while others put",
    rule=(
        "draining takes everything that is there at one moment, and nothing that comes later is "
        "lost"
    ),
    source="llist_del_all(); mmu.runtime.Queue.drain",
    grades={
        "0, 2": acceptable("drained before both"),
        "1, 1": acceptable("drained in between"),
        "2, 0": acceptable("drained after both"),
    },
)
def queue_drain(bench: LitmusBench) -> Tasks:
    """The RCU worker takes batches."""
    queue = bench.queue("callbacks")

    def drainer() -> int:
        return len(queue.drain())

    def one() -> None:
        queue.put("one")

    def two() -> None:
        queue.put("two")

    return Tasks(drainer, one, two, after=lambda: len(queue))


@FAMILY.program(
    "join",
    title="wait for a task that was started",
    rule="when a join returns the task has ended, and everything that it did is seen",
    source="kthread_stop(); mmu.runtime.join",
    grades={
        "1": acceptable("all of it is seen"),
        "0": forbidden("the join has returned too early"),
    },
)
def join(bench: LitmusBench) -> Tasks:
    """A task made by a task."""
    done = bench.cell("done")

    def starter() -> int:
        def work() -> None:
            done.value = 1

        task = bench.runtime.spawn("worker", work)
        bench.runtime.join(task)
        return int(done.value)

    return Tasks(starter)
