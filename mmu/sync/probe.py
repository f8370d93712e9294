"""How hooks are declared and dispatched, and the hooks of locks and RCU.

A hook is declared once, as a method under `@hook`. An instrument overrides the method to be called
when the event happens; a probe, which the code that emits the event holds, has an attribute of the
same name. It is None while no attached instrument overrides the method, so that a hook without a
listener costs one test. The type checker takes the arguments of both from the declaration. The idea
is trio's `Instrument`.

The hooks of the model are in `mmu.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import partial
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Never,
    ParamSpec,
    TypeVar,
    overload,
)

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "ErrorSink",
    "Listener",
    "SyncHooks",
    "SyncInstrument",
    "SyncProbe",
    "declared_in",
    "hook",
    "hooks_of",
    "override",
]

Listener = Callable[..., object]
ErrorSink = Callable[[str, BaseException], None]

if TYPE_CHECKING:
    from typing_extensions import override
else:  # `typing.override` needs Python 3.12, and does the same

    def override(method: T) -> T:
        """Mark a method that overrides a hook or another method of a base class."""
        method.__override__ = True
        return method


class hook(Generic[P]):  # noqa: N801 - a decorator, as `property` is
    """Declare a hook: a no-op method of an instrument, an optional callable of a probe."""

    def __init__(self, method: Callable[Concatenate[Any, P], None]) -> None:
        self.method = method

    @overload
    def __get__(
        self, instance: None, kind: type[object]
    ) -> Callable[Concatenate[Any, P], None]: ...
    @overload
    def __get__(self, instance: SyncInstrument, kind: type[object]) -> Callable[P, None]: ...
    @overload
    def __get__(self, instance: SyncProbe, kind: type[object]) -> Callable[P, None] | None: ...
    def __get__(self, instance: object, kind: type[object]) -> object:
        """The method, bound to `instance` unless it is None. A probe has a slot instead."""
        return self.method if instance is None else partial(self.method, instance)

    def __set__(self, instance: object, value: Never) -> None:
        raise AttributeError(f"{self.method.__name__} is a hook: override it in a class")


class SyncHooks:
    """What locks and RCU report."""

    __slots__ = ()

    @hook
    def mmu_write_locked(self) -> None:
        """The calling thread has just taken mmu_lock for write."""

    @hook
    def mmu_write_unlocking(self) -> None:
        """The calling thread is about to release mmu_lock, which it holds for write."""

    @hook
    def grace_period(self, ns: int, callbacks: int) -> None:
        """An RCU grace period has ended and its callbacks have run.

        `ns` is what both took together in nanoseconds, `callbacks` how many callbacks there were.
        """

    @hook
    def grace_period_waited(self, domain: str) -> None:
        """A reader that a grace period had to wait for has left.

        `domain` is "rcu", or the name of the SRCU domain.
        """


def declared_in(kind: type[SyncHooks]) -> tuple[str, ...]:
    """The names of the hooks that the body of a class declares."""
    return tuple(name for name, value in vars(kind).items() if isinstance(value, hook))


def hooks_of(kind: type[SyncHooks]) -> dict[str, Listener]:
    """The hooks that a class has, by name, each with the no-op method that declares it."""
    return {
        name: vars(base)[name].method
        for base in reversed(kind.__mro__)
        if issubclass(base, SyncHooks)
        for name in declared_in(base)
    }


class SyncInstrument(SyncHooks):
    """Base of what can be attached to a `SyncProbe`.

    A subclass overrides the hooks that it wants, each under `@override`. A method that is marked
    but overrides nothing, a hook that is not marked, and a public method whose name is nearly that
    of a hook are a `TypeError` when the class is made: none of them may pass for an event that
    never happens.
    """

    _overridden: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        hooks = hooks_of(cls)
        for name, value in vars(cls).items():
            mistake = _mistake(cls, name, value, hooks)
            if mistake:
                raise TypeError(f"{cls.__qualname__}.{name} {mistake}")
        cls._overridden = tuple(name for name in hooks if getattr(cls, name) is not hooks[name])

    def listeners(self) -> Mapping[str, Listener]:
        """What to call at which hook: the methods that override one."""
        return {name: getattr(self, name) for name in self._overridden}


class SyncProbe(SyncHooks):
    """Where events are emitted: one attribute a hook, None while no instrument wants it."""

    __slots__ = (*declared_in(SyncHooks), "_on_error", "_wanted")
    _hooks: ClassVar = hooks_of(SyncHooks)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._hooks = hooks_of(cls)

    def __init__(self, on_error: ErrorSink | None = None) -> None:
        """`on_error(hook, exception)` is called when an instrument raises; without it the exception
        propagates."""
        self._on_error = on_error
        self._wanted: dict[str, tuple[Listener, ...]] = {}
        for name in self._hooks:
            setattr(self, name, None)

    def attach(self, *instruments: SyncInstrument) -> None:
        """Connect the hooks that `instruments` override. Call it before threads run.

        Raises `TypeError` for an object that is not an instrument, or wants a hook that this probe
        does not have.
        """
        changed: dict[str, None] = {}
        for instrument in instruments:
            if not isinstance(instrument, SyncInstrument):
                raise TypeError(f"{instrument!r} is not an Instrument")
            for name, listener in instrument.listeners().items():
                if name not in self._hooks:
                    raise TypeError(f"{name} is not a hook of {type(self).__name__}")
                self._wanted[name] = (*self._wanted.get(name, ()), listener)
                changed[name] = None
        for name in changed:
            setattr(self, name, self._dispatcher(name, self._wanted[name]))

    def _dispatcher(self, name: str, listeners: tuple[Listener, ...]) -> Listener:
        if self._on_error is not None:
            return partial(_tell_guarded, self._on_error, name, listeners)
        return listeners[0] if len(listeners) == 1 else partial(_tell, listeners)


def _mistake(kind: type[SyncInstrument], name: str, value: object, hooks: Collection[str]) -> str:
    """What is wrong with an attribute in the body of an instrument; empty if nothing is."""
    marked = getattr(value, "__override__", False)
    if name in hooks:
        if not callable(value):
            return "has the name of a hook, but is not a method"
        return "" if marked else "overrides a hook: mark it with @override"
    if marked and any(hasattr(base, name) for base in kind.__bases__):
        return ""
    if not marked and (name.startswith("_") or not isinstance(value, FunctionType)):
        return ""
    meant = get_close_matches(name, hooks, n=1, cutoff=0.8)
    if meant:
        return f"is not a hook; did you mean {meant[0]}?"
    return "overrides nothing and is not a hook" if marked else ""


def _tell(listeners: tuple[Listener, ...], *args: object) -> None:
    for listener in listeners:
        listener(*args)


def _tell_guarded(
    on_error: ErrorSink, name: str, listeners: tuple[Listener, ...], *args: object
) -> None:
    try:
        for listener in listeners:
            listener(*args)
    except Exception as error:
        on_error(name, error)
