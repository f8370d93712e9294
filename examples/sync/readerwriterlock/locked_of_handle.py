"""locked() of a new handle. In readerwriterlock: always False, it speaks of this handle and not of
the lock.

Here: reported, and the answer is the one that was meant.
"""

import threading

from mmu.sync import RWLockFair

table_lock = RWLockFair()


def careful():
    """Thinks that nobody is in."""
    print("locked:", table_lock.gen_wlock().locked())


with table_lock.write():
    thread = threading.Thread(target=careful, name="careful")
    thread.start()
    thread.join()
