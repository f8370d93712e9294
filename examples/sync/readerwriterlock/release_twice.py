"""One release too many. In readerwriterlock: a RuntimeError that does not say whose lock it was.
Here: reported as well, with the lock, the stack and what the thread holds."""

from mmu.sync import RWLockFair

table_lock = RWLockFair()

section = table_lock.read()
section.acquire()
section.release()
try:
    section.release()
except RuntimeError as error:
    print("refused:", error)
