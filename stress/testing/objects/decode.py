"""What each instruction of a function touches, and which objects it passes on.

An instruction is looked at right before it is carried out: its operands are on the stack.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FrameType
from typing import Any, Final

from attrs import frozen

from stress.testing.objects import spots
from stress.testing.objects.frames import Operands, depths
from stress.testing.objects.spots import INSERT, READ, VARIABLE, WRITE, WRITE_ALL, Spot

Touch = Callable[[FrameType, Operands], Iterator[Spot]]
"""What an instruction is about to touch."""
Pass = Callable[[FrameType, Operands], Iterator[Any]]
"""The objects that an instruction stores or hands over."""

_IN_PLACE: Final = 13
"""BINARY_OP's first operation that may change its left operand."""
_NEW_CALLS: Final = sys.version_info >= (3, 13)


@frozen
class Instruction:
    """One that matters: the values that lie below its operands, what it touches, what it passes
    on and by which name, its line."""

    depth: int
    touches: Touch | None
    passes: Pass | None
    name: str
    line: int
    is_call: bool


def decoded(code: CodeType) -> dict[int, Instruction]:
    """The instructions of `code` that matter, by offset."""
    found: dict[int, Instruction] = {}
    depth_at = depths(code)
    line = code.co_firstlineno
    for each in dis.get_instructions(code):
        line = each.positions.lineno if each.positions and each.positions.lineno else line
        depth = depth_at.get(each.offset)
        if depth is None:
            continue
        touches = _touch_of(each)
        passes = _pass_of(each)
        if touches is not None or passes is not None:
            name = each.argval if isinstance(each.argval, str) else ""
            found[each.offset] = Instruction(
                depth, touches, passes, name, line, each.opname in _CALLS
            )
    return found


def _touch_of(each: dis.Instruction) -> Touch | None:
    make = _TOUCHES.get(each.opname)
    if make is not None:
        return make(each)
    if each.opname.startswith(_TESTS):
        return lambda _, operands: spots.whole(operands[-1])
    return None


def _pass_of(each: dis.Instruction) -> Pass | None:
    if each.opname in _PASS_TOP:
        return lambda _, operands: iter((operands[-1],))
    if each.opname == "STORE_ATTR":
        return lambda _, operands: iter((operands[-1], operands[-2]))
    if each.opname in ("STORE_SUBSCR", "MAP_ADD"):
        return lambda _, operands: iter(operands[index] for index in (-1, -2, -3))
    if each.opname in _PASS_COUNTED:
        count = (each.arg or 0) * (2 if each.opname == "BUILD_MAP" else 1)
        return lambda _, operands: iter([operands[-number] for number in range(1, count + 1)])
    if each.opname in _CALLS:
        return _passes_call(each)
    return None


# Variables and attributes.


def _global(mode: str) -> Callable[[dis.Instruction], Touch]:
    def make(each: dis.Instruction) -> Touch:
        name = each.argval

        def touches(frame: FrameType, _: Operands) -> Iterator[Spot]:
            if mode != READ or name in frame.f_globals:
                yield Spot(VARIABLE, frame.f_globals, name, mode)

        return touches

    return make


def _deref(mode: str) -> Callable[[dis.Instruction], Touch]:
    def make(each: dis.Instruction) -> Touch:
        index, name = each.arg or 0, each.argval

        def touches(frame: FrameType, _: Operands) -> Iterator[Spot]:
            cell = Operands(frame, index + 1)[-1]
            if isinstance(cell, CellType):
                yield Spot(VARIABLE, cell, name, mode)

        return touches

    return make


def _attribute(mode: str) -> Callable[[dis.Instruction], Touch]:
    def make(each: dis.Instruction) -> Touch:
        name = each.argval
        return lambda _, operands: spots.attribute(operands[-1], name, mode)

    return make


# Items.


def _subscript(mode: str) -> Callable[[dis.Instruction], Touch]:
    return lambda _: lambda _, operands: spots.item(operands[-2], operands[-1], mode)


def _slice(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    return lambda _, operands: spots.whole(operands[-3])


def _store_slice(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    def touches(_: FrameType, operands: Operands) -> Iterator[Spot]:
        yield from spots.whole(operands[-3], WRITE_ALL)
        yield from spots.whole(operands[-4])

    return touches


def _contains(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    return lambda _, operands: spots.contained(operands[-1], operands[-2])


def _compare(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    def touches(_: FrameType, operands: Operands) -> Iterator[Spot]:
        yield from spots.whole(operands[-1])
        yield from spots.whole(operands[-2])

    return touches


def _top(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    def touches(_: FrameType, operands: Operands) -> Iterator[Spot]:
        yield from spots.whole(operands[-1])
        yield from spots.iterated(operands[-1])

    return touches


def _next(each: dis.Instruction) -> Touch:  # noqa: ARG001 - all makers are called alike
    return lambda _, operands: spots.iterated(operands[-1])


def _formatted(each: dis.Instruction) -> Touch:
    place = -2 if each.opname == "FORMAT_VALUE" and (each.arg or 0) & 4 else -1
    return lambda _, operands: spots.whole(operands[place])


def _binary(each: dis.Instruction) -> Touch:
    mode = WRITE_ALL if (each.arg or 0) >= _IN_PLACE else spots.READ_ALL

    def touches(_: FrameType, operands: Operands) -> Iterator[Spot]:
        left, right = operands[-2], operands[-1]
        yield from spots.whole(left, mode)
        if right is not left:
            yield from spots.whole(right)

    return touches


# Calls.


def _arguments(each: dis.Instruction, operands: Operands) -> tuple[Any, list[Any]]:
    """The function that is called and its arguments, the first of them `self` where there is
    one."""
    if each.opname == "CALL_FUNCTION_EX":
        return _spread_arguments(each, operands)
    top = 1 if each.opname == "CALL_KW" else 0
    count = each.arg or 0
    arguments = [operands[-top - number] for number in range(count, 0, -1)]
    first, second = -top - count - 2, -top - count - 1
    if _NEW_CALLS:
        if not operands.is_null(second):
            arguments.insert(0, operands[second])
        return operands[first], arguments
    if operands.is_null(first):
        return operands[second], arguments
    arguments.insert(0, operands[second])
    return operands[first], arguments


def _spread_arguments(each: dis.Instruction, operands: Operands) -> tuple[Any, list[Any]]:
    named = (each.arg or 0) & 1
    values = operands[-1 - named]
    function = operands[-3 - named] if _NEW_CALLS else operands[-2 - named]
    arguments = list(values) if isinstance(values, tuple | list) else [values]
    more = operands[-1] if named else None
    return function, arguments + (list(more.values()) if isinstance(more, dict) else [])


def _call(each: dis.Instruction) -> Touch:
    def touches(_: FrameType, operands: Operands) -> Iterator[Spot]:
        yield from spots.called(*_arguments(each, operands))

    return touches


def _passes_call(each: dis.Instruction) -> Pass:
    def passes(_: FrameType, operands: Operands) -> Iterator[Any]:
        for value in _arguments(each, operands)[1]:
            yield value
            if isinstance(value, tuple):
                yield from value

    return passes


_CALLS: Final = ("CALL", "CALL_KW", "CALL_FUNCTION_EX")
_TESTS: Final = ("POP_JUMP_", "JUMP_IF_", "TO_BOOL", "UNARY_NOT")
"""How instructions begin that ask whether a container is empty."""
_PASS_TOP: Final = frozenset(
    {
        *("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF", "RETURN_VALUE"),
        *("LIST_APPEND", "SET_ADD", "STORE_FAST_LOAD_FAST"),
    }
)
_PASS_COUNTED: Final = frozenset({"BUILD_LIST", "BUILD_TUPLE", "BUILD_SET", "BUILD_MAP"})
_TOUCHES: Final[dict[str, Callable[[dis.Instruction], Touch]]] = {
    "LOAD_GLOBAL": _global(READ),
    "LOAD_NAME": _global(READ),
    "STORE_GLOBAL": _global(WRITE),
    "DELETE_GLOBAL": _global(INSERT),
    "LOAD_DEREF": _deref(READ),
    "LOAD_CLASSDEREF": _deref(READ),
    "LOAD_FROM_DICT_OR_DEREF": _deref(READ),
    "STORE_DEREF": _deref(WRITE),
    "DELETE_DEREF": _deref(WRITE),
    "LOAD_ATTR": _attribute(READ),
    "LOAD_METHOD": _attribute(READ),
    "STORE_ATTR": _attribute(WRITE),
    "DELETE_ATTR": _attribute(WRITE),
    "BINARY_SUBSCR": _subscript(READ),
    "STORE_SUBSCR": _subscript(WRITE),
    "DELETE_SUBSCR": _subscript(INSERT),
    "BINARY_SLICE": _slice,
    "STORE_SLICE": _store_slice,
    "CONTAINS_OP": _contains,
    "COMPARE_OP": _compare,
    "FOR_ITER": _next,
    "UNPACK_SEQUENCE": _top,
    "UNPACK_EX": _top,
    "LIST_EXTEND": _top,
    "SET_UPDATE": _top,
    "DICT_UPDATE": _top,
    "DICT_MERGE": _top,
    "BINARY_OP": _binary,
    "FORMAT_VALUE": _formatted,
    "FORMAT_SIMPLE": _formatted,
    "CONVERT_VALUE": _formatted,
    **dict.fromkeys(_CALLS, _call),
}
