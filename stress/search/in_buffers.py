"""Where a schedule's stores were on their way: which of them was still in its task's buffer when
another task read the word."""

from __future__ import annotations

from stress.engines.program import Run
from stress.engines.steps import ACQUIRE, LOAD, READ_ACQUIRE, RELAX, RMW, WAIT

_READS = frozenset({LOAD, RMW, WAIT, RELAX, ACQUIRE, READ_ACQUIRE})


def unseen_stores(run: Run) -> dict[int, tuple[int, ...]]:
    """For each step that read a word to which another task's store was still in its buffer: the
    step in which that store was drained. Of several of one task it is the last."""
    found: dict[int, dict[int, int]] = {}
    reads: dict[int, list[tuple[int, int]]] = {}
    for position, (task, kind, word) in enumerate(run.trace):
        if kind in _READS:
            reads.setdefault(word, []).append((position, task))
    for position, after in sorted(run.follows.items()):
        buffer, _, word = run.trace[position]
        owner = run.buffers.get(buffer)
        if owner is not None:
            for at, reader in reads.get(word, ()):
                if after < at < position and reader != owner:
                    found.setdefault(at, {})[owner] = position
    return {position: tuple(stores.values()) for position, stores in sorted(found.items())}


def owner_of(run: Run, position: int) -> str:
    """The name of the task whose store was drained in this step."""
    return run.names[run.buffers[run.trace[position][0]] - 1]
