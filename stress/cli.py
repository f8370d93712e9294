"""The `stress` command. Nothing is imported before the supervisor has its child: what is imported
by then, the child has to copy."""

from __future__ import annotations

import sys

from stress.commands.supervisor import supervised


def main() -> None:
    """Entry point."""
    sys.exit(supervised(_carried_out))


def _carried_out() -> int:
    from stress.commands.command_line import carried_out  # noqa: PLC0415 - in the child

    return carried_out(sys.argv[1:])
