"""A write inside a write. In readerwriterlock: hangs for ever. Here: reported, and an exception."""

from mmu.sync import RWLockFair, SelfDeadlock

table_lock = RWLockFair()

with table_lock.write():
    try:
        table_lock.write().acquire()
    except SelfDeadlock as error:
        print("refused:", error)
