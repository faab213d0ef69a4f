"""How annotations are checked in tests: by jaxtyping where one has a shape, elsewhere by beartype alone."""

import functools
import inspect
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError

by_jaxtyping = jaxtyping.jaxtyped
by_beartype = beartype(conf=BeartypeConf(violation_type=TypeCheckError))  # jaxtyping's error, which is a TypeError
known: dict[object, tuple[FunctionType, Callable[..., Any]]] = {}


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """Stand in for `jaxtyping.jaxtyped`, which took half of the suite's time.

    That binds arguments and keeps a memory of sizes for every function, which takes longer than most of these run; and
    it makes the check of a function inside another anew each time the outer one is called.
    """
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if not isinstance(function, FunctionType) or inspect.isgeneratorfunction(function):  # which beartype runs late
        return by_jaxtyping(function, typechecker=typechecker)
    key = function.__module__, function.__code__, *function.__annotations__.items()
    if key not in known:
        twin = annotated(function)
        if any(map(has_shape, twin.__annotations__.values())):
            return by_jaxtyping(function, typechecker=typechecker)
        known[key] = twin, by_beartype(twin)
    twin, check = known[key]
    if check is twin:  # nothing to check
        return function
    given = check.__kwdefaults__ or {}
    assert any(value is twin for value in given.values())  # where beartype's check finds what it calls
    names = {name: function if value is twin else value for name, value in given.items()}
    bound = FunctionType(check.__code__, check.__globals__)
    bound.__kwdefaults__ = names
    return functools.update_wrapper(bound, function)


def annotated(function: FunctionType) -> FunctionType:
    """Return a twin with annotations for strings, and with nothing of what this function holds."""
    held = tuple(CellType() for _ in function.__closure__ or ())
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, held)
    twin.__kwdefaults__, twin.__module__ = function.__kwdefaults__, function.__module__
    twin.__qualname__ = function.__qualname__
    twin.__annotations__ = {name: resolved(hint, twin) for name, hint in function.__annotations__.items()}
    return twin


def resolved(hint: object, function: FunctionType) -> object:
    """Return what a hint stands for, or Any where it names a class that is not made yet, as jaxtyping does."""

    def bearer() -> None: ...

    bearer.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(bearer, function.__globals__, include_extras=True)["hint"]
    except NameError:
        return Any


def has_shape(hint: object) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(has_shape, hint))
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(has_shape, get_args(hint)))
