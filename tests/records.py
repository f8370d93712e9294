"""Stored runs made up for tests of the store and the reports."""

from __future__ import annotations

from attrs import evolve

from mmu.report import Report, section
from stress.observe.histograms import Latency
from stress.observe.resources import Sample
from stress.results.run_record import Environment, RunRecord, StoredFinding, Uncertified, completed
from stress.results.verdict import Obligation
from stress.scenario.load import unstructure
from stress.scenario.types import Scenario

ENVIRONMENT = Environment(
    version="0.1.0",
    python="3.11.7",
    implementation="CPython",
    free_threaded_build=False,
    gil_enabled=True,
    packages={"attrs": "23.2"},
    platform="Linux",
    cpu="a processor",
    cpus=2,
    memory_bytes=1 << 33,
)


def finding(number: int) -> StoredFinding:
    """A finding with a small splat."""
    report = Report(
        "O1",
        "stale-tlb",
        f"BUG: stale translation number {number}",
        "a translation must not be used after the flush that had to remove it",
        "reference O1",
        "device0/7",
        str(number),
        (
            section("call trace", ["Device.transact (mmu/export/iommu.py:61)"]),
            section("locks held by device0/7", ["no locks held"]),
        ),
    )
    return StoredFinding(
        rule=report.rule,
        code=report.code,
        signature=report.signature,
        headline=report.headline,
        sentence=report.sentence,
        source=report.source,
        task=report.task,
        at_s=0.25 * number,
        count=number + 1,
        splat=report.render(),
    )


def record(*, findings: int = 0) -> RunRecord:
    """A finished run with everything in it."""
    made = RunRecord(
        id="2026-11-22T12-00-00Z-quick-s7-abcdef",
        status="finished",
        verdict="FAIL" if findings else "PASS",
        reasons=(f"{findings} findings",) if findings else ("all 1 obligations met, no finding",),
        name="quick",
        scenario=unstructure(Scenario(title="A <made-up> scenario")),
        seed=7,
        expected_rules=("O1",) if findings else (),
        variants=(),
        command="stress run --config configs/quick.toml --seed 7",
        started="2026-11-22T12:00:00Z",
        setup_s=0.1,
        run_s=10.0,
        pid=4242,
        pid_started=1.0e9,
        environment=ENVIRONMENT,
        counters={"vcpu_faults": 12345, "memslot_deletes": 67, "io_faults": 8},
        obligations=(Obligation("vcpu_faults", 1000, 12345),),
        actors={"vcpu0": {"accesses": 5}},
        latencies=(Latency("fault", 12345, 8000, 9000, 20000, 30000, 40000, ((8000, 12345),)),),
        findings=tuple(finding(number) for number in range(findings)),
        harness_errors=(),
        resources=(Sample(0.0, 40 << 20, 0.1, 8), Sample(10.0, 44 << 20, 9.9, 8)),
        memory_growth=1 << 20,
        lock_orders=(("slots_lock", "write", "mmu_lock", "write"),),
    )
    return certified(made)


def certified(run: RunRecord) -> RunRecord:
    """The run with a certificate that is made of what else it holds."""
    return completed(evolve(run, certificate=Uncertified()))
