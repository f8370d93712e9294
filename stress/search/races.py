"""Races that did no harm this time, from the happens-before order of one schedule.

Three rules, in KVM's terms. A plain store to an SPTE may not overwrite a write that its task has
not seen (an accessed or dirty bit, or another task's entry, would be lost). A page-table page may
not be freed unless every access to it is ordered before. And an object that was found through a
pointer may not be freed while somebody who read the pointer before it changed has not been waited
for (an RCU or SRCU section that was left out, or a read outside one). Reads by observers and by
spinning tasks do not count: they hold nothing.
"""

from __future__ import annotations

from mmu.report import Report, section
from stress.engines.program import Run
from stress.engines.steps import ENDING, FREE, RELAX, RMW, SPAWN, STORE, WAIT, Access, Event
from stress.search.happens_before import Clock, HappensBefore, accesses, order_of
from stress.search.schedule import WordNames

_WRITES = frozenset({STORE, RMW, FREE})
_COUNTED = frozenset({FREE, STORE, SPAWN})
SPTE = "SPTE"


def races_of(run: Run) -> list[Report]:
    """The broken rules of this kind in one schedule."""
    assert run.scheduler is not None
    return _Check(run).reports


class _Check:
    """One pass over one schedule."""

    def __init__(self, run: Run) -> None:
        assert run.scheduler is not None
        self.reports: list[Report] = []
        self._run = run
        self._names: WordNames | None = None
        self._tables = {
            first for first, thing in run.scheduler.registry if getattr(thing, "name", "") == SPTE
        }
        self._sptes = {
            word
            for first, thing in run.scheduler.registry
            if first in self._tables
            for word in range(first, first + len_of(thing))
        }
        self._last_write: dict[int, int] = {}
        order = order_of(run, weak=True)
        for position, event in enumerate(run.trace):
            order.arrive(position)
            touched = self._touched(position, event)
            self._judge(order, position, event, touched)
            order.advance(position, touched)

    def _touched(self, position: int, event: Event) -> list[Access]:
        kind = event[1]
        if kind == RELAX:
            return []  # what the spin waits on is no load of the task's own
        extras = self._run.extras.get(position)
        if extras is not None and kind != WAIT:
            extras = [each for each in extras if each[0] in _COUNTED]
        return accesses(event, extras)

    def _judge(
        self, order: HappensBefore, position: int, event: Event, touched: list[Access]
    ) -> None:
        task, kind, word = event
        if kind == ENDING:
            for what, pointer in self._run.extras.get(position, ()):
                if what == ENDING:  # the rest is what observers looked at meanwhile
                    self._ending(order, task, pointer)
            return
        if kind == FREE:
            self._free(order, task, word, touched)
        if kind not in _WRITES or not self._is_spte(word):
            return
        if kind == STORE:
            self._store(order, task, word)
        self._last_write[word] = position

    def _is_spte(self, word: int) -> bool:
        return word in self._sptes

    def _store(self, order: HappensBefore, task: int, word: int) -> None:
        last = self._last_write.get(word)
        if last is None:
            return
        other = order.trace[last][0]
        if other != task and order.current[task][other] < order.numbers[last]:
            self._report(
                "O7",
                "unseen-write-overwritten",
                f"BUG: data race: {self._name(task)} stores to {self._word(word)} over a write of "
                f"{self._name(other)} it has not seen",
                "an SPTE that others may write is changed by compare-exchange or exchange only; a "
                "plain store loses what came between",
                "kvm_tdp_mmu_write_spte(), spte_has_volatile_bits(); reference 2.6",
                self._word(word).split("[")[0].split("#")[0],
            )

    def _free(self, order: HappensBefore, task: int, word: int, touched: list[Access]) -> None:
        for _, each in touched:
            record = order.words.get(each)
            late = (
                _not_before(record.everything, order.current[task], task)
                if record is not None
                else 0
            )
            if late:
                self._too_early(task, late, self._word(word).split("[")[0])
                return

    def _ending(self, order: HappensBefore, task: int, word: int) -> None:
        record = order.words.get(word)
        if record is not None:
            late = _not_before(record.old_loads, order.current[task], task)
            if late:
                self._too_early(task, late, self._word(word))

    def _too_early(self, task: int, other: int, what: str) -> None:
        self._report(
            "O3",
            "freed-without-waiting",
            f"BUG: {self._name(task)} frees what {what} led to without having waited for "
            f"{self._name(other)}, which may use it",
            "what readers may hold is freed only after a grace period that began when they could "
            "not find it any more",
            "Documentation/RCU/checklist; reference 2.6, 2.9, invariant I10",
            what.split("#", maxsplit=1)[0],
        )

    def _report(
        self, rule: str, code: str, headline: str, sentence: str, source: str, subject: str
    ) -> None:
        if not any(report.code == code and report.subject == subject for report in self.reports):
            how = section(
                "how it was found",
                [
                    "by the order of events: this schedule did no harm, but nothing kept it from "
                    "doing harm"
                ],
            )
            self.reports.append(
                Report(rule, code, headline, sentence, source, subject=subject, sections=(how,))
            )

    def _name(self, task: int) -> str:
        return self._run.names[task - 1]

    def _word(self, word: int) -> str:
        if self._names is None:
            assert self._run.scheduler is not None
            self._names = WordNames(self._run.scheduler)
        return self._names.word(word)


def len_of(thing: object) -> int:
    """How many words a table has, freed or not."""
    return int(object.__getattribute__(thing, "_size"))


def _not_before(clock: Clock, known: Clock, task: int) -> int:
    """Whose event of `clock` is not in `known`; 0 when all are."""
    return next((who for who, number in enumerate(clock) if who != task and number > known[who]), 0)
