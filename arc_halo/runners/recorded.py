"""The runner `recorded`: answers that were made before, from a file."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, is_zipfile

from arc_halo.errors import MemberError, OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import Meaning, Outputs
from arc_halo.types import JsonObject, ModelRunner, RunnerContext

if TYPE_CHECKING:
    import numpy as np

MEANINGS: tuple[Meaning, ...] = ("probabilities", "logits", "scores", "vectors")

PARAMS: JsonObject = {
    "type": "object",
    "additionalProperties": False,
    "required": ["predictions"],
    "properties": {
        "predictions": {
            "type": "string",
            "minLength": 1,
            "description": "A file in the project's directory, .npz or .jsonl, of a row an input.",
        },
        "classes": {
            "type": ["array", "null"],
            "items": {"type": ["string", "number", "boolean"]},
            "default": None,
            "description": "What the columns of scores stand for, where the file does not say.",
        },
    },
}


@hookimpl
def arc_halo_runners() -> Iterator[ModelRunner]:
    yield ModelRunner(
        name="recorded",
        version=1,
        summary="answers from a file, .npz or .jsonl",
        open=open_recorded,
        params_schema=PARAMS,
    )


@contextmanager
def open_recorded(
    context: RunnerContext, *, predictions: str, classes: Sequence[Any] | None = None
) -> Iterator[Recorded]:
    """The answers of the file, in memory.

    Rows have an `id`, or go by their number from 0. Of scores the name says what they are: one of
    `probabilities`, `logits`, `scores` and `vectors`. Beside or in place of these there may be
    `labels`, `texts`, `rankings`, `confidence` and `costs`; an .npz has an array of each, a .jsonl
    one of each a line. Names may be in the singular, too. `classes` is an array, or a first line
    of its own. Raises `MemberError` for a file that says anything else, or an id twice.
    """
    path = context.find_file(predictions)
    try:
        columns, places = _read(path)
        recorded = Recorded(path, columns, classes, places)
    except OutputError as exc:
        raise MemberError(f"{predictions}: {exc.message}") from exc
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as exc:
        raise MemberError(f"{predictions}: these are no recorded answers: {exc}") from exc
    yield recorded


class Recorded:
    """Rows of answers, found by an input's `id`, or by its number; `places` name them."""

    def __init__(
        self,
        path: Path,
        columns: dict[str, Any],
        classes: Sequence[Any] | None,
        places: Sequence[str] | None,
    ) -> None:
        self._path = path
        self._outputs = _outputs(columns, classes)
        ids = columns.get("ids")
        self._rows = None if ids is None else _rows_by_id(ids, len(self._outputs), places)

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        return self._outputs.take([self._row(each) for each in inputs])

    def _row(self, given: Any) -> int:
        name = _name(given)
        if self._rows is not None:
            row = self._rows.get(_key(name))
        else:
            row = name if isinstance(name, int) and not isinstance(name, bool) else None
        if row is not None and not 0 <= row < len(self._outputs):
            row = None
        if row is None:
            raise MemberError(f"{self._path.name} has no answer to the input {name!r}")
        return row


def _name(given: Any) -> Any:
    """The id of an input, or of the one that a question about another member's answer is about."""
    while isinstance(given, dict):
        if "id" in given:
            return given["id"]
        given = given.get("input")
    return given


def _rows_by_id(
    ids: Sequence[Any], count: int, places: Sequence[str] | None
) -> dict[Hashable, int]:
    """Of each id its row. Raises `ValueError` for one that is there twice."""
    if len(ids) != count:
        raise ValueError(f"{len(ids)} ids for {count} answers")
    found: dict[Hashable, int] = {}
    for row, each in enumerate(ids):
        before = found.setdefault(_key(each), row)
        if before != row:
            one, other = (places[r] if places else f"row {r}" for r in (before, row))
            raise ValueError(f"{other}: the id {_key(each)} is that of {one}, too")
    return found


def _outputs(columns: dict[str, Any], classes: Sequence[Any] | None) -> Outputs:
    import numpy as np

    known = {*MEANINGS, "labels", "texts", "rankings", "confidence", "costs", "classes", "ids"}
    if unknown := sorted(columns.keys() - known):
        raise ValueError(f"unknown {unknown[0]!r}; known are {', '.join(sorted(known))}")
    meanings: list[Meaning] = [each for each in MEANINGS if each in columns]
    if len(meanings) > 1:
        raise ValueError(f"both {meanings[0]} and {meanings[1]}")
    named = columns.get("classes", classes)

    def numbers(name: str) -> np.ndarray[Any, Any] | None:
        return np.asarray(columns[name], np.float64) if name in columns else None

    def values(name: str) -> tuple[Any, ...] | None:
        return tuple(_plain(each) for each in columns[name]) if name in columns else None

    found = Outputs(
        scores=numbers(meanings[0]) if meanings else None,
        meaning=meanings[0] if meanings else "probabilities",
        classes=None if named is None else tuple(_plain(each) for each in named),
        labels=values("labels"),
        texts=values("texts"),
        rankings=values("rankings"),
        confidence=numbers("confidence"),
        costs=numbers("costs"),
    )
    found.check(len(found))
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: numpy's own numbers and texts are not, and lists cannot be compared."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


def _key(value: Any) -> Hashable:
    return json.dumps(_plain(value))


def _read(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """The columns of the file, and what each row is called, where it is not by its number."""
    if path.suffix == ".npz":
        return _read_npz(path), None
    if path.suffix == ".npy":
        raise ValueError(
            "an .npy holds an array, and not what it is; write it by name, as in "
            "np.savez('answers.npz', probabilities=array, classes=['no', 'yes'])"
        )
    return _read_jsonl(path)


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    if not is_zipfile(path):
        raise ValueError("this is no .npz file; np.savez writes one")
    with np.load(path, allow_pickle=False) as archive:
        return _in_plural({name: archive[name] for name in archive.files})


PLURALS = {
    "id": "ids", "label": "labels", "text": "texts", "ranking": "rankings", "cost": "costs",
}  # fmt: skip


def _in_plural(named: dict[str, Any]) -> dict[str, Any]:
    found = {PLURALS.get(name, name): value for name, value in named.items()}
    if len(found) != len(named):
        twice = next(name for name in named if PLURALS.get(name) in named)
        raise ValueError(f"both {twice!r} and {PLURALS[twice]!r}")
    return found


def _read_jsonl(path: Path) -> tuple[dict[str, Any], list[str]]:
    columns: dict[str, list[Any]] = {}
    head: dict[str, Any] = {}
    places: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _json_row(number, line)
            if set(row) == {"classes"} and not places:
                head = row
                continue
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
            places.append(f"line {number}")
            count = len(places)
            if uneven := [name for name, values in columns.items() if len(values) != count]:
                raise ValueError(f"line {number}: {uneven[0]!r} is in some rows, and not in others")
    return {**head, **columns}, places


def _json_row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise ValueError(f"line {number} is no JSON: {exc}") from exc
    if not isinstance(row, dict):
        raise TypeError(f'line {number} is no object, such as {{"id": 7, "label": "cat"}}')
    try:
        return _in_plural(row)
    except ValueError as exc:
        raise ValueError(f"line {number}: {exc}") from exc
