"""A reader that wants to write. In readerwriterlock: hangs for ever, there is no upgrade. Here:
reported, and an exception."""

from mmu.sync import RWLockWrite, SelfDeadlock

table_lock = RWLockWrite()

with table_lock.read():
    try:
        table_lock.write().acquire()
    except SelfDeadlock as error:
        print("refused:", error)
