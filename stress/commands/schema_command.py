"""`stress schema`: the JSON Schema of what stress writes."""

from __future__ import annotations

import click

from stress.commands import schema
from stress.results.verdict import ExitCode


@click.command("schema")
@click.argument("name", type=click.Choice(schema.NAMES), required=False)
def schema_command(name: str | None) -> ExitCode:
    """Print the JSON Schema of one of the files that stress writes; without a name, list them."""
    if name is None:
        click.echo("\n".join(f"{each:<12} {schema.WHAT[each]}" for each in schema.NAMES))
    else:
        click.echo(schema.as_text(name), nl=False)
    return ExitCode.PASS
