"""What a program can reach that was there before its exploration: locks, which get stand-ins, and
names that were bound to what is replaced.

The search begins at the program and follows functions, their globals, closures and defaults,
classes, instances and containers. It goes into modules of the user's, not into the standard
library or, but for their functions' names and defaults, into installed packages.
"""

from __future__ import annotations

import functools
import itertools
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from stress.testing.plain.checked import CHECKED
from stress.testing.plain.locks import LOCK_TYPE, RLOCK_TYPE, stand_in
from stress.testing.plain.names import SITE, is_stdlib
from stress.testing.plain.queues import REAL_SIMPLE, PlainSimpleQueue
from stress.testing.plain.session import HARNESS

MOST: Final = 50_000
"""How many objects are looked at."""
MOST_ITEMS: Final = 1_000
"""How many items of one container are looked at."""
_NAMED: Final = (
    threading.Event,
    threading.Condition,
    threading.Semaphore,
    queue.Queue,
    PlainSimpleQueue,
)
OWN: Final = ("mmu.", "stress.", "pytest.", "_pytest.", "pluggy.", "hypothesis.")
"""Packages whose objects are under control already, or never: a test's runner leads to all of its
tests."""
LIBRARIES: Final = ("readerwriterlock.rwlock",)
"""Installed modules that are looked through in any case."""
_LEAVES: Final = (str, bytes, bytearray, int, float, complex, type(None), threading.Thread)
_SLOT_TYPES: Final = (type(FunctionType.__code__), type(FunctionType.__globals__))


class Before:
    """The search, its findings, and what it has changed.

    `paths` has the names of objects by id, `by_name` what stands
    in for functions and types. `put_back` undoes every change.
    """

    def __init__(self, by_name: dict[int, tuple[Any, Any]]) -> None:
        self.paths: dict[int, str] = {}
        self.locals: list[Any] = []
        """Objects whose contents belong to a thread."""
        self.checked: list[Any] = []
        """Locks of `mmu.sync`."""
        self._by_name = by_name
        self._stand_ins: dict[int, tuple[Any, Any]] = {}
        self._seen: dict[int, object] = {}
        self._todo: deque[tuple[str, Any]] = deque()
        self._undo: list[Callable[[], object]] = []

    def search(self, program: Callable[..., object]) -> None:
        """Look through everything that `program` can reach."""
        self._todo.append((getattr(program, "__name__", "program"), program))
        self._todo += [(name, sys.modules[name]) for name in LIBRARIES if name in sys.modules]
        while self._todo and len(self._seen) < MOST:
            path, thing = self._todo.popleft()
            if id(thing) not in self._seen and not isinstance(thing, _LEAVES):
                self._seen[id(thing)] = thing
                self.paths.setdefault(id(thing), path)
                self._look_into(path, thing)

    def put_back(self) -> None:
        """Undo every change, last first."""
        while self._undo:
            self._undo.pop()()

    def _look_into(self, path: str, thing: Any) -> None:
        if isinstance(thing, FunctionType):
            self._function(path, thing)
        elif isinstance(thing, ModuleType):
            self._module(thing)
        elif isinstance(thing, type):
            self._class(path, thing)
        elif isinstance(thing, dict):
            self._items(path, thing, list(thing.items()))
        elif isinstance(thing, list):
            self._items(path, thing, list(enumerate(thing)))
        else:
            parts = list(_parts_of(thing))
            self._todo += [(f"{path}[{number}]", item) for number, item in enumerate(parts)]
            if not parts:
                self._instance(path, thing)

    def _function(self, path: str, function: FunctionType) -> None:
        name = function.__code__.co_filename
        if name.startswith(HARNESS) or is_stdlib(name):
            return
        self._defaults(path, function)
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=False
        ):
            self._seen[id(cell)] = cell
            self.paths[id(cell)] = f"{path}.{variable}"
            self._cell(f"{path}.{variable}", cell)
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            self._todo.append((path, wrapped))
        if not name.startswith(SITE):
            module = str(function.__globals__.get("__name__", "module"))
            self._todo.append((f"{module}:", function.__globals__))

    def _defaults(self, path: str, function: FunctionType) -> None:
        for name in ("__defaults__", "__kwdefaults__"):
            values = getattr(function, name)
            if not values:
                continue
            pairs = values.items() if isinstance(values, dict) else enumerate(values)
            new = {key: self._instead(f"{path}.{key}", value) for key, value in pairs}
            if any(each is not None for each in new.values()):
                mixed = {
                    key: value if new[key] is None else new[key]
                    for key, value in (
                        values.items() if isinstance(values, dict) else enumerate(values)
                    )
                }
                changed = mixed if isinstance(values, dict) else tuple(mixed.values())
                setattr(function, name, changed)
                self._undo.append(functools.partial(setattr, function, name, values))

    def _cell(self, path: str, cell: CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:
            return
        self._slot(path, value, functools.partial(setattr, cell, "cell_contents"))

    def _module(self, module: ModuleType) -> None:
        file = getattr(module, "__file__", None) or "<frozen "
        if file.startswith(HARNESS) or is_stdlib(file) or f"{module.__name__}.".startswith(OWN):
            return
        if not file.startswith(SITE):
            self._todo.append((f"{module.__name__}:", vars(module)))
            return
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == module.__name__ and isinstance(
                value, type | FunctionType
            ):
                self._todo.append((f"{module.__name__}:{name}", value))
            elif not isinstance(value, ModuleType):
                self._replace(f"{module.__name__}:{name}", vars(module), name, value)

    def _class(self, path: str, kind: type) -> None:
        module = str(kind.__module__)
        if module == "builtins" or f"{module}.".startswith(OWN):
            return
        for function in vars(kind).values():
            if isinstance(function, FunctionType) and is_stdlib(function.__code__.co_filename):
                return
        for name, value in list(vars(kind).items()):
            if not isinstance(value, _SLOT_TYPES):
                self._slot(f"{path}.{name}", value, functools.partial(setattr, kind, name))
        self._todo += [(base.__qualname__, base) for base in kind.__bases__]

    def _instance(self, path: str, thing: Any) -> None:
        if isinstance(thing, _NAMED):
            self.paths[id(thing)] = path
        if isinstance(thing, threading.local):
            self.locals.append(thing)
            return
        if isinstance(thing, CHECKED):
            self.checked.append(thing)
            return
        if f"{type(thing).__module__}.".startswith(OWN):
            return
        self._todo.append((path, type(thing)))
        contents = getattr(thing, "__dict__", None)
        if isinstance(contents, dict):
            self._items(path, contents, list(contents.items()), dotted=True)
        for name, value in _slots_of(thing):
            self._slot(f"{path}.{name}", value, functools.partial(setattr, thing, name))

    def _items(
        self, path: str, container: Any, items: list[tuple[Any, Any]], *, dotted: bool = False
    ) -> None:
        for key, value in items[:MOST_ITEMS]:
            if isinstance(value, _LEAVES):
                continue
            if path.endswith(":"):
                where = f"{path}{key}"
            else:
                where = f"{path}.{key}" if dotted else f"{path}[{key!r:.40}]"
            self._replace(where, container, key, value)

    def _replace(self, path: str, container: Any, key: Any, value: Any) -> None:
        self._slot(path, value, functools.partial(container.__setitem__, key))

    def _slot(self, path: str, value: Any, put: Callable[[Any], object]) -> None:
        """Look at one place that holds `value`, and replace that there if need be."""
        new = self._instead(path, value)
        if new is None:
            self._todo.append((path, value))
            return
        try:
            put(new)
        except (AttributeError, TypeError):
            return  # it cannot be replaced: a task that blocks there will be named
        self._undo.append(functools.partial(put, value))

    def _instead(self, path: str, value: Any) -> Any:
        """What stands in for `value`; None for what stays."""
        known = self._by_name.get(id(value)) or self._stand_ins.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, LOCK_TYPE | RLOCK_TYPE):
            new: Any = stand_in(value, path)
        elif isinstance(value, REAL_SIMPLE):
            new = PlainSimpleQueue(value)
            self.paths[id(new)] = path
        elif isinstance(value, BuiltinMethodType) and isinstance(
            value.__self__, LOCK_TYPE | RLOCK_TYPE
        ):
            owner = self._instead(path, value.__self__)
            return getattr(owner, value.__name__, None)
        else:
            return None
        self._stand_ins[id(value)] = (value, new)
        return new


def _parts_of(thing: Any) -> Iterator[Any]:
    """What is in something whose parts cannot be replaced one by one."""
    if isinstance(thing, tuple | set | frozenset | deque):
        yield from itertools.islice(thing, MOST_ITEMS)
    elif isinstance(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, property):
        yield from (thing.fget, thing.fset)
    elif isinstance(thing, staticmethod | classmethod):
        yield thing.__func__


def _slots_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of an instance's slots."""
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(thing, name):
                yield name, getattr(thing, name)
