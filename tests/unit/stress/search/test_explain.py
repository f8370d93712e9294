"""Explanations: what is shown of a failing schedule, in which words, and what becomes of it
otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from mmu.paging.spte import PRESENT_HIGH, REMOVED_SPTE
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, Program, ProgramTask
from stress.engines.scenario_program import ScenarioProgram
from stress.engines.steps import ADD, LOAD, RMW, STORE
from stress.report.explanation import text
from stress.results.schedule_file import EXPLANATION_FORMAT
from stress.scenario.load import load
from stress.search.explain import NothingToExplainError, explain
from stress.search.explain_data import (
    NO_FAILURE,
    SAME_FAILURE,
    Doing,
    Explanation,
    Words,
    bits_text,
    spte_text,
    value_text,
)
from stress.search.exploration import named_steps
from stress.search.random_walk import RandomWalk
from stress.search.schedule import Divergence, Follow, Schedule
from stress.search.strategies import strategy_for
from tests.unit.stress.search.programs import (
    DEADLOCK,
    LOST_UPDATE,
    PROTOCOL,
    USE_AFTER_FREE,
    Body,
    Small,
    broken,
)

EXPLORE = Path(__file__).parents[4] / "configs" / "explore"
TRIES = 5


def failing(program: Program, seed: int = 1) -> Schedule:
    """The first random schedule that fails."""
    executor, walk = Executor(program), RandomWalk(seed)
    for _ in range(200):
        run = executor.execute(walk)
        if run.failed:
            return Schedule.of(run)
    raise AssertionError("no schedule fails")


def explained(program: Program, choices: list[int] | None = None) -> Explanation:
    if choices is None:
        return explain(program, failing(program), tries=TRIES)
    return explain(program, Schedule.of(Executor(program).execute(Follow(choices))), tries=TRIES)


def said(explanation: Explanation) -> list[tuple[str, str]]:
    return [(row.task, row.what) for row in explanation.rows]


# What is shown.


def test_the_steps_of_two_tasks_that_conflict_are_shown_in_their_order() -> None:
    explanation = explained(LOST_UPDATE, [1, 2, 2, 1, 1, 2])
    assert said(explanation)[-3:] == [
        ("two", "counter -> 0"),
        ("one", "counter = 1"),
        ("two", "counter = 1"),
    ]
    assert explanation.rows[-1].partners == (explanation.rows[-2].step,)
    assert explanation.columns == ("one", "two")
    assert explanation.finding.code == "lost-update"


def test_a_task_that_the_finding_does_not_depend_on_has_no_column() -> None:
    explanation = explained(USE_AFTER_FREE, [1, 1, 3, 3, 3, 3, 1, 2])
    assert explanation.finding.step < explanation.steps
    assert explanation.columns == ("reader1", "writer")


def test_a_program_in_which_nothing_is_wrong_is_not_explained() -> None:
    schedule = Schedule.of(Executor(PROTOCOL).execute(RandomWalk(1)))
    with pytest.raises(NothingToExplainError):
        explain(PROTOCOL, schedule, tries=TRIES)


def test_a_schedule_of_another_program_diverges() -> None:
    with pytest.raises(Divergence):
        explain(DEADLOCK, failing(LOST_UPDATE), tries=TRIES)


def test_a_deadlock_says_who_waits_for_whom() -> None:
    explanation = explained(DEADLOCK)
    assert explanation.finding.step == explanation.steps
    assert {
        "forwards waits for B, held by backwards.",
        "backwards waits for A, held by forwards.",
    } <= set(explanation.summary)
    assert {what for _, what in said(explanation)} == {"lock(A)", "lock(B)"}
    assert "when nobody could go on" in text(explanation)


def _repeating(runtime: ControlledRuntime) -> Body:
    """A reader looks at four words that a writer has written."""
    words = [runtime.cell(f"word{number}", 0) for number in range(4)]
    seen: list[int] = []

    def write() -> None:
        for word in words:
            word.value = 1

    def read() -> None:
        seen.append(sum(word.value for word in words))

    return Body(
        [ProgramTask("writes", write), ProgramTask("reads", read)],
        lambda: [broken("O1", "all")] if seen == [4] else [],
    )


def test_repetition_is_collapsed() -> None:
    explanation = explained(Small("repeating", _repeating), [1] * 5)
    assert [(row.what, row.more) for row in explanation.rows] == [
        ("word0 = 1", 3),
        ("word0 -> 1", 3),
    ]
    assert "and 3 more like it" in text(explanation)


# Counterfactuals.


def test_each_switch_is_left_out_once() -> None:
    explanation = explained(LOST_UPDATE, [1, 2, 2, 1, 1, 2])
    assert [(switch.step, switch.away_from, switch.to) for switch in explanation.switches] == [
        (1, "one", "two"),
        (3, "two", "one"),
    ]
    assert [switch.without for switch in explanation.switches] == [NO_FAILURE, NO_FAILURE]


def test_a_switch_that_does_not_matter_leaves_the_failure() -> None:
    explanation = explained(USE_AFTER_FREE, [1, 1, 3, 3, 2, 3, 3, 1])
    assert [(switch.step, switch.without) for switch in explanation.switches][-1] == (
        5,
        SAME_FAILURE,
    )
    assert [switch.decisive for switch in explanation.switches][-1] is False


def test_inevitable_is_when_both_have_read() -> None:
    explanation = explained(LOST_UPDATE, [1, 2, 2, 1, 1, 2])
    assert explanation.inevitable is not None
    assert explanation.inevitable.step == 3
    assert explanation.inevitable.tried == TRIES
    assert explanation.inevitable.failed_before < TRIES
    assert explanation.likelihood[0][0] == 0


def _always(runtime: ControlledRuntime) -> Body:
    word = runtime.cell("word", 0)

    def work() -> None:
        word.value = 1

    return Body([ProgramTask("works", work)], lambda: [broken("O9", "always")])


def test_what_every_order_shows_is_inevitable_from_the_start() -> None:
    explanation = explained(Small("always", _always), [1, 1])
    assert explanation.inevitable is not None
    assert explanation.inevitable.step == -1
    assert "inevitable from the start" in text(explanation)


# A VM.


@pytest.fixture(scope="module")
def stale() -> Explanation:
    """A vCPU that maps a page in a root that was made obsolete meanwhile."""
    program = ScenarioProgram(
        "fault-vs-delete",
        load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["stale-check-skipped"]']),
    )
    return explain(program, _first(program), tries=TRIES)


def _first(program: Program) -> Schedule:
    """The first schedule of a strategy for rare orders that fails."""
    executor, strategy = Executor(program), strategy_for("pos", 1)
    for _ in range(5000):
        run = executor.execute(strategy)
        if run.failed:
            return Schedule.of(run)
    raise AssertionError("no schedule fails")


def test_steps_have_the_kernels_words_functions_and_operations(stale: Explanation) -> None:
    rows = {row.what: row for row in stale.rows}
    invalidated = next(what for what in rows if what.endswith("role.invalid = true"))
    assert rows[invalidated].function == "kvm_tdp_mmu_invalidate_all_roots()"
    assert rows[invalidated].operation == "delete 0"
    assert any(
        what == "read_lock(mmu_lock)" and row.function == "kvm_tdp_mmu_page_fault()"
        for what, row in rows.items()
    )
    assert rows["vcpu0->requests |= MMU_FREE_OBSOLETE_ROOTS"].task == "memslot-worker"


def test_the_page_tables_are_drawn_before_and_at_the_finding(stale: Explanation) -> None:
    assert stale.pictures[0].step == stale.rows[0].step - 1
    assert stale.pictures[-1].step == stale.finding.step
    last = stale.pictures[-1].lines
    assert any(line.startswith("root 0x103000 (as0), invalid, zapped") for line in last)
    assert any(line.startswith("TLB of vcpu0") for line in last)


def test_it_is_data(stale: Explanation) -> None:
    written = EXPLANATION_FORMAT.text(stale)
    assert json.loads(written)["finding"]["code"] == "map-in-obsolete-root"
    assert EXPLANATION_FORMAT.read(written, "explanation-1.json") == stale


def test_the_same_schedule_is_always_explained_in_the_same_words() -> None:
    program = ScenarioProgram(
        "fault-vs-delete",
        load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["srcu-wait-skipped"]']),
    )
    schedule = _first(program)
    assert text(explain(program, schedule, tries=2)) == text(explain(program, schedule, tries=2))


def _racy(runtime: ControlledRuntime) -> Body:
    """A table is freed although nothing says that its reader is done."""
    table = runtime.table(2, "table")

    def read() -> None:
        _ = table[0]

    return Body([ProgramTask("reader", read), ProgramTask("owner", table.end)])


def test_a_race_that_did_no_harm_is_explained_too() -> None:
    schedule = Schedule.of(Executor(Small("racy", _racy)).execute(Follow([1, 1])))
    explanation = explain(Small("racy", _racy), schedule, predicted=True, tries=2)
    assert explanation.predicted
    assert explanation.finding.code == "freed-without-waiting"
    assert said(explanation)[-2:] == [("reader", "table[0] -> 0"), ("owner", "frees table")]
    assert explanation.finding.step == explanation.rows[-1].step
    assert "a race that did no harm in it" in text(explanation)


def _parent(runtime: ControlledRuntime) -> Body:
    """A task that makes a table, and then starts another task."""
    word = runtime.cell("word", 0)

    def child() -> None:
        word.value = 1

    def parent() -> None:
        runtime.table(2, "table")
        runtime.spawn("child", child)
        word.value = 2

    return Body(
        [ProgramTask("parent", parent)], lambda: [broken("O9", "written")] if word.peek() else []
    )


def test_a_task_that_starts_another_is_followed() -> None:
    program = Small("parent", _parent)
    run = Executor(program).execute(Follow([1]))
    explanation = explain(program, Schedule.of(run), steps=named_steps(run), tries=2)
    assert ("parent", "starts child") in said(explanation)


# Text.


@pytest.mark.parametrize("tasks", [1, 3, 6])
def test_any_number_of_tasks_fits(tasks: int) -> None:
    def make(runtime: ControlledRuntime) -> Body:
        words = [
            runtime.cell(f"a word with a rather long name, number {number}", 0)
            for number in range(2)
        ]

        def body() -> None:
            for word in words:
                word.value = word.value + 1

        return Body(
            [ProgramTask(f"task{number}", body) for number in range(tasks)],
            lambda: [broken("O9", "done")] if words[1].peek() else [],
        )

    page = text(
        explained(Small("many", make), [task for task in range(1, tasks + 1) for _ in range(5)])
    )
    assert page.isascii()
    assert max(map(len, page.splitlines())) <= 120


# Words.


def doing(**changes: object) -> Doing:
    return evolve(Doing(LOAD, "", "word", after=1, before=0), **changes)


@pytest.mark.parametrize(
    ("it", "words"),
    [
        (doing(name="mmu_invalidate_seq", after=3), "kvm->mmu_invalidate_seq -> 3"),
        (
            doing(kind=STORE, role="mode", owner="vcpu0", name="vcpu.mode"),
            "vcpu0->mode = IN_GUEST_MODE",
        ),
        (
            doing(kind=RMW, method="fetch_or", role="requests", owner="vcpu0", after=1),
            "vcpu0->requests |= TLB_FLUSH",
        ),
        (
            doing(kind=RMW, method="fetch_or", role="requests", owner="vcpu0", before=1),
            "vcpu0->requests has TLB_FLUSH already",
        ),
        (
            doing(kind=RMW, method="fetch_and", role="requests", owner="vcpu0", before=1, after=0),
            "vcpu0->requests: takes TLB_FLUSH",
        ),
        (doing(kind=STORE, name="rcu.reader"), "rcu_read_lock()"),
        (doing(kind=STORE, name="kvm->srcu.reader", after=0), "srcu_read_unlock(kvm->srcu)"),
        (
            doing(name="kvm->srcu.reader", maker="vcpu0", calls=("Srcu.synchronize",)),
            "synchronize_srcu(kvm->srcu): vcpu0 is inside a read section",
        ),
        (doing(kind=RMW, method="cmpxchg"), "cmpxchg word: 0 -> 1"),
        (doing(method="cmpxchg"), "cmpxchg fails: word -> 1"),
        (doing(kind=ADD, before=1, after=3), "word += 2"),
        (
            doing(name="frame owner", index=7, after=-1),
            "uses frame 0x7, which belongs to nobody: it is free",
        ),
        (doing(name="control.stopping"), ""),
        (doing(name="page_table_pages.released"), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(it: Doing, words: str) -> None:
    assert Words().say(it) == words


def test_values_of_sptes() -> None:
    leaf = PRESENT_HIGH.leaf(7, 1, writable=True, host_writable=True)
    assert spte_text(0, 1) == "0"
    assert spte_text(REMOVED_SPTE, 2) == "FROZEN"
    assert spte_text(PRESENT_HIGH.table(0x105000), 2) == "table 0x105000"
    assert spte_text(leaf, 1) == "leaf pfn 0x7 RWX AD"
    assert spte_text(PRESENT_HIGH.mmio(4, 6), 1) == "MMIO, generation 6"


def test_values_say_nothing_that_differs_from_run_to_run() -> None:
    assert [value_text(value) for value in (None, True, 3, "", (1, 2), object())] == [
        "NULL",
        "true",
        "3",
        "nobody",
        "2 entries",
        "a object",
    ]
    assert bits_text(0) == "none"
