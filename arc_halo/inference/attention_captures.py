"""Captured attention by the ids and labels of its captures: listed, read, deleted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Never
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.inference.checking import check_count, check_limit
from arc_halo.inference.patterns import Shape, unpack
from arc_halo.names import id_digits, is_storable, root_digits
from arc_halo.plain import check_texts, whole
from arc_halo.store import attention_reading as store_of
from arc_halo.store.attention_reading import CaptureRow, HeadRow
from arc_halo.store.rows import Connection, Pool
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One head of a capture. Its pattern is read when it is asked for.

    For each query, `entropy` is in nats, `sink_mass` what the first key gets, and `peak` the most
    that one key gets: all as computed, before the pattern was cast.
    """

    layer: int
    head: int
    shape: Shape
    entropy: Floats
    sink_mass: Floats
    peak: Floats
    _pool: Pool = field(repr=False)
    _capture_id: UUID = field(repr=False)

    def matrix(self) -> NDArray[Any]:
        """All of it, [queries, keys], in the dtype it was kept in."""
        with self._pool.connection() as conn:
            found = store_of.packed(conn, self._capture_id, self.layer, self.head)
        return unpack(_there(found, self._capture_id), self.shape)

    def row(self, query: int) -> NDArray[Any]:
        """What one query gives to each key, zeros where it sees none; only that row is read."""
        count, place = self.shape.query_count, whole(query)
        if place is None or not -count <= place < count:
            raise InvalidInputError(
                f"there are {count} queries, none at {query!r}",
                hint="they count from 0, or from the end with -1 for the last",
                code="AH007",
            )
        first, length = self.shape.row(place % count)
        width = dtypes.get_dtype(self.shape.dtype).item_bytes
        with self._pool.connection() as conn:
            found = store_of.piece(
                conn,
                self._capture_id,
                self.layer,
                self.head,
                start=first * width,
                size=length * width,
            )
        row = np.zeros(self.shape.key_count, dtypes.numpy_dtype(self.shape.dtype))
        row[:length] = dtypes.view(_there(found, self._capture_id), self.shape.dtype, [length])
        return row

    def minus(self, other: Head) -> NDArray[np.float64]:
        """What each query gives to each key more than in another head, below 0 where it is less.

        Raises `InvalidInputError` for patterns of another shape.
        """
        if not isinstance(other, Head):
            raise InvalidInputError(
                f"a {type(other).__name__} is no head", hint="write other.head(LAYER, HEAD)"
            )
        shapes = [(each.shape.query_count, each.shape.key_count) for each in (self, other)]
        if shapes[0] != shapes[1]:
            raise InvalidInputError(
                f"{shapes[0][0]} queries and {shapes[0][1]} keys cannot be compared with "
                f"{shapes[1][0]} and {shapes[1][1]}",
                hint="compare captures of as many tokens",
            )
        return self.matrix().astype(np.float64) - other.matrix().astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A capture: its facts, and its heads in a few numbers each."""

    about: CaptureRow
    heads: Sequence[HeadRow]
    _pool: Pool = field(repr=False)

    @property
    def tokens(self) -> list[str]:
        """The tokens' texts, or their ids, or their places: whatever is known."""
        if self.about.token_texts is not None:
            return list(self.about.token_texts)
        return [str(token) for token in self.about.token_ids or range(self.about.token_count)]

    def layer(self, layer: int) -> list[Head]:
        """All heads of a layer. Raises `NotFoundError`."""
        check_count("layer", layer, least=0)
        numbers = [each.head_index for each in self.heads if each.layer_index == layer]
        if not numbers:
            raise NotFoundError(
                f"the capture {self.about.id} has no layer {layer}",
                hint=f"it has {_told(self.heads)}",
            )
        return [self.head(layer, number) for number in numbers]

    def head(self, layer: int, head: int) -> Head:
        """One head. Raises `NotFoundError`."""
        check_count("layer", layer, least=0)
        check_count("head", head, least=0)
        with self._pool.connection() as conn:
            row = store_of.queries(conn, self.about.id, layer, head)
        if row is None:
            raise NotFoundError(
                f"the capture {self.about.id} has no head {head} of layer {layer}",
                hint=f"it has {_told(self.heads)}",
            )
        return Head(
            layer=layer,
            head=head,
            shape=Shape(
                query_count=row.query_count,
                key_count=row.key_count,
                is_causal=row.is_causal,
                dtype=row.dtype,
            ),
            entropy=np.array(row.entropy, np.float32),
            sink_mass=np.array(row.sink_mass, np.float32),
            peak=np.array(row.peak, np.float32),
            _pool=self._pool,
            _capture_id=self.about.id,
        )


def read(pool: Pool, capture: str | UUID) -> Attention:
    """A capture by its id, the beginning of that (6 digits or more), or its label.

    Of several with a label it is the newest. It is used by that: others go before it. Raises
    `NotFoundError`, and `InvalidInputError` for what means several captures otherwise.
    """
    with pool.connection() as conn:
        id = find(conn, capture)[0]
        store_of.use(conn, id)
        about = store_of.captures(conn, id=id)
        if not about:
            raise _gone(id)
        return Attention(about=about[0], heads=store_of.heads(conn, id), _pool=pool)


def listed(
    conn: Connection,
    *,
    label: str | None = None,
    model: str | None = None,
    limit: int | None = None,
) -> list[CaptureRow]:
    """Captures, the newest first. `model` is a registered name, name@version, or the beginning of
    a root of weights in hex, 6 digits or more."""
    check_texts(label=label, model=model)
    check_limit(limit)
    digits = root_digits(model or "")
    return store_of.captures(conn, label=label, model=model, digits=digits, limit=limit)


def delete(
    conn: Connection,
    captures: Iterable[str | UUID] = (),
    *,
    label: str | None = None,
    dry_run: bool = False,
) -> list[CaptureRow]:
    """Delete captures, all or none; what they were, or with `dry_run` are.

    They are named as for `read`, but a label of several is refused; `label` means all of them.
    """
    with conn.transaction():
        found = [_only(conn, each) for each in captures]
        if label is not None:
            found += listed(conn, label=label) or _none(label)
        found = list({each.id: each for each in found}.values())
        if not dry_run:
            store_of.delete(conn, [each.id for each in found])
    return found


def find(conn: Connection, capture: str | UUID) -> list[UUID]:
    """What is meant: one capture by its id, or all of a label, the newest first."""
    text = str(capture)
    digits = id_digits(text)
    rows = store_of.named(conn, text, digits) if is_storable(text) else []
    if exact := [each.id for each in rows if each.id.hex == digits]:
        return exact
    begun = [each.id for each in rows if each.is_begun and not each.is_called]
    called = [each.id for each in rows if each.is_called]
    if len(begun) > 1 or (begun and called):
        what = "is a label and begins an id" if called else "begins several ids"
        raise InvalidInputError(
            f"{text!r} {what}: {_ids([*called, *begun])}",
            hint="give the id of the one that is meant",
            code="AH006",
        )
    return begun or called or _none(text)


def _only(conn: Connection, capture: str | UUID) -> CaptureRow:
    ids = find(conn, capture)
    if len(ids) > 1:
        raise InvalidInputError(
            f"{str(capture)!r} is the label of several captures: {_ids(ids)}",
            hint="give the id of the one that is meant, or `--label` for all of them",
            code="AH006",
        )
    found = store_of.captures(conn, id=ids[0])
    if not found:
        raise _gone(ids[0])
    return found[0]


def _ids(ids: Sequence[UUID]) -> str:
    return ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")


def _none(text: str) -> Never:
    raise NotFoundError(
        f"there is no attention capture {text!r}", hint="`arc-halo attention ls` lists them"
    )


def _gone(capture_id: UUID) -> NotFoundError:
    return NotFoundError(f"there is no attention capture {str(capture_id)!r} any more")


def _there(found: bytes | None, capture_id: UUID) -> bytes:
    if found is None:
        raise _gone(capture_id)
    return found


def _told(heads: Sequence[HeadRow]) -> str:
    layers = sorted({each.layer_index for each in heads})
    count = len({each.head_index for each in heads})
    numbers = ", ".join(map(str, layers[:12])) + (", …" if layers[12:] else "")
    return f"{count} heads in each of the layers {numbers}"
