"""Two threads that take two locks in both orders, one after the other: it never deadlocks, and is
reported all the same.

python examples/sync/inversion.py
"""

import threading

from mmu.sync import Lock, show_locks


class Account:
    """Money, and the lock that guards it."""

    def __init__(self):
        self.lock = Lock()
        self.money = 100


class Journal:
    """What happened, in order."""

    def __init__(self):
        self.lock = Lock()
        self.lines = []


account, journal = Account(), Journal()


def pay():
    """Take money, then write it down: the account's lock, then the journal's."""
    with account.lock:
        account.money -= 10
        with journal.lock:
            journal.lines.append("paid 10")
            print(show_locks())


def audit():
    """Read the journal, then count the money: the other way round."""
    with journal.lock:
        lines = len(journal.lines)
        with account.lock:
            print(f"{lines} payments, {account.money} left")


for step in (pay, audit):  # one ends before the other begins: nobody ever waits
    thread = threading.Thread(target=step, name=step.__name__)
    thread.start()
    thread.join()
