"""Loading a scenario: TOML in, `Scenario` out, or one error that lists everything that is wrong
with it."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import attrs
from cattrs import (
    AttributeValidationNote,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
)
from cattrs.gen import make_dict_structure_fn

from mmu.export.policies import POLICIES
from mmu.kernels import SERIES
from mmu.numbers.oracles import RULES
from mmu.paging.spte import MMIO_GEN_BITS
from stress.mutants import SHIPPED
from stress.scenario import scripts, types
from stress.scenario.counters import COUNTERS
from stress.scenario.errors import ConfigError, Problem
from stress.scenario.names import nearest
from stress.scenario.types import Scenario

MOST = 1 << 24
"""Upper bound of counts: what a process could hold in memory, not a limit of the model."""
MOST_ENTRIES = 1 << 16
MOST_FIXED_SLOTS = 8
"""The slots that come and go have the numbers from 10 on."""
MOST_SECONDS = 1e8
"""Three years: more would not fit into the clocks of some platforms."""
TURNS = 4
"""How often every other thread may run, with the GIL, before one that holds a lock is called
stuck."""
SPARE_FRAMES = 8
"""Frames beside twice the guest's pages: frame 0 is never used, and each migration in progress
holds one more. Twice the pages, because a freed frame shall stay recognisable for a while before it
is used again."""

SECONDS = f"a number of seconds above 0, up to {MOST_SECONDS:,.0f}"

_folder: ContextVar[Path] = ContextVar("folder")
"""What names of files are relative to, while a scenario is structured."""


class _Invalid(ValueError):
    """A value that does not fit: carries what was expected and the nearest valid name."""

    def __init__(self, value: object, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.hint = hint


def load(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in `path` with `key=value` overrides applied; raises `ConfigError` with every
    problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            [
                Problem(
                    str(path),
                    "file",
                    str(reason),
                    "a readable TOML scenario",
                    "see 'stress list scenarios'",
                )
            ]
        ) from None
    try:
        data = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOMLDecodeError is a ValueError; so is a number of 5,000 digits
        raise ConfigError([Problem(str(path), "syntax", str(error), "valid TOML")]) from None
    places = {key: f"{path}:{line}" for key, line in key_lines(text).items()}
    problems = [
        problem
        for override in overrides
        if (problem := _override(data, places, override)) is not None
    ]
    scenario, found = structure(data, places, str(path), path.parent)
    problems += found
    if problems or scenario is None:
        raise ConfigError(sorted(problems, key=_by_place))
    return scenario


def _by_place(problem: Problem) -> tuple[str, int]:
    """File first, then line."""
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where, 0)


def structure(
    data: dict[str, Any], places: dict[str, str], source: str, folder: Path = Path()
) -> tuple[Scenario | None, list[Problem]]:
    """Turn a TOML tree into a scenario, or into the list of what is wrong.

    `places` maps dotted keys to file:line; names of files are relative to `folder`.
    """
    unknown = [
        *_unknown_counters(data, places, source),
        *scripts.wrong_lines(data.get("script"), lambda key: _place(key, places, source)),
    ]
    before = _folder.set(folder)
    try:
        scenario = _converter().structure(data, Scenario)
    except ClassValidationError as error:
        return None, [*_problems(error, "", places, source), *unknown]
    finally:
        _folder.reset(before)
    return scenario, [*_cross_checks(scenario, places, source), *unknown]


def unstructure(scenario: Scenario) -> dict[str, Any]:
    """The effective scenario as plain data."""
    return cast(dict[str, Any], json.loads(json.dumps(attrs.asdict(scenario))))


def key_lines(text: str) -> dict[str, int]:
    """The line of every key of a TOML text, by dotted path; enough of TOML for pointing at
    things."""
    lines: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            prefix = header.group(1).replace('"', "").replace(" ", "") + "."
            lines[prefix[:-1]] = number
            continue
        key = re.match(r"""\s*["']?([A-Za-z0-9_.-]+)["']?\s*=""", line)
        if key:
            lines[prefix + key.group(1)] = number
    return lines


def _override(data: dict[str, Any], places: dict[str, str], override: str) -> Problem | None:
    """Apply one `--set key=value`; the value is TOML, or text where it is none."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        return Problem("--set", override, "no '='", "key=value, such as --set vm.vcpus=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    *tables, last = key.strip().split(".")
    target = data
    for name in tables:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            return Problem("--set", key, f"{name} is a value", "a table on the way to a key")
    target[last] = value
    places[key.strip()] = "--set"
    return None


def _cross_checks(scenario: Scenario, places: dict[str, str], source: str) -> Iterable[Problem]:
    """What no single key can show."""
    vm, memory = scenario.vm, scenario.memory

    def at(key: str) -> str:
        return _place(key, places, source)

    shaped = True
    if vm.entries < 2 or vm.entries & (vm.entries - 1) or vm.entries > MOST_ENTRIES:
        shaped = False
        yield Problem(
            at("vm.entries"),
            "vm.entries",
            str(vm.entries),
            f"a power of two from 2 to {MOST_ENTRIES}",
        )
    if not 2 <= vm.levels <= 5:
        shaped = False
        yield Problem(at("vm.levels"), "vm.levels", str(vm.levels), "2 to 5")
    if shaped:
        room = vm.entries**vm.levels
        needed = memory.frames_needed(memory.stride(vm.entries, vm.levels))
        if needed > room:
            yield Problem(
                at("vm.levels"),
                "vm.levels",
                f"{room} guest frames",
                f"at least {needed}",
                "more levels or entries, or less memory",
            )
    yield from _memory_checks(scenario, at)
    yield from _limit_checks(scenario, at)
    budget = scenario.budget
    if budget.until_met and budget.cap_s < budget.duration_s:
        yield Problem(
            at("budget.cap_s"),
            "budget.cap_s",
            f"{budget.cap_s:g}",
            f"at least {budget.duration_s:g}",
            "budget.duration_s is the shortest run, budget.cap_s the longest",
        )
    yield from scripts.misfits(scenario, at) if shaped else ()
    vcpu = scenario.actors.vcpu
    if vcpu.shadow_pages and not vcpu.nested_share and not scenario.script:
        key = "actors.vcpu.shadow_pages"
        yield Problem(
            at(key),
            key,
            f"{vcpu.shadow_pages} page tables of nested guests, and no nested guest",
            "actors.vcpu.nested_share above 0",
        )
    if vcpu.migrate_share and vm.pcpus < 2:
        key = "actors.vcpu.migrate_share"
        found = f"{vcpu.migrate_share:g} of the runs, on {vm.pcpus} physical CPUs"
        yield Problem(at(key), key, found, "vm.pcpus from 2 on")
    worker = scenario.actors.memslot_worker
    if worker.enabled and not worker.delete_weight + worker.move_weight + worker.flags_weight:
        key = "actors.memslot_worker.delete_weight"
        yield Problem(
            at(key),
            key,
            "all weights are 0",
            "at least one above 0",
            "enabled = false leaves the worker out",
        )


def _memory_checks(scenario: Scenario, at: Callable[[str], str]) -> Iterable[Problem]:
    """There are frames enough for the guest, besides the blocks that are kept for huge pages."""
    vm, memory = scenario.vm, scenario.memory
    # a 1 GiB block may waste as much for its alignment
    blocks = vm.huge_2m * vm.entries + vm.huge_1g * vm.entries**2 * 2
    pages = sum(
        (
            memory.fixed_pages,
            memory.readonly_pages,
            memory.churn_slots * memory.churn_pages,
            memory.smm_pages,
            memory.smm_churn_pages,
        )
    )
    # 2 MiB blocks may have to move down for their alignment
    small = max(2 * pages + SPARE_FRAMES, vm.entries if blocks else 0)
    needed = blocks + small
    if vm.frames < needed:
        hint = f"{'the huge blocks, ' if blocks else ''}twice the guest's pages, and {SPARE_FRAMES}"
        yield Problem(at("vm.frames"), "vm.frames", str(vm.frames), f"at least {needed}", hint)
    if memory.host_level > 1 and not vm.huge_2m + vm.huge_1g:
        yield Problem(
            at("memory.host_level"),
            "memory.host_level",
            str(memory.host_level),
            "1",
            "vm.huge_2m = 16 sets huge pages aside",
        )
    yield from _layout_checks(scenario, at)
    if not 2 <= vm.mmio_gen_bits <= MMIO_GEN_BITS:
        yield Problem(
            at("vm.mmio_gen_bits"),
            "vm.mmio_gen_bits",
            str(vm.mmio_gen_bits),
            f"2 to {MMIO_GEN_BITS}",
        )


def _layout_checks(scenario: Scenario, at: Callable[[str], str]) -> Iterable[Problem]:
    """The slots of the fixed memory have pages each, what they share is there, and what is logged
    is one of them."""
    vm, memory = scenario.vm, scenario.memory
    most = min(MOST_FIXED_SLOTS, memory.fixed_pages)
    if memory.fixed_slots > most:
        key = "memory.fixed_slots"
        hint = "" if most == MOST_FIXED_SLOTS else f"memory.fixed_pages is {memory.fixed_pages}"
        yield Problem(at(key), key, str(memory.fixed_slots), f"1 to {most}", hint)
    if memory.fixed_gap and memory.fixed_slots == 1:
        key = "memory.fixed_gap"
        yield Problem(at(key), key, str(memory.fixed_gap), "0", "one slot has no gaps")
    if vm.dirty_initially_set and not vm.manual_protect:
        key = "vm.dirty_initially_set"
        yield Problem(at(key), key, "true", "false", "it comes with vm.manual_protect = true")
    if scenario.actors.dirty_log.slot >= memory.fixed_slots:
        key, found = "actors.dirty_log.slot", str(scenario.actors.dirty_log.slot)
        yield Problem(at(key), key, found, f"a fixed slot below {memory.fixed_slots}")
    if memory.smm_alias and not 0 < memory.smm_pages <= memory.fixed_pages:
        key, expected = "memory.smm_alias", f"memory.smm_pages from 1 to {memory.fixed_pages}"
        yield Problem(at(key), key, f"an alias of {memory.smm_pages} pages", expected)
    if memory.churn_shared and memory.churn_slots < 2:
        key = "memory.churn_shared"
        yield Problem(at(key), key, f"{memory.churn_slots} slots", "memory.churn_slots from 2 on")


def _limit_checks(scenario: Scenario, at: Callable[[str], str]) -> Iterable[Problem]:
    """A bound must leave room for the sleeps that the scenario itself asks for, and for the turns
    of all its threads, or it calls them a hang."""
    disturbances, actors, limits = scenario.disturbances, scenario.actors, scenario.limits
    delays = 60 * disturbances.delay_share * disturbances.delay_s if disturbances.points else 0
    sleeps = (
        actors.memslot_worker.pause_s,
        actors.vcpu.idle_s if actors.vcpu.idle_share else 0.0,
        actors.host.pause_s if actors.host.threads else 0.0,
        actors.dirty_log.pause_s if actors.dirty_log.enabled else 0.0,
        actors.nx.pause_s if actors.nx.enabled else 0.0,
        2 * actors.exporter.hold_s if actors.exporter.threads else 0.0,
    )
    threads = (
        scenario.vm.vcpus + actors.host.threads + actors.exporter.threads
    ) + 2 * actors.consumer.devices
    turns = TURNS * threads * disturbances.switch_interval_s
    longest = round(max(delays + 2 * max(sleeps), turns), 3)
    for key in ("stall_s", "rcu_stall_s", "write_hold_s"):
        value = getattr(limits, key)
        if value < longest:
            yield Problem(
                at(f"limits.{key}"),
                f"limits.{key}",
                f"{value:g}",
                f"at least {longest:g}",
                "longer than the scenario's own sleeps, and than its threads wait for their turns",
            )


def _unknown_counters(
    data: dict[str, Any], places: dict[str, str], source: str
) -> Iterable[Problem]:
    """Obligations that no counter stands for; looked at apart from everything else that may be
    wrong."""
    obligations = data.get("obligations")
    for name in obligations if isinstance(obligations, dict) else ():
        if name not in COUNTERS:
            key = f"obligations.{name}"
            yield Problem(
                _place(key, places, source),
                key,
                "unknown counter",
                "a counter (see 'stress list')",
                nearest(name, COUNTERS),
            )


@cache
def _converter() -> Converter:
    """Made once, with the functions that it makes for each class."""
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table_hook(converter, cls))
    converter.register_structure_hook_func(_is_choice, _structure_choice)
    hooks: list[tuple[Any, Callable[[Any, Any], Any]]] = [
        (types.Flag, lambda value, _: _typed(value, bool, "true or false")),
        (types.Text, lambda value, _: _typed(value, str, "a text")),
        (types.Amount, lambda value, _: _whole(value, 1, 1 << 62)),
        (types.Seed, lambda value, _: _whole(value, 0, 1 << 64)),
        (types.Count, lambda value, _: _whole(value, 0)),
        (types.Positive, lambda value, _: _whole(value, 1)),
        (types.Share, lambda value, _: _number(value, 0, 1, "a number from 0 to 1")),
        (types.Rate, lambda value, _: _rate(value)),
        (types.Seconds, lambda value, _: _number(value, 1e-9, MOST_SECONDS, SECONDS)),
        (types.Lines, lambda value, _: _lines(value)),
        (types.FileName, lambda value, _: _file(value, _folder.get())),
        (types.PolicyName, lambda value, _: _name(value, POLICIES, "a policy")),
        (types.KernelName, lambda value, _: _kernel(value)),
        (types.VariantName, lambda value, _: _name(value, SHIPPED, "a variant")),
        (types.RuleName, lambda value, _: _name(value, RULES, "a rule")),
    ]
    for kind, hook in hooks:
        converter.register_structure_hook_func(_is(kind), hook)
    return converter


def _table_hook(converter: Converter, cls: Any) -> Callable[[Any, Any], Any]:
    attrs.resolve_types(cls)
    fields = attrs.fields_dict(cls)
    filled = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True
    )

    def table(data: Any, _: Any) -> Any:
        if not isinstance(data, dict):
            raise _Invalid(data, f"a table [{cls.__name__.lower()}]")
        return filled({name: _shaped(value, fields.get(name)) for name, value in data.items()}, cls)

    return table


class _Misshapen:
    """Stands for a value of the wrong shape: whoever looks inside learns what was expected."""

    def __init__(self, value: object, expected: str) -> None:
        self._error = _Invalid(value, expected)

    def __iter__(self) -> Any:
        raise self._error

    def items(self) -> Any:
        """What a table has."""
        raise self._error


def _shaped(value: Any, field: Any) -> Any:
    """`value`, or its stand-in where a list or a table belongs and something else was found."""
    origin = get_origin(field.type) if field is not None else None
    if origin is tuple and not isinstance(value, list):
        return _Misshapen(value, 'a list, such as ["..."]')
    if origin is dict and not isinstance(value, dict):
        return _Misshapen(
            value,
            "a table of lists" if types.Lines in get_args(field.type) else "a table of numbers",
        )
    return value


def _is_choice(kind: Any) -> bool:
    return str(get_origin(kind)) == "typing.Literal"


def _is(wanted: Any) -> Callable[[Any], bool]:
    return lambda kind: kind is wanted


def _structure_choice(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if isinstance(choices[0], str):
        return _name(value, choices, "a choice")
    if type(value) is not int or value not in choices:
        raise _Invalid(value, "one of " + ", ".join(map(str, choices)))
    return value


def _kernel(value: Any) -> str:
    # --set vm.kernel=6.6 gives a version without its quotes
    return _name(str(value) if type(value) is float else value, SERIES, "a kernel")


def _typed(value: Any, kind: type, expected: str) -> Any:
    if type(value) is not kind:
        raise _Invalid(value, expected)
    return value


def _whole(value: Any, least: int, most: int = MOST) -> int:
    if type(value) is not int or value < least:
        raise _Invalid(value, f"a whole number from {least} on")
    if value > most:
        raise _Invalid(value, f"a whole number up to {most}")
    return value


def _file(value: Any, folder: Path) -> str:
    """The path as it can be opened from here; it must name a file that can be read."""
    if not isinstance(value, str):
        raise _Invalid(value, "the path of a file")
    path = folder / value
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise _Invalid(
            value, f"a readable file (relative to {folder.resolve()})", error.strerror or ""
        ) from None


def _lines(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise _Invalid(value, 'a list of operations, such as ["write 0x4"]')
    return tuple(value)


def _rate(value: Any) -> float:
    rate = _number(value, 0, None, "a number from 0 on")
    if rate and not 1e-6 <= rate <= 1e6:
        raise _Invalid(value, "0, or a number from 0.000001 to 1000000")
    return rate


def _number(value: Any, least: float, most: float | None, expected: str) -> float:
    in_range = type(value) in (int, float) and math.isfinite(value) and value >= least
    if not in_range or (most is not None and value > most):
        raise _Invalid(value, expected)
    return float(value)


def _name(value: Any, known: Iterable[str], what: str) -> str:
    names = list(known)
    if not isinstance(value, str) or value not in names:
        shown = ", ".join(names) if len(names) <= 8 else f"{what} (see 'stress list')"
        raise _Invalid(
            value, f"one of {shown}" if len(names) <= 8 else shown, nearest(value, names)
        )
    return value


def _problems(
    error: BaseException, path: str, places: dict[str, str], source: str
) -> Iterable[Problem]:
    """Flatten cattrs' tree of errors into problems with their places."""
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        with_notes, without = error.group_exceptions()
        for inner, note in with_notes:
            name = note.name if isinstance(note, AttributeValidationNote) else str(note.index)
            yield from _problems(inner, f"{path}.{name}" if path else name, places, source)
        for inner in without:
            yield from _problems(inner, path, places, source)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in attrs.fields(error.cl)]
        for name in sorted(error.extra_fields):
            key = f"{path}.{name}" if path else name
            expected = "one of " + ", ".join(known)
            yield Problem(
                _place(key, places, source), key, "unknown key", expected, nearest(name, known)
            )
    elif isinstance(error, _Invalid):
        yield Problem(
            _place(path, places, source), path, f"found {error.value!r}", error.expected, error.hint
        )
    else:
        yield Problem(_place(path, places, source), path, str(error), "a value of the right type")


def _place(key: str, places: dict[str, str], source: str) -> str:
    """The file and line of `key`, or of the nearest table above it."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return source
