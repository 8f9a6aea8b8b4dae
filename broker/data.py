"""Data classes like those of the standard library, made in a tenth of the time.

The standard library writes and compiles six functions for each class while a module is imported; for the two hundred
classes of a broker that was a fifth of its start. Here a constructor is written when the first object is made, and the
other functions are not written at all: they differ only in the names of the fields. Each annotation is a field. The
constructor of a frozen class sets its fields by their slots, which takes two fifths of the time.

`field` is the standard library's, and its `fields`, `replace` and `asdict` work on these classes: the fields are
its own.

What must not live here: anything that knows the broker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, field
from operator import attrgetter
from typing import Any, Literal, TypeVar, cast, dataclass_transform

__all__ = ["dataclass", "field"]

T = TypeVar("T")


@dataclasses.dataclass(init=False, repr=False, eq=False)
class _Pattern:
    """What the library's own functions look for in a class, and in a field of it."""

    field: int


_FIELDS = "__dataclass_fields__"
_KIND: Any = vars(_Pattern)[_FIELDS]["field"]._field_type  # noqa: SLF001 – by which the library knows its own
_WITHOUT_SLOTS = ("__dict__", "__weakref__")

_OWN = object()  # stands for an argument whose default is a new value for each object


@dataclass_transform(field_specifiers=(field,))
def dataclass(*, frozen: bool = False, eq: bool = True, slots: Literal[True]) -> Callable[[type[T]], type[T]]:  # noqa: ARG001 – all have slots; it is said where they are made
    """A data class with slots. frozen: a field is set once. eq: equal by its fields, and when frozen with a hash."""

    def made(plain: type[T]) -> type[T]:
        own = {name: _field_of(plain, name, written) for name, written in plain.__annotations__.items()}
        inherited = {name: one for base in plain.__mro__[:0:-1] for name, one in base.__dict__.get(_FIELDS, {}).items()}
        every = {**inherited, **own}
        body = {name: value for name, value in plain.__dict__.items() if name not in own and name not in _WITHOUT_SLOTS}
        body |= {"__slots__": tuple(name for name in own if name not in inherited), _FIELDS: every}
        body["__match_args__"] = tuple(name for name, one in every.items() if one.init)
        cls: Any = type(plain)(plain.__name__, plain.__bases__, body)
        cls.__qualname__ = plain.__qualname__
        added: dict[str, Any] = {"__init__": _constructor(cls, frozen), "__repr__": _repr(cls)}
        if eq:
            compared = attrgetter("__class__", *(one.name for one in dataclasses.fields(cls) if one.compare))
            added |= {"__eq__": _equal(compared), "__hash__": _hash(compared) if frozen else None}
        if frozen:
            added |= {"__setattr__": _refuse, "__delattr__": _refuse}
        for name, function in added.items():
            if name not in plain.__dict__:
                setattr(cls, name, function)
        return cls

    return made


def _field_of(plain: type, name: str, written: Any) -> Any:
    given: Any = plain.__dict__.get(name, MISSING)
    if type(given).__hash__ is None:
        raise ValueError(f"{plain.__qualname__}.{name}: a default that can be changed would be one for all objects")
    one: Any = cast("Any", given if isinstance(given, dataclasses.Field) else field(default=given))
    one.name, one.type, one._field_type = name, written, _KIND  # noqa: SLF001 – as above
    return one


def _constructor(cls: Any, frozen: bool) -> Callable[..., None]:
    def __init__(self: Any, *given: Any, **named: Any) -> None:  # noqa: N807 – its name in messages
        cls.__init__ = _written(cls, frozen)
        cls.__init__(self, *given, **named)

    return __init__


def _written(cls: Any, frozen: bool) -> Callable[..., None]:
    scope: dict[str, Any] = {"_own": _OWN}
    parameters, lines = ["self"], ["pass"]
    for one in dataclasses.fields(cls):
        name = value = one.name
        if one.default is not MISSING:
            scope[f"_default_{name}"] = one.default
            parameter, own = f"{name}=_default_{name}", f"_default_{name}"
        elif one.default_factory is not MISSING:
            scope[f"_factory_{name}"] = one.default_factory
            own = f"_factory_{name}()"
            parameter, value = f"{name}=_own", f"{own} if {name} is _own else {name}"
        else:
            parameter, own = name, ""
        if one.init:
            parameters.append(parameter)
        elif own:
            value = own
        else:
            continue
        if frozen:
            scope[f"_set_{name}"] = getattr(cls, name).__set__
            lines.append(f"_set_{name}(self, {value})")
        else:
            lines.append(f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines), scope)  # noqa: S102 – of names alone
    function = scope["__init__"]
    function.__qualname__ = f"{cls.__qualname__}.__init__"
    return function


def _repr(cls: Any) -> Callable[[Any], str]:
    shown = [one.name for one in dataclasses.fields(cls) if one.repr]

    def __repr__(self: Any) -> str:  # noqa: N807
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    return __repr__


def _equal(compared: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        return compared(self) == compared(other) if type(other) is type(self) else NotImplemented

    return __eq__


def _hash(compared: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], int]:
    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(compared(self))

    return __hash__


def _refuse(_self: Any, name: str, *_value: Any) -> None:
    raise FrozenInstanceError(f"field {name!r} is set once")
