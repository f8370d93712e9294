"""A writer's handle that is acquired again with a timeout. In readerwriterlock (Read): the timeout
makes it forget that it holds the lock; release() raises, and the lock is locked for ever. Here:
reported and false, and the lock is still held."""

from mmu.sync import RWLockRead

table_lock = RWLockRead()
section = table_lock.write()
section.acquire()
print("again:", section.acquire(timeout=0.05))
section.release()

with table_lock.read():
    print("a reader gets in")
