"""A lock that another thread releases. In readerwriterlock: done without a word, in the middle of
the owner's section.

Here: done as well, since a program may live by it, and reported with the place where it was taken.
"""

import threading

from mmu.sync import RWLockFair

table_lock = RWLockFair()
section = table_lock.write()
section.acquire()

other = threading.Thread(target=section.release, name="other")
other.start()
other.join()
print("held by me:", bool(table_lock.held_mode()))
