"""How the instructions of the code under test come to be looked at: by `sys.monitoring` from Python
3.12 on, by `sys.settrace` before that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CodeType, FrameType
from typing import Any, Final, Protocol

LookAt = Callable[[FrameType], None]
"""Called before an instruction of a frame is carried out, in the thread that does it."""
_TOOLS: Final = (4, 3)
"""Numbers of tools that are not meant for debuggers, coverage and profilers."""


class InstructionHooks(Protocol):
    """What calls `look_at` of code that is under test."""

    def want(self, look_at: LookAt | None) -> None:
        """From now on call this, or nothing."""
        ...

    def thread(self) -> AbstractContextManager[None]:
        """A block in which the calling thread is looked at."""
        ...

    def close(self) -> None:
        """Take everything away."""
        ...


class TracingHooks:
    """Hooks that trace the threads."""

    def __init__(self, is_wanted: Callable[[CodeType], bool]) -> None:
        self._is_wanted = is_wanted
        self._look_at: LookAt | None = None

    def want(self, look_at: LookAt | None) -> None:
        """From now on call this, or nothing, in threads that begin to be looked at."""
        self._look_at = look_at

    @contextmanager
    def thread(self) -> Iterator[None]:
        """A block in which the calling thread is looked at."""
        if self._look_at is None:
            yield
            return
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)

    def close(self) -> None:
        """Nothing is left."""
        self._look_at = None

    def _on_call(self, frame: FrameType, event: str, _: object) -> Any:
        if event != "call" or not self._is_wanted(frame.f_code):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._on_instruction

    def _on_instruction(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode" and self._look_at is not None:
            self._look_at(frame)
        return self._on_instruction


class MonitoringHooks:
    """The interpreter's own hooks, which cost nothing while nobody wants them."""

    def __init__(self, is_wanted: Callable[[CodeType], bool]) -> None:
        self._is_wanted = is_wanted
        self._look_at: LookAt | None = None
        self._codes: dict[int, CodeType] = {}
        self._monitoring: Any = getattr(sys, "monitoring")  # noqa: B009 - 3.11 has none
        self._tool = next(tool for tool in _TOOLS if self._monitoring.get_tool(tool) is None)
        events = self._monitoring.events
        self._start, self._instruction = events.PY_START, events.INSTRUCTION
        self._monitoring.use_tool_id(self._tool, "stress.testing")
        self._monitoring.register_callback(self._tool, self._start, self._on_start)
        self._monitoring.register_callback(self._tool, self._instruction, self._on_instruction)

    def want(self, look_at: LookAt | None) -> None:
        """From now on call this, or nothing."""
        before, self._look_at = self._look_at, look_at
        if (before is None) == (look_at is None):
            return
        on = look_at is not None
        self._monitoring.set_events(self._tool, self._start if on else 0)
        for code in self._codes.values():
            self._monitoring.set_local_events(self._tool, code, self._instruction if on else 0)

    def thread(self) -> AbstractContextManager[None]:
        """All threads are looked at."""
        return nullcontext()

    def close(self) -> None:
        """Take everything away."""
        self.want(None)
        self._codes.clear()
        self._monitoring.restart_events()
        self._monitoring.free_tool_id(self._tool)

    def _on_start(self, code: CodeType, _: int) -> object:
        if self._is_wanted(code) and id(code) not in self._codes:
            self._codes[id(code)] = code
            self._monitoring.set_local_events(self._tool, code, self._instruction)
        return self._monitoring.DISABLE

    def _on_instruction(self, code: CodeType, _: int) -> None:
        frame = sys._getframe(1)
        if self._look_at is not None and frame.f_code is code:
            self._look_at(frame)


def hooks(is_wanted: Callable[[CodeType], bool]) -> InstructionHooks:
    """The best that there are here: `is_wanted` says which code is looked at."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is not None and any(monitoring.get_tool(tool) is None for tool in _TOOLS):
        return MonitoringHooks(is_wanted)
    return TracingHooks(is_wanted)
