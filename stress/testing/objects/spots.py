"""What an instruction is about to do to objects: spots, which are an object, a part of it, and
whether that is read or written."""

from __future__ import annotations

import functools
import gc
import sys
from collections import deque
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Final, NamedTuple

from stress.testing.plain.names import SITE, is_stdlib
from stress.testing.plain.session import HARNESS, is_harness

READ: Final = "read"
WRITE: Final = "write"
INSERT: Final = "insert"
"""A write that also changes what keys there are."""
READ_ALL: Final = "read all"
WRITE_ALL: Final = "write all"

CONTAINERS: Final = (list, dict, set, deque, bytearray)


class Spot(NamedTuple):
    """One access. `space` says what kind of part `key` names: an attribute, a variable or an
    item."""

    space: str
    thing: Any
    key: Any
    mode: str


ATTRIBUTE: Final = "attribute"
VARIABLE: Final = "variable"
ITEM: Final = "item"

_READERS: Final = frozenset(
    {
        *("index", "count", "copy", "get", "keys", "values", "items", "union", "intersection"),
        *("difference", "issubset", "issuperset", "isdisjoint", "symmetric_difference"),
        *("most_common", "elements", "total", "find", "startswith", "endswith", "decode", "hex"),
        *("__len__", "__contains__", "__iter__", "__eq__", "__ne__", "__repr__", "__reversed__"),
        *("__sizeof__", "join"),
    }
)
"""Methods of containers that only read."""
_KEYED: Final = {
    "__getitem__": READ,
    "__setitem__": INSERT,
    "__delitem__": INSERT,
    "get": READ,
    "pop": INSERT,
    "setdefault": INSERT,
    "add": INSERT,
    "discard": INSERT,
    "remove": INSERT,
    "__contains__": READ,
}
"""Methods of dictionaries and sets whose first argument is the only key that they touch."""
_READING_CALLS: Final = frozenset(
    {
        *(len, sorted, sum, min, max, any, all, iter, print, repr, id, hash, next, format, ascii),
        *(list, tuple, set, frozenset, dict, str, bool, enumerate, zip, map, filter, reversed),
        *(isinstance, issubclass, callable, type, deque, bytes, range, vars, dir),
    }
)
"""Functions and types that read their arguments."""
_ITERATORS: Final[frozenset[type]] = frozenset(
    {
        type(iter([])),
        type(reversed([])),
        type(iter({})),
        type(iter({}.values())),
        type(iter({}.items())),
        type(iter(set())),
        type(iter(deque())),
    }
)


def attribute(thing: Any, name: str, mode: str) -> Iterator[Spot]:
    """An attribute of an object; if that has none of the name, also its class's."""
    if isinstance(thing, ModuleType):
        yield Spot(VARIABLE, vars(thing), name, mode)
        return
    own = _own_attributes(thing)
    if own is None and not isinstance(thing, type):
        return
    yield Spot(ATTRIBUTE, thing, name, mode)
    if mode != READ or (own is not None and name in own):
        return
    for kind in (thing if isinstance(thing, type) else type(thing)).__mro__:
        if name in vars(kind):
            if kind is not thing and kind is not object:
                yield Spot(ATTRIBUTE, kind, name, READ)
            return


def _own_attributes(thing: Any) -> Any:
    """What attributes an object has of its own; None if it cannot have any."""
    try:
        own = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return () if hasattr(type(thing), "__slots__") else None
    return own


def item(container: Any, key: Any, mode: str) -> Iterator[Spot]:
    """An item of a container by key or index."""
    if isinstance(container, dict):
        missing = _is_missing(container, key)
        if missing and mode == READ and hasattr(type(container), "__missing__"):
            mode = INSERT
        yield Spot(ITEM, container, key, INSERT if mode == WRITE and missing else mode)
    elif isinstance(container, list | bytearray) and isinstance(key, int):
        yield Spot(ITEM, container, key if key >= 0 else key + len(container), mode)
    elif isinstance(container, CONTAINERS):
        yield Spot(ITEM, container, None, READ_ALL if mode == READ else WRITE_ALL)


def _is_missing(container: dict[Any, Any], key: Any) -> bool:
    try:
        return not dict.__contains__(container, key)
    except TypeError:  # not hashable: the instruction will say so
        return False


def whole(thing: Any, mode: str = READ_ALL) -> Iterator[Spot]:
    """All of a container."""
    if isinstance(thing, CONTAINERS):
        yield Spot(ITEM, thing, None, mode)


def iterated(iterator: Any) -> Iterator[Spot]:
    """The container behind an iterator."""
    if type(iterator) in _ITERATORS:
        for thing in gc.get_referents(iterator):
            yield from whole(thing)


def contained(container: Any, key: Any) -> Iterator[Spot]:
    """`key in container`."""
    if isinstance(container, dict | set):
        yield Spot(ITEM, container, key, READ)
    else:
        yield from whole(container)


def called(function: Any, arguments: list[Any]) -> Iterator[Spot]:
    """What a call does itself: the code of functions under test speaks for itself."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None and is_under_test(code):
        return
    owner, name = _method(function, arguments)
    if owner is not None:
        yield from _method_call(owner, name, arguments)
    elif function in (getattr, hasattr, setattr, delattr):
        if len(arguments) > 1 and isinstance(arguments[1], str):
            mode = READ if function in (getattr, hasattr) else WRITE
            yield from attribute(arguments[0], arguments[1], mode)
        return
    mode = READ_ALL if owner is not None or _only_reads(function) else WRITE_ALL
    for argument in arguments:
        if argument is not owner:
            yield from whole(argument, mode)
            yield from iterated(argument)


def _only_reads(function: Any) -> bool:
    try:
        return function in _READING_CALLS or isinstance(function, type)
    except TypeError:  # not hashable
        return False


def _method(function: Any, arguments: list[Any]) -> tuple[Any, str]:
    """The container whose method is called, and the method's name; None if it is none."""
    if isinstance(function, BuiltinMethodType | BuiltinFunctionType | MethodType):
        owner = function.__self__
    elif type(function) is _METHOD_DESCRIPTOR and arguments:
        owner = arguments[0]
    else:
        return None, ""
    return (owner, function.__name__) if isinstance(owner, CONTAINERS) else (None, "")


_METHOD_DESCRIPTOR: Final = type(list.append)


def _method_call(owner: Any, name: str, arguments: list[Any]) -> Iterator[Spot]:
    own = arguments[1:] if arguments and arguments[0] is owner else arguments
    if isinstance(owner, dict | set) and name in _KEYED and own:
        mode = _KEYED[name]
        missing = isinstance(owner, dict) and _is_missing(owner, own[0])
        if name in ("pop", "discard", "remove", "setdefault") and isinstance(owner, dict):
            mode = INSERT if missing is (name == "setdefault") else READ
        yield Spot(ITEM, owner, own[0], mode)
    elif name in _READERS:
        yield Spot(ITEM, owner, None, READ_ALL)
    else:
        yield Spot(ITEM, owner, None, WRITE_ALL)


# Whose code and whose objects they are, and how they are shown.


def is_under_test(code: CodeType) -> bool:
    """Whether code is the user's: neither of the harness nor of the standard library nor of an
    installed package."""
    name = code.co_filename
    return not (is_harness(code) or is_stdlib(name) or name.startswith(SITE))


def is_nameable(thing: Any) -> bool:
    """Whether an object can be changed, so that it has to be known by a name."""
    return isinstance(thing, (*CONTAINERS, CellType)) or is_owned_by_user(thing)


def is_owned_by_user(thing: Any) -> bool:
    """Whether what happens to an object is the program's own: to an instance or a class of the
    code under test, a container or a cell. Objects of the standard library look after
    themselves."""
    if isinstance(thing, (*CONTAINERS, CellType, SimpleNamespace)):
        return True
    if isinstance(thing, FunctionType):
        return not thing.__code__.co_filename.startswith(HARNESS)
    return _is_user_class(thing if isinstance(thing, type) else type(thing))


@functools.lru_cache(4096)
def _is_user_class(kind: type) -> bool:
    name = kind.__module__
    if name == "builtins" or name.partition(".")[0] in ("mmu", "stress"):
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or not is_stdlib(file)


def label_of(thing: Any, stored_as: str, spot: Spot | None) -> str:
    """What people call an object: its class, or the variable that it was stored in."""
    if isinstance(thing, type | FunctionType):
        return thing.__name__
    if isinstance(thing, CellType):
        return str(spot.key) if spot is not None else stored_as
    if isinstance(thing, CONTAINERS):
        return stored_as or type(thing).__name__
    return type(thing).__name__


def part_label(label: str, spot: Spot) -> str:
    """What people call a part of an object called `label`."""
    if spot.space == VARIABLE:
        return str(spot.key)
    if spot.space == ATTRIBUTE:
        return f"{label}.{spot.key}"
    return label if spot.key is None else f"{label}[{spot.key!r}]"


_MISSING: Final = object()


def value_of(spot: Spot) -> Any:
    """The value that a spot has now; `NOTHING` if it has none."""
    thing, key = spot.thing, spot.key
    if spot.space == ATTRIBUTE:
        return attribute_value(thing, key)
    if key is None:
        return thing
    try:
        if isinstance(thing, CellType):
            return thing.cell_contents
        return key in thing if isinstance(thing, set) else thing[key]
    except (LookupError, TypeError, ValueError):
        return NOTHING


def attribute_value(thing: Any, name: str) -> Any:
    """An attribute, without running code of its class."""
    own = _own_attributes(thing)
    if isinstance(own, dict) and name in own:
        return own[name]
    for kind in (thing if isinstance(thing, type) else type(thing)).__mro__:
        found = vars(kind).get(name, _MISSING)
        if type(found) is _SLOT:
            try:
                return found.__get__(thing)
            except AttributeError:
                return NOTHING
        if found is not _MISSING:
            return found
    return NOTHING


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()
"""The value of what is not there."""


class _Slotted:
    __slots__ = ("slot",)


_SLOT: Final = type(vars(_Slotted)["slot"])


def value_text(spot: Spot) -> str:
    """The value that a spot has now, for a line of a report."""
    return short(value_of(spot))


def short(value: Any) -> str:
    """A value in few characters, without running code of its class."""
    if isinstance(value, int | str | bytes | bool | float | type(None) | _Nothing):
        text = repr(value)
    elif type(value) in CONTAINERS or type(value) is tuple:
        inside = ", ".join(short(item) for item in list(value)[:4])
        more = ", ..." if len(value) > 4 else ""
        text = f"{type(value).__name__}({inside}{more})"
    elif isinstance(value, type | FunctionType):
        text = value.__name__
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."
