"""A writer that calls something that reads. In readerwriterlock: hangs for ever. Here: reported,
and an exception."""

from mmu.sync import RWLockRead, SelfDeadlock

table_lock = RWLockRead()

with table_lock.write():
    try:
        table_lock.read().acquire()
    except SelfDeadlock as error:
        print("refused:", error)
