"""When the garbage collector runs during an exploration: between two schedules, and as soon as it
pays.

A schedule leaves a VM with its tasks behind, some thousand objects that refer to each other in
circles. Collected at once, while they are still in the CPU's caches, they cost a quarter of what
they cost when hundreds of VMs have come together; and a collection in the middle of a schedule
would end objects of earlier ones in the name of a task of this one.
"""

from __future__ import annotations

import gc
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG: Final = 500_000 if sysconfig.get_config_var("Py_GIL_DISABLED") else 3_000
"""So many new objects are looked through. The free-threaded build has no generations: it looks
through everything, always."""
OLDER: Final = 256
"""So often are new objects looked through before those that have outlived it are, too."""


@contextmanager
def by_hand() -> Iterator[None]:
    """No collection but those of `tidy`."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def tidy() -> None:
    """Between two schedules: collect what they have left, if it is enough by now."""
    new, older, _ = gc.get_count()
    if new > YOUNG:
        gc.collect(1 if older > OLDER else 0)
