"""Captured activations by the ids of their captures: listed, read, told in figures, deleted.

A *capture* is all that one model gave for one input. Its id is of both, and the same again when
both are captured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, MissingChunkError, NotFoundError
from arc_halo.inference.checking import check_limit
from arc_halo.inference.selections import Selection
from arc_halo.names import ID_DIGITS, id_digits, root_digits
from arc_halo.plain import check_texts
from arc_halo.store import activations_reading as store_of
from arc_halo.store.activations import Entry, is_there
from arc_halo.store.activations_reading import CaptureRow, LayerRow
from arc_halo.store.rows import Connection
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 2**20
"""Numbers that are computed with at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of all numbers of an array; NaN where one of them is. `norm` is the Euclidean."""

    mean: float
    std: float
    min: float
    max: float
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedLayer:
    """What a part of a model gave, or some of it. The values are read when they are asked for."""

    name: str
    selection: Selection
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    hit_count: int
    _row: LayerRow = field(repr=False)
    _store: WeightStore = field(repr=False)

    def array(self) -> NDArray[Any]:
        """The values. Raises `NotFoundError` where they went in the meantime."""
        found = read_entry(self._store, self._row)
        if found is None:
            raise NotFoundError(f"what was captured of {self.name} is not there any more")
        return found

    def statistics(self) -> Statistics:
        """The values in a few numbers."""
        return statistics(self.array())


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCapture:
    """A capture: its facts, and its layers in the order they were captured."""

    about: CaptureRow
    layers: Sequence[CapturedLayer]


def read(store: WeightStore, capture: str | UUID) -> ActivationCapture:
    """A capture by its id, or the beginning of that (6 digits or more). It counts no hit.

    Raises `NotFoundError`, and `InvalidInputError` for the beginning of several ids.
    """
    with store.pool.connection() as conn:
        id = find(conn, capture)
        about = store_of.captures(conn, id=id)
        rows = store_of.layers(conn, id)
    if not about:
        raise _not_there(capture)
    return ActivationCapture(about=about[0], layers=[_layer(store, row) for row in rows])


def find(conn: Connection, capture: str | UUID) -> UUID:
    """The id of a capture, named as for `read`."""
    digits = id_digits(str(capture))
    found = store_of.named(conn, digits) if digits else []
    if not found:
        raise _not_there(capture)
    if len(found) > 1:
        listed = ", ".join(map(str, found[:10])) + (", …" if found[10:] else "")
        raise InvalidInputError(
            f"{str(capture)!r} begins several ids: {listed}",
            hint="give more of the id",
            code="AH006",
        )
    return found[0]


def listed(
    conn: Connection, *, model: str | None = None, limit: int | None = None
) -> list[CaptureRow]:
    """Captures, the newest first. `model` is a registered name, name@version, or the beginning of
    a root of weights in hex, 6 digits or more."""
    check_texts(model=model)
    check_limit(limit)
    digits = root_digits(model or "")
    return store_of.captures(conn, model=model, digits=digits, limit=limit)


def delete(
    conn: Connection, captures: Iterable[str | UUID], *, dry_run: bool = False
) -> list[CaptureRow]:
    """Delete captures, named as for `read`, all or none; what they were, or with `dry_run` are.

    Their tensors are left to collection.
    """
    with conn.transaction():
        ids = list(dict.fromkeys(find(conn, each) for each in captures))
        found = [row for id in ids for row in store_of.captures(conn, id=id)]
        if not dry_run:
            store_of.delete(conn, ids)
    return found


def read_entry(store: WeightStore, entry: Entry | LayerRow) -> NDArray[Any] | None:
    """The tensor of an entry; None where it was evicted and collected in the meantime."""
    try:
        return read_array(store, entry, entry.layer_name)
    except MissingChunkError:
        with store.pool.connection() as conn:
            if is_there(conn, entry.entry_id):
                raise
        return None


def statistics(array: NDArray[Any]) -> Statistics:
    """An array in a few numbers, computed in float64, a piece at a time."""
    if not array.size:
        return Statistics(mean=math.nan, std=math.nan, min=math.nan, max=math.nan, norm=0.0)
    with np.errstate(all="ignore"):
        mean = sum(float(piece.sum()) for piece in _pieces(array)) / array.size
        spread = sum(float(np.square(piece - mean).sum()) for piece in _pieces(array))
        return Statistics(
            mean=mean,
            std=math.sqrt(spread / array.size),
            min=float(np.min([piece.min() for piece in _pieces(array)])),
            max=float(np.max([piece.max() for piece in _pieces(array)])),
            norm=math.sqrt(sum(float(np.square(piece).sum()) for piece in _pieces(array))),
        )


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    flat = array.reshape(-1) if array.dtype.kind != "c" else abs(array.reshape(-1))
    for start in range(0, flat.size, PIECE):
        yield flat[start : start + PIECE].astype(np.float64)


def _layer(store: WeightStore, row: LayerRow) -> CapturedLayer:
    return CapturedLayer(
        name=row.layer_name,
        selection=Selection.from_json(row.selection),
        dtype=row.dtype,
        shape=tuple(row.shape),
        size_bytes=row.size_bytes,
        hit_count=row.hit_count,
        _row=row,
        _store=store,
    )


def _not_there(capture: str | UUID) -> NotFoundError:
    return NotFoundError(
        f"there is no capture of activations {str(capture)!r}",
        hint=f"give its id, or {ID_DIGITS} digits of it or more: `arc-halo activations ls`",
    )
