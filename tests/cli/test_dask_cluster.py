"""A real Dask scheduler and real workers, each a process of its own on loopback: the same results
as here, whatever dies.

Skipped without Dask, and so in the default tests; `pip install '.[test,campaign]'` and
`pytest tests/cli/test_dask_cluster.py` run it, in about two minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import until
from tests.patience import PATIENCE

pytest.importorskip("distributed", reason="Dask is an extra: pip install 'tdp-stress[campaign]'")

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "configs" / "quick.toml"
SMALL = ("--set", "vm.vcpus=2", "--duration", "1.5", *until(vcpu_faults=10))
EXPLORE = """
import json, sys
from pathlib import Path
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load

if __name__ == "__main__":
    scenario = load(Path("configs/explore/fault-vs-delete.toml"))
    many = {"schedules": 1200, "jobs": 3, "scheduler": sys.argv[1] or None}
    request = ExploreRequest(scenario, "small", 1, "portfolio", **many)
    explored = explore(request, lambda tally: print(tally.schedules, flush=True))
    tally = explored.tally
    seen = sorted(tally.seen.items())
    data = [explored.judgement.verdict.name, tally.schedules, tally.steps, seen, tally.counters]
    print(json.dumps(data), flush=True)
"""
DEADLY = """
import json, sys
from stress.runs.fanout.spread import Workers, spread
from stress.runs.fanout.task import FanoutTask
from tests.unit.stress.runs.fanout import tasks

if __name__ == "__main__":
    found = {}
    dies = FanoutTask(tasks.end_worker, (), 60.0)
    given = [FanoutTask(tasks.add, (1, 1), 5.0), dies, FanoutTask(tasks.add, (2, 2), 5.0)]
    keep = lambda number, result: found.__setitem__(number, str(result))
    why = spread(given, Workers(1, sys.argv[1]), keep)
    print(json.dumps([why, found]), flush=True)
"""


def start(*arguments: str | Path, root: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """A process that is ended when the test loses its patience, so that nobody reads from it
    forever."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = threading.Timer(PATIENCE, process.kill)
    end.daemon = True
    end.start()
    return process


class Cluster:
    """A scheduler and workers without a nanny: who is killed stays dead."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.processes: list[subprocess.Popen[str]] = []
        self.drains: list[threading.Thread] = []
        self.address = self._started(
            "Scheduler at:",
            *(
                "-m",
                "distributed.cli.dask_scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
            ),
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
        )

    def worker(self, root: Path = ROOT) -> subprocess.Popen[str]:
        """One more, which has been registered."""
        command = (
            "-m",
            "distributed.cli.dask_worker",
            self.address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        )
        self._started("Registered to:", *command, "--local-directory", self.scratch, root=root)
        return self.processes[-1]

    def end(self) -> None:
        for process, drain in zip(self.processes, self.drains, strict=True):
            process.kill()
            process.wait(PATIENCE)
            drain.join(PATIENCE)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def _started(
        self, said: str, *arguments: str | Path, root: Path = ROOT, **environment: str
    ) -> str:
        process = start(*arguments, root=root, **environment)
        self.processes.append(process)
        assert process.stderr is not None
        line = next((line for line in process.stderr if said in line), "")
        assert line, f"{' '.join(map(str, arguments))}: ended without {said!r}"
        self.drains.append(threading.Thread(target=process.stderr.read))
        self.drains[-1].start()
        return line.split()[-1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "dask")
    yield made
    made.end()


@pytest.fixture
def three(cluster: Cluster) -> list[subprocess.Popen[str]]:
    return [cluster.worker() for _ in range(3)]


def explored(script: Path, scheduler: str, victim: subprocess.Popen[str] | None = None) -> Any:
    """What an exploration has come to; `victim` is killed as soon as something has come in."""
    process = start(script, scheduler)
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    if victim is not None:
        victim.send_signal(signal.SIGKILL)
    rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return json.loads((first + rest).splitlines()[-1])


def test_an_exploration_that_loses_a_worker_comes_to_exactly_what_it_comes_to_here(
    tmp_path: Path, cluster: Cluster, three: list[subprocess.Popen[str]]
) -> None:
    script = tmp_path / "exploration.py"
    script.write_text(EXPLORE)
    here = explored(script, "")
    assert here[:2] == ["PASS", 1200]
    assert explored(script, cluster.address, three[1]) == here
    assert [worker.poll() for worker in three] == [None, -signal.SIGKILL, None]


def test_a_campaign_that_loses_a_worker_has_the_same_verdicts_and_every_run(
    tmp_path: Path, cluster: Cluster, three: list[subprocess.Popen[str]]
) -> None:
    asked = ("-m", "stress", "campaign", "-c", QUICK, "--seeds", "6", *SMALL)
    local, _ = start(*asked, "--json", "--results", tmp_path / "here").communicate(timeout=PATIENCE)
    process = start(*asked, "--results", tmp_path / "there", "--scheduler", cluster.address)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("PASS")
    three[0].kill()
    told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told + errors
    kept = [json.loads(path.read_text()) for path in (tmp_path / "there").glob("2*/run.json")]
    assert {run["seed"]: run["verdict"] for run in kept} == {
        run["seed"]: run["verdict"] for run in json.loads(local)["runs"]
    }
    assert len(kept) == 6
    assert {run["status"] for run in kept} == {"finished"}


def test_an_interrupted_campaign_keeps_what_it_has_and_leaves_nothing_running(
    tmp_path: Path, cluster: Cluster, three: list[subprocess.Popen[str]]
) -> None:
    asked = (
        "-m",
        "stress",
        "campaign",
        "-c",
        QUICK,
        "--seeds",
        "50",
        *SMALL,
        "--results",
        tmp_path,
    )
    process = start(*asked, "--scheduler", cluster.address)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, errors
    assert "not made: interrupted" in told.splitlines()[-1]
    assert 1 <= len(list(tmp_path.glob("2*/run.json"))) < 50
    children = subprocess.run(
        ["ps", "-e", "-o", "ppid=", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    workers = {str(worker.pid) for worker in three}
    agents = [
        line
        for line in children.splitlines()
        if line.split()[0] in workers and "stress.runs.fanout.agent" in line
    ]
    assert agents == []


def test_a_scheduler_that_dies_costs_what_was_running(
    tmp_path: Path, cluster: Cluster, three: list[subprocess.Popen[str]]
) -> None:
    assert len(three) == 3
    process = start(
        "-m",
        "stress",
        "campaign",
        "-c",
        QUICK,
        "--seeds",
        "50",
        *SMALL,
        "--results",
        tmp_path,
        "--scheduler",
        cluster.address,
    )
    assert process.stderr is not None
    process.stderr.readline()
    cluster.processes[0].kill()
    told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, errors
    assert "not made: the connection to the Dask scheduler was lost" in told.splitlines()[-1]
    assert "Traceback" not in errors
    assert list(tmp_path.glob("2*/run.json"))


def test_a_task_that_ends_its_workers_is_given_up_and_the_others_are_done(
    tmp_path: Path, cluster: Cluster, three: list[subprocess.Popen[str]]
) -> None:
    script = tmp_path / "deadly.py"
    script.write_text(DEADLY)
    process = start(script, cluster.address)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    why, found = json.loads(out)
    assert why == ""
    assert (found["0"], found["2"]) == ("2", "4")
    assert "KilledWorker" in found["1"]
    assert sum(worker.poll() is not None for worker in three) == 2


def test_a_worker_with_other_sources_is_refused_by_its_address(
    tmp_path: Path, cluster: Cluster
) -> None:
    cluster.worker()
    other = tmp_path / "other"
    for package in ("mmu", "stress"):
        shutil.copytree(ROOT / package, other / package)
    with (other / "mmu" / "invariants.py").open("a") as file:
        file.write("# changed\n")
    cluster.worker(other)
    process = start(
        "-m",
        "stress",
        "campaign",
        "-c",
        QUICK,
        "--scheduler",
        cluster.address,
        "--results",
        tmp_path / "results",
    )
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4
    told = errors.splitlines()
    assert "not what this command runs with" in told[0]
    assert len(told) == 2
    assert "with other sources" in told[1]
    assert not (tmp_path / "results").exists()
