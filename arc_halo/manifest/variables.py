"""Variables in the values of a manifest: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`.

They come from the environment and are public. `$${` stands for a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arc_halo.manifest.report import shown

MARK = "${"
"""A text without this holds no variable."""

_ESCAPE = "$${"
_TOKEN = re.compile(r"\$\$\{|\$\{(?P<body>[^{}]*)\}|\$\{")
_BODY = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<operator>[-?])(?P<rest>.*))?", re.DOTALL
)
_FORMS = "write ${NAME}, ${NAME:-default} or ${NAME:?message}; $${ stands for a plain ${"


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableProblem:
    """A reference that has no value, or that is none; `reference` is its text in the file."""

    reference: str
    message: str
    hint: str


class NotedVariables(Mapping[str, str]):
    """Variables that remember which of them were asked for: `used` has their values, None for
    one that has none."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.used: dict[str, str | None] = {}

    def __getitem__(self, name: str) -> str:
        # Noted values serve again: a manifest asks for few variables, and often.
        value = self.used[name] if name in self.used else self._noted(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._env)

    def __len__(self) -> int:
        return len(self._env)

    def _noted(self, name: str) -> str | None:
        value = self.used[name] = self._env.get(name)
        return value


def expand(text: str, env: Mapping[str, str]) -> tuple[str, list[VariableProblem]]:
    """Return `text` with its variables replaced, and a problem for each that could not be.

    As in a shell, `:-` and `:?` take an empty variable for an unset one.
    """
    problems: list[VariableProblem] = []

    def replace(match: re.Match[str]) -> str:
        value = _value(match, env)
        if isinstance(value, str):
            return value
        problems.append(value)
        return match[0]

    return _TOKEN.sub(replace, text), problems


def variables_in(text: str) -> dict[str, bool]:
    """Return the names of the variables in `text`, and whether each has a default there."""
    bodies = (match["body"] for match in _TOKEN.finditer(text))
    found = (_BODY.fullmatch(body) for body in bodies if body is not None)
    return {match["name"]: match["operator"] == "-" for match in found if match is not None}


def escape(text: str) -> str:
    """Return the text that expands to `text` itself."""
    return text.replace(MARK, _ESCAPE)


def is_one_variable(text: str) -> bool:
    """Say whether `text` is one reference and nothing else."""
    match = _TOKEN.fullmatch(text)
    return match is not None and match["body"] is not None


def _value(match: re.Match[str], env: Mapping[str, str]) -> str | VariableProblem:
    if match[0] == _ESCAPE:
        return MARK
    body = _BODY.fullmatch(match["body"] or "")
    if body is None:
        return VariableProblem(
            reference=match[0], message=f"{shown(match[0])} is not a variable", hint=_FORMS
        )
    name, operator, rest = body.group("name", "operator", "rest")
    value = env.get(name)
    if value or (value is not None and operator is None):
        return _text(match[0], name, value)
    return rest if operator == "-" else _unset(match[0], name, rest)


def _text(reference: str, name: str, value: str) -> str | VariableProblem:
    try:
        value.encode()
    except UnicodeEncodeError:
        return VariableProblem(
            reference=reference,
            message=f"the variable {name} is not UTF-8 text",
            hint=f"set {name} to text",
        )
    return value


def _unset(reference: str, name: str, message: str | None) -> VariableProblem:
    return VariableProblem(
        reference=reference,
        message=f"the variable {shown(name)} has no value" + (f": {message}" if message else ""),
        hint=f"set {name}, or give a default: ${{{name}:-default}}",
    )
