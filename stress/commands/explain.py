"""`stress explain`: say why a schedule fails, or what a variant breaks."""

from __future__ import annotations

import os
from pathlib import Path

import click

from stress.commands.options import json_option
from stress.commands.scenarios import read_schedule
from stress.report import explanation as explain_text
from stress.results.schedule_file import EXPLANATION_FORMAT
from stress.results.verdict import ExitCode
from stress.runs.replay import explain_stored
from stress.selftest import page as variant_page


@click.command()
@click.argument("what", metavar="FILE|NAME")
@json_option("the explanation of a schedule")
def explain(what: str, as_json: bool) -> ExitCode:
    """Say why a schedule fails, or what a variant breaks.

    FILE is a schedule: the interleaving, the page table on the way, and which switches it takes.
    NAME is a mutant, a posted defect or a control (stress list variants):
    rule, origin, interleaving, and the report it brings.
    """
    if not Path(what).exists() and os.sep not in what and not what.endswith(".json"):
        for piece in variant_page.page(what):
            click.echo(piece)
        return ExitCode.PASS
    explanation = explain_stored(read_schedule(Path(what)))
    if as_json:
        click.echo(EXPLANATION_FORMAT.text(explanation), nl=False)
    else:
        click.echo(explain_text.text(explanation))
    return ExitCode.FAIL
