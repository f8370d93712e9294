"""Two small concurrent programs under the fixture `explore`: one that is right, and one that is
not.

    pytest examples

Each `program` is called once for every schedule. It makes everything that tasks share from `sync`,
spawns the tasks, and returns what has to hold at the end. Every operation on what `sync` has made
is a point at which another task may go on.
"""

import pytest

from stress.testing import ScheduleFailed


class BoundedBuffer:
    """At most `size` items. Whoever finds it full or empty waits outside the lock, and looks again
    inside."""

    def __init__(self, sync, size):
        self._sync = sync
        self._size = size
        self._lock = sync.mutex("buffer lock")
        self._items = sync.cell("items", ())

    def put(self, item):
        """Add an item, when there is room."""
        while True:
            self._sync.wait_until(lambda: len(self._items.value) < self._size, "room in the buffer")
            with self._lock:
                items = self._items.value
                if len(items) < self._size:
                    self._items.value = (*items, item)
                    return

    def take(self):
        """Remove the oldest item, when there is one."""
        while True:
            self._sync.wait_until(lambda: len(self._items.value) > 0, "an item in the buffer")
            with self._lock:
                items = self._items.value
                if items:
                    self._items.value = items[1:]
                    return items[0]


def test_everything_that_is_put_is_taken_once(explore):
    """Two producers, one consumer, room for one item: in every schedule, each producer's items
    arrive in their order."""

    def program(sync):
        buffer = BoundedBuffer(sync, size=1)
        taken = []

        def produce(first):
            buffer.put(first)
            buffer.put(first + 1)

        def consume():
            taken.extend(buffer.take() for _ in range(4))

        sync.spawn(produce, 10, name="tens")
        sync.spawn(produce, 20, name="twenties")
        sync.spawn(consume)

        def check():
            assert sorted(taken) == [10, 11, 20, 21]
            assert taken.index(10) < taken.index(11)
            assert taken.index(20) < taken.index(21)

        return check

    explore(program, schedules=300)


def test_one_producer_and_one_consumer_are_proved(explore):
    """Small enough for all schedules: nothing is left to chance."""

    def program(sync):
        buffer = BoundedBuffer(sync, size=1)
        taken = []
        sync.spawn(lambda: [buffer.put(item) for item in "ab"], name="producer")
        sync.spawn(lambda: taken.extend(buffer.take() for _ in "ab"), name="consumer")
        return lambda: taken == ["a", "b"]

    assert explore(program, exhaustive=True).exhausted


@pytest.mark.xfail(
    raises=ScheduleFailed, strict=True, reason="the two accounts are locked in both orders"
)
def test_transfers_in_both_directions(explore):
    """Each transfer locks where the money comes from, then where it goes. Lockdep reports the
    inversion in the first schedule in which both transfers run, whether or not they meet."""

    def program(sync):
        locks = {name: sync.mutex(f"account {name}") for name in "AB"}
        money = {name: sync.cell(f"money {name}", 100) for name in "AB"}

        def transfer(source, target):
            with locks[source], locks[target]:
                money[source].value -= 10
                money[target].value += 10

        sync.spawn(transfer, "A", "B")
        sync.spawn(transfer, "B", "A")
        return lambda: money["A"].value + money["B"].value == 200

    explore(program)
