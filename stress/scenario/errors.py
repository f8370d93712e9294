"""What `stress` raises, as one small tree.

    StressError
      ConfigError        the scenario or an option is wrong; lists every problem, exit code 4
      VariantError       a variant file cannot be used, exit code 4
      ResultError        a result directory is missing or unreadable, exit code 4

Broken rules are never exceptions: they are `mmu.report.Report` values.
"""

from __future__ import annotations

from attrs import frozen


class StressError(Exception):
    """Root of the tree; its text says what happened and what to do."""


@frozen
class Problem:
    """One thing that is wrong in a configuration: where, what, and what would be right."""

    where: str
    key: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.key}: {self.found}; expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text


class ConfigError(StressError):
    """Everything that is wrong with a configuration, at once."""

    def __init__(self, problems: list[Problem]) -> None:
        count = len(problems)
        head = (
            "1 problem in the configuration"
            if count == 1
            else f"{count} problems in the configuration"
        )
        super().__init__("\n".join([head + ":", *(f"  {problem}" for problem in problems)]))
        self.problems = problems


class VariantError(StressError):
    """A variant file that cannot be loaded or holds no variant."""


class ResultError(StressError):
    """A result directory that cannot be read."""
