"""A read inside a read. In readerwriterlock: hangs for ever as soon as a writer waits between the
two (Fair and Write).

Here: reported even when no writer is near, and counted, so that nobody hangs.
"""

from mmu.sync import RWLockFair

table_lock = RWLockFair()


def size():
    """Harmless on its own."""
    with table_lock.read():
        return 3


with table_lock.read():
    print("size:", size())
