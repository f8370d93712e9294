"""However a command ends, its exit code and its record say what was known: a finding is a FAIL, and
nothing else looks like one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stress.commands.scenarios import changed
from stress.results.index import entries
from stress.scenario.load import load
from tests.command import ROOT, Done, Stress, environment, start
from tests.patience import PATIENCE

QUICK = ROOT / "configs" / "quick.toml"
BUSTED = ROOT / "configs" / "BUSTED" / "put-before-zap.toml"
DELETE = ROOT / "configs" / "explore" / "delete-vs-dma.toml"
VARIANT = """
import os, threading
from mmu import Variant
from mmu.memory.tlb import RemoteTlb
class Part(RemoteTlb):
    def notify_importers(self, gfn, pages):
        {body}
VARIANT = Variant(name='mine', title='x', parts=(Part,))
"""


def variant(folder: Path, body: str) -> Path:
    """A file with a variant whose notifications do `body`."""
    path = folder / "mine.py"
    path.write_text(VARIANT.format(body=body))
    return path


def shell(command: str, *arguments: object, **options: Any) -> Done:
    """`stress ...` as $0 "$@" of a shell command."""
    done = subprocess.run(
        ["bash", "-c", command, f"{sys.executable} -m stress", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def stored(results: Path) -> dict[str, Any]:
    """The newest run."""
    data: dict[str, Any] = json.loads((results / "latest" / "run.json").read_text())
    return data


# The output.


def test_a_closed_output_changes_nothing() -> None:
    assert shell("$0 list >&-").code == 0
    assert shell("$0 list >&- 2>&- <&-").code == 0


def test_a_full_disk_for_the_output_is_said() -> None:
    done = shell("$0 list > /dev/full")
    assert (done.code, done.err) == (
        3,
        "stress: cannot write the output: No space left on device\n",
    )


@pytest.mark.parametrize("out", ["> /dev/full", ">&-", "| head -c 1", "> /dev/full 2> /dev/full"])
def test_a_failure_fails_whoever_reads_it(tmp_path: Path, out: str) -> None:
    command = f"set -o pipefail; $0 run -c '{BUSTED}' --results '{tmp_path}' {out}"
    done = shell(command)
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert stored(tmp_path)["verdict"] == "FAIL"


def test_a_reader_who_leaves_does_not_end_a_run(tmp_path: Path) -> None:
    until = "--set budget.until_met=true --set 'obligations={vcpu_accesses=1}'"
    done = shell(
        f"set -o pipefail; $0 run -c '{QUICK}' --duration 2.5 {until} --results '{tmp_path}' | "
        "head -c 1"
    )
    assert done.code == 0, done.err
    assert stored(tmp_path)["status"] == "finished"


# The process.


@pytest.fixture
def finding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run that has found something, and kept it."""
    record = tmp_path / "latest" / "run.json"
    options = ("--duration", PATIENCE, "--set", f"budget.settle_s={PATIENCE}")
    more = ("--set", "budget.max_findings=1000000", "--results", tmp_path)
    with start("run", "-c", BUSTED, *options, *more) as process:
        try:
            while not (record.exists() and json.loads(record.read_text())["findings"]):
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process that carries out a command."""
    (child,) = psutil.Process(process.pid).children()
    return child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_finding_outlives_its_process(
    tmp_path: Path, finding: subprocess.Popen[str], number: signal.Signals
) -> None:
    child_of(finding).send_signal(number)
    _, errors = finding.communicate(timeout=PATIENCE)
    assert finding.returncode == 1
    assert f"its process was ended by {number.name}" in errors
    record = stored(tmp_path)
    assert (record["verdict"], record["status"]) == ("FAIL", "crashed")
    assert (tmp_path / "latest" / "report.html").is_file()


def test_a_supervisor_that_is_killed_takes_its_child_along(
    tmp_path: Path, finding: subprocess.Popen[str]
) -> None:
    child = child_of(finding)
    finding.kill()
    finding.communicate(timeout=PATIENCE)
    child.wait(PATIENCE)
    (entry,) = entries(tmp_path)
    assert (entry.verdict, entry.status) == ("FAIL", "killed")


def test_interrupts_by_the_dozen_keep_a_finding(
    tmp_path: Path, finding: subprocess.Popen[str]
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 4:
        finding.send_signal(number)
    finding.communicate(timeout=PATIENCE)
    assert finding.returncode == 1
    record = stored(tmp_path)
    assert (record["verdict"], record["status"]) == ("FAIL", "interrupted")


def test_a_directory_that_is_taken_away_takes_no_verdict_along(
    tmp_path: Path, finding: subprocess.Popen[str]
) -> None:
    directory = (tmp_path / "latest").resolve()
    directory.rename(tmp_path / "elsewhere")
    finding.send_signal(signal.SIGINT)
    output, errors = finding.communicate(timeout=PATIENCE)
    assert finding.returncode == 1, output + errors
    assert "FAIL: the results could not all be kept: cannot write" in output
    saved = Path(output.partition("run.json is in ")[2].partition(";")[0])
    assert json.loads((saved / "run.json").read_text())["verdict"] == "FAIL"
    shutil.rmtree(saved)


@pytest.mark.parametrize("body", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_variant_that_ends_the_process_is_no_pass(tmp_path: Path, body: str) -> None:
    done = shell(
        '$0 "$@"',
        *("run", "-c", QUICK, "--variant", variant(tmp_path, body), "--results", tmp_path / "r"),
    )
    assert done.code == 3
    assert "HARNESS_ERROR  quick" in done.err
    (entry,) = entries(tmp_path / "r")
    assert (entry.verdict, entry.status) == ("HARNESS_ERROR", "crashed")


def test_a_variant_that_ends_the_process_while_it_is_loaded_is_no_pass(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import os\nos._exit(0)\n")
    done = shell('$0 "$@"', "explore", "-c", QUICK, "--variant", path, "--results", tmp_path / "r")
    assert done.code == 6
    assert "its process exited with 0" in done.err
    assert not (tmp_path / "r").exists()


def test_a_process_that_gets_no_memory_ends_honestly(tmp_path: Path) -> None:
    for size in (40_000, 60_000, 110_000):
        done = shell(
            f'ulimit -v {size}; exec $0 "$@"',
            *("run", "-c", QUICK, "--duration", "0.1", "--results", tmp_path),
        )
        assert done.code in (2, 3, 6), done.err
        assert done.err or done.code == 2


def test_files_that_may_not_grow_end_honestly(tmp_path: Path) -> None:
    """As on a full disk: nothing can be kept, and that is known before anything is run."""
    done = shell(
        '$0 "$@"',
        *("run", "-c", QUICK, "--duration", "0.1", "--results", tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.code == 4
    assert "cannot write" in done.err
    assert "File too large" in done.err


def test_an_internal_error_is_one_line_and_a_file(
    stress: Stress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug\nof two lines")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("stress.commands.perform.run", broken)
    done = stress("run", "-c", QUICK, "--results", tmp_path / "r")
    assert done.code == 6
    (line,) = done.err.splitlines()
    assert line.startswith("stress: internal error: KeyError:")
    (file,) = tmp_path.glob("stress-error-*.txt")
    assert str(file) in line
    assert "in broken\n" in file.read_text()


# What is asked for.


@pytest.mark.parametrize(
    "setting",
    ["limits.stall_s=1e10", "limits.write_hold_s=1e300", "budget.duration_s=1e9"],
)
def test_times_beyond_every_clock_are_refused(stress: Stress, setting: str) -> None:
    done = stress("run", "-c", QUICK, "--set", setting)
    assert done.code == 4
    assert "a number of seconds above 0, up to 100,000,000" in done.err


@pytest.mark.parametrize("verb", ["run", "campaign", "explore"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "1e9", "0", "-1"])
def test_durations_that_are_none_are_refused(stress: Stress, verb: str, seconds: str) -> None:
    assert stress(verb, "-c", QUICK, "--duration", seconds).code == 4


def test_a_seed_beyond_all_seeds_is_refused(stress: Stress) -> None:
    assert stress("run", "-c", QUICK, "--seed", "1" + "0" * 300).code == 4


def test_a_name_that_is_no_utf_8_can_be_run_and_listed(tmp_path: Path) -> None:
    config = os.fsencode(tmp_path) + b"/bad\xff.toml"
    Path(os.fsdecode(config)).write_bytes(QUICK.read_bytes())
    results = tmp_path / "r"
    options = ("--duration", "0.1", "--results", results)
    command = f"$0 run -c {os.fsdecode(config)} " + '"$@"'
    done = shell(command, *options)
    assert done.code == 2, done.err
    assert "bad\\udcff, seed" in done.out
    done = shell('$0 results list --results "$@"', results)
    assert done.code == 0, done.err
    assert "bad" in done.out


# What is claimed.


SILENT = ("--set", "obligations={memslot_deletes=1}", "--set", "budget.until_met=true")


def test_without_a_rule_that_judges_there_is_no_pass(stress: Stress, tmp_path: Path) -> None:
    off = json.dumps([f"O{number}" for number in range(1, 18)] + ["INV"])
    done = stress(
        *("run", "-c", BUSTED, "--duration", "0.2", "--set", f"oracles.off={off}", *SILENT),
        *("--set", "expect.rules=[]", "--set", "expect.codes=[]", "--results", tmp_path, "-q"),
    )
    assert done.code == 2
    assert "no rule that is on had anything to decide" in done.out


def test_without_an_access_there_is_no_pass(stress: Stress, tmp_path: Path) -> None:
    idle = ("actors.consumer.devices=0", "actors.vcpu.unmapped_share=1.0")
    done = stress(
        *("run", "-c", QUICK, "--duration", "0.1", *SILENT, "--results", tmp_path, "-q"),
        *(part for each in idle for part in ("--set", each)),
    )
    assert done.code == 2
    assert "neither a vCPU nor a device accessed memory" in done.out


def test_an_exception_in_a_hook_is_no_deadlock(
    stress: Stress, tmp_path: Path, carrier: str
) -> None:
    """The others wait for what the dead task holds, which is no finding."""
    file = variant(tmp_path, "raise ValueError('oops')")
    options = ("--results", tmp_path / "r", "--variant", file, "-q")
    done = stress("explore", "-c", DELETE, *options)
    assert done.code == 3, (carrier, done.out)
    assert "ValueError('oops')" in done.out


def test_a_hook_that_blocks_ends_an_exploration(
    stress: Stress, tmp_path: Path, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stress.engines.stuck.STEP_S", 0.2)
    monkeypatch.setattr("stress.engines.stuck.LOOK_S", 0.05)
    file = variant(tmp_path, "threading.Event().wait()")
    options = ("--results", tmp_path / "r", "--variant", file)
    done = stress("explore", "-c", DELETE, *options)
    assert done.code == 3, carrier
    assert "does not come back from a step" in done.out
    record = json.loads((tmp_path / "r" / "latest" / "explore.json").read_text())
    assert "notify_importers" in record["harness_errors"][0]


# How long it takes.


def test_a_duration_is_the_whole_of_it() -> None:
    """Shipped scenarios go on until their obligations are met; a time that is given ends a run."""
    for config in (QUICK, BUSTED):
        budget = load(config, changed((), mended=False)).budget
        assert (budget.until_met, budget.span) == (True, f"{budget.duration_s:g} to 600")
        given = load(config, changed((), mended=False, duration=2.0)).budget
        assert (given.until_met, given.longest_s) == (False, 2.0)
        both = changed(("budget.until_met=true",), mended=False, duration=2.0)
        assert load(config, both).budget.longest_s == 600.0


def test_every_shipped_scenario_for_threads_takes_the_time_that_it_needs() -> None:
    """A busy machine takes longer, and says the same."""
    configs = [*ROOT.glob("configs/*.toml"), *ROOT.glob("configs/[Br]*/*.toml")]
    assert len(configs) > 30
    assert [path.name for path in configs if not load(path).budget.until_met] == []
