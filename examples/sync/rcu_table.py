"""A lookup table that readers use without a lock, and a reader that keeps what it found for too
long.

python examples/sync/rcu_table.py
"""

import threading

from mmu.sync import Lock, RcuHead, default_sync

rcu = default_sync().rcu


class Route(RcuHead):
    """Where to send what. `RcuHead` lets it be freed through RCU; any touch after that is a
    report."""

    def __init__(self, target, port):
        self.target = target
        self.port = port


class RoutingTable:
    """Readers follow one pointer; writers publish a new dict under a lock, and free what they took
    out after a grace period."""

    def __init__(self):
        self._lock = Lock()
        self._routes = rcu.pointer("routes", {})

    def find(self, name):
        """The route called `name`; only inside a read section, and only good as long as that
        lasts."""
        return self._routes.dereference().get(name)

    def replace(self, name, route):
        """Publish `route`; the old one goes when nobody can be using it any more."""
        with self._lock:
            routes = dict(self._routes.peek())
            old = routes.get(name)
            routes[name] = route
            self._routes.replace(routes)
        if old is not None:
            rcu.free(old)


table = RoutingTable()
table.replace("db", Route("db1.example", 5432))

with rcu.read():
    print("inside the section:", table.find("db").target)
    kept = table.find("db")  # the mistake: it is used after the section

updater = threading.Thread(
    target=table.replace, args=("db", Route("db2.example", 5432)), name="updater"
)
updater.start()
updater.join()
rcu.barrier()  # in a program that runs long enough, this is only a matter of time

print("after the section:", kept.port)
table.find("db")  # another mistake: no read section at all
