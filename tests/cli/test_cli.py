"""The real command, as a user types it: exit codes, outputs, and what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmu.runtime import Runtime
from stress.commands.command_line import VERBS
from stress.engines.session import Session
from stress.results.run_record import RUN_FORMAT
from tests.command import ROOT, UNTIL_MET, Stress, python, real, start, until
from tests.engine import small
from tests.patience import PATIENCE
from tests.records import record as example

QUICK = ROOT / "configs" / "quick.toml"
FORGETFUL = """\
from mmu import Variant
from mmu.tdp.zap import Zapper


class Forgetful(Zapper):
    def flush_exported(self):
        pass


VARIANT = Variant(name="forgetful", title="forgets to flush", parts=(Forgetful,))
"""
SMALL = ("--duration", "0.5", "--set", "vm.vcpus=2")
MET = (*SMALL, *until(vcpu_faults=10))
"""A run that passes as soon as the machine allows."""


def test_a_passing_run_exits_0_and_leaves_a_complete_result(tmp_path: Path) -> None:
    happened = until(exported_zaps=1, device_accesses=1)
    done = real(
        "run", "--config", QUICK, "--seed", "3", "--results", tmp_path, "-v", *SMALL, *happened
    )
    assert done.code == 0, done.out + done.err
    assert "PASS  quick, seed 3" in done.out
    assert " of 0.5 to 600 s on real threads" in done.out
    directory = (tmp_path / "latest").resolve()
    assert {path.name for path in directory.iterdir()} == {
        "run.json",
        "console.txt",
        "report.html",
        "summary.md",
        "junit.xml",
        "latency.hlog",
        "timeline.json.gz",
    }
    data = json.loads((directory / "run.json").read_text())
    assert data["schema"] == "tdp-stress/run/2"
    assert data["status"] == "finished"
    assert data["scenario"]["seed"] == 3
    assert data["counters"]["exported_zaps"] > 0
    assert data["certificate"]["verdict"] == "PASS"
    assert dict(data["certificate"]["judged"])["O1"] > 0
    assert data["latencies"]
    assert data["environment"]["gil_enabled"] in (True, False)
    assert "PASS  quick" in (directory / "console.txt").read_text()
    assert "<title>PASS: quick" in (directory / "report.html").read_text()


def test_unmet_obligations_are_inconclusive(stress: Stress, tmp_path: Path) -> None:
    done = stress(
        "run",
        "-c",
        QUICK,
        "--duration",
        "0.5",
        "--results",
        tmp_path,
        "--set",
        "obligations={io_faults=1000000000}",
        "-q",
    )
    assert done.code == 2
    assert "io_faults:" in done.out
    assert len(done.out.splitlines()) == 1


def test_a_busted_scenario_exits_1_and_names_the_expected_rule(
    stress: Stress, tmp_path: Path
) -> None:
    config = ROOT / "configs" / "BUSTED" / "no-flush-after-exported-zap.toml"
    done = stress("run", "--config", config, "--seed", "1", "-v", "--results", tmp_path, *UNTIL_MET)
    assert done.code == 1
    assert "expected O1: seen O1" in done.out
    assert "call trace:" in done.out
    assert "locks held by" in done.out


def test_all_mistakes_of_a_file_in_one_message_exit_4_and_nothing_left(tmp_path: Path) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text(
        '[vm]\nvcpu = 1\nlevels = "4"\npolicy = "keep"\nvariant_files = '
        '["none.py"]\n[actors.consumer]\nreexports_per_s = -1\n'
    )
    done = real("run", "--config", config, "--results", tmp_path / "results")
    assert done.code == 4
    assert done.out == ""
    assert "Traceback" not in done.err
    for part in (
        "5 problems",
        "wrong.toml:2: vm.vcpu",
        "wrong.toml:3: vm.levels",
        "wrong.toml:4: vm.policy",
        "wrong.toml:5",
        "none.py",
        "wrong.toml:7",
    ):
        assert part in done.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run"], "name one scenario; try: stress run quick"),
        (["run", "--config", "no-such-file.toml"], "No such file"),
        (["run", "--config", str(QUICK), "--duration", "0"], "--duration"),
        (["run", "--config", str(QUICK), "--seed", "x"], "--seed"),
        (["dance"], "No such command"),
        (["report", "no-such-directory"], "no-such-directory"),
        (["list", "everything"], "everything"),
    ],
)
def test_usage_errors_exit_4(
    stress: Stress,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = stress(*arguments)
    assert done.code == 4
    assert reason in done.err
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_record_and_nothing_else(stress: Stress, tmp_path: Path) -> None:
    done = stress("run", "-c", QUICK, "--results", tmp_path, "--json", *MET)
    assert json.loads(done.out)["name"] == "quick"


def test_a_variant_from_a_file_takes_part(stress: Stress, tmp_path: Path) -> None:
    variant = tmp_path / "idea.py"
    variant.write_text(FORGETFUL)
    done = stress(
        *("run", "-c", QUICK, "--seed", "1", "--variant", variant, "--results", tmp_path, "-q"),
        *UNTIL_MET,
    )
    assert done.code == 1
    assert "forgetful" in json.loads((tmp_path / "latest" / "run.json").read_text())["variants"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "defines no variant"),
        ("1/0\n", "ZeroDivisionError"),
        (
            "from mmu import Variant\nVARIANT = Variant(name='x', title='x', parts=(int,))\n",
            "int is no subclass of a part",
        ),
    ],
)
def test_a_variant_file_that_cannot_be_used_says_why(
    stress: Stress, tmp_path: Path, text: str, reason: str
) -> None:
    variant = tmp_path / "idea.py"
    variant.write_text(text)
    done = stress("run", "-c", QUICK, "--variant", variant, "--results", tmp_path / "results")
    assert done.code == 4
    assert reason in done.err
    assert not (tmp_path / "results").exists()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run that has begun to write its results."""
    record = tmp_path / "latest" / "run.json"
    with start("run", "-c", QUICK, "--duration", PATIENCE, "--results", tmp_path) as process:
        try:
            while not (
                record.exists()
                and json.loads(record.read_text())["counters"].get("memslot_deletes", 0)
            ):
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_a_killed_run_can_still_be_reported(
    stress: Stress, tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    running.kill()
    unreaped = stress("report", tmp_path / "latest")
    assert "INCONCLUSIVE (killed)" in unreaped.out, (
        "nobody has waited for the process yet, and it is dead all the same"
    )
    running.communicate(timeout=PATIENCE)
    done = stress("report", tmp_path / "latest")
    assert done.code == 0
    assert "was killed" in done.out
    assert "INCONCLUSIVE (killed)" in done.out
    assert "memslot_deletes" in done.out
    assert "(killed)" in (tmp_path / "latest" / "report.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_in_order_and_is_inconclusive(
    tmp_path: Path, running: subprocess.Popen[str], number: signal.Signals
) -> None:
    running.send_signal(number)
    output, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 2, output + errors
    assert "interrupted before its budget was used" in output
    assert json.loads((tmp_path / "latest" / "run.json").read_text())["status"] == "interrupted"


def test_list_names_everything_there_is(stress: Stress) -> None:
    done = stress("list")
    assert done.code == 0
    for part in (
        "  quick ",
        "  explore/two-vcpus ",
        "keep-valid",
        "O12",
        "put-before-zap",
        "vcpu_faults",
    ):
        assert part in done.out


def test_help_and_version(stress: Stress) -> None:
    assert "Exit codes" in real("--help").out
    assert stress("--version").code == 0


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_can_be_loaded_and_helps(stress: Stress, name: str) -> None:
    verb = VERBS[name]
    assert verb.load().name == name
    assert stress(name, "--help").out.startswith(f"Usage: stress {name} ")
    width = max(map(len, VERBS))
    assert f"\n  {name:<{width}}  {verb.does}\n" in stress("--help").out, "it fits on its line"


def test_nothing_is_imported_for_a_verb_that_was_not_asked_for() -> None:
    modules = {verb.module for verb in VERBS.values()}
    asked = (
        "import sys; from stress.commands.command_line import invoke; invoke(sys.argv[1:]); "
        "print(*sys.modules, sep='\\n')"
    )
    assert modules & set(python("-c", asked, "--help").out.split()) == set()
    assert modules & set(python("-c", asked, "list").out.split()) == {VERBS["list"].module}


def test_the_same_seed_gives_actors_the_same_programs() -> None:
    def programs(seed: int) -> list[list[int]]:
        session = Session(small(), seed, Runtime())
        session.set_up()
        session.vm.kvm.rcu.shutdown()
        return [actor._programs[0]._accesses for actor in session.actors[:2]]  # type: ignore[attr-defined]

    assert programs(5) == programs(5)
    assert programs(5) != programs(6)


def test_a_must_fail_scenario_that_does_not_fail_is_no_pass(stress: Stress, tmp_path: Path) -> None:
    config = ROOT / "configs" / "BUSTED" / "no-flush-after-exported-zap.toml"
    done = stress(
        "run",
        "-c",
        config,
        "--set",
        "vm.variants=[]",
        "--duration",
        "0.5",
        "--results",
        tmp_path,
        "-q",
    )
    assert done.code == 2
    assert "none of the expected rules fired: O1" in done.out


@pytest.mark.parametrize(
    "change",
    [
        {"scenario": {}},
        {"pid": -1, "status": "running"},
        {"obligations": [{"counter": "new", "needed": 1, "reached": 1}]},
    ],
)
def test_reports_of_damaged_or_foreign_records_end_in_order(
    stress: Stress, tmp_path: Path, change: dict[str, object]
) -> None:
    record = RUN_FORMAT.data(example())
    record.update(change)
    (tmp_path / "run.json").write_text(json.dumps(record))
    done = stress("report", tmp_path)
    assert done.code in (0, 4)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        (
            "from mmu import Variant\nVARIANT = Variant(name='x', title='x', parts=())\n",
            "parts must be a tuple of classes",
        ),
        (
            "from mmu import Variant\nfrom mmu.memory.tlb import RemoteTlb\n"
            "class Typo(RemoteTlb):\n    def notify_importer(self, gfn, pages): pass\n"
            "VARIANT = Variant(name='x', title='x', parts=(Typo,))\n",
            "Typo.notify_importer() (idea.py:4) overrides no method of RemoteTlb",
        ),
        (
            "from mmu import Variant\nfrom mmu.memory.tlb import RemoteTlb\n"
            "class Short(RemoteTlb):\n    def notify_importers(self, gfn): pass\n"
            "VARIANT = Variant(name='x', title='x', parts=(Short,))\n",
            "must take what RemoteTlb.notify_importers takes",
        ),
    ],
)
def test_a_variant_that_cannot_mean_what_it_says_is_refused(
    stress: Stress, tmp_path: Path, text: str, reason: str
) -> None:
    variant = tmp_path / "idea.py"
    variant.write_text(text)
    done = stress("run", "-c", QUICK, "--variant", variant, "--results", tmp_path / "results")
    assert done.code == 4
    assert reason in done.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("verb", ["run", "explore"])
def test_a_variant_that_the_vm_cannot_be_built_with_is_a_usage_error(
    stress: Stress, tmp_path: Path, verb: str
) -> None:
    variant = tmp_path / "idea.py"
    variant.write_text(
        "from mmu import Variant\nfrom mmu.memory.tlb import RemoteTlb\n"
        "class Unbuilt(RemoteTlb):\n    def __init__(self, kvm, requests, listener): raise "
        "ValueError('oops')\n"
        "VARIANT = Variant(name='unbuilt', title='x', parts=(Unbuilt,))\n"
    )
    done = stress(verb, "-c", QUICK, "--variant", variant, "--results", tmp_path / "results")
    assert done.code == 4
    assert "the VM cannot be built with keep-valid, unbuilt: oops" in done.err


def test_a_variant_that_raises_is_a_harness_error_and_no_finding(tmp_path: Path) -> None:
    variant = tmp_path / "idea.py"
    variant.write_text(
        "from mmu import Variant\nfrom mmu.memory.tlb import RemoteTlb\n"
        "class Raises(RemoteTlb):\n    def notify_importers(self, gfn, pages): raise "
        "ValueError('oops')\n"
        "VARIANT = Variant(name='raises', title='x', parts=(Raises,))\n"
    )
    done = real(
        "run",
        "-c",
        QUICK,
        "--duration",
        PATIENCE,
        "--variant",
        variant,
        "--results",
        tmp_path,
        "-q",
    )
    assert done.code == 3, done.out
    assert "ValueError('oops')" in done.out
    assert len(done.out.splitlines()) == 1


def test_a_scenario_may_name_variant_files_beside_it(stress: Stress, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(FORGETFUL)
    config = tmp_path / "mine.toml"
    config.write_text(
        "[vm]\nvariant_files = ['idea.py']\n[obligations]\nvcpu_faults = 1\n[expect]\nrules = "
        "['O1']\n"
    )
    options = ("--seed", "1", "--results", tmp_path / "results", "-q", *UNTIL_MET)
    done = stress("run", "-c", config, *options)
    assert done.code == 1
    assert "expected O1: seen O1" in done.out
