"""The page of a selftest."""

from __future__ import annotations

from collections.abc import Sequence

from mmu.numbers.oracles import RULES
from stress.report import run_page
from stress.report.run_charts import Matrix
from stress.selftest.stored import SelftestRecord, StoredRow


def page(record: SelftestRecord) -> str:
    """The page of a selftest: the kill matrix."""
    return run_page.page("selftest.html", data=record, by_rule=_by_rule(record.mutants))


def _by_rule(rows: Sequence[StoredRow]) -> Matrix:
    """Mutant and engine by rule: in how many attempts it fired."""
    named = {rule for row in rows for rule in (*row.expects, *row.fired)}
    rules = tuple(rule for rule in RULES if rule in named)
    counts = tuple(
        (f"{row.name}, {row.engine}", tuple(row.fired.get(rule, 0) for rule in rules))
        for row in rows
    )
    return Matrix(rules, counts, ())
