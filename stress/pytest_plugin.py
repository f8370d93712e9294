"""The pytest plugin: the fixture `explore`, and the options that go with it.

    def test_counter(explore):
        def program(sync):
            count = sync.counter("count")

            def add():
                count.value = count.value + 1

            sync.spawn(add)
            sync.spawn(add)
            return lambda: count.value == 2

        explore(program)

The test fails with what went wrong, the interleaving that did it, and a command that runs just that
one again.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Generator, Sequence
from typing import Any, Final

import pytest

from stress.scenario.errors import StressError
from stress.search.schedule import Schedule, ScheduleError
from stress.testing import explorer
from stress.testing.explorer import Explored, ReplayDiverged, ScheduleFailed, Settings
from stress.testing.program import NothingExplored, ProgramFunction

__all__ = ["Explorer"]

REMEMBERED: Final = "tdp-stress/steps"
"""Where the cache keeps the steps of failing schedules, so that a replay can say which step is
another one."""
MOST_REMEMBERED: Final = 50
EXPLORER: Final = pytest.StashKey["Explorer"]()
PASSED: Final = pytest.StashKey[bool]()
DEFAULTS: Final = {
    "schedules": ("run at most N schedules for each explore()", "N", int),
    "seconds": ("explore at most S seconds for each explore()", "S", float),
    "strategy": ("explore with this strategy; `stress list` has them", "NAME", str),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--replay`, and a default for each bound as an option and as an ini value."""
    group = parser.getgroup(
        "explore", "exploring the schedules of concurrent programs (tdp-stress)"
    )
    for name, (text, metavar, kind) in DEFAULTS.items():
        group.addoption(
            f"--explore-{name}",
            type=kind,
            metavar=metavar,
            help=f"{text}, unless the test says otherwise",
        )
        parser.addini(
            f"explore_{name}", f"{text}, unless the test or the command line says otherwise"
        )
    text = "run only this schedule of the one selected test, exactly: a string from a failure"
    try:
        group.addoption("--explore-replay", "--replay", metavar="STRING", help=text)
    except (ValueError, argparse.ArgumentError):  # another plugin has the short name
        group.addoption("--explore-replay", metavar="STRING", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Look at the options before any test runs."""
    try:
        defaults(config).checked()
        if config.getoption("explore_replay"):
            parse_replay(config.getoption("explore_replay"))
    except StressError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """A schedule belongs to one test."""
    if config.getoption("explore_replay"):
        exploring = [item for item in items if "explore" in getattr(item, "fixturenames", ())]
        if len(exploring) != 1:
            raise pytest.UsageError(
                f"--replay is for one test that uses the fixture explore, and {len(exploring)} are "
                "selected: "
                "give its path, as in the failure"
            )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """An exploration that did not happen is no expected failure: a mark for those does not cover
    it."""
    report = yield
    if call.when == "call":
        item.stash[PASSED] = report.passed
        if (
            call.excinfo is not None
            and isinstance(call.excinfo.value, StressError)
            and EXPLORER in item.stash
            and report.skipped
        ):
            report.outcome = "failed"
            report.longrepr = item.repr_failure(call.excinfo)
            vars(report).pop("wasxfail", None)
    return report


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Generator[Explorer, None, None]:
    """`explore(program)` runs the program once for each schedule; see `Explorer.__call__`."""
    item = request.node
    item.stash[EXPLORER] = explorer = Explorer(item)
    yield explorer
    if item.stash.get(PASSED, False):
        explorer.finish()


class Explorer:
    """What the fixture gives to one test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._config = item.config
        self._calls = 0
        self._replay = (
            parse_replay(text) if (text := item.config.getoption("explore_replay")) else None
        )
        self._slot = worker_number(item.config)

    def __call__(
        self,
        program: ProgramFunction,
        *,
        strategy: str | None = None,
        schedules: int | None = None,
        seconds: float | None = None,
        exhaustive: bool = False,
        granularity: str = "atomic",
        seed: int = 0,
        limit: int = 20_000,
        memory: str = "sc",
    ) -> Explored:
        """Run `program` once for each schedule, until one fails or a bound is reached: 1,000
        schedules unless something else is said here, on the command line or in the ini file. Raises
        `ScheduleFailed` for the failing one.

        `exhaustive=True` asks for all schedules that differ for any task (or, with a bounded
        strategy, all within its bound) and is inconclusive, which fails, if the bounds come first.
        `granularity="library"` goes inside reader-writer locks. `limit` bounds the steps of one
        schedule. `memory="tso"` gives every task a store buffer, as x86 does."""
        __tracebackhide__ = True
        self._calls += 1
        settings = chosen(
            defaults(self._config),
            Settings(strategy, schedules, seconds, exhaustive, granularity, seed, limit, memory),
        )
        if self._replay is None:
            return self._explore(program, settings)
        if self._replay[0] == self._calls:
            return self._again(program, settings, self._replay[1])
        return Explored("not replayed", 0, 0, 0, False, 0.0)

    def finish(self) -> None:
        """The test has passed: it must have explored something."""
        if not self._calls:
            raise NothingExplored(
                "the test uses the fixture explore and never calls it: it has tested nothing"
            )
        if self._replay is not None and self._replay[0] > self._calls:
            raise ReplayDiverged(
                f"the schedule is for explore() call {self._replay[0]}, and the test makes "
                f"{self._calls}"
            )

    def _explore(self, program: ProgramFunction, settings: Settings) -> Explored:
        __tracebackhide__ = True
        try:
            explored = explorer.explore(program, settings, slot=self._slot, command=self._command)
        except ScheduleFailed as failure:
            self._remember(failure)
            raise
        self._item.user_properties.append(("explored", str(explored)))
        return explored

    def _again(self, program: ProgramFunction, settings: Settings, string: str) -> Explored:
        __tracebackhide__ = True
        steps = [(str(task), str(what)) for task, what in self._remembered().get(string, [])]
        return explorer.replay(
            program, string, settings, steps=steps, slot=self._slot, command=self._command
        )

    def _command(self, string: str) -> str:
        prefix = f"{self._calls}:" if self._calls > 1 else ""
        return f"pytest {shlex.quote(self._item.nodeid)} --replay {prefix}{string}"

    def _remembered(self) -> dict[str, Any]:
        cache = getattr(self._config, "cache", None)
        known = cache.get(REMEMBERED, {}) if cache is not None else {}
        return known if isinstance(known, dict) else {}

    def _remember(self, failure: ScheduleFailed) -> None:
        if getattr(self._config, "cache", None) is not None:
            known = [*self._remembered().items(), (failure.schedule, failure.steps)]
            self._config.cache.set(REMEMBERED, dict(known[-MOST_REMEMBERED:]))


def defaults(config: pytest.Config) -> Settings:
    """What the command line says, and where it says nothing the ini file."""
    values: dict[str, Any] = {}
    for name, (_, _, kind) in DEFAULTS.items():
        value = config.getoption(f"explore_{name}")
        if value is None and config.getini(f"explore_{name}"):
            text = str(config.getini(f"explore_{name}"))
            try:
                value = kind(text)
            except ValueError:
                raise pytest.UsageError(
                    f"explore_{name} = {text!r} in the ini file: a number is needed"
                ) from None
        values[name] = value
    return Settings(**values)


def chosen(general: Settings, own: Settings) -> Settings:
    """A test's own settings, and the general ones where it has none. A bound of its own replaces
    both general bounds, and an exhaustive search keeps its own strategy."""
    bounded = own.schedules is not None or own.seconds is not None
    return Settings(
        own.strategy or (None if own.exhaustive else general.strategy),
        own.schedules if bounded else general.schedules,
        own.seconds if bounded else general.seconds,
        own.exhaustive,
        own.granularity,
        own.seed,
        own.limit,
        own.memory,
    )


def parse_replay(text: str) -> tuple[int, str]:
    """`tdp1-...`, or `N:tdp1-...` for a test's Nth explore(); raises `ScheduleError`."""
    match = re.fullmatch(r"(?:(\d+):)?(.+)", text.strip())
    if match is None:
        raise ScheduleError(f"{text!r} is no schedule")
    Schedule.decode(match[2])
    return int(match[1] or 1), match[2]


def worker_number(config: pytest.Config) -> int:
    """Which of the processes that run tests side by side this one is."""
    worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
    return int(re.sub(r"\D", "", worker) or 0)
