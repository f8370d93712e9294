"""Stacks of other threads can be taken at any moment, whatever the garbage collector does
meanwhile."""

from __future__ import annotations

from tests.command import python

GARBAGE = """
import gc, threading
from mmu import stack
from mmu.task import current

def deep(levels):
    if levels:
        deep(levels - 1)
    else:
        here.set()
        leave.wait(300)

leave = threading.Event()
for _ in range(8):
    here = threading.Event()
    threading.Thread(target=deep, args=(12,), daemon=True).start()
    assert here.wait(300)
gc.set_threshold(1, 1, 1)
for _ in range(600):
    ring = [threading.local()]
    ring[0].x = 1
    ring.append(ring)
    del ring
    assert stack.of_task(current.task)
assert gc.isenabled()
print("survived")
leave.set()
"""


def test_a_stack_is_taken_although_thread_local_storage_is_being_collected() -> None:
    done = python("-c", GARBAGE)
    assert done.out == "survived\n", done.err
