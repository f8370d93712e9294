"""Scenario loading: every mistake is reported at once, with file, line, key, what was found and
what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from stress.scenario.errors import ConfigError
from stress.scenario.load import key_lines, load, structure, unstructure
from stress.scenario.types import Scenario

FIVE_MISTAKES = """\
title = "five mistakes"

[vm]
vcpu = 3
levels = "four"
policy = "keep-valit"

[actors.consumer]
reexports_per_s = -1.0
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), overrides)
    return [str(problem) for problem in caught.value.problems]


def test_every_mistake_is_reported_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, FIVE_MISTAKES, ("memory.fixed_pages",))
    text = "\n".join(problems)
    assert len(problems) == 5
    assert "scenario.toml:4: vm.vcpu: unknown key; expected one of vcpus, levels" in text
    assert "(did you mean vcpus?)" in text
    assert "scenario.toml:5: vm.levels: found 'four'; expected a whole number from 1 on" in text
    assert "scenario.toml:6: vm.policy: found 'keep-valit'" in text
    assert "(did you mean keep-valid?)" in text
    assert (
        "scenario.toml:9: actors.consumer.reexports_per_s: found -1.0; expected a number from 0 on"
        in text
    )
    assert "--set: memory.fixed_pages: no '='" in text


def test_an_unreadable_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_text_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path)


def test_broken_toml_names_the_place(tmp_path: Path) -> None:
    assert "line 2" in problems_of(tmp_path, "[vm]\nvcpus = = 3\n")[0]


def test_an_empty_file_is_the_default_scenario(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Scenario()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[vm]\nvcpus = true\n", "vm.vcpus: found True; expected a whole number from 1 on"),
        ("[vm]\nvcpus = 0\n", "vm.vcpus: found 0"),
        ("[vm]\nentries = 12\n", "vm.entries: 12; expected a power of two"),
        ("[vm]\nlevels = 9\n", "vm.levels: 9; expected 2 to 5"),
        ("[vm]\nframes = 10\n", "vm.frames: 10; expected at least"),
        ("[vm]\nvariants = ['no-flush']\n", "vm.variants.0: found 'no-flush'"),
        ("[vm]\nvariants = 'x'\n", "vm.variants"),
        ("vm = 3\n", "vm: found 3; expected a table"),
        ("[vm]\nmmu_lock = 'unfair'\n", "one of fair, reader, writer (did you mean fair?)"),
        ("[obligations]\nvcpu_fault = 1\n", "did you mean vcpu_faults?"),
        ("[obligations]\nvcpu_faults = 'many'\n", "obligations.vcpu_faults"),
        ("[expect]\nrules = ['O99']\n", "expect.rules.0: found 'O99'"),
        (
            "[budget]\nduration_s = 0\n",
            "budget.duration_s: found 0; expected a number of seconds above 0",
        ),
        ("[budget]\nduration_s = nan\n", "budget.duration_s"),
        ("[budget]\nduration_s = inf\n", "budget.duration_s"),
        ("seed = -4\n", "seed"),
        ("[disturbances]\npoints = ['P99']\n", "disturbances.points.0"),
    ],
)
def test_one_mistake_gives_one_clear_problem(tmp_path: Path, text: str, expected: str) -> None:
    problems = problems_of(tmp_path, text)
    assert len(problems) == 1
    assert expected in problems[0]


def test_overrides_replace_values_and_are_named_as_the_place_of_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "[vm]\nvcpus = 2\n")
    scenario = load(path, ["vm.vcpus=4", "vm.policy=invalidate-in-place", "title=with spaces"])
    assert (scenario.vm.vcpus, scenario.vm.policy, scenario.title) == (
        4,
        "invalidate-in-place",
        "with spaces",
    )
    assert problems_of(tmp_path, "", ("vm.vcpus=none",))[0].startswith(
        "--set: vm.vcpus: found 'none'"
    )


def test_the_effective_scenario_loads_back_as_itself(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, "[vm]\nvcpus = 2\nvariants = ['put-before-zap']\n"))
    data = unstructure(scenario)
    del data["seed"]
    reloaded, problems = structure(data, {}, "memory")
    assert problems == []
    assert reloaded == scenario


def test_key_lines_knows_tables_and_quoted_keys() -> None:
    lines = key_lines('a = 1\n[b]\n"c" = 2\n[b.d]\ne = 3\n')
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.e": 5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[vm]\nvariants = 'put-before-zap'\n",
            "vm.variants: found 'put-before-zap'; expected a list, such as",
        ),
        ("obligations = 3\n", "obligations: found 3; expected a table"),
        ("title = 5\n", "title: found 5; expected a text"),
        ("[vm]\nad_bits = 1\n", "vm.ad_bits: found 1; expected true or false"),
        ("[vm]\nframes = 99999999999999999999999\n", "expected a whole number up to"),
        ("[actors.consumer]\nreexports_per_s = 1e-300\n", "expected 0, or a number from"),
        (
            "[obligations]\nvcpu_faults = 0\n",
            "obligations.vcpu_faults: found 0; expected a whole number from 1 on",
        ),
        ("[limits]\nstall_s = 0.001\n", "limits.stall_s: 0.001; expected at least"),
        (
            "[actors.memslot_worker]\ndelete_weight=0\nmove_weight=0\nflags_weight=0\n",
            "all weights are 0",
        ),
        ("seed = " + "9" * 5000 + "\n", "syntax"),
        (
            "[budget]\nuntil_met = true\nduration_s = 20\ncap_s = 10\n",
            "budget.cap_s: 10; expected at least 20",
        ),
        (
            "[vm]\nentries = 4\nlevels = 4\n"
            "[memory]\nfixed_pages=32\nchurn_slots=5\nchurn_pages=2\nsmm_pages=1\nsmm_churn_pages=1\n",
            "256 guest frames; expected at least",
        ),
    ],
)
def test_what_a_stranger_tried(tmp_path: Path, text: str, expected: str) -> None:
    problems = problems_of(tmp_path, text)
    assert len(problems) == 1, problems
    assert expected in problems[0]


def test_mistakes_that_only_the_whole_shows_come_with_the_others(tmp_path: Path) -> None:
    text = "\n".join(
        problems_of(
            tmp_path, "[vm]\nlevels = 9\nentries = 3\nframes = 5\n[obligations]\nvcpu_fault = 1\n"
        )
    )
    for key in ("vm.levels", "vm.entries", "vm.frames", "obligations.vcpu_fault"):
        assert key in text


def test_problems_come_in_the_order_of_lines(tmp_path: Path) -> None:
    places = [int(problem.split(":")[1]) for problem in problems_of(tmp_path, FIVE_MISTAKES)]
    assert places == sorted(places)
