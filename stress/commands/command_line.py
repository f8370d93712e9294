"""The command line: which verbs there are, and what every one of them ends with.

A verb is imported when it is asked for: `stress list` has no use for what `stress run` needs, which
is most of the start.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import click
from attrs import frozen

from stress.commands import streams
from stress.engines.carrier_choice import AUTO, carrier_for
from stress.results import crash
from stress.results.known import KNOWN
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
    "hunt": Command(
        "stress.commands.hunt", "hunt_command", "Try a design on every scenario there is."
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
    regression, 6 internal error.

    The environment variable STRESS_CARRIER (auto, threads or greenlets) says what the tasks of an
    exploration run on; the schedules are the same.
    """
    carrier_for(AUTO, "atomic")  # a wrong one is said here, before anybody else comes upon it


def carried_out(arguments: list[str]) -> int:
    """The exit code of a command line, whatever becomes of its output."""
    output = streams.replaced()
    code = invoke(arguments)
    sys.stdout.flush()
    trouble = output.error
    if trouble is None or isinstance(trouble, BrokenPipeError):
        return code
    click.echo(f"stress: cannot write the output: {trouble.strerror}", err=True)
    # what a user has to hear of, if nothing worse is known
    return ExitCode.HARNESS_ERROR if code in (ExitCode.PASS, ExitCode.INCONCLUSIVE) else code


def invoke(arguments: list[str]) -> int:
    """Run the command line, and return its exit code. A user's error is one message on stderr and
    exit code 4; after an interrupt, or a bug, the worst that was known is the code."""
    KNOWN.clear()
    try:
        code = cli.main(arguments, prog_name="stress", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except StressError as error:
        said = str(error)
        return _settled(lambda ends: ends.crashed(said, ExitCode.USAGE))
    except (click.Abort, KeyboardInterrupt):
        return _settled(lambda ends: ends.interrupted())
    except BaseException as error:
        line = crash.line_of(error)
        return _settled(lambda ends: ends.crashed(line))
    return int(code) if isinstance(code, int) else ExitCode.PASS


def _settled(end: Callable[[ModuleType], Any]) -> int:
    """Bring an end that is not the command's own to a record and a code."""
    ends = importlib.import_module("stress.runs.ends")
    code: int = ends.settle(end(ends))
    return code
