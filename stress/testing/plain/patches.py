"""Puts the controlled primitives where the code under test looks for the real ones, and puts the
real ones back.

Classes written in Python keep their identity: their methods are replaced, so that names that were
bound before and subclasses are served as well. What is written in C is replaced by name: in the
modules that define it and, by `stress.testing.plain.before`, wherever the program can reach it.
Every replacement asks whether the calling thread is a task, and does for all others what the real
one does.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import concurrent.futures.thread  # so that its pool can be patched
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from stress.testing.plain import clock, pool, queues, threads, waits
from stress.testing.plain.locks import LockName, RLockName
from stress.testing.plain.session import called_by_harness, called_by_stress, inside

Control = Callable[..., Any]
"""What a method or function does for a task: given the session, the original and the arguments."""

METHODS: list[tuple[type, str, Control]] = [
    (threading.Event, "__init__", waits.event_init),
    (threading.Event, "is_set", waits.event_is_set),
    (threading.Event, "set", waits.event_set),
    (threading.Event, "clear", waits.event_clear),
    (threading.Event, "wait", waits.event_wait),
    (threading.Semaphore, "__init__", waits.semaphore_init),
    (threading.Semaphore, "acquire", waits.semaphore_acquire),
    (threading.Semaphore, "__enter__", waits.semaphore_acquire),
    (threading.Semaphore, "release", waits.semaphore_release),
    (threading.BoundedSemaphore, "release", waits.semaphore_release),
    (threading.Condition, "__init__", waits.condition_init),
    (threading.Condition, "wait", waits.condition_wait),
    (threading.Condition, "notify", waits.condition_notify),
    (threading.Condition, "notify_all", waits.condition_notify_all),
    (threading.Thread, "__init__", threads.thread_init),
    (threading.Thread, "start", threads.thread_start),
    (threading.Thread, "join", threads.thread_join),
    (threading.Thread, "is_alive", threads.thread_is_alive),
    (queue.Queue, "__init__", queues.queue_init),
    (queue.Queue, "put", queues.queue_put),
    (queue.Queue, "get", queues.queue_get),
    (queue.Queue, "task_done", queues.queue_task_done),
    (queue.Queue, "join", queues.queue_join),
    (queue.Queue, "qsize", queues.queue_qsize),
    (queue.Queue, "empty", queues.queue_empty),
    (queue.Queue, "full", queues.queue_full),
    (queue.Queue, "shutdown", queues.queue_shutdown),
    (concurrent.futures.Future, "__init__", pool.future_init),
    (concurrent.futures.ThreadPoolExecutor, "__init__", pool.pool_init),
    (concurrent.futures.ThreadPoolExecutor, "submit", pool.pool_submit),
    (concurrent.futures.ThreadPoolExecutor, "shutdown", pool.pool_shutdown),
]
"""Methods to replace, where the Python at hand has them."""

FUNCTIONS: list[tuple[Any, str, Control]] = [
    (time, "sleep", clock.sleep),
    (time, "monotonic", clock.ticks),
    (time, "perf_counter", clock.ticks),
    (time, "monotonic_ns", clock.ticks_ns),
    (time, "perf_counter_ns", clock.ticks_ns),
    (time, "time", clock.wall),
    (time, "time_ns", clock.wall_ns),
    (threading, "enumerate", threads.enumerate_threads),
    (threading, "active_count", threads.active_count),
    (_thread, "start_new_thread", threads.start_new_thread),
]
"""Functions to replace by name."""

FACTORIES: list[tuple[Any, str, Any]] = [
    (threading, "Lock", LockName),
    (threading, "RLock", RLockName),
    (functools, "RLock", RLockName),
    (queue, "SimpleQueue", queues.SimpleQueue),
]
"""Types to replace by name."""


def _for_method(original: Any, control: Control) -> Any:
    """A method that does `control` for tasks and `original` for all others."""
    is_constructor = original.__name__ == "__init__"

    @functools.wraps(original)
    def method(self: Any, /, *args: Any, **options: Any) -> Any:
        session = inside()
        if session is None or hasattr(self, "uncontrolled"):
            return original(self, *args, **options)
        if session.raw or called_by_stress():
            with session.uncontrolled():
                if is_constructor:
                    self.uncontrolled = True
                return original(self, *args, **options)
        return control(session, original, self, *args, **options)

    return method


def _for_function(original: Any, control: Control) -> Any:
    """A function that does `control` for tasks and `original` for all others."""

    @functools.wraps(original)
    def function(*args: Any, **options: Any) -> Any:
        session = inside()
        if session is None or called_by_harness():
            return original(*args, **options)
        return control(session, original, *args, **options)

    return function


@contextmanager
def patched() -> Iterator[dict[int, tuple[Any, Any]]]:
    """While the block runs, tasks have controlled primitives. Yields what was replaced by name: by
    id, the original and what stands in for it."""
    with ExitStack() as stack:
        for owner, name, control in METHODS:
            if name in vars(owner):
                _replace(stack, owner, name, _for_method(vars(owner)[name], control))
        stack.callback(delattr, concurrent.futures.Future, "__hash__")
        concurrent.futures.Future.__hash__ = pool.future_hash  # type: ignore[assignment,method-assign]
        _replace(stack, concurrent.futures._base, "_AcquireFutures", pool.OrderedFutures)
        by_name: dict[int, tuple[Any, Any]] = {}
        for module, name, control in FUNCTIONS:
            original = getattr(module, name)
            by_name[id(original)] = (original, _for_function(original, control))
        for module, name, factory in FACTORIES:
            original = getattr(module, name)
            by_name[id(original)] = (original, factory)
        for module, name, _ in (*FUNCTIONS, *FACTORIES):
            _replace(stack, module, name, by_name[id(getattr(module, name))][1])
        _replace(stack, threading, "_time", by_name[id(threading._time)][1])  # type: ignore[attr-defined]
        yield by_name


def _replace(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    """Set an attribute for as long as `stack` is open."""
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, new)
