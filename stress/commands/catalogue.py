"""`stress list`: what there is to choose from."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable, Iterator

from mmu.candidates import CANDIDATES
from mmu.export.policies import POLICIES
from mmu.kernels import KERNELS, Kernel
from mmu.numbers.lookup import NUMBERS
from mmu.numbers.oracles import RULES
from mmu.posted import POSTED
from stress.commands import parts
from stress.mutants import MUTANTS
from stress.mutants.controls import CONTROLS
from stress.observe.oracles import ORACLES
from stress.scenario.counters import COUNTERS
from stress.scenario.shipped import configs_root
from stress.search.strategies import STRATEGIES
from stress.selftest.litmus.registry import LITMUS

KINDS = (
    "scenarios",
    "policies",
    "profiles",
    "kernels",
    "oracles",
    "variants",
    "controls",
    "defects",
    "parts",
    "candidates",
    "strategies",
    "litmus",
    "counters",
    "numbers",
)


def listing(what: str) -> str:
    """The listing of one kind, or of all. Parts have their methods only where they are asked
    for."""
    if what == "parts":
        return "\n".join(["parts:", *parts.described(), "", ""])
    kinds = KINDS if what == "all" else (what,)
    return "\n".join(line for kind in kinds for line in (f"{kind}:", *_entries(kind), ""))


def _entries(kind: str) -> Iterator[str]:
    sources: dict[str, Callable[[], dict[str, str]]] = {
        "scenarios": _scenarios,
        "policies": lambda: {name: policy.title for name, policy in POLICIES.items()},
        "profiles": _profiles,
        "kernels": _kernels,
        "oracles": _oracles,
        "variants": lambda: {
            name: f"{mutant.title} [{', '.join(mutant.expects)}]"
            for name, mutant in MUTANTS.items()
        },
        "controls": lambda: {name: control.title for name, control in CONTROLS.items()},
        "defects": lambda: {
            name: f"{defect.title} [{', '.join(defect.expects)}]" for name, defect in POSTED.items()
        },
        "parts": parts.titles,
        "candidates": lambda: {
            name: f"{defect.title} [{', '.join(defect.expects)}]"
            for name, defect in CANDIDATES.items()
        },
        "strategies": lambda: {name: meaning for name, (meaning, _) in STRATEGIES.items()},
        "litmus": lambda: {name: program.title for name, program in LITMUS.items()},
        "counters": lambda: COUNTERS,
        "numbers": lambda: NUMBERS,
    }
    for name, text in sources[kind]().items():
        yield from textwrap.wrap(
            f"{name:<34} {text}", 100, initial_indent="  ", subsequent_indent=" " * 37
        )


def _profiles() -> dict[str, str]:
    numbers = ", ".join(name.split("-")[0].upper() for name in POSTED)
    posted = f"the series as posted, on a kernel with the candidates: with its defects {numbers}"
    return {"hardened": "the mended design", "rfc-v1": posted}


def _kernels() -> dict[str, str]:
    return {name: "; ".join(_models_of(kernel)) for name, kernel in KERNELS.items()}


def _models_of(kernel: Kernel) -> Iterator[str]:
    """Each model of a kernel, after the key or the verb that takes it."""
    if kernel.series is not None:
        titles = [variant.title for variant in kernel.series]
        yield f"vm.kernel: {', '.join(titles) or 'the base of the series'}"
    if kernel.released is not None:
        yield f"trace conform --kernel: {kernel.released[-1].title}"


def _scenarios() -> dict[str, str]:
    found = {}
    root = configs_root()
    for path in sorted(root.rglob("*.toml")):
        name = str(path.relative_to(root).with_suffix(""))
        try:
            found[name] = str(tomllib.loads(path.read_text(encoding="utf-8")).get("title", ""))
        except (OSError, tomllib.TOMLDecodeError) as error:
            found[name] = f"(unreadable: {error})"
    return found


def _oracles() -> dict[str, str]:
    watching: dict[str, list[str]] = {}
    for oracle in ORACLES:
        for rule in oracle.rules:
            watching.setdefault(rule, []).append(oracle.title)
    return {
        rule: f"{meaning} ({'; '.join(watching.get(rule, ['enforced by the model itself']))})"
        for rule, meaning in RULES.items()
    }
