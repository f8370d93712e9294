"""A lock whose holder must never block, a helper that blocks, and an RCU reader that does.

python examples/sync/sleep_in_atomic.py
"""

from mmu.sync import Lock, default_sync, might_sleep

# taken by the timer: whoever holds it lets the whole program wait
ticks = Lock("ticks", atomic=True)
config = Lock("config")
rcu = default_sync().rcu


def save(value):
    """Writes to a disk, now and then: so it says that it may block, and is checked even when it
    does not."""
    might_sleep("save()")
    return value


with ticks:
    save(1)  # reported: blocks under an atomic lock

with ticks, config:  # reported: may have to wait for `config` under an atomic lock
    pass

with rcu.read():
    save(2)  # reported: a grace period, and everybody who waits for it, would wait for the disk

save(3)  # nothing wrong here
print("done")
