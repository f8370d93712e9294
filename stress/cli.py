"""The command line: which verbs there are, and what every one of them ends with.

A verb is imported when it is asked for: `stress list` has no use for what `stress run` needs, which
is most of the start.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Final

import click
from attrs import frozen

from stress.engines.carrier_choice import AUTO, carrier_for
from stress.results.verdict import ExitCode
from stress.scenario.errors import StressError


@frozen
class Command:
    """Where a command is, and what it does in the few words that `stress --help` has room for."""

    module: str
    command: str
    does: str

    def load(self) -> click.Command:
        """The command itself."""
        found: click.Command = getattr(importlib.import_module(self.module), self.command)
        return found


VERBS: Final = {
    "run": Command("stress.commands.run", "run", "Run a scenario on real threads and judge it."),
    "campaign": Command("stress.commands.campaign", "campaign", "Run a scenario with many seeds."),
    "explore": Command(
        "stress.commands.explore",
        "explore_scenario",
        "Explore a scenario under a controlled scheduler.",
    ),
    "replay": Command(
        "stress.commands.replay", "replay", "Run a recorded schedule again, step by step."
    ),
    "minimise": Command(
        "stress.commands.minimise", "minimise", "Make a failing schedule as small as it gets."
    ),
    "explain": Command(
        "stress.commands.explain", "explain", "Say why a schedule fails, or what a variant breaks."
    ),
    "selftest": Command(
        "stress.commands.selftest",
        "command",
        "Prove that the harness detects: every mutant must die.",
    ),
    "litmus": Command(
        "stress.commands.litmus", "litmus", "Explore litmus programs and grade their outcomes."
    ),
    "study": Command(
        "stress.commands.study", "command", "Say what a delete costs, under which policy and where."
    ),
    "compare": Command(
        "stress.commands.compare", "command", "Compare runs, or groups of runs, of one scenario."
    ),
    "results": Command("stress.commands.results", "group", "List, show and prune stored results."),
    "report": Command(
        "stress.commands.report", "report_command", "Rebuild the reports of a stored result."
    ),
    "rerun": Command(
        "stress.commands.rerun", "rerun_command", "Repeat a stored run or exploration, exactly."
    ),
    "schema": Command(
        "stress.commands.schema_command",
        "schema_command",
        "Print the JSON Schema of a file that stress writes.",
    ),
    "trace": Command(
        "stress.commands.trace", "trace", "Record real kernels, and hold the model against them."
    ),
    "lab": Command(
        "stress.commands.lab", "lab", "Boot a real kernel under emulation, and judge what it does."
    ),
    "list": Command(
        "stress.commands.list",
        "list_things",
        "List scenarios, policies, variants, oracles and more.",
    ),
}
"""Every command, in the order of its use."""


class Verbs(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Their names."""
        return list(VERBS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """The one with this name."""
        return VERBS[cmd_name].load() if cmd_name in VERBS else None

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """A line each, for which nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.does) for name, verb in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tdp-stress", prog_name="stress")
def cli() -> None:
    """Stress KVM's TDP MMU model with an exported root, and judge it.

    Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 HARNESS_ERROR, 4 usage or configuration, 5
    regression.

    The environment variable STRESS_CARRIER (auto, threads or greenlets) says what the tasks of an
    exploration run on; the schedules are the same.
    """
    carrier_for(AUTO, "atomic")  # a wrong one is said here, before anybody else comes upon it


def main() -> None:
    """Entry point of the `stress` command."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    code = invoke(sys.argv[1:])
    # the verdict is known: an impatient Ctrl-C must not replace its code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except (
        OSError
    ) as error:  # a closed pipe or a full disk: the verdict stands, but nobody has read it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the interpreter's own last flush
        if not isinstance(error, BrokenPipeError):
            click.echo(f"stress: cannot write the output: {error.strerror}", err=True)
            code = max(code, ExitCode.HARNESS_ERROR)
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run the command line; every user error is one message on stderr and exit code 4."""
    try:
        code = cli.main(arguments, prog_name="stress", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except StressError as error:
        click.echo(f"stress: {error}", err=True)
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("stress: interrupted", err=True)
        return ExitCode.INCONCLUSIVE
    except BrokenPipeError:
        return ExitCode.PASS
    except OSError as error:
        click.echo(f"stress: cannot write the output: {error.strerror}", err=True)
        return ExitCode.HARNESS_ERROR
    return int(code) if isinstance(code, int) else ExitCode.PASS


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run like Ctrl-C: everybody stops, the results are written."""
    raise KeyboardInterrupt
