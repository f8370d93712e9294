"""What the tests of explored programs share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from stress.testing import Explored, ScheduleFailed, Settings, explore

EVERYTHING = Settings(exhaustive=True)


def proved(program: Callable[..., Any], **options: Any) -> Explored:
    """The result of exploring every schedule of a program that is right."""
    explored = explore(program, Settings(exhaustive=True, **options))
    assert explored.exhausted
    return explored


def failure_of(program: Callable[..., Any], **options: Any) -> str:
    """The message about a program that is wrong."""
    with pytest.raises(ScheduleFailed) as caught:
        explore(program, Settings(exhaustive=True, **options))
    return str(caught.value)


def together(*functions: Callable[[], object]) -> None:
    """Run each function in a thread of its own and wait for all."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
