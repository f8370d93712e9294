"""Where a schedule's stores were on their way: which of them was still in its task's buffer when
another task read the word."""

from __future__ import annotations

from stress.engines.program import Run
from stress.engines.steps import ACQUIRE, LOAD, READ_ACQUIRE, RELAX, RMW, WAIT

_READS = frozenset({LOAD, RMW, WAIT, RELAX, ACQUIRE, READ_ACQUIRE})


def unseen_stores(run: Run) -> dict[int, tuple[str, ...]]:
    """For each step that read a word to which stores of other tasks were still in their buffers:
    the names of those tasks."""
    found: dict[int, list[str]] = {}
    reads: dict[int, list[tuple[int, int]]] = {}
    for position, (task, kind, word) in enumerate(run.trace):
        if kind in _READS:
            reads.setdefault(word, []).append((position, task))
    for position, after in run.follows.items():
        buffer, _, word = run.trace[position]
        owner = run.buffers.get(buffer)
        if owner is None:
            continue
        name = run.names[owner - 1]
        for at, reader in reads.get(word, ()):
            if after < at < position and reader != owner and name not in found.get(at, ()):
                found.setdefault(at, []).append(name)
    return {position: tuple(names) for position, names in sorted(found.items())}


def still_in(names: tuple[str, ...], word: str) -> str:
    """A note for a step that read `word`: "left's store to x is still in its buffer"."""
    return "; ".join(f"{name}'s store to {word} is still in its buffer" for name in names)
