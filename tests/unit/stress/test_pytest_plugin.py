"""The fixture `explore`: what it finds, what it prints, and that nothing looks green that was not
explored."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
from pathlib import Path

import pytest

from stress.scenario.errors import StressError
from stress.testing import (
    ExploredSync,
    Inconclusive,
    NothingExplored,
    ReplayDiverged,
    ScheduleFailed,
    Settings,
    explore,
    replay,
)

pytest_plugins = ["pytester"]

INSTALLED = any(
    entry.name == "tdp-stress" for entry in importlib.metadata.entry_points(group="pytest11")
)
PLUGIN = [] if INSTALLED else ["-p", "stress.pytest_plugin"]
EXAMPLES = Path(__file__).parents[3] / "examples"

LOST_UPDATE = """
    def test_counter(explore):
        def program(sync):
            count = sync.counter("count")

            def add():
                count.value = count.value + 1

            sync.spawn(add)
            sync.spawn(add)
            return lambda: count.value == 2

        explore(program)
"""

FIXED = LOST_UPDATE.replace("count.value = count.value + 1", "count.add(1)")


def lost_update(sync: ExploredSync):
    count = sync.counter("count")

    def add():
        count.value = count.value + 1

    sync.spawn(add)
    sync.spawn(add)
    return lambda: count.value == 2


def idle() -> None:
    """A task that does nothing."""


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:randomly", *options)


def replay_line(result: pytest.RunResult) -> str:
    found = re.search(r"pytest (\S+) --replay (\S+)", result.stdout.str())
    assert found
    return found[2]


def failure_of(program, **options) -> str:
    with pytest.raises(ScheduleFailed) as caught:
        explore(program, Settings(**options))
    return str(caught.value)


class TestFindings:
    def test_a_false_condition_is_shown_with_its_source_the_steps_and_the_words(self):
        text = failure_of(lost_update)
        assert text.startswith("CheckFailed in the check at the end: the condition is False")
        assert "return lambda: count.value == 2" in text
        assert re.search(r"step +add1 +add2\n", text)
        assert re.search(r"line \d+ +load count", text)
        assert "count = 1" in text
        assert "shown by a schedule with 1 preemption" in text

    def test_an_assertion_in_a_task_comes_with_its_traceback(self):
        def program(sync):
            flag = sync.cell("flag", False)

            def setter():
                flag.value = True

            def reader():
                assert not flag.value, "too late"

            sync.spawn(setter)
            sync.spawn(reader)

        text = failure_of(program)
        assert text.startswith("AssertionError in reader1: too late")
        assert 'assert not flag.value, "too late"' in text
        assert "scheduler.py" not in text

    def test_an_exception_is_a_failure(self):
        def program(sync):
            sync.spawn(lambda: {}["missing"], name="loser")

        assert failure_of(program).startswith("KeyError in loser: 'missing'")

    def test_a_deadlock_that_happens(self):
        def program(sync):
            a, b = sync.lock("A"), sync.lock("B")

            def both(one, other):
                with one, other:
                    pass

            sync.spawn(both, a, b)
            sync.spawn(both, b, a)

        text = failure_of(program)
        assert text.startswith("BUG: deadlock: both1, both2 can never go on")
        assert "both1 waits for B, held by both2" in text

    def test_an_inversion_is_found_in_a_schedule_without_a_deadlock(self):
        def program(sync):
            a, b = sync.mutex("A"), sync.mutex("B")

            def both(one, other):
                with one, other:
                    pass

            sync.spawn(both, a, b)
            sync.spawn(both, b, a)

        text = failure_of(program)
        assert text.startswith("WARNING: possible circular locking dependency detected")
        assert "no preemption" in text
        assert "(stress/engines" not in text

    def test_a_task_that_spins_for_ever(self):
        def program(sync):
            flag = sync.cell("flag", False)

            def spin():
                while not flag.value:
                    sync.runtime.relax()

            sync.spawn(spin)

        assert failure_of(program).startswith("BUG: livelock: spin1 can never go on")

    def test_a_reference_count_that_goes_below_zero(self):
        def program(sync):
            count = sync.refcount("object", 1)
            sync.spawn(count.put)
            sync.spawn(count.put)

        assert "rule O4" in failure_of(program)

    def test_an_rcu_section_that_is_never_left(self):
        def program(sync):
            sync.spawn(sync.rcu.read_lock)

        assert "exit-in-section" in failure_of(program)

    def test_a_table_that_is_freed_while_others_may_use_it_is_predicted(self):
        def program(sync):
            table = sync.table(1)
            sync.spawn(lambda: table[0], name="reader")
            sync.spawn(table.end)

        text = failure_of(program, strategy="dfs")
        assert "freed-without-waiting" in text
        assert "this schedule did no harm" in text

    def test_rcu_keeps_it_alive(self):
        def program(sync):
            pointer = sync.cell("pointer", "old")
            alive = {"old": sync.cell("alive", True), "new": sync.cell("alive", True)}

            def read():
                sync.rcu.read_lock()
                assert alive[pointer.value].value
                sync.rcu.read_unlock()

            def free():
                pointer.value = "new"
                sync.rcu.synchronize()
                sync.runtime.ending(pointer)
                alive["old"].value = False

            sync.spawn(read)
            sync.spawn(free)

        assert explore(program, Settings(exhaustive=True)).exhausted

    def test_tasks_that_do_not_use_rcu_take_no_steps_for_it(self):
        def program(sync):
            count = sync.counter("count")
            sync.spawn(count.add, 1)
            sync.spawn(count.add, 1)

        explored = explore(program)
        assert explored.steps == 4 * explored.schedules  # start, add

    def test_a_program_that_is_not_deterministic_is_called_that(self):
        runs = []

        def program(sync):
            runs.append(None)
            number = len(runs)

            def fail():
                assert number != 6

            sync.spawn(fail)

        assert "depends on more than the order of its steps" in failure_of(program)


class TestPrograms:
    def test_tasks_spawn_join_wait_and_may_stay_behind(self):
        def program(sync):
            done = sync.counter("done")
            queue = sync.queue()
            results = []

            def serve():
                while True:
                    sync.wait_until(lambda: len(queue) > 0, "work")
                    results.append(queue.take())
                    done.add(1)

            def work():
                child = sync.spawn(queue.put, "item", name="child")
                sync.join(child)
                sync.wait_until(lambda: done.value == 1)

            sync.spawn(serve, daemon=True)
            sync.spawn(work)
            return lambda: results == ["item"]

        explored = explore(program, Settings(exhaustive=True))
        assert explored.exhausted

    def test_the_check_may_be_an_assertion_or_missing(self):
        def program(sync, check):
            count = sync.counter("count")
            sync.spawn(count.add, 1)
            sync.spawn(count.add, 1)
            return check

        def wrong():
            raise AssertionError("always")

        explore(lambda sync: program(sync, None))
        explore(lambda sync: program(sync, lambda: None))
        assert failure_of(lambda sync: program(sync, wrong)).startswith(
            "AssertionError in the check at the end: always"
        )

    @pytest.mark.parametrize("granularity", ["atomic", "library"])
    def test_reader_writer_locks_at_both_granularities(self, granularity):
        def program(sync):
            lock = sync.rwlock("lock")
            pair = [sync.cell("one", 0), sync.cell("two", 0)]

            def read():
                lock.read_lock()
                assert pair[0].value == pair[1].value
                lock.read_unlock()

            def write():
                lock.write_lock()
                pair[0].value = pair[1].value = 1
                lock.write_unlock()

            sync.spawn(read)
            sync.spawn(write)

        explore(program, Settings(granularity=granularity, schedules=50))

    def test_mistakes_are_said_at_once(self):
        async def coroutine():
            """Never awaited."""

        def twice(sync):
            sync.spawn(print, name="same")
            sync.spawn(print, name="same")

        with pytest.raises(TypeError, match="coroutine"):
            explore(lambda sync: sync.spawn(coroutine) and None)
        with pytest.raises(ValueError, match="two tasks called 'same'"):
            explore(twice)
        with pytest.raises(ZeroDivisionError):
            explore(lambda _: 1 // 0)

    def test_programs_do_not_nest(self):
        def program(sync):
            sync.spawn(explore, lost_update, name="inner")

        assert "explore one program after another" in failure_of(program)
        with pytest.raises(StressError, match="one program after another"):
            explore(lambda _: explore(lost_update))

    def test_a_failure_leaves_no_task_behind(self):
        entered, left = itertools.count(), itertools.count()

        def program(sync):
            lock = sync.lock()

            def hold():
                next(entered)
                try:
                    lock.acquire()
                    lock.acquire()
                finally:
                    next(left)

            sync.spawn(hold)
            sync.spawn(hold)

        assert "deadlock" in failure_of(program)
        assert next(entered) == next(left) > 0

    def test_after_an_interruption_other_programs_are_explored(self):
        def program(sync):
            sync.spawn(sync.counter("word").add, 1)
            raise KeyboardInterrupt

        failure_of(lost_update)
        with pytest.raises(KeyboardInterrupt):
            explore(program)
        failure_of(lost_update)

    def test_the_process_gets_its_cpus_back(self):
        before = os.sched_getaffinity(0)
        with pytest.raises(ScheduleFailed):
            explore(lost_update, slot=3)
        assert os.sched_getaffinity(0) == before

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_forked_process_explores_with_threads_of_its_own(self):
        failure_of(lost_update)
        child = os.fork()
        if not child:
            code = 1
            try:
                failure_of(lost_update)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        failure_of(lost_update)


class TestNothingLooksGreen:
    def test_without_a_task(self):
        with pytest.raises(NothingExplored, match="no task"):
            explore(lambda _: None)
        with pytest.raises(NothingExplored, match="no task"):
            explore(lambda sync: sync.spawn(print, daemon=True) and None)

    @pytest.mark.parametrize("bounds", [{"schedules": 0}, {"schedules": -1}, {"seconds": 0}])
    def test_without_a_schedule(self, bounds):
        with pytest.raises(NothingExplored):
            explore(lost_update, Settings(**bounds))

    def test_an_exhaustive_search_that_meets_its_bound(self):
        def program(sync):
            word = sync.counter("word")

            def write():
                for number in range(5):
                    word.value = number

            for _ in range(3):
                sync.spawn(write)

        with pytest.raises(Inconclusive, match="10 schedules"):
            explore(program, Settings(exhaustive=True, schedules=10))

    def test_settings_that_make_no_sense(self):
        for options in (
            {"strategy": "best"},
            {"strategy": "random", "exhaustive": True},
            {"granularity": "fine"},
        ):
            with pytest.raises(StressError):
                explore(lost_update, Settings(**options))

    def test_a_test_that_never_explores(self, pytester):
        pytester.makepyfile("def test_nothing(explore): pass")
        result = run(pytester)
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(["*it has tested nothing*"])
        assert result.ret == pytest.ExitCode.TESTS_FAILED

    def test_a_skipped_test_may(self, pytester):
        pytester.makepyfile("import pytest\ndef test_nothing(explore): pytest.skip('not here')")
        run(pytester).assert_outcomes(skipped=1)

    def test_an_expected_failure_has_to_be_one(self, pytester):
        pytester.makepyfile(
            """
            import pytest

            @pytest.mark.xfail
            def test_no_task(explore):
                explore(lambda sync: None)

            @pytest.mark.xfail
            def test_not_exhausted(explore):
                def program(sync):
                    word = sync.counter("word")
                    for number in range(3):
                        sync.spawn(setattr, word, "value", number)
                explore(program, exhaustive=True, schedules=1)

            @pytest.mark.xfail
            def test_expected(explore):
                explore(lambda sync: sync.spawn(lambda: 1 // 0) and None)
            """
        )
        run(pytester).assert_outcomes(failed=2, xfailed=1)


class TestReplay:
    def test_the_printed_command_shows_the_same_failure(self, pytester):
        pytester.makepyfile(LOST_UPDATE)
        first = run(pytester)
        first.assert_outcomes(failed=1)
        replayed = run(pytester, "--replay", replay_line(first))
        replayed.assert_outcomes(failed=1)
        replayed.stdout.fnmatch_lines(
            ["*CheckFailed in the check at the end*", "*replayed: * steps, the same as recorded*"]
        )
        assert replay_line(replayed) == replay_line(first)

    def test_a_test_that_has_changed_diverges_at_the_step(self, pytester):
        pytester.makepyfile(LOST_UPDATE)
        string = replay_line(run(pytester))
        pytester.makepyfile(FIXED)
        result = run(pytester, "--replay", string)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                "*ReplayDiverged: the replay diverges at step 2: expected add1: load count, found "
                "add1: add count*"
            ]
        )

    def test_without_the_cache_the_sum_of_all_steps_tells(self, pytester):
        pytester.makepyfile(LOST_UPDATE)
        string = replay_line(run(pytester, "-p", "no:cacheprovider"))
        pytester.makepyfile(FIXED)
        result = run(pytester, "-p", "no:cacheprovider", "--replay", string)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*ReplayDiverged: the replay diverges at step*"])

    def test_a_schedule_of_the_second_exploration(self, pytester):
        clean = "explore(shared)"
        shared = """
    def shared(sync):
        word = sync.cell("word", 0)
        for number in range(2):
            sync.spawn(setattr, word, "value", number)
"""
        test = LOST_UPDATE.replace("explore(program)", f"{clean}; explore(program)")
        pytester.makepyfile(shared + test)
        first = run(pytester)
        assert replay_line(first).startswith("2:tdp1-")
        replayed = run(pytester, "--replay", replay_line(first))
        replayed.assert_outcomes(failed=1)
        replayed.stdout.fnmatch_lines(["*the same as recorded*"])
        third = run(pytester, "--replay", replay_line(first).replace("2:", "3:"))
        third.assert_outcomes(passed=1, errors=1)

    def test_it_belongs_to_one_test(self, pytester):
        pytester.makepyfile(LOST_UPDATE + LOST_UPDATE.replace("test_counter", "test_other"))
        string = replay_line(run(pytester))
        result = run(pytester, "--replay", string)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*2 are selected*"])
        run(pytester, "--replay", string, "-k", "counter").assert_outcomes(failed=1, deselected=1)

    def test_a_damaged_string(self, pytester):
        pytester.makepyfile(LOST_UPDATE)
        result = run(pytester, "--replay", "tdp1-cg")
        assert result.ret == pytest.ExitCode.USAGE_ERROR

    def test_a_replay_that_shows_nothing_passes(self):
        with pytest.raises(ScheduleFailed) as caught:
            explore(lambda sync: lost_update(sync) and (lambda: False))
        assert replay(lambda sync: lost_update(sync) and None, caught.value.schedule).schedules == 1
        with pytest.raises(ReplayDiverged):
            replay(lambda sync: sync.spawn(idle) and None, caught.value.schedule)


class TestOptions:
    @pytest.fixture
    def report(self, pytester):
        pytester.makepyfile(
            """
            def test_it(explore):
                def program(sync):
                    word = sync.counter("word")
                    for number in range(3):
                        sync.spawn(setattr, word, "value", number)
                seven, every = explore(program, schedules=7), explore(program, exhaustive=True)
                print("EXPLORED", explore(program), "|", seven, "|", every)
            """
        )

        def run_it(*options: str) -> list[str]:
            result = run(pytester, "-s", *options)
            result.assert_outcomes(passed=1)
            found = re.search(r"EXPLORED (.*)", result.stdout.str())
            assert found
            return [part.strip() for part in found[1].split("|")]

        return run_it

    def test_defaults(self, report):
        general, own, exhaustive = report()
        assert general.startswith("1,000 schedules by portfolio")
        assert own.startswith("7 schedules by portfolio")
        assert exhaustive == "6 schedules by dpor, 6 different, all there are"

    def test_the_command_line(self, report):
        general, own, exhaustive = report("--explore-schedules=20", "--explore-strategy=pct:2")
        assert general.startswith("20 schedules by pct:2")
        assert own.startswith("7 schedules by pct:2")
        assert "by dpor" in exhaustive

    def test_the_ini_file(self, report, pytester):
        pytester.makeini("[pytest]\nexplore_schedules = 30\nexplore_strategy = random\n")
        assert report()[0].startswith("30 schedules by random")
        assert report("--explore-schedules=40")[0].startswith("40 schedules by random")

    @pytest.mark.parametrize(
        "option", ["--explore-schedules=0", "--explore-strategy=best", "--explore-seconds=0"]
    )
    def test_what_makes_no_sense(self, pytester, option):
        assert run(pytester, option).ret == pytest.ExitCode.USAGE_ERROR

    def test_an_ini_value_that_is_no_number(self, pytester):
        pytester.makeini("[pytest]\nexplore_schedules = many\n")
        assert run(pytester).ret == pytest.ExitCode.USAGE_ERROR

    def test_another_plugin_may_have_the_short_name(self, pytester):
        pytester.makepyfile(
            other="def pytest_addoption(parser): parser.addoption('--replay')", test_it=LOST_UPDATE
        )
        pytester.syspathinsert()
        result = pytester.runpytest_inprocess("-p", "other", *PLUGIN, "--explore-replay", "tdp1-cg")
        assert result.ret == pytest.ExitCode.USAGE_ERROR


class TestProcesses:
    def test_side_by_side(self, pytester, monkeypatch):
        """With the two plugins that this is about, and no other that may be installed."""
        pytest.importorskip("xdist")
        monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent), prepend=os.pathsep)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        pytester.makepyfile(LOST_UPDATE + FIXED.replace("test_counter", "test_fixed"))
        plugin = ("-p", "stress.pytest_plugin")
        result = pytester.runpytest_subprocess(*plugin, "-p", "xdist", "-n", "2")
        result.assert_outcomes(failed=1, passed=1)
        replayed = pytester.runpytest_subprocess(
            *plugin, "-k", "counter", "--replay", replay_line(result)
        )
        replayed.assert_outcomes(failed=1, deselected=1)
        replayed.stdout.fnmatch_lines(["*the same as recorded*"])

    def test_the_examples(self, pytester):
        (pytester.path / "test_examples.py").write_text(
            (EXAMPLES / "test_bounded_buffer.py").read_text()
        )
        run(pytester).assert_outcomes(passed=2, xfailed=1)
