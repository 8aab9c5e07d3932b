"""The runner `recorded`: answers that were made before, from a file."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

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

    Rows have an `id`, or go by their number. Of scores the name says what they are: one of
    `probabilities`, `logits`, `scores` and `vectors`. Beside or in place of these there may be
    `labels`, `texts`, `rankings`, `confidence` and `costs`; in .jsonl they are `label`, `text` and
    so on, and `classes` may be a line of its own. Raises `MemberError` for a file that says
    anything else.
    """
    path = context.find_file(predictions)
    try:
        columns = _read_npz(path) if path.suffix == ".npz" else _read_jsonl(path)
        recorded = Recorded(path, columns, classes)
    except OutputError as exc:
        raise MemberError(f"{predictions}: {exc.message}") from exc
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as exc:
        raise MemberError(f"{predictions}: these are no recorded answers: {exc}") from exc
    yield recorded


class Recorded:
    """Rows of answers, found by an input's `id`, or by its number."""

    def __init__(self, path: Path, columns: dict[str, Any], classes: Sequence[Any] | None) -> None:
        self._path = path
        self._outputs = _outputs(columns, classes)
        ids = columns.get("ids")
        self._rows: dict[Hashable, int] | None = (
            None if ids is None else {_key(each): row for row, each in enumerate(ids)}
        )

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        return self._outputs.take([self._row(each) for each in inputs])

    def _row(self, given: Any) -> int:
        name = given.get("id", given.get("input")) if isinstance(given, dict) else given
        if self._rows is not None:
            row = self._rows.get(_key(name))
        else:
            row = name if isinstance(name, int) and not isinstance(name, bool) else None
        if row is not None and not 0 <= row < len(self._outputs):
            row = None
        if row is None:
            raise MemberError(f"{self._path.name} has no answer to the input {name!r}")
        return row


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


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


PLURALS = {
    "id": "ids", "label": "labels", "text": "texts", "ranking": "rankings", "cost": "costs",
}  # fmt: skip


def _read_jsonl(path: Path) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    head: dict[str, Any] = {}
    count = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row: dict[str, Any] = json.loads(line)
            if set(row) == {"classes"} and not count:
                head = row
                continue
            for name, value in row.items():
                columns.setdefault(PLURALS.get(name, name), []).append(value)
            count += 1
            if uneven := [name for name, values in columns.items() if len(values) != count]:
                raise ValueError(f"line {number}: {uneven[0]!r} is in some rows, and not in others")
    return {**head, **columns}
