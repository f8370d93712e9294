"""lockdep: the rules of locking, checked at every acquisition, whether or not anything goes wrong
this time.

Locks belong to *classes*. Each thread's position is a node in a tree of validated chains (the
classes it holds, in order and with modes): a chain that was seen before costs one dictionary
look-up. Only a new chain is checked: every edge "held, then taken" goes into a graph over classes,
and a cycle in it is reported the first time both orders were ever seen. An order can be documented,
too, and then one wrong order is a cycle although nobody has taken the locks in the right one. Modes
follow the kernel's rules: two readers do not block each other, a non-recursive read is blocked by a
waiting writer, a recursive read (SRCU, a reader-preferring lock) is not. Source:
Documentation/locking/lockdep-design.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Hashable
from typing import Final

from attrs import frozen

from mmu import stack as stacks
from mmu.report import Report, Reporter, section
from mmu.task import Task, current

READ: Final = 1
WRITE: Final = 2
MODES = {0: "none", READ: "read", WRITE: "write"}


@frozen(eq=False)
class LockClass:
    """What kind of lock: `sleeping` ones may block, so they are not taken in atomic context;
    `recursive_read` says that a read is granted even while a writer waits; `index` tells it apart
    from every other class of the process."""

    name: str
    index: int
    sleeping: bool
    recursive_read: bool = False

    def key(self, mode: int, trylock: bool = False) -> int:
        """The name of (class, mode) in a chain node. A trylock has a name of its own: it cannot
        block, so no order was checked for it."""
        return self.index * 8 + (mode + 4 if trylock else mode)


class Hold:
    """One thread's relation to one lock: mode held, depth, and where it was taken. Private to the
    thread that made it, but for `mode`, which others read as a hint (contention, watchdog): READ or
    WRITE while held, the same negated while waiting for it, 0 otherwise. `site` is where it was
    taken, except for a read of a rwlock."""

    __slots__ = ("depth", "lock_class", "mode", "site", "task")

    def __init__(self, lock_class: LockClass) -> None:
        self.task = current.task
        self.lock_class = lock_class
        self.mode = 0
        self.depth = 0
        self.site: stacks.Stack = ()


_indices = itertools.count(1)
_indices_lock = threading.Lock()


def _next_index() -> int:
    with _indices_lock:
        return next(_indices)


class ChainNode:
    """A validated sequence of held classes; `spinning` is the innermost lock that forbids sleeping,
    or None."""

    __slots__ = ("children", "key", "lock_class", "mode", "parent", "spinning")

    def __init__(
        self, parent: ChainNode | None, lock_class: LockClass | None, mode: int, key: int = 0
    ) -> None:
        self.parent = parent
        self.key = key
        self.lock_class = lock_class
        self.mode = mode
        self.children: dict[int, ChainNode] = {}
        inherited = parent.spinning if parent is not None else None
        atomic = lock_class is not None and not lock_class.sleeping
        self.spinning: ChainNode | None = self if atomic else inherited

    def path(self) -> list[ChainNode]:
        """The chain from the outermost lock to this one."""
        nodes: list[ChainNode] = []
        node: ChainNode | None = self
        while node is not None and node.lock_class is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@frozen
class _Edge:
    """First sight of "`before` held in `before_mode`, then `after` taken in `after_mode`"; with
    `source`, nobody has seen it, but that says that it is right."""

    before: LockClass
    before_mode: int
    after: LockClass
    after_mode: int
    task: str
    stack: stacks.Stack
    source: str = ""

    def describe(self) -> str:
        """Which lock comes after which."""
        return (
            f"{self.before.name} ({MODES[self.before_mode]}) then {self.after.name} "
            f"({MODES[self.after_mode]})"
        )

    def joins(self, following: _Edge) -> bool:
        """Whether this edge and the next can block each other at the lock between them (a strong
        path)."""
        shared_hold = following.before_mode == READ
        recursive_wait = self.after_mode == READ and self.after.recursive_read
        return not (recursive_wait and shared_hold)


class LockDep:
    """The validator: one a VM (or one a program), shared by all its locks."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.root = ChainNode(None, None, 0)
        self._lock = threading.Lock()
        self._classes: dict[Hashable, LockClass] = {}
        self._edges: dict[LockClass, dict[tuple[LockClass, int, int], _Edge]] = {}

    def register(
        self, name: str, *, sleeping: bool, recursive_read: bool = False, key: Hashable = None
    ) -> LockClass:
        """The class called `name`, made on first use; locks with one name share their rules.

        With a `key` it is the key that decides, and the name is only what reports call it.
        """
        with self._lock:
            known = self._classes.get(key or name)
            if known is None:
                known = LockClass(name, _next_index(), sleeping, recursive_read)
                self._classes[key or name] = known
            return known

    def registered(self, key: Hashable) -> LockClass | None:
        """The class known by `key`, if there is one."""
        return self._classes.get(key)

    def document(
        self, outer: LockClass, outer_mode: int, inner: LockClass, inner_mode: int, source: str
    ) -> None:
        """`source` says that `inner` may be taken in this mode while `outer` is held in that one:
        the opposite order is reported from now on, whether or not anybody takes them in this one
        (might_lock(), fs_reclaim). Raises ValueError when that contradicts what was seen or
        documented before."""
        edge = _Edge(outer, outer_mode, inner, inner_mode, "", (), source)
        with self._lock:
            path = self._path_back(edge)
            if path is None:
                self._edges.setdefault(outer, {}).setdefault((inner, outer_mode, inner_mode), edge)
        if path is not None:
            known = ", ".join(each.describe() for each in path)
            raise ValueError(
                f"{source} says {edge.describe()}, but {known} was seen or documented before"
            )

    def chain_of(self, task: Task) -> ChainNode:
        """Where `task` stands."""
        return task.chain or self.root

    def extend(
        self, task: Task, lock_class: LockClass, mode: int, trylock: bool = False
    ) -> ChainNode:
        """The slow path of an acquisition: check the new chain, remember it, return its node.

        A trylock waits for nobody: it comes after nothing, but what is taken while it is held comes
        after it.
        """
        key = lock_class.key(mode, trylock)
        node = self.settle(task)
        known = node.children.get(key)
        if known is not None:
            return known
        if not trylock:
            self._check(task, node.path(), lock_class, mode)
        return self._child(node, lock_class, mode, key)

    def _check(self, task: Task, held: list[ChainNode], lock_class: LockClass, mode: int) -> None:
        recursive = lock_class.recursive_read and mode == READ
        if not any(link.lock_class is lock_class for link in held):
            self._add_edges(task, held, lock_class, mode)
        elif not recursive:
            self._report_nested_class(task, lock_class, mode)

    def _child(self, node: ChainNode, lock_class: LockClass, mode: int, key: int) -> ChainNode:
        with self._lock:
            return node.children.setdefault(key, ChainNode(node, lock_class, mode, key))

    def settle(self, task: Task) -> ChainNode:
        """Where `task` stands once the locks are gone that others have released for it (`Hold.mode`
        is 0); its own thread alone moves it, so that is made good here, when it matters."""
        for hold in [hold for hold in task.held if not hold.mode]:
            self.leave(hold)
        return task.chain or self.root

    def leave(self, hold: Hold) -> None:
        """A release: take `hold` off its thread's stack of held locks and step the thread's chain
        back."""
        task = hold.task
        held = task.held
        if held and held[-1] is hold:
            held.pop()
        elif hold in held:
            held.remove(hold)
        chain = task.chain
        if chain is not None and chain.lock_class is hold.lock_class:
            task.chain = chain.parent
        else:
            self.retreat(task, hold.lock_class)

    def retreat(self, task: Task, lock_class: LockClass) -> None:
        """Leave `lock_class` although it is not the innermost lock held: rebuild the chain without
        it."""
        kept = self.chain_of(task).path()
        for position in range(len(kept) - 1, -1, -1):
            if kept[position].lock_class is lock_class:
                del kept[position]
                break
        node = self.root
        for link in kept:
            assert link.lock_class is not None
            node = self._child(node, link.lock_class, link.mode, link.key)
        task.chain = node

    def might_sleep(self, doing: str, node: ChainNode | None = None) -> None:
        """Report when the caller may not sleep because it holds a spinning lock (might_sleep,
        DEBUG_ATOMIC_SLEEP)."""
        task = current.task
        spinning = (node or self.chain_of(task)).spinning
        if spinning is not None and node is None:
            spinning = self.settle(task).spinning
        if spinning is not None:
            assert spinning.lock_class is not None
            self.report(
                "sleep-in-atomic",
                f"BUG: sleeping function called from invalid context: {doing}",
                f"{doing} may sleep, which is forbidden while {spinning.lock_class.name} (a "
                "spinning lock) is held",
                "include/linux/kernel.h might_sleep(); reference 2.1 rule 6",
                subject=f"{doing} in {spinning.lock_class.name}",
            )

    def sync(self, lock_class: LockClass) -> None:
        """A wait for every holder of `lock_class` (synchronize_srcu): as if it was taken and
        released at once."""
        task = current.task
        node = self.chain_of(task)
        if lock_class.key(WRITE) not in node.children:
            self.extend(task, lock_class, WRITE)

    def check_exit(self, task: Task) -> None:
        """A thread ends: nothing may be held any more (debug_check_no_locks_held)."""
        held = self.chain_of(task).path()
        mine = set(self._classes.values()) if held else set()
        # another validator sees to its own
        held = [link for link in held if link.lock_class in mine]
        if held:
            names = ", ".join(link.lock_class.name for link in held if link.lock_class is not None)
            self.report(
                "held-at-exit",
                f"BUG: {task} still has locks held at exit: {names}",
                "a thread must not end while it holds a lock",
                "kernel/locking/lockdep.c debug_check_no_locks_held()",
                subject=names,
                task=task,
            )

    def orders(self) -> list[tuple[str, str, str, str]]:
        """Every order seen, as (outer, mode, inner, mode); the lock-order graph of a report."""
        with self._lock:
            edges = [
                edge for group in self._edges.values() for edge in group.values() if not edge.source
            ]
        return sorted(
            (e.before.name, MODES[e.before_mode], e.after.name, MODES[e.after_mode]) for e in edges
        )

    def report(
        self,
        code: str,
        headline: str,
        sentence: str,
        source: str,
        *,
        subject: str = "",
        extra: tuple[tuple[str, list[str]], ...] = (),
        task: Task | None = None,
        rule: str = "O5",
    ) -> None:
        """Emit a report with the caller's stack and the locks it holds; `task` is the caller's, if
        that is known."""
        task = task or current.task
        here = stacks.render(stacks.capture(2))
        parts = [section("call trace", here)] if here != stacks.NO_FRAMES else []
        parts += [section(title, lines) for title, lines in extra]
        parts.append(section(f"locks held by {task}", describe_held(task)))
        self.reporter.emit(
            Report(rule, code, headline, sentence, source, str(task), subject, tuple(parts))
        )

    def _add_edges(
        self, task: Task, held: list[ChainNode], lock_class: LockClass, mode: int
    ) -> None:
        here: stacks.Stack = ()
        for link in held:
            assert link.lock_class is not None
            key = (lock_class, link.mode, mode)
            known = self._edges.get(link.lock_class, {}).get(key)
            if known is not None and not known.source:
                continue
            here = here or stacks.capture(3)
            edge = _Edge(link.lock_class, link.mode, lock_class, mode, str(task), here)
            with self._lock:
                group = self._edges.setdefault(link.lock_class, {})
                known = group.get(key)
                path = self._path_back(edge) if known is None else None
                if known is None or known.source:
                    group[key] = edge
            if path is not None:
                self._report_cycle(edge, path)

    def _path_back(self, new: _Edge) -> list[_Edge] | None:
        """The shortest strong path from `new.after` back to `new.before`, or None. Called with
        `_lock` held."""
        following = self._edges.get(new.after)
        if following is None:
            return None
        queue = deque([edge] for edge in following.values() if new.joins(edge))
        seen: set[tuple[LockClass, int]] = set()
        while queue:
            path = queue.popleft()
            last = path[-1]
            if last.after is new.before:
                if last.joins(new):
                    return path
                continue
            if (last.after, last.after_mode) in seen:
                continue
            seen.add((last.after, last.after_mode))
            for edge in self._edges.get(last.after, {}).values():
                if last.joins(edge):
                    queue.append([*path, edge])
        return None

    def _report_cycle(self, new: _Edge, path: list[_Edge]) -> None:
        extra: list[tuple[str, list[str]]] = []
        for depth, edge in enumerate(reversed(path)):
            number = f"-> #{len(path) - depth}"
            if edge.source:
                extra.append(
                    (
                        f"{number} documented dependency: {edge.describe()}",
                        [edge.source, "nobody was seen to do so until now"],
                    )
                )
            else:
                title = (
                    f"{number} existing dependency: {edge.describe()}, first seen in {edge.task}"
                )
                extra.append((title, stacks.render(edge.stack)))
        width = max(len(new.before.name), len(new.after.name)) + 14
        scenario = [f"{'CPU0':<{width}}CPU1", f"{'----':<{width}}----", f"lock({new.before.name});"]
        scenario += [
            f"{'':<{width}}lock({path[0].before.name});",
            f"{'':<{width}}lock({path[-1].after.name});",
        ]
        extra.append(
            (
                "possible unsafe locking scenario",
                [*scenario, f"lock({new.after.name});", "*** DEADLOCK ***"],
            )
        )
        pair = " / ".join(sorted((new.before.name, new.after.name)))
        documented = [bool(edge.source) for edge in path]
        known = (
            "is documented"
            if all(documented)
            else "was seen in part, and in part is documented"
            if any(documented)
            else "was seen before"
        )
        self.report(
            "circular-dependency",
            "WARNING: possible circular locking dependency detected",
            f"{new.task} takes {new.after.name} while it holds {new.before.name}, and the opposite "
            f"order {known}",
            "Documentation/locking/lockdep-design; reference 2.1",
            subject=pair,
            extra=tuple(extra),
        )

    def _report_nested_class(self, task: Task, lock_class: LockClass, mode: int) -> None:
        self.report(
            "recursive-class",
            "WARNING: possible recursive locking detected",
            f"{task} takes {lock_class.name} ({MODES[mode]}) although it already holds a lock of "
            "that class",
            "kernel/locking/lockdep.c check_deadlock()",
            subject=lock_class.name,
        )


NOTHING_HELD = ["no locks held"]


def held_path(task: Task, pending: str = "") -> list[ChainNode]:
    """The chain of `task` without the lock called `pending`, if that is what it is waiting for."""
    path = task.chain.path() if task.chain is not None else []
    waits_for = pending or task.waiting_for
    last = path[-1].lock_class if path else None
    if last is not None and waits_for.split(" (")[0] == last.name:
        path.pop()
    return path


def describe_held(task: Task, pending: str = "") -> list[str]:
    """The kernel's "locks held by" block for `task`: class and mode from its chain, the place where
    it is known."""
    sites = {hold.lock_class: hold.site for hold in list(task.held)}
    lines = []
    for depth, node in enumerate(held_path(task, pending)):
        assert node.lock_class is not None
        kind = "sleeping" if node.lock_class.sleeping else "spinning"
        site = sites.get(node.lock_class, ())
        where = f", at: {stacks.render(site)[0]}" if site else ""
        lines.append(f"#{depth}: ({node.lock_class.name}){{{MODES[node.mode]}}} {kind}{where}")
    return lines or NOTHING_HELD


def holds_class(task: Task, name: str, pending: str = "") -> bool:
    """Whether `task` holds a lock of the class called `name`; `pending` is what it waits for, if
    that is known."""
    return any(
        node.lock_class is not None and node.lock_class.name == name
        for node in held_path(task, pending)
    )
