"""Ctrl-C in a thread that waits for the lock. In readerwriterlock: inner locks stay held, and
everybody hangs from then on.

Here: reported, and whoever asks for the lock afterwards gets an exception.
"""

import signal
import threading
import time

from mmu.sync import BrokenLock, RWLockFair, show_locks

table_lock = RWLockFair()
entered, leave = threading.Event(), threading.Event()


def writer():
    """Holds the lock; sends a Ctrl-C to the main thread when that waits for it."""
    with table_lock.write():
        entered.set()
        while "MainThread/1, waiting for table_lock" not in show_locks():
            time.sleep(0.001)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        leave.wait()


thread = threading.Thread(target=writer, name="writer")
thread.start()
entered.wait()

try:
    with table_lock.read():
        pass
except KeyboardInterrupt:
    print("interrupted")
leave.set()
thread.join()
try:
    table_lock.read().acquire()
except BrokenLock as error:
    print("refused:", error)
