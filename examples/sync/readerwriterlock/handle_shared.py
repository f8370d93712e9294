"""Two threads that share a reader's handle. In readerwriterlock: one reader is counted twice, and
no writer ever gets in.

Here: the second thread is refused, and reported.
"""

import threading

from mmu.sync import RWLockRead, SelfDeadlock

table_lock = RWLockRead()
section = table_lock.gen_rlock()  # made once, for everybody: this is the mistake


def second():
    """Uses the same handle."""
    try:
        section.acquire()
    except SelfDeadlock as error:
        print("refused:", error)


section.acquire()
thread = threading.Thread(target=second, name="second")
thread.start()
thread.join()
section.release()

with table_lock.write():
    print("a writer gets in")
