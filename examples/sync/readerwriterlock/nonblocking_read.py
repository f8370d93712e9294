"""A non-blocking read among readers. In readerwriterlock: refused nearly every time, although
nobody writes, because readers meet in an inner lock. Here: refused because of a writer only."""

import threading

from mmu.sync import RWLockRead

table_lock = RWLockRead()
stop = threading.Event()


def reader():
    """In and out."""
    while not stop.is_set():
        with table_lock.read():
            pass


readers = [threading.Thread(target=reader) for _ in range(2)]
for thread in readers:
    thread.start()
granted = 0
for _ in range(50):
    section = table_lock.read()
    if section.acquire(blocking=False):
        granted += 1
        section.release()
stop.set()
for thread in readers:
    thread.join()
print("granted, of 50:", granted)

with table_lock.write():
    other = threading.Thread(
        target=lambda: print("while a writer is in:", table_lock.read().acquire(blocking=False))
    )
    other.start()
    other.join()
