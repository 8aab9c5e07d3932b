"""What a plugin's module has to keep: what is named as a hook is one, and is marked as one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from arc_halo import hookspecs
from arc_halo.errors import PluginError
from arc_halo.names import did_you_mean

PREFIX = hookspecs.PROJECT_NAME + "_"
MARK = hookspecs.PROJECT_NAME + "_impl"
"""The attribute that `@hookimpl` leaves on a function."""

LISTED = "`arc-halo plugins --hooks` lists the hooks"
MARKED = "`from arc_halo import hookimpl`, and write `@hookimpl` above it"

Function = Callable[..., Any]


def check_module(module: ModuleType, provider: str, *, file: bool) -> None:
    """Raise `PluginError` for the first rule that a plugin breaks; of a `file`, with the line.

    The manager would pass over a function without the mark in silence, a policy among them.
    """
    found = list(_meant_as_hooks(module, file=file))
    for name, function in found:
        _check(name, function, f"{provider}{_line(function) if file else ''}")
    if file and not found:
        raise PluginError(
            f"{provider}: this implements no hook, so listing it does nothing",
            hint=f"{LISTED}; take it out of `plugins:` if it is no plugin",
        )


@cache
def hooks() -> Mapping[str, tuple[str, ...]]:
    """The arguments of each hook, by its name."""
    return {
        name: tuple(inspect.signature(spec).parameters)
        for name, spec in vars(hookspecs).items()
        if name.startswith(PREFIX)
    }


def _meant_as_hooks(module: ModuleType, *, file: bool) -> Iterator[tuple[str, Function]]:
    """What carries the mark, and what is called as a hook is, in a `file` almost so too.

    Of distributions only functions of the module itself: they may call the rest as they like.
    """
    for name, value in vars(module).items():
        is_own = inspect.isfunction(value) and value.__module__ == module.__name__
        is_exact = name in hooks() and (is_own or (file and not isinstance(value, type)))
        is_close = file and is_own and name.startswith(PREFIX) and _guess(name) is not None
        if is_exact or is_close or _mark(value) is not None:
            yield name, value


def _check(name: str, function: Function, place: str) -> None:
    mark = _mark(function)
    if mark is not None and mark.get("specname"):
        name = mark["specname"]
    if name not in hooks():
        if mark is not None and mark.get("optionalhook"):
            return
        raise PluginError(f"{place}: {name} is no hook", hint=_meant(name, mark is not None))
    if mark is None:
        raise PluginError(
            f"{place}: {name} is without `@hookimpl`, so that it would never be called",
            hint=MARKED,
        )
    if mark.get("wrapper") or mark.get("hookwrapper"):
        raise PluginError(f"{place}: {name} may not be wrapped", hint="write a plain `@hookimpl`")
    _check_arguments(name, function, place)


def _check_arguments(name: str, function: Function, place: str) -> None:
    unknown = [each for each in _wanted(function) if each not in hooks()[name]]
    if unknown:
        given = ", ".join(hooks()[name])
        raise PluginError(
            f"{place}: {name} asks for {', '.join(map(repr, unknown))}, which it is not given",
            hint=f"write `def {name}({given})`" + (", or fewer of them" if given else ""),
        )


def _wanted(function: Function) -> list[str]:
    """The parameters that have to be given; hooks are called by position, so `*, plan` is none
    that could be."""
    told = {"KEYWORD_ONLY": "*, {}"}
    return [
        told.get(each.kind.name, "{}").format(each.name)
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]


def _meant(name: str, is_marked: bool) -> str:
    guess = _guess(name)
    marked = None if is_marked else f"a hook also needs the mark: {MARKED}"
    return "; ".join(part for part in (guess, LISTED, marked) if part)


def _guess(name: str) -> str | None:
    return did_you_mean(name, hooks())


def _mark(value: object) -> Mapping[str, Any] | None:
    mark = getattr(value, MARK, None) if inspect.isroutine(value) else None
    return mark if isinstance(mark, dict) else None


def _line(function: Function) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f":{code.co_firstlineno}" if code is not None else ""
