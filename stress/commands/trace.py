"""`stress trace`: verbs for recordings of real kernels."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import click

from stress.commands.conform import conform_command
from stress.commands.options import quiet_option
from stress.commands.several import judged
from stress.results.verdict import ExitCode, Verdict
from stress.trace import record as recording
from stress.trace import show
from stress.trace.checker import ORDER_OF_CHECKS
from stress.trace.checker import check as check_recording
from stress.trace.layouts import ALIASES, LAYOUTS, VENDORS


@click.group()
def trace() -> None:
    """Recordings of real kernels: make one, check one, hold the model against one."""


trace.add_command(conform_command)


@trace.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kernel",
    type=click.Choice(["auto", *LAYOUTS, *ALIASES]),
    default="auto",
    show_default=True,
    help="SPTE layout.",
)
@click.option(
    "--vendor",
    type=click.Choice(["auto", *VENDORS]),
    default="auto",
    show_default=True,
    help="Whose page tables.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="The workload's log with KVM's statistics; by default NAME.log beside the file.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(ORDER_OF_CHECKS),
    help="Judge by this check only. May be repeated.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    default=0,
    help="Recordings to judge at the same time; by default as many as there are CPUs.",
)
@quiet_option()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result as JSON, nothing else; of several files, one line each.",
)
def check(
    files: tuple[Path, ...],
    kernel: str,
    vendor: str,
    log: Path | None,
    only: tuple[str, ...],
    jobs: int,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Apply the oracles to ftrace recordings of a running KVM (plain or packed; - is stdin)."""
    worst = Verdict.PASS
    judge = partial(check_recording, kernel=kernel, vendor=vendor, log=log, only=frozenset(only))
    for result in judged(files, judge, jobs or os.cpu_count() or 1):
        worst = max(worst, result.judgement.verdict)
        if as_json:
            click.echo(json.dumps(show.as_data(result), indent=None if len(files) > 1 else 1))
        elif quiet:
            click.echo(show.verdict_line(result))
        else:
            click.echo(show.text(result), nl=False)
    return worst.exit_code


@trace.command()
@click.option(
    "--level", type=click.IntRange(1, 3), default=3, show_default=True, help="How much to record."
)
@click.option(
    "--buffer-mb",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Ring buffer per CPU, in MiB.",
)
@click.option(
    "--kernel",
    default="",
    help=(
        "Kernel version the script is for, such as 6.1; by default it looks at what the kernel has."
    ),
)
@click.option(
    "--explain",
    is_flag=True,
    help="Say what each level lets 'check' prove, instead of printing the script.",
)
def record(level: int, buffer_mb: int, kernel: str, explain: bool) -> ExitCode:
    """Print a shell script that records a VM on your machine; read it, then run it as root."""
    click.echo(
        recording.explanation() if explain else recording.script(level, buffer_mb, kernel), nl=False
    )
    return ExitCode.PASS
