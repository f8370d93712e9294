"""All mutants: those of `stress.mutants`, and with the scenarios that show them the posted defects
and the candidate bugs of kernels."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from attrs import asdict, evolve

from mmu.candidates import CANDIDATES
from mmu.posted import POSTED
from mmu.variant import Variant
from stress.mutants import MUTANTS
from stress.mutants.case import Case, Control, Mutant
from stress.mutants.controls import CONTROLS
from stress.scenario.errors import StressError
from stress.scenario.load import load
from stress.scenario.names import nearest
from stress.scenario.shipped import configs_root
from stress.scenario.types import Scenario

_POSTED_SETTINGS = {
    "r12-mm-exit-without-flush": ("budget.duration_s=0.5",),
    "r17-gup-under-slots-lock": ("limits.stall_s=1.0", "limits.rcu_stall_s=2.0"),
}
"""What makes threads show a posted defect sooner: R12 is about the end of a run; R17
is a deadlock, known as soon as the watchdog says so."""

_THREADS_CANNOT = {
    "pml-flushed-after-exit": (
        "The vCPU would have to stand still between its exit and its handling for as long as a "
        "whole memslot move takes; no delay can be put there."
    ),
    "pml-request-not-awaited": (
        "A vCPU that is kicked would have to stand still within one page walk until its leaf has "
        "lost D; no delay can be put there."
    ),
}
"""Candidates that real threads do not show, with the reason."""


@cache
def all_mutants() -> dict[str, Mutant]:
    """Every mutant by name, the posted defects and the candidates first."""
    return {
        **{name: _posted(defect) for name, defect in POSTED.items()},
        **{name: _candidate(defect) for name, defect in CANDIDATES.items()},
        **MUTANTS,
    }


def entry(name: str) -> Mutant | Control:
    """The mutant or the control of this name; raises `StressError` for what there is
    not."""
    known: dict[str, Mutant | Control] = {**all_mutants(), **CONTROLS}
    if name not in known:
        hint = nearest(name, known)
        raise StressError(
            f"there is no variant {name!r}{': ' + hint if hint else ''}; see 'stress list variants'"
        )
    return known[name]


def scenario_of(case: Case, variant: Variant, *settings: str) -> Scenario:
    """The scenario of a case with one variant in the mended design, and the variant's own
    expectations."""
    expected = ", ".join(f'"{rule}"' for rule in variant.expects)
    own = (
        'vm.profile="hardened"',
        f'vm.variants=["{variant.name}"]',
        "expect.codes=[]",
        f"expect.rules=[{expected}]",
    )
    return load(configs_root() / f"{case.scenario}.toml", (*own, *case.settings, *settings))


def _posted(defect: Variant) -> Mutant:
    """A posted defect, with the cases that its scenario below `configs/rfc-v1`
    names."""
    number = int(defect.name.split("-")[0].removeprefix("r"))
    (path,) = (configs_root() / "rfc-v1").glob(f"R{number:02}-*.toml")
    return _shown_by(defect, path, "posted", _POSTED_SETTINGS.get(defect.name, ()))


def _candidate(defect: Variant) -> Mutant:
    """A candidate bug of a kernel, with the cases that its scenario below `configs/candidates`
    names."""
    path = configs_root() / "candidates" / f"{defect.name}.toml"
    return _shown_by(defect, path, "candidate")


def _shown_by(defect: Variant, path: Path, tag: str, settings: tuple[str, ...] = ()) -> Mutant:
    """A defect as a mutant: real threads run the scenario in `path`, the controlled engine the
    small one that it names."""
    small = tomllib.loads(path.read_text(encoding="utf-8"))["explore"]["scenario"]
    cannot = _THREADS_CANNOT.get(defect.name, "")
    return Mutant(
        **asdict(defect, recurse=False),
        confidence="A",
        tags=(tag,),
        controlled=Case(f"explore/{Path(small).stem}"),
        threads=None if cannot else Case(f"{path.parent.name}/{path.stem}", settings),
        threads_cannot=cannot,
    )


def without_variants(case: Case, *settings: str) -> Scenario:
    """The scenario of a case on the correct model."""
    correct = (
        'vm.profile="hardened"',
        "vm.variants=[]",
        "vm.variant_files=[]",
        "expect.rules=[]",
        "expect.codes=[]",
    )
    kept = tuple(
        setting
        for setting in case.settings
        if not setting.startswith(("vm.variants", "vm.profile", "expect."))
    )
    scenario = load(configs_root() / f"{case.scenario}.toml", (*correct, *kept, *settings))
    return evolve(scenario, explore=evolve(scenario.explore, scenario=None))
