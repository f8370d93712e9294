"""The fast tier, `pytest -m fast`: every test of a module that uses nothing slow.

What counts is what a module has imported: a test that is moved or written anew is in the right tier
without being told.
"""

from __future__ import annotations

from types import ModuleType

import pytest

SLOW = (
    "hypothesis",  # a hundred examples each
    "subprocess",
    "stress.commands.command_line",
    "stress.engines",
    "stress.runs",
    "stress.search",
    "stress.selftest",
    "stress.testing",
    "tests.command",
    "tests.engine",
)
"""What draws examples, starts processes, runs scenarios or explores schedules."""


def is_slow(module: ModuleType) -> bool:
    """Whether the module has imported anything of `SLOW`, or from it."""
    return any(
        f"{name}.".startswith(f"{slow}.")
        for value in vars(module).values()
        for name in (_home_of(value),)
        for slow in SLOW
    )


def mark(items: list[pytest.Item]) -> None:
    """Put the tests of modules that are not slow into the fast tier."""
    modules: dict[str, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            name = item.module.__name__
            if name not in modules:
                modules[name] = is_slow(item.module)
            if not modules[name] and "pytester" not in item.fixturenames:
                item.add_marker(pytest.mark.fast)


def _home_of(value: object) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    return str(getattr(value, "__module__", None) or "")
