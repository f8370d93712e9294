"""The thread runtime: words are atomic, waits show what they wait for, threads keep their errors
and run their exit checks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from mmu.runtime import Cell, Counter, Runtime, Table
from mmu.task import Task, current
from tests.conftest import blocked, elsewhere, finish, together
from tests.patience import PATIENCE

THREADS = 4
ROUNDS = 500


def all_at_once(runtime: Runtime, body: Callable[[], None]) -> None:
    """Run `body` in several threads that start together."""
    start = threading.Barrier(THREADS)

    def race() -> None:
        start.wait(PATIENCE)
        body()

    together(runtime, *[race] * THREADS)


# Words


def test_a_cell_stores_exchanges_and_compares(runtime: Runtime) -> None:
    cell: Cell[str] = runtime.cell("owner", "nobody")
    assert cell.value == "nobody"
    cell.store("anna")
    assert cell.xchg("ben") == "anna"
    assert cell.cmpxchg("anna", "carl") == "ben"
    assert cell.value == "ben"
    assert cell.cmpxchg("ben", "carl") == "ben"
    assert cell.value == "carl"


def test_a_counters_operations_return_what_was_there_before(runtime: Runtime) -> None:
    counter: Counter = runtime.counter("requests", 0b0101)
    assert counter.fetch_or(0b0010) == 0b0101
    assert counter.fetch_and(0b0110) == 0b0111
    assert counter.fetch_add(-1) == 0b0110
    assert counter.value == 0b0101


def test_inc_not_zero_leaves_a_zero_alone(runtime: Runtime) -> None:
    assert not (zero := runtime.counter("dead")).inc_not_zero()
    assert zero.value == 0
    assert (one := runtime.counter("alive", 1)).inc_not_zero()
    assert one.value == 2


def test_no_addition_is_lost(runtime: Runtime) -> None:
    counter = runtime.counter("hits")

    def add() -> None:
        for _ in range(ROUNDS):
            counter.fetch_add(1)

    all_at_once(runtime, add)
    assert counter.value == THREADS * ROUNDS


def test_no_compare_exchange_succeeds_twice(runtime: Runtime) -> None:
    cell, wins = runtime.cell("turn", 0), runtime.counter("wins")

    def compete() -> None:
        for turn in range(ROUNDS):
            if cell.cmpxchg(turn, turn + 1) == turn:
                wins.fetch_add(1)

    all_at_once(runtime, compete)
    assert cell.value == wins.value <= ROUNDS


def test_a_store_is_never_lost_inside_an_addition(runtime: Runtime) -> None:
    counter, marked = runtime.counter("word"), 1 << 40

    def add_or_mark() -> None:
        for _ in range(ROUNDS):
            counter.fetch_add(1)
        counter.store(marked)
        assert counter.value >= marked

    all_at_once(runtime, add_or_mark)


def test_a_per_thread_counter_sums_every_threads_share(runtime: Runtime) -> None:
    counter = runtime.per_thread_counter("faults")

    def count() -> None:
        for _ in range(ROUNDS):
            counter.local.mine.n += 1
        counter.add(5)

    all_at_once(runtime, count)
    assert counter.value == THREADS * (ROUNDS + 5)


def test_a_table_starts_as_zeros_and_its_words_are_independent(runtime: Runtime) -> None:
    table: Table = runtime.table(4)
    assert list(table) == [0, 0, 0, 0]
    table.store(1, 5)
    assert table.xchg(1, 6) == 5
    assert table.cmpxchg(2, 1, 9) == 0
    assert table.cmpxchg(2, 0, 9) == 0
    assert list(table) == [0, 6, 9, 0]


def test_no_compare_exchange_of_a_table_word_is_lost(runtime: Runtime) -> None:
    table = runtime.table(2)

    def add() -> None:
        for _ in range(ROUNDS):
            while table.cmpxchg(1, seen := table[1], seen + 1) != seen:
                pass

    all_at_once(runtime, add)
    assert list(table) == [0, THREADS * ROUNDS]


# Queues


def test_a_queue_is_first_in_first_out(runtime: Runtime) -> None:
    queue = runtime.queue()
    for item in "abc":
        queue.put(item)
    assert len(queue) == 3
    assert queue.take() == "a"
    assert queue.drain() == ["b", "c"]
    assert queue.take() is None
    assert queue.drain() == []


def test_no_item_is_lost_or_taken_twice(runtime: Runtime) -> None:
    queue, taken = runtime.queue(), runtime.queue()

    def produce_and_consume() -> None:
        for number in range(1, ROUNDS + 1):
            queue.put(number)
            if (item := queue.take()) is not None:
                taken.put(item)
        for item in queue.drain():
            taken.put(item)

    all_at_once(runtime, produce_and_consume)
    assert sorted(taken.drain() + queue.drain()) == sorted([*range(1, ROUNDS + 1)] * THREADS)


# Raw locks


def test_a_raw_lock_excludes(runtime: Runtime) -> None:
    lock = runtime.lock()
    assert lock.acquire()
    assert not lock.acquire(blocking=False)
    lock.release()
    assert lock.acquire(blocking=False)
    lock.release()


@pytest.mark.parametrize("preference", ["fair", "reader", "writer"])
def test_a_raw_rwlock_admits_readers_together_and_a_writer_alone(
    runtime: Runtime, preference: str
) -> None:
    lock = runtime.rwlock(preference)
    readers, writer = [lock.gen_rlock(), lock.gen_rlock()], lock.gen_wlock()
    assert all(reader.acquire() for reader in readers)
    assert not writer.acquire(blocking=False)
    for reader in readers:
        reader.release()
    assert writer.acquire()
    assert not readers[0].acquire(blocking=False)
    writer.release()


def test_an_unknown_preference_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(KeyError, match="unfair"):
        runtime.rwlock("unfair")


# Time and waits


def test_the_clock_never_goes_back(runtime: Runtime) -> None:
    seen = [runtime.now() for _ in range(100)]
    assert seen == sorted(seen)
    assert all(isinstance(now, int) for now in seen)


def test_a_wait_for_what_is_true_already_looks_once(runtime: Runtime) -> None:
    looks: list[str] = []

    def look() -> bool:
        looks.append(current.task.waiting_for)
        return True

    runtime.wait_until("nothing", look)
    assert looks == [""]


def test_a_wait_ends_when_another_thread_makes_it_true(runtime: Runtime) -> None:
    cell = runtime.cell("ready", False)
    waiter = blocked(runtime, lambda: runtime.wait_until("the answer", lambda: cell.value))
    assert waiter.waiting_for == "the answer"
    cell.store(True)
    finish(runtime, waiter)
    assert waiter.waiting_for == ""


def test_a_wait_for_flags_ends_with_the_last(runtime: Runtime) -> None:
    one, other = runtime.cell("one", False), runtime.cell("other", False)
    waiter = blocked(runtime, lambda: runtime.wait_for_all("both", one, other))
    one.store(True)
    waiting = blocked(runtime, lambda: runtime.wait_for_all("the other", other))
    assert (waiter.waiting_for, waiting.waiting_for) == ("both", "the other")
    other.store(True)
    finish(runtime, waiter)
    finish(runtime, waiting)
    runtime.wait_for_all("both, which are set", one, other)


def test_a_wait_that_is_left_by_an_exception_waits_for_nothing(runtime: Runtime) -> None:
    def fail() -> bool:
        if current.task.waiting_for:
            raise KeyError
        return False

    with pytest.raises(KeyError):
        runtime.wait_until("what never comes", fail)
    assert current.task.waiting_for == ""


def test_a_wait_inside_a_wait_restores_what_the_outer_one_waits_for(runtime: Runtime) -> None:
    seen: list[str] = []

    def look() -> bool:
        looks = iter([False, True])
        runtime.wait_until("inner", lambda: next(looks))
        seen.append(current.task.waiting_for)
        return len(seen) == 3

    runtime.wait_until("outer", look)
    assert seen == ["", "outer", "outer"]


def test_a_late_wait_says_for_how_long_again_and_again(runtime: Runtime) -> None:
    late: list[float] = []
    runtime.wait_until("the second warning", lambda: len(late) == 2, on_late=late.append)
    assert 0 < late[0] < late[1]


def test_a_wait_that_is_not_late_warns_nobody(runtime: Runtime) -> None:
    late: list[float] = []
    runtime.wait_until("the third look", iter([False, False, True]).__next__, on_late=late.append)
    assert late == []


# Threads


def test_a_spawned_body_runs_as_a_task_of_its_own(runtime: Runtime) -> None:
    seen: list[Task] = []
    task = runtime.spawn("vcpu-0", lambda: seen.append(current.task))
    finish(runtime, task)
    assert seen == [task]
    assert task is not current.task
    assert str(task) == f"vcpu-0/{task.number}"


def test_two_tasks_of_one_name_have_different_numbers(runtime: Runtime) -> None:
    first, second = (runtime.spawn("vcpu", lambda: None) for _ in range(2))
    finish(runtime, first, second)
    assert str(first) != str(second)


def test_current_is_the_same_task_for_the_whole_life_of_a_thread() -> None:
    assert current.task is current.task


def test_a_plain_thread_has_a_task_named_after_it() -> None:
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(current.task.name), name="plain")
    thread.start()
    thread.join(PATIENCE)
    assert names == ["plain"]


def test_tasks_lists_everyone_spawned_ended_ones_included(runtime: Runtime) -> None:
    ended = runtime.spawn("ended", lambda: None)
    finish(runtime, ended)
    with elsewhere(runtime, nullcontext()) as running:
        assert runtime.tasks() == [ended, running]


def test_join_says_whether_the_thread_has_ended(runtime: Runtime) -> None:
    with elsewhere(runtime, nullcontext()) as task:
        assert not runtime.join(task, 0)
    assert runtime.join(task, PATIENCE)


def fail() -> None:
    raise ValueError("the body failed")


def test_an_error_is_kept_in_its_task(runtime: Runtime) -> None:
    task = runtime.spawn("fails", fail)
    assert runtime.join(task, PATIENCE)
    assert isinstance(task.error, ValueError)


def test_an_error_is_passed_on_with_its_task(runtime: Runtime) -> None:
    told: list[tuple[Task, BaseException]] = []
    runtime.on_task_error = lambda task, error: told.append((task, error))
    task = runtime.spawn("fails", fail)
    assert runtime.join(task, PATIENCE)
    assert told == [(task, task.error)]


@pytest.mark.parametrize("body", [lambda: None, fail], ids=["returns", "fails"])
def test_exit_checks_run_in_the_ending_thread_whether_or_not_it_failed(
    runtime: Runtime, body: Callable[[], None]
) -> None:
    seen: list[tuple[Task, Task]] = []
    runtime.at_task_exit(lambda task: seen.append((task, current.task)))
    task = runtime.spawn("ends", body)
    assert runtime.join(task, PATIENCE)
    assert seen == [(task, task)]


def test_a_task_can_be_joined_as_soon_as_it_is_listed(runtime: Runtime) -> None:
    joinable: list[bool] = []
    task = runtime.spawn(
        "early", lambda: joinable.extend(task.thread is not None for task in runtime.tasks())
    )
    finish(runtime, task)
    assert joinable == [True]
