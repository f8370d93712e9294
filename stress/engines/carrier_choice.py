"""What the tasks of a schedule run on: OS threads, or greenlets that share one.

Both give the same schedules, findings and reports; a hand-over between greenlets costs a fifth of
one between threads. Where `greenlet` is installed (the extra `fast`) the project's own programs run
on greenlets. Code that the project does not know stays on threads, because it may keep things by
thread (`threading.local`, `threading.get_ident`, an `RLock`): tests of a user's, and the library's
own steps inside a reader-writer lock. The environment variable `STRESS_CARRIER` decides for all
programs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sysconfig
from typing import TYPE_CHECKING, Final

from stress.scenario.errors import StressError

if TYPE_CHECKING:
    from stress.engines.controlled import ControlledRuntime
    from stress.engines.scheduler import Scheduler

VARIABLE: Final = "STRESS_CARRIER"
AUTO: Final = "auto"
THREADS: Final = "threads"
GREENLETS: Final = "greenlets"
CARRIERS: Final = (AUTO, THREADS, GREENLETS)
SC: Final = "sc"
TSO: Final = "tso"
MEMORIES: Final = (SC, TSO)
"""Memory orders: every operation at once and in order, or x86's."""

_SCHEDULERS: Final = {
    (THREADS, SC): ("scheduler", "Scheduler"),
    (GREENLETS, SC): ("greenlets", "GreenletScheduler"),
    (THREADS, TSO): ("store_buffers", "StoreBuffers"),
    (GREENLETS, TSO): ("buffered_greenlets", "BufferedGreenlets"),
}

_RUNTIMES: Final = {
    (SC, False): ("controlled", "ControlledRuntime"),
    (SC, True): ("timed_runtime", "TimedRuntime"),
    (TSO, False): ("tso", "TsoRuntime"),
    (TSO, True): ("timed_tso", "TimedTsoRuntime"),
}


def carrier_for(wanted: str, granularity: str) -> str:
    """`threads` or `greenlets`: what `STRESS_CARRIER` says, or what a program wants that is
    explored with this granularity.

    Raises `StressError` when the variable makes no sense, or asks for greenlets where there are
    none.
    """
    asked = os.environ.get(VARIABLE) or AUTO
    if asked not in CARRIERS:
        raise StressError(
            f"{VARIABLE}={asked}: there is no such carrier; there are {', '.join(CARRIERS)}"
        )
    if asked != AUTO:
        wanted = asked
    elif wanted == AUTO:
        wanted = GREENLETS if granularity == "atomic" and missing() is None else THREADS
    if wanted == GREENLETS and (why := missing()) is not None:
        raise StressError(f"{VARIABLE}={asked}: there are no greenlets: {why}")
    return wanted


@functools.cache
def missing() -> str | None:
    """Why there are no greenlets here; None where there are. To ask imports nothing: on a
    free-threaded build an extension that needs the GIL would turn it on for the whole process."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "they need a build of Python with the GIL"
    if importlib.util.find_spec("greenlet") is None:
        return "install the extra `fast` (pip install 'tdp-stress[fast]')"
    return None


def scheduler_class(carrier: str, memory: str) -> type[Scheduler]:
    """The scheduler for tasks on such carriers, with store buffers if `memory` is `tso`; imported
    here, because of greenlets that need not be installed, and because the command line asks which
    carriers there are before it knows what it needs."""
    name, kind = _SCHEDULERS[carrier, memory]
    found: type[Scheduler] = getattr(importlib.import_module(f"stress.engines.{name}"), kind)
    return found


def runtime_class(memory: str, is_timed: bool) -> type[ControlledRuntime]:
    """The runtime for tasks with such a memory order, with time-outs if `is_timed`."""
    name, kind = _RUNTIMES[memory, is_timed]
    found: type[ControlledRuntime] = getattr(
        importlib.import_module(f"stress.engines.{name}"), kind
    )
    return found
