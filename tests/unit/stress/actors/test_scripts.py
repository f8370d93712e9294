"""Scripts at work: on threads again and again, under control once, and what a random run has done
as a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmu.runtime import Runtime
from stress.actors import performed
from stress.engines.program import Executor, Run
from stress.engines.scenario_program import ScenarioProgram
from stress.engines.session import Session, World
from stress.scenario.load import load
from stress.scenario.operations import VOCABULARY, Op, kind_of
from stress.scenario.types import Lines, Scenario
from stress.search.random_walk import RandomWalk
from tests.engine import run_scenario

CONFIGS = Path(__file__).parents[4] / "configs"

BASE = """\
[vm]
vcpus = 2
levels = 3
entries = 4
frames = 40
[memory]
fixed_pages = 2
churn_slots = 1
churn_pages = 1
smm_pages = 0
smm_churn_pages = 0
[actors.exporter]
threads = 1
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Scenario]:
    """A scenario from the base and these lines."""

    def make(*lines: str, base: str = BASE) -> Scenario:
        path = tmp_path / "scenario.toml"
        path.write_text(f"{base}[script]\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return load(path)

    return make


class Recording(ScenarioProgram):
    """A scenario whose actors note what they do."""

    def build(self, runtime: Any, seed: int) -> Any:
        """As the base does."""
        instance: Any = super().build(runtime, seed)
        instance.world.stage.record_ops = True
        return instance


def controlled(scenario: Scenario, *, seed: int = 1) -> tuple[Run, World]:
    """One schedule; nothing may be found."""
    executor = Executor(Recording("test", scenario), limit=scenario.explore.max_steps)
    run = executor.execute(RandomWalk(seed), seed)
    assert [report.render() for report in run.reports] == []
    assert run.errors == ()
    assert run.completed
    return run, run.instance.world


def on_threads(scenario: Scenario, until: Callable[[Session], bool]) -> Session:
    session, outcome = run_scenario(scenario, until=until)
    assert [finding.report.render() for finding in session.findings()] == []
    assert session.errors() == ()
    assert outcome.clean_end
    return session


def with_script(scenario: Scenario, parts: Mapping[str, Sequence[Op | str]]) -> Scenario:
    """The scenario with this script."""
    script = {name: Lines(tuple(map(str, ops))) for name, ops in parts.items()}
    return evolve(scenario, script=script)


def steps(world: World) -> dict[str, int]:
    return {actor.name: actor.progress for actor in world.actors if not actor.serves}


def done(world: World) -> dict[str, list[str]]:
    assert world.stage is not None
    return {name: list(map(str, ops)) for name, ops in performed(world.stage).items() if ops}


def test_under_control_a_script_is_done_once_whatever_the_rounds(
    scripted: Callable[..., Scenario],
) -> None:
    lines = [
        'vcpu0 = ["write 0x0", "read 0x0", "write 0x4"]',
        'memslot-worker = ["create 0", "delete 0", "create 0", "flags 0"]',
    ]
    _, world = controlled(scripted(*lines))
    assert steps(world) == {
        "vcpu0": 3,
        "vcpu1": 0,
        "memslot-worker": 4,
        "exporter0": 0,
        "device0": 0,
    }
    totals = world.totals()
    assert (totals["memslot_deletes"], totals["memslot_flags"]) == (1, 1)
    assert done(world) == {
        "vcpu0": ["write 0x0", "read 0x0", "write 0x4"],
        "memslot-worker": ["create 0", "delete 0", "create 0", "flags 0"],
    }


def test_on_threads_a_script_is_repeated_until_the_end(scripted: Callable[..., Scenario]) -> None:
    def repeated(session: Session) -> bool:
        made = steps(session)
        return made["vcpu0"] > 4 and made["memslot-worker"] > 4

    scenario = scripted(
        'vcpu0 = ["write 0x0", "read 0x4"]', 'memslot-worker = ["create 0", "delete 0"]'
    )
    session = on_threads(scenario, until=repeated)
    made = steps(session)
    assert repeated(session)
    assert made["vcpu1"] == made["exporter0"] == made["device0"] == 0
    totals = session.totals()
    assert totals["memslot_deletes"] == made["memslot-worker"] // 2
    assert totals["exports"] == totals["unexports"] == 1, "the device stays attached"
    assert totals["importer_notifications"] > 0


def test_the_setup_is_done_before_the_start_by_whose_it_is(
    scripted: Callable[..., Scenario],
) -> None:
    setup = (
        'setup = ["vcpu1: write 0x4", "create 0", "device0: dma-write 0x4", "device0: detach", '
        '"exporter0: export"]'
    )
    _, world = controlled(
        scripted(setup, 'vcpu1 = ["read 0x4"]', 'device0 = ["dma-write 0x4", "attach"]')
    )
    totals = world.totals()
    assert totals["memslot_creates"] == 2
    assert world.actors[1].vcpu.stat.accesses == 2  # type: ignore[attr-defined]
    assert (totals["device_accesses"], totals["exports"], totals["exports_refused"]) == (1, 2, 1)
    assert done(world) == {"vcpu1": ["read 0x4"], "device0": ["dma-write 0x4", "attach"]}


def test_what_a_script_leaves_open_stays_open_until_all_are_done(
    scripted: Callable[..., Scenario],
) -> None:
    """The exporter's fd keeps the device from attaching, although the exporter has nothing left to
    do."""
    scenario = scripted(
        'setup = ["device0: detach", "exporter0: export"]',
        'device0 = ["attach", "attach", "dma-write 0x0"]',
    )
    for seed in range(10):
        _, world = controlled(scenario, seed=seed)
        totals = world.totals()
        assert (totals["exports_refused"], totals["device_walks"], totals["unexports"]) == (2, 0, 2)


def test_the_setup_is_done_in_the_order_of_its_lines(scripted: Callable[..., Scenario]) -> None:
    """On threads, too: each of these is refused, or aborted, unless all before it are done."""
    lines = [
        "device0: detach",
        "exporter0: export",
        "vcpu1: write 0x1",
        "exporter0: close",
        "device0: attach",
        "device0: dma-read 0x1",
    ]
    session = on_threads(scripted(f"setup = {lines}"), until=lambda _: True)
    totals = session.totals()
    assert (
        totals["exports"],
        totals["exports_refused"],
        totals["device_accesses"],
        totals["unexports"],
    ) == (3, 0, 1, 3)


def test_a_setup_alone_leaves_everybody_idle(scripted: Callable[..., Scenario]) -> None:
    run, world = controlled(scripted('setup = ["create 0"]'))
    assert set(steps(world).values()) == {0}
    assert len(run.trace) < 500
    assert world.totals()["memslot_creates"] == 2


def test_what_a_random_run_has_done_is_a_script_that_does_the_same(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        BASE + "[actors.vcpu]\naccesses_per_run = 3\nidle_share = 0.5\n[explore]\nrounds = 4\n",
        encoding="utf-8",
    )
    scenario = load(path)
    for seed in range(10):
        _, world = controlled(scenario, seed=seed)
        assert world.stage is not None
        script = performed(world.stage)
        assert set(script) == {"vcpu0", "vcpu1", "memslot-worker", "exporter0", "device0"}
        assert len(script["memslot-worker"]) == 4
        assert sum(op.name == "run" for op in script["vcpu0"]) == 4
        _, scripted = controlled(with_script(scenario, script), seed=seed)
        assert done(scripted) == {name: list(map(str, ops)) for name, ops in script.items()}
        pieces = {
            name: [piece for op in ops for piece in op.pieces()] for name, ops in script.items()
        }
        controlled(with_script(scenario, pieces), seed=seed)


def test_a_device_at_the_end_of_the_process_goes_on_with_its_script(
    scripted: Callable[..., Scenario],
) -> None:
    base = BASE + "[actors.exit]\nenabled = true\n"
    ops = ", ".join(['"dma-write 0x0"', '"dma-read 0x1"'] * 6)
    aborted = 0
    for seed in range(20):
        _, world = controlled(
            scripted('vcpu0 = ["write 0x0"]', f"device0 = [{ops}]", base=base), seed=seed
        )
        totals = world.totals()
        assert totals["process_exits"] == 1
        aborted += totals["device_aborts"]
    assert aborted, "some DMA comes after exit_mmap"


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_random_run_that_ends_with_the_process_ends_under_control(
    tmp_path: Path, rounds: int
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        f"{BASE}[actors.exit]\nenabled = true\n[actors.consumer]\nbursts = 1\n[explore]\nrounds = "
        f"{rounds}\n",
        encoding="utf-8",
    )
    for seed in range(5):
        _, world = controlled(load(path), seed=seed)
        assert world.totals()["process_exits"] == 1


def test_each_operation_of_the_vocabulary_has_somebody_who_does_it() -> None:
    """Whoever is made can do exactly what its kind is said to."""
    session = Session(load(CONFIGS / "full.toml"), 1, Runtime())
    session.set_up()
    seen = set()
    for actor in session.actors:
        if actor.serves:
            assert actor.verbs == {}
        else:
            seen.add(kind_of(actor.name))
            assert set(actor.verbs) == set(VOCABULARY[kind_of(actor.name)]), actor.name
    assert seen == set(VOCABULARY)
    session.vm.kvm.rcu.shutdown()


def test_an_operation_is_recorded_before_it_is_performed(scripted: Callable[..., Scenario]) -> None:
    session = Session(scripted('vcpu0 = ["write 0x0"]'), 1, Runtime())
    session.set_up()
    assert session.stage is not None
    session.stage.record_ops = True
    actor = session.actors[0]
    actor.verbs = {}
    with pytest.raises(KeyError):
        actor.step()
    assert actor.performed == [Op("write", (0,))]
    session.vm.kvm.rcu.shutdown()
