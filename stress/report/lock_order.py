"""The order of locks as a run has seen it, held against the documented one (reference 2.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import frozen

ORDER: Final[tuple[tuple[str, ...], ...]] = (
    ("vmm->tdp_fd",),
    ("exported_bind_lock",),
    ("kvm_lock",),
    ("kvm->lock",),
    ("vcpu->mutex",),
    ("slots_lock",),
    ("exported_tdp_cache_lock", "slots_arch_lock"),
    ("kvm->srcu",),
    ("mn_invalidate_lock", "mmap_lock"),
    ("mmu_lock",),
    ("exported_tdplist_lock",),
    ("importer_lock",),
    ("rcu", "tdp_mmu_pages_lock"),
)
"""Locks from the outermost to the innermost, as the rules of reference 2.1 allow them."""

RULES: Final[dict[tuple[str, str], str]] = {
    ("kvm->lock", "vcpu->mutex"): "2.1 (1)",
    ("kvm->lock", "slots_lock"): "2.1 (1)",
    ("kvm_lock", "slots_lock"): "2.1 (1)",
    ("slots_lock", "slots_arch_lock"): "2.1 (2)",
    ("slots_lock", "kvm->srcu"): "2.1 (2)",
    ("slots_lock", "mn_invalidate_lock"): "2.1 (4)",
    ("slots_arch_lock", "mn_invalidate_lock"): "2.1 (4)",
    ("kvm->srcu", "mmu_lock"): "2.1 (5)",
    ("mmu_lock", "rcu"): "2.1 (5)",
    ("mmu_lock", "tdp_mmu_pages_lock"): "2.1 (5)",
    ("rcu", "tdp_mmu_pages_lock"): "2.1 (5)",
    ("slots_lock", "exported_tdp_cache_lock"): "2.1 (7)",
    ("exported_tdp_cache_lock", "mmu_lock"): "2.1 (7)",
    ("mmu_lock", "exported_tdplist_lock"): "2.1 (7)",
    ("exported_tdplist_lock", "importer_lock"): "2.1 (7)",
}
"""Pairs, outer and inner, that a rule names."""

_FORBIDDEN: Final[dict[tuple[str, str], str]] = {
    ("kvm->srcu", "slots_lock"): "2.1 (2) forbids it",
    ("rcu", "mmu_lock"): "2.1 (6) forbids it",
}


@frozen
class LockOrder:
    """While `outer` was held, `inner` was taken. `rule` is where the reference names the pair;
    without one `follows` says whether the pair follows from those that it names."""

    outer: str
    outer_mode: str
    inner: str
    inner_mode: str
    rule: str
    follows: bool

    @property
    def judgement(self) -> str:
        """In a word or two."""
        return self.rule or ("follows from 2.1" if self.follows else "not in 2.1")


@frozen
class Node:
    """A lock in the drawing."""

    name: str
    x: float
    y: float


@frozen
class Edge:
    """Two locks in the drawing; `kind` is named, follows or other."""

    path: str
    kind: str
    title: str


@frozen
class Graph:
    """The drawing of all orders."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float


def orders_of(seen: Iterable[tuple[str, str, str, str]]) -> tuple[LockOrder, ...]:
    """Every order that was seen, with what the reference says of it."""
    found = []
    for outer, outer_mode, inner, inner_mode in seen:
        rule = RULES.get((outer, inner), _FORBIDDEN.get((outer, inner), ""))
        found.append(
            LockOrder(outer, outer_mode, inner, inner_mode, rule, (outer, inner) in _FOLLOWS)
        )
    return tuple(found)


def _closure() -> frozenset[tuple[str, str]]:
    """The pairs that follow from those that are named, by going from one to the next."""
    pairs = set(RULES)
    while True:
        more = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
        if not more:
            return frozenset(pairs)
        pairs |= more


_FOLLOWS: Final = _closure()
_STEP_X: Final = 200
_STEP_Y: Final = 52


def graph_of(orders: Iterable[LockOrder]) -> Graph:
    """Locks in layers, the outermost at the top; locks that 2.1 does not name come first."""
    orders = tuple(orders)
    names = dict.fromkeys(name for order in orders for name in (order.outer, order.inner))
    rank = {name: number for number, layer in enumerate(ORDER) for name in layer}
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(rank.get(name, -1), []).append(name)
    rows = [
        row[start : start + 4]
        for _, row in sorted(layers.items())
        for start in range(0, len(row), 4)
    ]
    width = max((len(row) for row in rows), default=1)
    nodes = {
        name: Node(name, _STEP_X * (place + 0.5 + (width - len(row)) / 2), _STEP_Y * (number + 0.5))
        for number, row in enumerate(rows)
        for place, name in enumerate(row)
    }
    pairs: dict[tuple[str, str], LockOrder] = {}
    for order in orders:
        pairs.setdefault((order.outer, order.inner), order)
    edges = tuple(_edge(nodes[a], nodes[b], pairs[a, b]) for a, b in _reduced(pairs))
    side = 60
    return Graph(tuple(nodes.values()), edges, _STEP_X * width + side, _STEP_Y * max(1, len(rows)))


def _reduced(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that do not follow from others by going from one to the next: a drawing of all of them
    cannot be read."""
    kept = {pair for pair in pairs if pair[0] != pair[1]}
    inner: dict[str, set[str]] = {}
    for a, b in kept:
        inner.setdefault(a, set()).add(b)

    def reaches(start: str, end: str) -> bool:
        waiting, seen = [name for name in inner[start] if name != end], {start}
        while waiting:
            name = waiting.pop()
            if name == end:
                return True
            if name not in seen:
                seen.add(name)
                waiting += inner.get(name, ())
        return False

    return sorted(pair for pair in kept if not reaches(*pair))


def _edge(start: Node, end: Node, order: LockOrder) -> Edge:
    """A line to the next layer; past layers in between it bends to the right."""
    kind = "named" if order.rule else "follows" if order.follows else "other"
    title = f"{order.outer}, then {order.inner}: {order.judgement}"
    layers = abs(end.y - start.y) / _STEP_Y
    if layers <= 1.5:
        down = 12 if end.y > start.y else -12 if end.y < start.y else 0
        return Edge(f"M{start.x:g} {start.y + down:g} L{end.x:g} {end.y - down:g}", kind, title)
    bend = max(start.x, end.x) + 96 + 14 * layers
    return Edge(
        f"M{start.x + 90:g} {start.y:g} C{bend:g} {start.y:g} {bend:g} {end.y:g} {end.x + 91:g} "
        f"{end.y:g}",
        kind,
        title,
    )
