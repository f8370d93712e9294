"""Puts back what tasks change in objects that were there before the exploration, so that every
schedule starts from the same. What only one task touches stays: there a test may keep notes."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from types import CellType
from typing import Any

from stress.testing.objects import spots
from stress.testing.objects.spots import ATTRIBUTE, ITEM, NOTHING, Spot
from stress.testing.plain.session import PlainSession


class Undo:
    """What has to be put back when a session is over."""

    def __init__(self, session: PlainSession, is_shared: Callable[[str], bool]) -> None:
        self._session = session
        self._is_shared = is_shared
        self._kept: set[int] = set()
        self._parts: dict[tuple[int, Any], set[str]] = {}
        """What was touched of everything that was changed."""

    def keep(self, thing: Any) -> None:
        """An object was there before."""
        self._kept.add(id(thing))

    def before(self, spot: Spot, parts: Iterable[str]) -> None:
        """Something is about to happen to `parts` of a spot's object."""
        if id(spot.thing) not in self._kept:
            return
        key = (id(spot.thing), None if spot.space == ITEM else spot.key)
        known = self._parts.get(key)
        if known is None:
            if spot.mode in (spots.READ, spots.READ_ALL):
                return
            known = self._parts[key] = set()
            self._session.at_end(functools.partial(self._put_back, known, _restoring(spot)))
        known.update(parts)

    def _put_back(self, parts: set[str], restore: Callable[[], object]) -> None:
        if any(map(self._is_shared, parts)):
            restore()


def _restoring(spot: Spot) -> Callable[[], object]:
    thing, key = spot.thing, spot.key
    if spot.space == ITEM:
        return _restoring_items(thing)
    if spot.space == ATTRIBUTE:
        return functools.partial(_set_attribute, thing, key, _own(thing, key))
    if isinstance(thing, CellType):
        return functools.partial(_set_cell, thing, spots.value_of(spot))
    return functools.partial(_set_variable, thing, key, thing.get(key, NOTHING))


def _set_attribute(thing: Any, name: str, value: Any) -> None:
    if value is not NOTHING:
        setattr(thing, name, value)
    elif _own(thing, name) is not NOTHING:
        delattr(thing, name)


def _set_cell(cell: CellType, value: Any) -> None:
    if value is not NOTHING:
        cell.cell_contents = value


def _set_variable(variables: dict[str, Any], name: str, value: Any) -> None:
    if value is NOTHING:
        variables.pop(name, None)
    else:
        variables[name] = value


def _own(thing: Any, name: str) -> Any:
    """The value of an attribute that is the object's own and not its class's."""
    own = vars(thing) if hasattr(thing, "__dict__") else {}
    if name in own:
        return own[name]
    if isinstance(thing, type):
        return NOTHING
    found = spots.attribute_value(thing, name)
    has_slot = any(name in vars(kind).get("__slots__", ()) for kind in type(thing).__mro__)
    return found if has_slot else NOTHING


def _restoring_items(thing: Any) -> Callable[[], object]:
    items = thing.copy()
    if isinstance(thing, list | bytearray):
        return lambda: thing.__setitem__(slice(None), items)

    def restore() -> None:
        thing.clear()
        if isinstance(thing, deque):
            thing.extend(items)
        else:
            thing.update(items)

    return restore
