"""Every key of a scenario: a value that does not fit gives one line, in the file's order, and says
what would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import pytest

from mmu.export.policies import POLICIES
from mmu.kernels import SERIES
from mmu.posted import POSTED, PROFILES
from stress.mutants import MUTANTS
from stress.scenario import types
from stress.scenario.errors import ConfigError
from stress.scenario.load import load, structure, unstructure
from stress.scenario.types import Scenario

CONFIGS = Path(__file__).parents[4] / "configs"
ROOM = "frames = 4096\nentries = 16\n"


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [str(problem) for problem in caught.value.problems]


def leaves(table: type = Scenario, path: str = "") -> list[tuple[str, Any]]:
    """Every key of a scenario by its dotted path, with its type."""
    attrs.resolve_types(table)
    found: list[tuple[str, Any]] = []
    for field in attrs.fields(table):
        if attrs.has(field.type):
            found += leaves(field.type, f"{path}{field.name}.")
        else:
            found.append((path + field.name, field.type))
    return found


WRONG: dict[Any, tuple[str, str]] = {
    types.Flag: ("1", "found 1; expected true or false"),
    types.Text: ("5", "found 5; expected a text"),
    types.Count: ("-1", "found -1; expected a whole number from 0 on"),
    types.Positive: ("0", "found 0; expected a whole number from 1 on"),
    types.Share: ("1.5", "found 1.5; expected a number from 0 to 1"),
    types.Seconds: ("0", "found 0; expected a number of seconds above 0"),
    types.Rate: ("-0.5", "found -0.5; expected a number from 0 on"),
    types.KernelName: ("'6.5'", "found '6.5'; expected one of"),
    types.PolicyName: ("'keep'", "found 'keep'; expected one of"),
}
OTHERS = {
    "seed": ("-1", "found -1; expected a whole number from 0 on"),
    "obligations": ("7", "found 7; expected a table of numbers"),
    "script": ("7", "found 7; expected a table of lists"),
    "disturbances.delay_at": ("7", "found 7; expected a table of numbers"),
    "explore.scenario": ("'nowhere.toml'", "found 'nowhere.toml'; expected"),
}


def wrong_value(key: str, kind: Any) -> tuple[str, str]:
    """A value that does not fit the key, and what is said of it."""
    if key in OTHERS:
        return OTHERS[key]
    if get_origin(kind) is tuple:
        return "'text'", "found 'text'; expected a list"
    if str(get_origin(kind)) == "typing.Literal":
        choices = get_args(kind)
        return (
            ("'none of them'", "found 'none of them'; expected")
            if isinstance(choices[0], str)
            else ("9", "found 9; expected one of 1, 2, 3")
        )
    return WRONG[kind]


@pytest.mark.parametrize(
    ("key", "kind"), leaves(), ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_wrong_value_of_any_key_is_one_problem_with_its_line(
    tmp_path: Path, key: str, kind: Any
) -> None:
    value, expected = wrong_value(key, kind)
    table, _, name = key.rpartition(".")
    head = f"[{table}]\n" if table else "\n"
    problems = problems_of(tmp_path, f"{head}{name} = {value}\n")
    assert len(problems) == 1, problems
    assert f"scenario.toml:2: {key}: {expected}" in problems[0]


@pytest.mark.parametrize(
    "key", [key for key, kind in leaves() if kind in (types.Share, types.Rate, types.Seconds)]
)
def test_numbers_are_numbers(tmp_path: Path, key: str) -> None:
    table, _, name = key.rpartition(".")
    for value in ("nan", "inf", "true", "'x'"):
        problems = problems_of(tmp_path, f"[{table}]\n{name} = {value}\n")
        assert [problem.split(": found")[0].split(":2: ")[1] for problem in problems] == [key]


def test_one_wrong_value_in_every_new_table_comes_in_one_error_in_the_order_of_lines(
    tmp_path: Path,
) -> None:
    text = """\
[vm]
profile = "mended"
kernel = "6.5"
max_level = 4
variants = ["r5-unexport-with-flush"]
[memory]
host_level = 0
[actors.host]
age_weight = -1
[actors.dirty_log]
reads = 0
[actors.nx]
toggle = false
[actors.exporter]
hold_s = 2
[actors.exit]
vm_first = "yes"
[disturbances]
fail_switch = 1.1
points = ["P3"]
[limits]
walk_steps = -1
[expect]
codes = [5]
"""
    problems = problems_of(tmp_path, text)
    places = [problem.split(": ")[0].rpartition(":")[2] for problem in problems]
    assert places == ["2", "3", "4", "5", "7", "9", "11", "13", "15", "17", "19", "20", "22", "24"]
    together = "\n".join(problems)
    for part in (
        "vm.profile: found 'mended'; expected one of hardened, rfc-v1",
        "vm.kernel: found '6.5'; expected one of 5.18, 6.6, 6.12 (did you mean 6.6?)",
        "vm.variants.0: found 'r5-unexport-with-flush'",
        "(did you mean r5-unexport-without-flush?)",
        "actors.nx.toggle: unknown key; expected one of enabled, toggles, recovers",
        "(did you mean toggles?)",
        "actors.exit.vm_first: found 'yes'; expected true or false",
        "disturbances.points.0: found 'P3'",
        "expect.codes.0: found 5; expected a text",
    ):
        assert part in together


# What no single key can show.


@pytest.mark.parametrize(
    ("blocks", "needed"),
    [
        ("huge_2m = 64", 64 * 16),
        ("huge_1g = 2", 2 * 256 * 2),
        ("huge_2m = 8\nhuge_1g = 1", 8 * 16 + 256 * 2),
    ],
)
def test_frames_must_hold_the_blocks_and_twice_the_pages(
    tmp_path: Path, blocks: str, needed: int
) -> None:
    memory = (
        "[memory]\nfixed_pages = 32\nchurn_slots = 2\nchurn_pages = 16\nsmm_pages = "
        "8\nsmm_churn_pages = 8\n"
    )
    least = needed + 2 * (32 + 2 * 16 + 8 + 8) + 8

    def text(frames: int) -> str:
        return f"[vm]\nentries = 16\nframes = {frames}\n{blocks}\n{memory}"

    (problem,) = problems_of(tmp_path, text(least - 1))
    assert (
        f"scenario.toml:3: vm.frames: {least - 1}; expected at least {least} (the huge blocks, "
        "twice the guest" in problem
    )
    (tmp_path / "scenario.toml").write_text(text(least), encoding="utf-8")
    assert load(tmp_path / "scenario.toml").vm.frames == least


@pytest.mark.parametrize("key", ["huge_2m", "huge_1g"])
def test_huge_pages_of_the_host_need_blocks_set_aside(tmp_path: Path, key: str) -> None:
    text = f"[vm]\n{ROOM}[memory]\nhost_level = 2\n"
    (problem,) = problems_of(tmp_path, text)
    assert (
        "scenario.toml:5: memory.host_level: 2; expected 1 (vm.huge_2m = 16 sets huge pages aside)"
        in problem
    )
    (tmp_path / "scenario.toml").write_text(
        text.replace(ROOM, ROOM + f"{key} = 2\n"), encoding="utf-8"
    )
    assert load(tmp_path / "scenario.toml").memory.host_level == 2


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        ("fixed_slots = 9", "memory.fixed_slots: 9; expected 1 to 8"),
        (
            "fixed_slots = 4\nfixed_pages = 3",
            "memory.fixed_slots: 4; expected 1 to 3 (memory.fixed_pages is 3)",
        ),
        ("fixed_gap = 2", "memory.fixed_gap: 2; expected 0 (one slot has no gaps)"),
        (
            "smm_alias = true\nfixed_pages = 16",
            "memory.smm_alias: an alias of 32 pages; expected memory.smm_pages from 1 to 16",
        ),
        (
            "smm_alias = true\nsmm_pages = 0",
            "memory.smm_alias: an alias of 0 pages; expected memory.smm_pages from 1 to 256",
        ),
        (
            "churn_shared = true\nchurn_slots = 1",
            "memory.churn_shared: 1 slots; expected memory.churn_slots from 2 on",
        ),
    ],
)
def test_what_slots_share_must_be_there(tmp_path: Path, memory: str, problem: str) -> None:
    (found,) = problems_of(tmp_path, f"[memory]\n{memory}\n")
    assert f"scenario.toml:2: {problem}" in found


def test_gaps_and_read_only_pages_need_guest_frames(tmp_path: Path) -> None:
    text = (
        "[vm]\nlevels = 2\nentries = 8\nframes = 512\n[memory]\nfixed_pages = 8\nchurn_slots = "
        "1\nchurn_pages = 8\nsmm_pages = 0\nsmm_churn_pages = 0\n"
    )
    (tmp_path / "scenario.toml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "scenario.toml").memory.fixed_slots == 1
    for more in ("readonly_pages = 16\n", "fixed_slots = 2\nfixed_gap = 16\n"):
        (problem,) = problems_of(tmp_path, text + more)
        assert "vm.levels: 64 guest frames; expected at least 80" in problem


@pytest.mark.parametrize("bits", [1, 20])
def test_a_generation_needs_two_bits_and_has_no_more_than_the_kernels(
    tmp_path: Path, bits: int
) -> None:
    (problem,) = problems_of(tmp_path, f"[vm]\nmmio_gen_bits = {bits}\n")
    assert f"scenario.toml:2: vm.mmio_gen_bits: {bits}; expected 2 to 19" in problem


@pytest.mark.parametrize(
    "actor",
    [
        "host]\nthreads = 1\npause_s",
        "dirty_log]\nenabled = true\npause_s",
        "nx]\nenabled = true\npause_s",
        "exporter]\nthreads = 1\nhold_s",
    ],
    ids=lambda text: text.split("]")[0],
)
def test_a_bound_leaves_room_for_the_sleeps_of_every_actor(tmp_path: Path, actor: str) -> None:
    """Else the watchdog calls an actor hung that rests because it was told to."""
    (problem,) = problems_of(tmp_path, f"[actors.{actor} = 1.0\n[limits]\nstall_s = 0.1\n")
    assert "limits.stall_s: 0.1; expected at least" in problem


@pytest.mark.parametrize("bits", [2, 19])
def test_the_generation_may_have_as_many_bits_as_the_kernel_has(tmp_path: Path, bits: int) -> None:
    (tmp_path / "scenario.toml").write_text(f"[vm]\nmmio_gen_bits = {bits}\n", encoding="utf-8")
    assert load(tmp_path / "scenario.toml").vm.mmio_gen_bits == bits


def test_shadow_pages_need_a_nested_guest(tmp_path: Path) -> None:
    text = "[actors.vcpu]\nshadow_pages = 12\n"
    (problem,) = problems_of(tmp_path, text)
    assert (
        "scenario.toml:2: actors.vcpu.shadow_pages: 12 page tables of nested guests, and no nested "
        "guest; expected actors.vcpu.nested_share above 0" in problem
    )
    for more in ("nested_share = 0.1\n", "[script]\nvcpu0 = ['shadow 12']\n"):
        (tmp_path / "scenario.toml").write_text(text + more, encoding="utf-8")
        assert load(tmp_path / "scenario.toml").actors.vcpu.shadow_pages == 12


# Names.


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("profile", PROFILES),
        ("kernel", SERIES),
        ("policy", POLICIES),
    ],
)
def test_every_name_that_there_is_can_be_chosen(
    tmp_path: Path, key: str, names: dict[str, object]
) -> None:
    for name in names:
        (tmp_path / "scenario.toml").write_text(f"[vm]\n{key} = '{name}'\n", encoding="utf-8")
        assert getattr(load(tmp_path / "scenario.toml").vm, key) == name


def test_variants_are_the_mutants_and_the_defects_as_posted(tmp_path: Path) -> None:
    names = [*MUTANTS, *POSTED]
    (tmp_path / "scenario.toml").write_text(f"[vm]\nvariants = {names}\n", encoding="utf-8")
    assert load(tmp_path / "scenario.toml").vm.variants == tuple(names)


@pytest.mark.parametrize("wrong", ["R5", "r5", "rfc-v1", "keep-valid"])
def test_a_number_or_another_kind_of_name_is_no_variant(tmp_path: Path, wrong: str) -> None:
    (problem,) = problems_of(tmp_path, f"[vm]\nvariants = ['{wrong}']\n")
    assert f"vm.variants.0: found '{wrong}'; expected a variant (see 'stress list')" in problem


# What is shipped.


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.rglob("*.toml") if path.parent.name != "studies"),
    ids=lambda path: path.stem,
)
def test_every_shipped_scenario_loads_and_loads_back_as_itself(path: Path) -> None:
    scenario = load(path)
    assert scenario.title
    data = unstructure(scenario)
    del data["seed"]
    reloaded, problems = structure(data, {}, "memory")
    assert problems == []
    assert reloaded == scenario


def test_too_few_frames_are_one_problem(tmp_path: Path) -> None:
    assert len(problems_of(tmp_path, "[vm]\nentries = 16\nframes = 64\nhuge_2m = 4\n")) == 1
