"""A reader's handle that is acquired twice. In readerwriterlock: counts two readers, forgets one,
and no writer ever gets in.

Here: reported, and an exception; a handle stands for one acquisition.
"""

from mmu.sync import RWLockRead, SelfDeadlock

table_lock = RWLockRead()
section = table_lock.gen_rlock()
section.acquire()
try:
    section.acquire()
except SelfDeadlock as error:
    print("refused:", error)
section.release()

with table_lock.write():
    print("a writer gets in")
