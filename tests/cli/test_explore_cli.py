"""The commands of the controlled engine as a user types them: exit codes, outputs, and that nothing
is left half-done."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from stress.commands.command_line import invoke
from stress.selftest.litmus.registry import LITMUS
from tests.command import ROOT, Done, Stress, real

EXPLORE = ROOT / "configs" / "explore"
FAULT = EXPLORE / "fault-vs-delete.toml"
BUSTED = ROOT / "configs" / "BUSTED"
OBSOLETE = EXPLORE / "obsolete-root.toml"
PUT = ("--set", 'vm.variants=["put-before-zap"]')
AT_ONCE = ("--set", 'vm.variants=["table-freed-at-once"]')
STALE = ("--set", 'vm.variants=["stale-check-skipped"]')
KEPT = {"console.txt", "explore.json", "junit.xml", "report.html", "summary.md"}
TINY = """\
title = "One vCPU, one access"
[vm]
vcpus = 1
levels = 3
entries = 4
frames = 16
[memory]
fixed_pages = 1
churn_slots = 0
churn_pages = 1
smm_pages = 0
smm_churn_pages = 0
[actors.memslot_worker]
enabled = false
[actors.consumer]
devices = 0
[script]
vcpu0 = ["write 0x0"]
[obligations]
vcpu_accesses = 1
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule file of a vCPU that maps a page in an obsolete root."""
    results = tmp_path_factory.mktemp("recorded")
    assert (
        invoke(
            [
                "explore",
                "-c",
                str(FAULT),
                "-n",
                "400",
                "--seed",
                "3",
                "-q",
                "--results",
                str(results),
                *STALE,
            ]
        )
        == 1
    )
    return results / "latest" / "schedule-1.json"


@pytest.fixture(scope="module")
def minimised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A schedule of a table that is freed at once, which has been minimised beside its file; and
    what was said then."""
    results, said = tmp_path_factory.mktemp("minimised"), io.StringIO()
    assert (
        invoke(
            [
                "explore",
                "-c",
                str(FAULT),
                "-n",
                "5",
                "--seed",
                "1",
                "-q",
                "--results",
                str(results),
                *AT_ONCE,
            ]
        )
        == 1
    )
    with contextlib.redirect_stdout(said):
        assert invoke(["minimise", str(results / "latest" / "schedule-1.json"), "-q"]) == 1
    return results / "latest" / "schedule-1.json", said.getvalue()


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def data_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


# explore


def test_the_real_command_fails_with_everything_to_go_on(tmp_path: Path) -> None:
    config = BUSTED / "table-freed-at-once.toml"
    done = real("explore", "-c", config, "-n", 20, "--seed", 1, "-v", "--results", tmp_path)
    assert done.code == 1, done.out + done.err
    for part in (
        "call trace:",
        "stress replay ",
        "stress minimise ",
        "schedule: tdp1-",
        "expected O3 or O2: seen O3",
        "results: ",
    ):
        assert part in done.out
    assert set(left_in((tmp_path / "latest").resolve())) == {
        *KEPT,
        "schedule-1.json",
        "explanation-1.json",
    }


def test_a_scenario_that_passes_exits_0(stress: Stress, tmp_path: Path) -> None:
    done = stress("explore", "-c", FAULT, "-n", "15", "--seed", "1", "-v", "--results", tmp_path)
    assert done.code == 0, done.out
    assert "PASS  fault-vs-delete, portfolio, seed 1: all 5 obligations met, no finding" in done.out
    assert "Good-Turing" in done.out
    assert set(left_in((tmp_path / "latest").resolve())) == KEPT
    assert data_of(tmp_path / "latest" / "explore.json")["verdict"] == "PASS"


def test_a_mended_scenario_passes(stress: Stress, tmp_path: Path) -> None:
    config = BUSTED / "table-freed-at-once.toml"
    assert (
        stress(
            "explore",
            "-c",
            config,
            "-n",
            "10",
            "--seed",
            "1",
            "-q",
            "--results",
            tmp_path,
            "--mended",
        ).code
        == 0
    )


def test_a_scenario_that_must_fail_and_does_not_is_inconclusive(
    stress: Stress, tmp_path: Path
) -> None:
    config = BUSTED / "table-freed-at-once.toml"
    done = stress(
        "explore",
        "-c",
        config,
        "-n",
        "5",
        "--seed",
        "1",
        "-q",
        "--results",
        tmp_path,
        "--set",
        "vm.variants=[]",
    )
    assert done.code == 2
    assert "none of the expected rules fired: O3, O2" in done.out
    assert "NOT seen" in done.out


def test_an_exhaustive_search_that_does_not_end_is_inconclusive(
    stress: Stress, tmp_path: Path
) -> None:
    done = stress("explore", "-c", FAULT, "--exhaustive", "-n", "10", "-v", "--results", tmp_path)
    assert done.code == 2
    assert "the search did not come to its end" in done.out
    assert "coverage   not exhausted; schedules left: about" in done.out
    data = data_of(tmp_path / "latest" / "explore.json")
    assert (data["strategy"], data["exhausted"], data["verdict"]) == ("dpor", False, "INCONCLUSIVE")


def test_an_exhaustive_search_that_ends_passes(stress: Stress, tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    done = stress("explore", "-c", config, "--exhaustive", "-v", "--results", tmp_path / "results")
    assert done.code == 0, done.out
    assert "EXHAUSTED: every order of events" in done.out


def test_a_scenario_is_explored_with_store_buffers(stress: Stress, tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    results = tmp_path / "results"
    done = stress("explore", "-c", config, "--memory", "tso", "--exhaustive", "--results", results)
    assert done.code == 0, done.out
    assert "memory order x86-TSO" in done.out
    assert "under x86-TSO, with store buffers of any depth" in " ".join(done.out.split())
    data = data_of(results / "latest" / "explore.json")
    assert data["scenario"]["explore"]["memory"] == "tso"


def test_a_failure_with_store_buffers_is_replayed_explained_and_minimised(
    stress: Stress, tmp_path: Path
) -> None:
    where = ("--results", tmp_path, "--memory", "tso", *AT_ONCE)
    assert stress("explore", "-c", FAULT, "-n", "300", "--seed", "1", *where).code == 1
    file = tmp_path / "latest" / "schedule-1.json"
    assert any("'s buffer: store" in step for step in data_of(file)["steps"])
    assert stress("replay", file).code == 1
    assert "now in memory" in stress("explain", file).out
    smaller = tmp_path / "smaller.json"
    assert stress("minimise", file, "--output", smaller).code == 1
    assert stress("replay", smaller).code == 1
    assert len(data_of(smaller)["steps"]) <= len(data_of(file)["steps"])


def test_json_is_the_result_and_nothing_else(stress: Stress, tmp_path: Path) -> None:
    done = stress(
        "explore", "-c", FAULT, "-n", "30", "--seed", "1", "--json", "--results", tmp_path, *AT_ONCE
    )
    assert done.code == 1
    data = json.loads(done.out)
    assert data == data_of(tmp_path / "latest" / "explore.json")
    assert (data["schema"], data["kind"], data["name"], data["seed"]) == (
        2,
        "stress-exploration",
        "fault-vs-delete",
        1,
    )
    assert data["certificate"]["verdict"] == "FAIL"
    assert data["scenario"]["vm"]["variants"] == ["table-freed-at-once"]
    (failure,) = data["failures"]
    assert failure["schedule"].startswith("tdp1-")
    assert failure["after_schedules"] == data["schedules"]


@pytest.mark.parametrize("variant", [(), AT_ONCE])
def test_quiet_is_one_line(stress: Stress, tmp_path: Path, variant: tuple[str, ...]) -> None:
    done = stress(
        "explore", "-c", FAULT, "-n", "5", "--seed", "1", "-q", "--results", tmp_path, *variant
    )
    (line,) = done.out.splitlines()
    assert line.startswith("FAIL  " if variant else "PASS  ")
    assert done.err == ""


def test_two_jobs(stress: Stress, tmp_path: Path) -> None:
    done = stress(
        "explore",
        "-c",
        FAULT,
        "-n",
        "10",
        "--seed",
        "1",
        "--jobs",
        "2",
        "--json",
        "--results",
        tmp_path,
    )
    assert done.code == 0, done.out
    data = json.loads(done.out)
    assert (data["jobs"], data["schedules"], data["verdict"]) == (2, 10, "PASS")


def test_keep_going_finds_more(stress: Stress, tmp_path: Path) -> None:
    command = (
        "explore",
        "-c",
        OBSOLETE,
        "-n",
        "120",
        "--seed",
        "1",
        "--json",
        "--results",
        tmp_path,
        *PUT,
    )
    first, more = (json.loads(stress(*command, *option).out) for option in ((), ("--keep-going",)))
    assert len(first["failures"]) == 1
    assert len(more["failures"]) > 1
    assert more["schedules"] == 120 > first["schedules"]
    assert more["failures"][0] | {"after_s": 0} == first["failures"][0] | {"after_s": 0}
    kept = [
        path for path in left_in((tmp_path / "latest").resolve()) if path.startswith("schedule-")
    ]
    assert len(kept) == len(more["failures"])


def test_equal_seeds_have_equal_results(stress: Stress, tmp_path: Path) -> None:
    command = ("explore", "-c", FAULT, "-n", "12", "--seed", "5", "--json", "--results", tmp_path)
    one, two = (json.loads(stress(*command).out) for _ in range(2))
    for data in (one, two):
        for key in ("id", "started", "wall_s", "schedules_per_s", "steps_per_s"):
            del data[key]
        del data["certificate"]["budget"]  # the seconds are in it
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-c", FAULT, "-s", "magic"], "there is no strategy 'magic': there are portfolio, random"),
        (["-c", FAULT, "-s", "pct:9"], "the depth of pct is 1 to 5"),
        (["-c", FAULT, "-s", "pct:x"], "a number is needed after the colon"),
        (["-c", FAULT, "-s", "random:2"], "random takes no parameter"),
        (["-c", FAULT, "-n", "0"], "--schedules"),
        (["-c", FAULT, "--duration", "0"], "--duration"),
        (["-c", FAULT, "--seed", "-1"], "--seed"),
        (["-c", FAULT, "--jobs", "many"], "--jobs"),
        (["-c", FAULT, "--set", "vm.vcpu=1"], "vm.vcpu"),
        (["-c", FAULT, "--set", 'explore.lock_granularity="bit"'], "explore.lock_granularity"),
        (["-c", FAULT, "--variant", "none.py"], "none.py"),
        (["-c", "none.toml"], "none.toml"),
        ([], "name one scenario; try: stress explore quick"),
    ],
)
def test_wrong_requests_exit_4_and_leave_nothing(
    stress: Stress, tmp_path: Path, arguments: list[object], reason: str
) -> None:
    done = stress("explore", *arguments, "--results", tmp_path / "results")
    assert done.code == 4
    assert done.out == ""
    assert reason in done.err
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_carrier_that_there_is_not_exits_4_and_leaves_nothing(
    stress: Stress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setenv("STRESS_CARRIER", "fibres")
    done = stress("explore", "-c", FAULT, "--jobs", jobs, "--results", tmp_path / "results")
    assert done.code == 4
    assert (
        "STRESS_CARRIER=fibres: there is no such carrier; there are auto, threads, greenlets"
        in done.err
    )
    assert left_in(tmp_path) == []


def test_results_that_cannot_be_written_exit_4_and_say_so(stress: Stress, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = stress("explore", "-c", FAULT, "-n", "2", "--seed", "1", "--results", tmp_path / "file")
    assert done.code == 4
    assert "choose another with --results" in done.err
    assert left_in(tmp_path) == ["file"]


def test_a_directory_that_is_no_link_is_left_alone(stress: Stress, tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    done = stress("explore", "-c", FAULT, "-n", "2", "--seed", "1", "--results", tmp_path)
    assert done.code == 4
    assert "latest is in the way" in done.err
    assert left_in(tmp_path) == ["latest"]


# replay


def test_a_file_is_replayed(stress: Stress, recorded: Path) -> None:
    done = stress("replay", recorded)
    assert done.code == 1
    assert "call trace:" in done.out
    assert done.out.splitlines()[-1].startswith("REPLAYED  fault-vs-delete: ")
    assert "found O12/map-in-obsolete-root" in done.out
    quiet = stress("replay", recorded, "-q")
    assert quiet.out.splitlines() == done.out.splitlines()[-1:]


def test_a_string_is_replayed_with_its_scenario(stress: Stress, recorded: Path) -> None:
    done = stress("replay", data_of(recorded)["schedule"], "--config", FAULT, *STALE, "-q")
    assert done.code == 1
    assert done.out.startswith("REPLAYED  fault-vs-delete: ")


def test_another_scenario_diverges(stress: Stress, recorded: Path) -> None:
    other = ("--set", 'script.memslot-worker=["flags 0","delete 0"]')
    done = stress("replay", data_of(recorded)["schedule"], "--config", FAULT, *STALE, *other, "-q")
    assert done.code == 3
    assert done.out.startswith("DIVERGED  the replay diverges at step ")


def test_a_file_whose_scenario_was_changed_diverges_and_names_both_steps(
    stress: Stress, recorded: Path, tmp_path: Path
) -> None:
    data = data_of(recorded)
    data["scenario"]["script"]["memslot-worker"] = ["flags 0", "delete 0"]
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(data))
    done = stress("replay", path, "-q")
    assert done.code == 3
    (line,) = done.out.splitlines()
    assert line.startswith("DIVERGED  the replay diverges at step ")
    step = int(line.partition("at step ")[2].partition(":")[0])
    assert (
        f"expected {data['steps'][step]}, found {data['steps'][step].partition(':')[0]}: " in line
    )


def test_a_model_that_was_mended_does_not_reproduce_or_diverges(
    stress: Stress, recorded: Path, tmp_path: Path
) -> None:
    data = data_of(recorded)
    data["scenario"]["vm"]["variants"] = []
    path = tmp_path / "mended.json"
    path.write_text(json.dumps(data))
    done = stress("replay", path, "-q")
    assert done.code in (2, 3)
    assert done.out.startswith(("NOT REPRODUCED", "DIVERGED"))


def test_a_replay_can_branch(stress: Stress, recorded: Path) -> None:
    steps = len(data_of(recorded)["steps"])
    outs = {
        stress(
            "replay", recorded, "--from", steps // 6, "--then", "random", "--seed", seed, "-q"
        ).out
        for seed in range(16)
    }
    assert len(outs) > 1
    assert all(out.startswith("BRANCHED  fault-vs-delete: ") for out in outs)
    assert stress("replay", recorded, "--from", 0, "-q").code == 0, (
        "without a switch nothing is wrong"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tdp1-nonsense", "-c", FAULT], "damaged"),
        (["nonsense", "-c", FAULT], "is no schedule"),
        (["none.json"], "give a schedule file, such as schedule-1.json, or a schedule string"),
        ([FAULT], "is not valid JSON"),
        (["x.json", "--from", "-1"], "--from"),
        (["tdp1-cgAA", "-c", "none.toml"], "none.toml"),
    ],
)
def test_what_cannot_be_replayed_exits_4(
    stress: Stress, arguments: list[object], reason: str
) -> None:
    done = stress("replay", *arguments)
    assert done.code == 4
    assert reason in done.err
    assert done.out == ""


@pytest.mark.parametrize("command", ["replay", "minimise", "explain"])
def test_damaged_and_foreign_files_exit_4(
    stress: Stress, recorded: Path, tmp_path: Path, command: str
) -> None:
    text = recorded.read_text()
    path = tmp_path / "schedule.json"
    for damaged, reason in (
        (text[: len(text) // 2], "the file is damaged"),
        (
            text.replace('"schema": 1', '"schema": 99'),
            "has schema 99",
        ),
        (text.replace("stress-schedule", "stress-exploration"), "give a schedule file"),
        (text.replace('"schedule": "tdp1-', '"schedule": "tdp1-_'), "damaged"),
    ):
        path.write_text(damaged)
        done = stress(command, path)
        assert done.code == 4
        assert reason in done.err
        assert done.out == ""
        assert left_in(tmp_path) == ["schedule.json"]


def test_set_goes_with_a_config_only(stress: Stress, recorded: Path) -> None:
    done = stress("replay", recorded, "--set", "vm.vcpus=2")
    assert done.code == 4
    assert "--set goes with --config" in done.err


def test_a_replay_goes_on_with_a_strategy_there_is(stress: Stress, recorded: Path) -> None:
    done = stress("replay", recorded, "--from", "3", "--then", "magic")
    assert done.code == 4
    assert "there is no strategy 'magic'" in done.err


def replayed_elsewhere(path: Path) -> Done:
    """In a process of its own: what goes wrong here may leave carriers in disorder."""
    return real("replay", path, "-q")


def test_a_divergence_at_the_very_first_step_is_one_like_any_other(
    recorded: Path, tmp_path: Path
) -> None:
    data = data_of(recorded)
    data["steps"][0] = "somebody: start"
    path = tmp_path / "first.json"
    path.write_text(json.dumps(data))
    done = replayed_elsewhere(path)
    assert done.code == 3
    assert "at step 0" in done.out


def test_a_file_that_lacks_names_of_steps_is_damaged(recorded: Path, tmp_path: Path) -> None:
    data = data_of(recorded)
    data["steps"] = data["steps"][:20]
    path = tmp_path / "half.json"
    path.write_text(json.dumps(data))
    assert replayed_elsewhere(path).code in (3, 4)


# minimise, explain


def test_a_schedule_is_minimised_beside_its_file_or_elsewhere(
    stress: Stress, minimised: tuple[Path, str], tmp_path: Path
) -> None:
    file, quiet = minimised
    small, other = file.with_suffix(".min.json"), tmp_path / "other.json"
    done = stress("minimise", file, "--output", other)
    assert done.code == 1
    assert f"stress replay {other}" in done.out
    assert "left out: " in done.out
    assert done.out.splitlines()[-1].startswith("MINIMISED  fault-vs-delete: operations 5 -> ")
    assert len(data_of(small)["steps"]) < len(data_of(file)["steps"])
    assert data_of(small)["signatures"][0] == data_of(file)["signatures"][0]
    assert stress("replay", small, "-q").out.startswith("REPLAYED")
    assert quiet.splitlines() == done.out.splitlines()[-1:]
    assert other.read_bytes() == small.read_bytes()
    cannot = stress("minimise", file, "-q", "--output", tmp_path / "none" / "other.json")
    assert cannot.code == 4
    assert "choose another place with --output" in cannot.err
    assert not (tmp_path / "none").exists()


def test_what_does_not_fail_is_not_minimised(
    stress: Stress, recorded: Path, tmp_path: Path
) -> None:
    data = data_of(recorded)
    data["scenario"]["vm"]["variants"] = []
    path = tmp_path / "mended.json"
    path.write_text(json.dumps(data))
    done = stress("minimise", path)
    assert done.code == 4
    assert "does not fail" in done.err
    assert left_in(tmp_path) == ["mended.json"]


def test_a_schedule_is_explained(stress: Stress, minimised: tuple[Path, str]) -> None:
    small = minimised[0].with_suffix(".min.json")
    done = stress("explain", small)
    assert done.code == 1
    assert "free-without-rcu" in done.out
    data = json.loads(stress("explain", small, "--json").out)
    assert data["kind"] == "stress-explanation"
    assert data["finding"]["code"] == "free-without-rcu"


# litmus


def test_litmus_programs_are_listed(stress: Stress) -> None:
    done = stress("litmus", "--list")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(LITMUS)


def test_one_litmus_program_is_run_and_graded(stress: Stress) -> None:
    name = next(iter(LITMUS))
    done = stress("litmus", name)
    assert done.code == 0, done.out
    assert f"PASS  {name}" in done.out
    assert f"PASS  {name}" in done.err
    assert done.out.splitlines()[-1].startswith("1 programs, ")


def test_a_litmus_program_that_there_is_not(stress: Stress) -> None:
    done = stress("litmus", "no-such-program", next(iter(LITMUS)))
    assert done.code == 4
    assert "there is no litmus program no-such-program: see 'stress litmus --list'" in done.err
    assert done.out == ""
