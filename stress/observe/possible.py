"""What a scenario could make happen: a counter that stays at 0 is a gap only if it could have
moved."""

from __future__ import annotations

from collections.abc import Iterable

from mmu.kernels import SERIES, RecoverHugePages
from stress.observe.points import POINTS
from stress.scenario.scripts import SETUP, prepared
from stress.scenario.types import Scenario

_SHORT_GENERATION = 8
"""Bits of an MMIO generation that the memslot calls of one run can wrap."""

_NEEDS: dict[str, tuple[str, ...]] = {
    "device": (
        *(
            "device_accesses",
            "device_iotlb_hits",
            "device_walks",
            "device_aborts",
            "io_faults",
            "io_faults_failed",
        ),
        *("io_faults_retried", "stale_io_faults", "uses_before_flush", "flushes_mid_dma"),
        *(
            "exported_zaps_mid_walk",
            "notified_last",
            "attach_failures",
            "importer_switches",
            "importer_switches_failed",
        ),
    ),
    "device TLBs": ("device_devtlb_hits",),
    "prefetching": ("prefetches",),
    "exports": (
        "exports",
        "unexports",
        "exports_refused",
        "flushes_un_export",
        "importer_notifications",
    ),
    "kept roots": (
        *(
            "exported_zaps",
            "exported_zaps_nonempty",
            "exported_leaves_zapped",
            "exported_zaps_mid_walk",
        ),
        "flushes_exported_zap",
    ),
    "republish": ("importer_switches", "importer_switches_failed"),
    "slot leaves": ("flushes_memslot_zap",),
    "fast zaps": ("fast_zaps", "roots_pinned_last", "dying_roots_met"),
    "releases": ("notified_last",),
    "range flushes": ("flushes_range",),
    "yielding zaps": ("yields", "flushes_yield"),
    "delete": ("memslot_deletes",),
    "move": ("memslot_moves",),
    "flag changes": ("memslot_flags",),
    "wraps": ("mmio_wraps",),
    "roles": ("vcpu_prev_root_hits",),
    "shadow": ("vcpu_shadow_pages",),
    "cpu": ("vcpu_migrations",),
    "zaps of shadow pages": ("shadow_pages_zapped", "flushes_obsolete_pages"),
    "breaks": ("obsolete_zap_breaks",),
    "logging": ("flushes_dirty_log", "vcpu_pml_logged"),
    "pml": ("vcpu_pml_logged",),
    "protection": ("fast_faults",),
    "log": ("dirty_log_reads", "dirty_pages_logged"),
    "huge": (
        *(
            "huge_leaves",
            "huge_splits",
            "frozen_met",
            "flushes_huge",
            "flushes_zap_atomic",
            "flushes_nx_recovery",
        ),
        *("nx_pages_recovered", "host_splits", "host_collapses"),
    ),
    "notifiers": ("stale_io_faults",),
    "host": ("host_ranges", "flushes_notifier"),
    "discard": ("host_pages_discarded",),
    "migrate": ("host_pages_migrated",),
    "split": ("host_splits",),
    "collapse": ("host_collapses",),
    "age": ("pages_aged", "pages_found_young", "flushes_young"),
    "toggle": ("nx_toggles",),
    "recover": ("nx_pages_recovered", "flushes_nx_recovery"),
    "attributes": ("attribute_changes", "flushes_gfn_range"),
    "userfaults": ("userfaults",),
    "exit": ("process_exits", "flushes_zap_all"),
    "failures": ("failures_asked", "failures_injected"),
    "failing prepare": ("memslots_refused",),
    "failing attach": ("attach_failures",),
    "failing switch": ("importer_switches_failed",),
    "refusals": ("exports_refused",),
    "delays": ("delays_asked", "delays"),
    "stutter": ("stutters", "standstills"),
    "huge recovery": ("flushes_collapse",),
}
"""What a counter needs to move: all the abilities that name it. One that is not named can always
move."""


_POINT_NEEDS: dict[str, tuple[str, ...]] = {
    "P6": ("huge",),
    "P7": ("yielding zaps", "logging"),
    "P8": ("fast zaps",),
    "P8b": ("breaks",),
    "P9": ("fast zaps",),
    "P12": ("notifiers", "log"),
    "P14": ("slots",),
    "P16": ("device",),
    "P17": ("exports",),
    "P18": ("protection",),
    "P19": ("toggle",),
}
"""What a preemption point needs to be passed: one of these abilities. One that is not named can
always be passed."""


def possible(counters: Iterable[str], scenario: Scenario, *, threads: bool) -> list[str]:
    """The names of `counters` that the scenario could have moved, in their order."""
    able = abilities(scenario, threads=threads)
    barred = {name for ability, names in _NEEDS.items() if ability not in able for name in names}
    return [name for name in counters if name not in barred]


def possible_points(scenario: Scenario, *, threads: bool) -> list[str]:
    """The preemption points that the scenario could have passed, in order."""
    able = abilities(scenario, threads=threads)
    return [
        name
        for name in POINTS
        if able & set(_POINT_NEEDS.get(name, ())) or name not in _POINT_NEEDS
    ]


def abilities(scenario: Scenario, *, threads: bool) -> frozenset[str]:
    """What the scenario's cast, or its script, can do."""
    verbs = _verbs(scenario)
    able = {
        name
        for name, is_so in {**_machine(scenario, verbs), **_disturbances(scenario, threads)}.items()
        if is_so
    }
    return frozenset(able | verbs)


def _verbs(scenario: Scenario) -> set[str]:
    """The operations that anybody may perform, by their names in scripts."""
    if scenario.script:
        lines = [line for name, lines in scenario.script.items() if name != SETUP for line in lines]
        return {line.split()[0] for line in lines} | {
            prepared(line)[1].name for line in scenario.script.get(SETUP, ())
        }
    actors = scenario.actors
    worker, host, nx = actors.memslot_worker, actors.host, actors.nx
    works = worker.enabled and (
        scenario.memory.churn_slots > 0 or scenario.memory.smm_churn_pages > 0
    )
    weights = {
        "create": works,
        "delete": works and worker.delete_weight > 0,
        "move": works and worker.move_weight > 0,
        "flags": works and worker.flags_weight > 0,
        "discard": host.threads and host.discard_weight > 0,
        "migrate": host.threads and host.migrate_weight > 0,
        "split": host.threads and host.split_weight > 0,
        "collapse": host.threads and host.collapse_weight > 0,
        "age": host.threads and host.age_weight > 0,
        "read-log": actors.dirty_log.enabled,
        "get-log": works and worker.flags_weight > 0 and worker.log_weight > 0,
        "log-on": actors.dirty_log.enabled,
        "toggle": nx.enabled and nx.toggles,
        "attributes": nx.enabled and nx.toggles and nx.attributes_share > 0,
        "recover": nx.enabled and nx.recovers,
        "smm": actors.vcpu.smm_share > 0 and scenario.memory.smm_pages > 0,
        "nested": actors.vcpu.nested_share > 0,
        "cpu": actors.vcpu.migrate_share > 0,
        "shadow": actors.vcpu.nested_share > 0 and actors.vcpu.shadow_pages > 0,
    }
    return {name for name, is_so in weights.items() if is_so}


_PREFETCHES = {"prefetch-read", "prefetch-write"}


def _machine(scenario: Scenario, verbs: set[str]) -> dict[str, bool]:
    """What follows from the machine and the verbs."""
    vm, actors, memory = scenario.vm, scenario.actors, scenario.memory
    device = vm.have_exported_tdp and actors.consumer.devices > 0
    exports = device or (vm.have_exported_tdp and actors.exporter.threads > 0)
    slots = {"create", "delete", "move", "flags"} & verbs
    wraps = bool(slots) and vm.mmio_gen_bits <= _SHORT_GENERATION
    removes = bool({"delete", "move"} & verbs)
    host = bool({"discard", "migrate", "split", "collapse"} & verbs)
    logging = bool({"log-on", "flags"} & verbs)
    kernel = {part for variant in SERIES.get(vm.kernel, ()) for part in variant.parts}
    huge = memory.host_level > 1 and vm.max_level > 1
    notifiers = host or bool({"toggle", "attributes"} & verbs)
    fast = wraps or (removes and vm.policy != "slot-leaves") or "toggle" in verbs
    return {
        "device": device,
        "device TLBs": device and bool(actors.consumer.ats),
        "prefetching": device and (actors.consumer.prefetch_share > 0 or bool(_PREFETCHES & verbs)),
        "exports": exports,
        "slots": bool(slots),
        "kept roots": exports and fast and vm.policy.startswith("keep-valid"),
        "republish": device and fast and vm.policy == "republish",
        "slot leaves": removes and vm.policy == "slot-leaves",
        "fast zaps": fast,
        "releases": removes or host,
        "range flushes": logging or huge or "attributes" in verbs or vm.policy == "slot-leaves",
        "yielding zaps": fast or host or exports,
        "wraps": wraps,
        "roles": bool({"smm", "nested"} & verbs),
        "zaps of shadow pages": "shadow" in verbs and fast,
        "breaks": "shadow" in verbs and fast,
        "logging": logging,
        "flag changes": logging,
        "pml": vm.pml and vm.ad_bits,
        "protection": logging or "age" in verbs or not vm.ad_bits,
        "log": bool({"read-log", "get-log"} & verbs),
        "huge": huge,
        "huge recovery": logging and huge and RecoverHugePages in kernel,
        "notifiers": notifiers,
        "host": host,
        "userfaults": bool(memory.userfaults),
        "exit": bool(actors.exit.enabled),
    }


def _disturbances(scenario: Scenario, threads: bool) -> dict[str, bool]:
    """What is made to go wrong, or to wait. Under control nothing waits for long, and nobody stands
    still on the way."""
    config = scenario.disturbances
    several = scenario.actors.exporter.threads + (scenario.actors.consumer.devices > 0) > 1
    return {
        "failures": any(
            (config.fail_attach, config.fail_fd, config.fail_prepare, config.fail_switch)
        ),
        "failing prepare": config.fail_prepare > 0,
        "failing attach": config.fail_attach > 0,
        "failing switch": config.fail_switch > 0,
        "refusals": config.fail_fd > 0 or several,
        "delays": threads and bool(config.delay_shares()),
        "stutter": threads and config.stutter_every_s < scenario.budget.duration_s,
    }
