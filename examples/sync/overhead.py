"""What checking costs: an uncontended acquire and release, as a ratio to the same without checks,
taken in turn.

python examples/sync/overhead.py
"""

import statistics
import sys
import threading
import time

from readerwriterlock import rwlock

from mmu.sync import Lock, RLock, RWLockFair, default_sync


def sections(enter, count=3000):
    """Nanoseconds for one `with enter(): pass`."""
    start = time.perf_counter_ns()
    for _ in range(count):
        with enter():
            pass
    return (time.perf_counter_ns() - start) / count


def always(lock):
    """A function that returns `lock`: what every side of a ratio pays."""
    return lambda: lock


bare, checked = rwlock.RWLockFair(), RWLockFair()
pairs = {
    "Lock / threading.Lock": (always(Lock()), always(threading.Lock())),
    "RLock / threading.RLock": (always(RLock()), always(threading.RLock())),
    "read() / readerwriterlock": (checked.read, bare.gen_rlock),
    "write() / readerwriterlock": (checked.write, bare.gen_wlock),
    "rcu.read() / threading.Lock": (default_sync().rcu.read, always(threading.Lock())),
    "making a Lock / a threading.Lock": (lambda: Lock(), lambda: threading.Lock()),  # noqa: PLW0108 - made where it is called
}
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
print(f"CPython {sys.version.split()[0]}, {'GIL' if gil else 'free-threaded'}")
for name, (ours, theirs) in pairs.items():
    rounds = [(sections(ours), sections(theirs)) for _ in range(7)]
    ratio = statistics.median(one / two for one, two in rounds)
    print(
        f"{name:<34} {ratio:5.1f}   {min(one for one, _ in rounds):6.0f} ns / "
        f"{min(two for _, two in rounds):5.0f} ns"
    )
