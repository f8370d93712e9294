"""Self-tests of the detectors: a mistake or a stall is injected, and must be reported - once, with
the right stacks.

    for result in run_all():
        print(result.test.name, result.problems or "detected")

A detector that is broken is worse than none: it turns a bug into a PASS. Time is injected too, so
nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from attrs import frozen

from mmu.report import Report
from stress.selftest.detectors import mistakes, stalls


@frozen
class SelfTest:
    """One injection. `code` is the check that must report it, once, or empty if nothing may be
    reported; `shows` names the sections that the report must have, each by a part of its title and
    the function that has to be in its stack."""

    name: str
    rule: str
    code: str
    inject: Callable[[], tuple[Report, ...]]
    shows: tuple[tuple[str, str], ...] = ()

    @property
    def what(self) -> str:
        """What is injected, in words."""
        function = self.inject.func if isinstance(self.inject, functools.partial) else self.inject
        return (function.__doc__ or "").strip()


@frozen
class SelfTestResult:
    """What came of a self-test; without `problems` the detector works."""

    test: SelfTest
    reports: tuple[Report, ...]
    problems: tuple[str, ...]


def judge(test: SelfTest, reports: tuple[Report, ...]) -> tuple[str, ...]:
    """What is wrong with `reports`."""
    if not test.code:
        return tuple(f"reported without a reason: {report.signature}" for report in reports)
    if [report.code for report in reports] != [test.code]:
        return (
            f"expected one report of {test.code}; found {[report.signature for report in reports]}",
        )
    report = reports[0]
    problems = (
        [] if report.rule == test.rule else [f"reported as {report.rule}, expected {test.rule}"]
    )
    for title, function in test.shows:
        found = [line for part in report.sections if title in part.title for line in part.lines]
        if not any(f"{function} (" in line for line in found):
            problems.append(f"no {function}() in a section called {title!r}: {found}")
    return tuple(problems)


def run(test: SelfTest) -> SelfTestResult:
    """Inject, and judge."""
    reports = test.inject()
    return SelfTestResult(test, reports, judge(test, reports))


def run_all(tests: Iterable[SelfTest] | None = None) -> list[SelfTestResult]:
    """Every self-test, or these."""
    return [run(test) for test in (SELF_TESTS if tests is None else tests)]


def _stall(
    name: str,
    rule: str,
    code: str,
    inject: Callable[..., tuple[Report, ...]],
    *shows: tuple[str, str],
) -> tuple[SelfTest, ...]:
    """A stall of twice the limit is reported, one of half of it is not; nor is one of twenty times
    the limit of which the process was served for half of it."""
    return (
        *_bound(name, rule, code, inject, *shows),
        SelfTest(f"{name}-on-a-starved-machine", rule, "", functools.partial(inject, 20.0, 0.025)),
    )


def _bound(
    name: str,
    rule: str,
    code: str,
    inject: Callable[..., tuple[Report, ...]],
    *shows: tuple[str, str],
) -> tuple[SelfTest, ...]:
    """Twice the limit is reported, half of it is not."""
    return (
        SelfTest(f"{name}-twice-the-limit", rule, code, functools.partial(inject, 2.0), shows),
        SelfTest(f"{name}-half-the-limit", rule, "", functools.partial(inject, 0.5)),
    )


SELF_TESTS: tuple[SelfTest, ...] = (
    *_stall("rcu-stall", "O10", "rcu-stall", stalls.rcu_reader, ("stack of reader", "slow_reader")),
    *_stall(
        "srcu-stall", "O10", "rcu-stall", stalls.srcu_reader, ("stack of reader", "slow_reader")
    ),
    *_stall(
        "hung-lock",
        "O10",
        "hung-task",
        stalls.lock_holder,
        ("call trace", "lock_holder"),
        ("taken at", "slow_holder"),
        ("now", "slow_holder"),
    ),
    *_stall(
        "hung-rwlock",
        "O10",
        "hung-task",
        stalls.rwlock_holder,
        ("call trace", "rwlock_holder"),
        ("taken at", "slow_writer"),
    ),
    *_stall(
        "write-hold",
        "O10",
        "long-write-hold",
        stalls.write_section,
        ("call trace", "write_section"),
    ),
    *_bound("walk", "O10", "unbounded-walk", stalls.walk, ("call trace", "walk")),
    *_stall(
        "actor",
        "O10",
        "hung-task",
        stalls.actor,
        ("stack of stuck_actor", "stuck_actor"),
        ("locks held by stuck_actor", "stuck_actor"),
    ),
    SelfTest(
        "lock-inversion",
        "O5",
        "circular-dependency",
        mistakes.lock_inversion,
        (
            ("call trace", "b_then_a"),
            ("existing dependency: a (write) then b (write)", "a_then_b"),
            ("locks held", "b_then_a"),
        ),
    ),
    SelfTest(
        "recursion",
        "O5",
        "recursive-lock",
        mistakes.recursion,
        (("call trace", "inner"), ("locks held", "outer")),
    ),
    SelfTest(
        "sleep-in-atomic",
        "O5",
        "sleep-in-atomic",
        mistakes.sleep_in_atomic,
        (("call trace", "sleeper"), ("locks held", "atomic_section")),
    ),
    SelfTest(
        "sleep-in-rcu",
        "O3",
        "sleep-in-rcu",
        mistakes.sleep_in_rcu,
        (("call trace", "sleeper"), ("section entered", "rcu_section")),
    ),
    SelfTest(
        "held-at-exit", "O5", "held-at-exit", mistakes.held_at_exit, (("locks held", "forgetful"),)
    ),
    SelfTest(
        "leaked-reference",
        "O4",
        "refcount-leaked",
        mistakes.leaked_reference,
        (("got and not put by leaker", "leaker"),),
    ),
    SelfTest(
        "leaked-root", "INV", "I3", mistakes.leaked_root, (("got and not put", "leaky_walk"),)
    ),
    SelfTest(
        "double-put",
        "O4",
        "refcount-underflow",
        mistakes.double_put,
        (("call trace", "second_put"), ("reached zero", "first_put")),
    ),
    SelfTest(
        "stolen-put",
        "O4",
        "refcount-underflow",
        mistakes.stolen_put,
        (("call trace", "victim"), ("put but not got by thief", "thief")),
    ),
    SelfTest(
        "use-after-rcu-free",
        "O2",
        "use-after-free",
        mistakes.use_after_rcu_free,
        (("touched by", "late_reader"), ("retired by remover", "remover")),
    ),
    SelfTest(
        "use-after-free",
        "O2",
        "use-after-free",
        mistakes.use_after_free,
        (("touched by", "late_writer"), ("freed by freer", "freer")),
    ),
    SelfTest(
        "use-of-freed-words",
        "O2",
        "use-after-free",
        mistakes.use_of_freed_words,
        (("touched by", "late_walker"), ("freed by freer", "freer")),
    ),
    SelfTest(
        "lost-callback",
        "O3",
        "callback-lost",
        mistakes.lost_callback,
        (("call trace", "lost_callback"), ("queued by", "forgotten_update")),
    ),
    SelfTest(
        "short-grace-period",
        "O3",
        "grace-period-too-short",
        mistakes.short_grace_period,
        (("call trace", "updater"), ("stack of reader old_reader", "old_reader")),
    ),
    SelfTest(
        "unprotected-dereference",
        "O3",
        "suspicious-rcu-usage",
        mistakes.unprotected_dereference,
        (("call trace", "careless"),),
    ),
)
"""Every injection; more than one may test one detector."""
