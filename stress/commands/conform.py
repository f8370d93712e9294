"""The command `stress trace conform`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mmu.kernels import RELEASED
from stress.commands.options import quiet_option
from stress.results.verdict import ExitCode, Verdict
from stress.scenario.variant_files import variants_from
from stress.trace import conform_report
from stress.trace.conform import conform
from stress.trace.layouts import VENDORS

MODELS = [name + suffix for name in RELEASED for suffix in ("", "-quirkoff")]


@click.command("conform")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kernel",
    type=click.Choice(["auto", *MODELS]),
    default="auto",
    show_default=True,
    help="Whose model to replay it with.",
)
@click.option(
    "--vendor",
    type=click.Choice(["auto", *VENDORS]),
    default="auto",
    show_default=True,
    help="Whose page tables.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Python file with a Variant. May be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Show every difference in full.")
@quiet_option()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result as JSON, nothing else; of several files, one line each.",
)
def conform_command(
    files: tuple[Path, ...],
    kernel: str,
    vendor: str,
    variants: tuple[Path, ...],
    everything: bool,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Hold the model against recordings of a real kernel: do both do the same, operation by
    operation?

    FILES are ftrace recordings (.xz, .gz or plain; - is stdin), each of a VM's whole life. Exit
    codes: 0 no unexplained difference, 1 there is one, 2 a recording lacks what is needed.
    """
    changes = variants_from([str(each) for each in variants])
    worst = Verdict.PASS
    for file in files:
        result = conform(file, kernel.replace("auto", ""), vendor.replace("auto", ""), changes)
        worst = max(worst, result.verdict)
        if as_json:
            click.echo(json.dumps(result.as_json(), indent=None if len(files) > 1 else 1))
        elif quiet:
            click.echo(conform_report.verdict_line(result))
        else:
            click.echo(conform_report.render(result, everything=everything), nl=False)
    return worst.exit_code
