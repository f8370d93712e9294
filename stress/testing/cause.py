"""The cause of a failure in a sentence, where the schedule shows one of the usual patterns: an
update that is lost, or something that was read and has changed before it was used."""

from __future__ import annotations

from collections.abc import Mapping

from stress.engines.program import Run
from stress.engines.steps import LOAD, OWNER_SHIFT, READS, STORE, TASK_LIST, WAIT, WRITES
from stress.search.happens_before import accesses
from stress.search.schedule import WordNames

_SERIAL = (1 << OWNER_SHIFT) - 1


def cause_of(run: Run, values: Mapping[int, str]) -> str:
    """The sentence; "" where no pattern is seen. `values` says what steps have read or written."""
    if run.scheduler is None:
        return ""
    names = WordNames(run.scheduler)
    lost = _lost_update(run)
    if lost is not None:
        return _lost_text(run, names, lost, values)
    stale = _stale_read(run)
    if stale is None:
        return ""
    read, write, use = stale
    word = names.word(run.trace[read][2])
    reader, writer = _task(run, read), _task(run, write)
    return (
        f"{writer} changed {word} after {reader} had read it{_value(values, read)} (step "
        f"{read + 1}) and before {reader} went on from that (step {use + 1})"
    )


def _touched(run: Run, position: int) -> dict[int, int]:
    """The words that a step touched, with how; those of tasks themselves do not count."""
    found: dict[int, int] = {}
    for kind, word in accesses(run.trace[position], run.extras.get(position)):
        if word != TASK_LIST and word & _SERIAL and kind != WAIT:
            found.setdefault(word, kind)
    return found


def _lost_update(run: Run) -> tuple[int, int, int] | None:
    """The last time that a task reads a word, another one writes it, and the first one writes over
    that without having looked again: the three steps."""
    found = None
    last_read: dict[tuple[int, int], int] = {}
    last_write: dict[int, int] = {}
    for position, (task, kind, word) in enumerate(run.trace):
        if word == TASK_LIST or not word & _SERIAL:
            continue
        if kind == STORE:
            read, write = last_read.get((task, word)), last_write.get(word)
            if (
                read is not None
                and write is not None
                and read < write
                and run.trace[write][0] != task
            ):
                found = (read, write, position)
        if kind in READS and kind != WAIT:
            last_read[task, word] = position
        if kind in WRITES:
            last_write[word] = position
    return found


def _lost_text(
    run: Run, names: WordNames, lost: tuple[int, int, int], values: Mapping[int, str]
) -> str:
    read, write, over = lost
    word = names.word(run.trace[read][2])
    reader, writer = _task(run, read), _task(run, write)
    other = next(
        (
            position
            for position in range(write - 1, -1, -1)
            if run.trace[position] == (run.trace[write][0], LOAD, run.trace[read][2])
        ),
        None,
    )
    between = run.trace[min(read, other) if other is not None else read : write]
    written = any(kind in WRITES and where == run.trace[read][2] for _, kind, where in between)
    if other is not None and not written:
        return (
            f"{reader} and {writer} both read {word}{_equals(values, read)} before either wrote "
            f"it, so one update is lost"
        )
    return (
        f"{reader} read {word}{_value(values, read)}, {writer} wrote it, and then {reader} wrote "
        f"over that (step {over + 1})"
    )


def _stale_read(run: Run) -> tuple[int, int, int] | None:
    """The last time that a task reads a word, and another one changes it before the first one's
    next step: the three steps."""
    found = None
    for read, (task, kind, word) in enumerate(run.trace):
        if kind != LOAD or word == TASK_LIST or not word & _SERIAL:
            continue
        use = next((at for at in range(read + 1, len(run.trace)) if run.trace[at][0] == task), None)
        if use is None:
            continue
        for write in range(read + 1, use):
            if _touched(run, write).get(word) in WRITES:
                found = (read, write, use)
                break
    return found


def _task(run: Run, position: int) -> str:
    return run.names[run.trace[position][0] - 1]


def _value(values: Mapping[int, str], position: int) -> str:
    return f" ({values[position]})" if position in values else ""


def _equals(values: Mapping[int, str], position: int) -> str:
    return f" = {values[position]}" if position in values else ""
