"""Every outcome of a small program on an abstract machine, by trying everything: interleavings of
single operations, with or without store buffers. It shares no code with the engine.

A program is a list of tasks, a task a list of operations: ("store", word, value), ("load", word),
("xchg", word, value), ("add", word), ("mb",), ("lock", name), ("unlock", name).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Op = tuple[Any, ...]
Memory = tuple[tuple[str, int], ...]
Outcome = tuple[tuple[tuple[int, ...], ...], Memory]
"""What each task has read, in its order, and what the words hold in the end."""


class State(NamedTuple):
    at: tuple[int, ...]
    seen: tuple[tuple[int, ...], ...]
    buffers: tuple[tuple[tuple[str, int], ...], ...]
    memory: Memory


def outcomes(program: Sequence[Sequence[Op]], *, buffered: bool) -> set[Outcome]:
    """What every execution comes to; those that cannot go on to the end are left out."""
    words = sorted({op[1] for task in program for op in task if len(op) > 1})
    count = len(program)
    start = State((0,) * count, ((),) * count, ((),) * count, tuple((word, 0) for word in words))
    known, left = {start}, [start]
    found: set[Outcome] = set()
    while left:
        state = left.pop()
        if all(at == len(task) for at, task in zip(state.at, program, strict=True)) and not any(
            state.buffers
        ):
            found.add((state.seen, state.memory))
        for after in _steps(state, program, buffered):
            if after not in known:
                known.add(after)
                left.append(after)
    return found


def _steps(state: State, program: Sequence[Sequence[Op]], buffered: bool) -> Iterator[State]:
    for task, ops in enumerate(program):
        buffer = state.buffers[task]
        if buffer:
            yield state._replace(
                buffers=_with(state.buffers, task, buffer[1:]),
                memory=_written(state.memory, *buffer[0]),
            )
        if state.at[task] < len(ops):
            yield from _done(state, task, ops[state.at[task]], buffered)


def _done(state: State, task: int, op: Op, buffered: bool) -> Iterator[State]:
    buffer = state.buffers[task]
    later = state._replace(at=_with(state.at, task, state.at[task] + 1))
    match op:
        case ("store", word, value):
            yield _stored(later, task, word, value, buffered)
        case ("unlock", name):
            yield _stored(later, task, name, 0, buffered)
        case ("load", word):
            own = [value for where, value in buffer if where == word]
            yield _read(later, task, own[-1] if own else dict(state.memory)[word])
        case _ if buffer:
            return
        case ("mb",):
            yield later
        case ("lock", name):
            if not dict(state.memory)[name]:
                yield later._replace(memory=_written(state.memory, name, 1))
        case ("xchg", word, value):
            old = dict(state.memory)[word]
            yield _read(later._replace(memory=_written(state.memory, word, value)), task, old)
        case ("add", word):
            old = dict(state.memory)[word]
            yield later._replace(memory=_written(state.memory, word, old + 1))
        case _:
            raise ValueError(op)


def _stored(state: State, task: int, word: str, value: int, buffered: bool) -> State:
    if not buffered:
        return state._replace(memory=_written(state.memory, word, value))
    return state._replace(buffers=_with(state.buffers, task, (*state.buffers[task], (word, value))))


def _read(state: State, task: int, value: int) -> State:
    return state._replace(seen=_with(state.seen, task, (*state.seen[task], value)))


def _with(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _written(memory: Memory, word: str, value: int) -> Memory:
    return tuple((name, value if name == word else old) for name, old in memory)
