"""Options that several verbs share: one name, one type and one default for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from stress.scenario.load import MOST_SECONDS
from stress.scenario.shipped import found

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

RESULTS: Final = Path("results")
SEED: Final = click.IntRange(0, 1 << 64)
"""A seed, as large as a scenario's may be."""


class Seconds(click.FloatRange):
    """A time in seconds that is one: neither nan nor without end."""

    def __init__(self, least: float = 0.0, *, min_open: bool = True) -> None:
        super().__init__(least, MOST_SECONDS, min_open=min_open)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of seconds in a text."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no time", param, ctx)
        return seconds


class ScenarioFile(click.Path):
    """A scenario: a file, or the name of a shipped one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file."""
        return found(Path(str(super().convert(value, param, ctx))))


def scenario_option(does: str) -> Option:
    """The scenario, as an argument or as --config, and what the verb does with it; the command gets
    it as `config`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_scenario(*, scenario: Path | None, config: Path | None, **others: Any) -> Any:
            if (chosen := scenario or config) is None or (scenario and config):
                verb = click.get_current_context().info_name
                raise click.UsageError(
                    f"name one scenario; try: stress {verb} quick (stress list scenarios has all)"
                )
            return command(config=chosen, **others)

        for option in (
            click.option(
                "--config",
                "-c",
                type=ScenarioFile(),
                help=f"Scenario to {does}: a TOML file, or the name of a shipped one.",
            ),
            click.argument("scenario", required=False, type=ScenarioFile()),
        ):
            with_scenario = option(with_scenario)
        return with_scenario

    return decorate


def set_option(such_as: str = "") -> Option:
    """--set: changes of the scenario's keys, with an example."""
    example = f", such as {such_as}" if such_as else ""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Change a key{example}. May be repeated.",
    )


def mended_option(does: str) -> Option:
    """--mended: what the verb does on the mended design."""
    return click.option(
        "--mended",
        is_flag=True,
        help=f"{does} the mended design: profile hardened, no variants, nothing expected.",
    )


variant_option: Option = click.option(
    "--variant",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Python file with a Variant: code, which is run. May be repeated.",
)


def results_option(what: str = "Where result directories go.") -> Option:
    """--results: the directory of results, and what the verb does there."""
    return click.option(
        "--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help=what
    )


def quiet_option(prints: str = "the verdict line") -> Option:
    """--quiet: what is printed all the same."""
    return click.option("--quiet", "-q", is_flag=True, help=f"Print {prints} only.")


verbose_option: Option = click.option(
    "--verbose", "-v", is_flag=True, help="Print everything, as console.txt has it."
)


def json_option(what: str) -> Option:
    """--json: what is printed instead of text."""
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print {what} as JSON, nothing else."
    )
