"""The values that a Python frame is working on: its stack of operands and its cells.

CPython shows neither. Both lie in the interpreter's own record of a frame, behind a pointer in the
frame object, at offsets that have been the same from 3.11 to 3.13. `unsupported()` tries that out
before anything relies on it. A thread reads its own frames only.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final

_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_INTERPRETER_FRAME: Final = object.__basicsize__ + _POINTER
"""Where a frame object points to the interpreter's frame: after its head and `f_back`."""
_LOCALS: Final = 8 * _POINTER + 8
"""Where the interpreter's frame has its local variables: after eight pointers and 8 bytes."""
_SUPPORTED: Final = ((3, 11), (3, 12), (3, 13))

_object_at = ctypes.py_object.from_address
_address_at = ctypes.c_void_p.from_address


class Operands:
    """The operand stack of a frame about to execute an instruction at which `depth` values are on
    it."""

    __slots__ = ("_top",)

    def __init__(self, frame: FrameType, depth: int) -> None:
        base = _address_at(id(frame) + _INTERPRETER_FRAME).value or 0
        self._top = base + _LOCALS + _POINTER * depth

    def __getitem__(self, index: int) -> Any:
        """The value at `index`, which is negative: -1 is the top. None if there is none."""
        try:
            return _object_at(self._top + _POINTER * index).value
        except ValueError:  # NULL, which calls have where there is no `self`
            return None

    def is_null(self, index: int) -> bool:
        """Whether there is no value at `index`."""
        return not _address_at(self._top + _POINTER * index).value


def depths(code: CodeType) -> dict[int, int]:
    """How many local variables and operands a frame of `code` holds before each instruction, by the
    instruction's offset; instructions that cannot be reached are left out."""
    found: dict[int, int] = {}
    instructions = list(dis.get_instructions(code))
    where = {each.offset: number for number, each in enumerate(instructions)}
    start = local_count(code)
    todo = [(0, start)]
    # a handler finds the exception on the stack, and the offset where it was raised if asked
    todo += [
        (where[entry.target], start + entry.depth + 1 + entry.lasti)
        for entry in dis._parse_exception_table(code)  # type: ignore[attr-defined]
    ]
    while todo:
        number, depth = todo.pop()
        while number < len(instructions):
            each = instructions[number]
            if each.offset in found:
                break
            found[each.offset] = depth
            if each.opcode in _JUMPS:
                todo.append((where[each.argval], depth + _effect(each, jump=True)))
            if each.opname in _NEVER_FALL_THROUGH:
                break
            depth += _effect(each, jump=False)
            number += 1
    return found


def _effect(instruction: dis.Instruction, *, jump: bool) -> int:
    """By how many the values on the stack grow."""
    own = _EFFECTS.get(instruction.opname)
    if own is not None:
        return own(instruction.arg or 0)
    has_argument = instruction.opcode >= dis.HAVE_ARGUMENT
    oparg = instruction.arg if has_argument else None
    return dis.stack_effect(instruction.opcode, oparg, jump=jump)


_EFFECTS: Final[dict[str, Callable[[int], int]]] = {}
"""Where `dis.stack_effect` says something else than what happens."""
if sys.version_info < (3, 13):
    _EFFECTS["RETURN_GENERATOR"] = lambda _: 1  # what is sent to the generator, None at first
if sys.version_info < (3, 12):
    _EFFECTS["PRECALL"] = lambda _: 0
    _EFFECTS["CALL"] = lambda count: -count - 1
_JUMPS: Final = frozenset({*dis.hasjrel, *dis.hasjabs, *getattr(dis, "hasjump", ())})
_NEVER_FALL_THROUGH: Final = frozenset(
    {
        "RETURN_VALUE",
        "RETURN_CONST",
        "RAISE_VARARGS",
        "RERAISE",
        "JUMP_FORWARD",
        "JUMP_BACKWARD",
        "JUMP_BACKWARD_NO_INTERRUPT",
        "INTERPRETER_EXIT",
    }
)


def local_count(code: CodeType) -> int:
    """How many local variables, cells and free variables a frame of `code` has room for."""
    own = len([name for name in code.co_cellvars if name not in code.co_varnames])
    return len(code.co_varnames) + own + len(code.co_freevars)


@functools.cache
def unsupported() -> str | None:
    """Why frames cannot be read here; None if they can."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _SUPPORTED:
        return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
    frame, first, second = _probe(object(), object())
    base = _address_at(id(frame) + _INTERPRETER_FRAME).value or 0
    here = [_address_at(base + _LOCALS + _POINTER * number).value for number in range(2)]
    if here != [id(first), id(second)]:
        return f"a build of Python whose frames are laid out otherwise ({sys.version})"
    return None


def _probe(first: object, second: object) -> tuple[FrameType, object, object]:
    return sys._getframe(), first, second
