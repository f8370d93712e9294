"""A process beside a worker of a cluster that carries out the worker's tasks, each in a process of
its own.

A worker cannot do that itself: its process may be a daemonic one, which multiprocessing allows no
children, and every child would import what the worker has imported. This one is clean, and lives as
long as one batch on one worker.

What goes in and out are pickles, one after the other. In: `Greeting`, then a task at a time. Out:
the identity of this process, then a result for each task.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, BinaryIO

from stress.runs.fanout.identity import identity
from stress.runs.fanout.local import run_local
from stress.runs.fanout.task import FanoutTask, Greeting


def main() -> None:
    """Answer on what was stdout; whatever a task prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Carry out task after task."""
    greeting: Greeting = pickle.load(requests)  # noqa: S301 - from the worker that has started us
    _send(answers, identity(greeting.files))
    with contextlib.suppress(BrokenPipeError):
        run_local(
            _tasks(requests), 1, lambda _, result: _send(answers, result), first_slot=greeting.slot
        )


def _tasks(requests: BinaryIO) -> Iterator[FanoutTask]:
    """Read beside, so that the end of the worker is noticed while a task is carried out: nobody
    wants its result then."""
    arrived: SimpleQueue[FanoutTask] = SimpleQueue()

    def read() -> None:
        try:
            while True:
                arrived.put(pickle.load(requests))  # noqa: S301 - as above
        except EOFError:
            os._exit(0)
        except BaseException:
            # a task that makes no sense here: the worker hears of our end, its log of the reason
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield arrived.get()


def _send(answers: BinaryIO, value: Any) -> None:
    pickle.dump(value, answers)
    answers.flush()


if __name__ == "__main__":
    main()
