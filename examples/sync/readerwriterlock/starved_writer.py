"""A writer among readers that overlap. In readerwriterlock (RWLockRead): waits for ever, in
silence.

Here: reported when it has waited for longer than `hung_seconds`, with how often others were let in,
and who is in now.
"""

import sys
import threading
import time

from mmu.sync import Reporter, RWLockRead, Sync

starved = threading.Event()


def on_report(report):
    """Print it, and let the others end."""
    if report.code == "starved":
        print(report.render(), file=sys.stderr)
        starved.set()


sync = Sync(reporter=Reporter(on_report), hung_seconds=0.05)
table_lock = RWLockRead(sync=sync)


def other():
    """In for a millisecond, out, and in again."""
    while not starved.is_set():
        with table_lock.read():
            time.sleep(0.001)


others = [threading.Thread(target=other, daemon=True) for _ in range(3)]
for thread in others:
    thread.start()
while not starved.is_set():
    with table_lock.write():
        pass
for thread in others:
    thread.join()
