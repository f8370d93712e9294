"""A downgrade of RWLockReadD. In readerwriterlock: releases the lock, hopes, and another writer
gets in between.

Here: refused and reported. RWLockFairD and RWLockWriteD keep the promise.
"""

from mmu.sync import RWLockFairD, RWLockReadD

table_lock = RWLockReadD()
section = table_lock.write()
section.acquire()
try:
    section.downgrade()
except Exception as error:
    print("refused:", error)
section.release()

fair_lock = RWLockFairD()
section = fair_lock.write()
section.acquire()
reading = section.downgrade()  # nobody writes before this is released
print("downgraded, writers kept out:", not fair_lock.gen_wlock().acquire(blocking=False))
reading.release()
