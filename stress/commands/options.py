"""Options that several verbs share: one name, one type and one default for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from stress.scenario.load import MOST_SECONDS

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


def config_option(does: str) -> Option:
    """--config: the scenario, and what the verb does with it."""
    return click.option(
        "--config",
        "-c",
        required=True,
        type=click.Path(path_type=Path),
        help=f"Scenario to {does} (TOML).",
    )


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


def json_option(what: str) -> Option:
    """--json: what is printed instead of text."""
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print {what} as JSON, nothing else."
    )
