"""Attention of transformers models, captured a head a row, and read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.inference.capturing import SeenInput, Watch, check_watchable
from arc_halo.inference.inputs import IDS, input_digest
from arc_halo.inference.keeping import Keeping
from arc_halo.inference.patterns import Shape, assembled, pack, unpack
from arc_halo.inference.selections import check_dtype
from arc_halo.inference.token_texts import TokenTexts
from arc_halo.names import id_digits, is_storable
from arc_halo.plain import check_texts
from arc_halo.store import attention as store_of
from arc_halo.store.attention import CaptureRow, HeadRow, NewCapture, NewPattern
from arc_halo.store.rows import Connection, Pool
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

EAGER = 'call model.set_attn_implementation("eager"), or load it with attn_implementation="eager"'


class AttentionCapture:
    """Captures attention while it is in a `with`, and stores it when that ends.

    `ids` are then the captures: one for each sequence that went through the model.
    """

    def __init__(
        self,
        pool: Pool,
        module: Any,
        *,
        layers: Iterable[int] | None,
        heads: Iterable[int] | None,
        dtype: str,
        keeping: Keeping,
        token_texts: TokenTexts | None = None,
        label: str | None = None,
        session_id: UUID | None = None,
        root: Callable[[], bytes] | None = None,
    ) -> None:
        check_dtype(dtype)
        check_texts(label=label)
        check_watchable(module, variant="attention")
        _check_gives_attention(module)
        self.ids: list[UUID] = []
        self._pool, self._module = pool, module
        self._least_bytes = 0
        self._heads = None if heads is None else sorted(set(heads))
        self._dtype, self._keeping, self._token_texts = dtype, keeping, token_texts
        self._label, self._session_id, self._root = label, session_id, root
        self._layers = _attention_layers(module, layers)
        parts = {name: part for name, (_, part) in self._layers.items()}
        self._watch = Watch(module, parts, self._keep)

    def __enter__(self) -> AttentionCapture:
        self.ids, self._least_bytes = [], 0
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._watch.__exit__()
        if kind is None:
            self._write()

    def _keep(self, name: str, output: Any, seen: SeenInput) -> NDArray[Any] | None:
        """The second of what an attention module gives, where that is a pattern."""
        given = output[1] if isinstance(output, (tuple, list)) and len(output) > 1 else None
        if given is None or getattr(given, "ndim", 0) != 4:
            return None
        if self._heads is not None:
            count = given.shape[1]
            if beyond := [head for head in self._heads if not 0 <= head < count]:
                raise InvalidInputError(
                    f"{name} has {count} heads, none numbered {beyond[0]}", code="AH007"
                )
            given = given[:, self._heads]
        batch, heads, queries, keys = given.shape
        triangle = queries * (keys - queries) + queries * (queries + 1) // 2
        width = dtypes.get_dtype(self._dtype).item_bytes
        self._least_bytes += batch * heads * max(triangle, queries) * width
        self._check_budget(self._least_bytes)
        return as_array(given, copy=True)

    def _check_budget(self, size_bytes: int) -> None:
        budget_bytes = self._keeping.budget_bytes
        if budget_bytes is not None and size_bytes > budget_bytes:
            raise RefusedError(
                f"{size_bytes:,} bytes were captured, and {budget_bytes:,} may be kept",
                hint="choose layers, heads or a smaller dtype, or a larger budget_bytes",
            )

    def _write(self) -> None:
        self._watch.check_seen()
        found = [each for seen in self._watch.inputs for each in self._captured(seen)]
        self._check_budget(sum(capture.size_bytes for capture, _ in found))
        with self._pool.connection() as conn, conn.transaction():
            store_of.lock(conn)
            self.ids = [
                store_of.insert(conn, capture, patterns, self._keeping.ttl)
                for capture, patterns in found
            ]
            store_of.evict(conn, self._keeping.budget_bytes)

    def _captured(self, seen: SeenInput) -> list[tuple[NewCapture, list[NewPattern]]]:
        """Of each sequence its capture and its heads."""
        if seen.size is None:
            raise InvalidInputError("the model was given no tokens", hint="give it input_ids")
        batch, count = seen.size
        if any(len(seen.outputs(name)) != len(seen.passes) for name in self._layers):
            raise _no_attention(self._module)
        patterns: list[list[NewPattern]] = [[] for _ in range(batch)]
        for name, (layer, _) in sorted(self._layers.items(), key=lambda item: item[1][0]):
            weights = assembled([each.pop(name) for each in seen.passes], count)
            for row in range(batch):
                patterns[row] += self._patterns(layer, weights[row])
        ids = seen.parts.get(IDS)
        root, digest = self._root() if self._root else None, input_digest(seen.parts)
        found = []
        for row, heads in enumerate(patterns):
            tokens = None if ids is None else [int(token) for token in ids[row]]
            capture = NewCapture(
                input_digest=digest,
                sequence_index=row,
                token_count=count,
                token_ids=tokens,
                token_texts=self._texts(tokens),
                size_bytes=sum(len(each.packed) for each in heads),
                weights_root=root,
                session_id=self._session_id,
                label=self._label,
            )
            found.append((capture, heads))
        return found

    def _patterns(self, layer: int, weights: NDArray[Any]) -> Iterator[NewPattern]:
        for place, each in enumerate(weights):
            found = pack(each, self._dtype)
            yield NewPattern(
                layer_index=layer,
                head_index=self._heads[place] if self._heads is not None else place,
                query_count=found.shape.query_count,
                key_count=found.shape.key_count,
                is_causal=found.shape.is_causal,
                dtype=found.shape.dtype,
                entropy=found.entropy.tolist(),
                sink_mass=found.sink_mass.tolist(),
                peak=found.peak.tolist(),
                packed=found.packed,
            )

    def _texts(self, tokens: list[int] | None) -> list[str] | None:
        if tokens is None or self._token_texts is None:
            return None
        texts = [_storable(str(text)) for text in self._token_texts(tokens)]
        if len(texts) != len(tokens):
            raise InvalidInputError(
                f"{len(tokens)} tokens have {len(texts)} texts",
                hint="give the tokenizer, or a function from ids to as many texts",
            )
        return texts


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
        count = self.shape.query_count
        if not -count <= query < count:
            raise InvalidInputError(f"there are {count} queries, none at {query}", code="AH007")
        first, length = self.shape.row(query % count)
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

    def head(self, layer: int, head: int) -> Head:
        """One head. Raises `NotFoundError`."""
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
    `NotFoundError`, and `InvalidInputError` for the beginning of several ids.
    """
    with pool.connection() as conn:
        about = store_of.use(conn, find(conn, capture))
        if about is None:
            raise NotFoundError(f"there is no attention capture {str(capture)!r} any more")
        return Attention(about=about, heads=store_of.heads(conn, about.id), _pool=pool)


def find(conn: Connection, capture: str | UUID) -> UUID:
    """The id of a capture, named as for `read`."""
    text = str(capture)
    digits = id_digits(text)
    found = store_of.named(conn, text, digits) if is_storable(text) else []
    if not found:
        raise NotFoundError(
            f"there is no attention capture {text!r}", hint="`arc-halo attention ls` lists them"
        )
    begins = [each for each in found if digits and each.hex.startswith(digits)]
    if len(begins) > 1 and begins == found:
        raise InvalidInputError(
            f"{text!r} begins several ids: {', '.join(map(str, found[:10]))}",
            hint="give more of the id",
            code="AH006",
        )
    return found[0]


def _attention_layers(module: Any, layers: Iterable[int] | None) -> dict[str, tuple[int, Any]]:
    """The attention modules by name, each with the number of its layer.

    Of one within another, such as BERT's, the inner computes: it is the one.
    """
    named = [(n, p) for n, p in module.named_modules() if "Attention" in type(p).__name__]
    inner = [
        (name, part)
        for name, part in named
        if not any(other.startswith(f"{name}.") for other, _ in named)
    ]
    if not inner:
        raise InvalidInputError(
            f"{type(module).__name__} has no module whose class is called an attention",
            hint="attention is captured from models of transformers",
        )
    found: dict[str, tuple[int, Any]] = {}
    for place, (name, part) in enumerate(inner):
        index = getattr(part, "layer_idx", None)
        found[name] = (index if isinstance(index, int) else place, part)
    numbers = [index for index, _ in found.values()]
    if len(set(numbers)) < len(numbers):
        found = {name: (place, part) for place, (name, (_, part)) in enumerate(found.items())}
    if layers is None:
        return found
    wanted = set(layers)
    if missing := wanted - {index for index, _ in found.values()}:
        raise InvalidInputError(
            f"there is no layer {min(missing)}: the model has {len(found)}, numbered from 0",
            code="AH007",
        )
    return {name: each for name, each in found.items() if each[0] in wanted}


def _check_gives_attention(module: Any) -> None:
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInputError(
            "attention of encoder-decoder models is not captured",
            hint="capture that of the encoder alone: model.get_encoder()",
        )
    if getattr(config, "_attn_implementation", None) not in (None, "eager"):
        raise _no_attention(module)


def _no_attention(module: Any) -> InvalidInputError:
    config = getattr(module, "config", None)
    used = getattr(config, "_attn_implementation", None)
    if used in (None, "eager"):
        return InvalidInputError(
            "the model's attention modules gave no attention", hint=EAGER, code="AH006"
        )
    return InvalidInputError(
        f"the model computes attention with {used!r}, which gives none to capture",
        hint=EAGER,
        code="AH006",
    )


def _storable(text: str) -> str:
    """A text as PostgreSQL takes it: without NUL, and without halves of letters."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="replace").decode()


def _there(found: bytes | None, capture_id: UUID) -> bytes:
    if found is None:
        raise NotFoundError(f"there is no attention capture {str(capture_id)!r} any more")
    return found


def _told(heads: Sequence[HeadRow]) -> str:
    layers = sorted({each.layer_index for each in heads})
    count = len({each.head_index for each in heads})
    numbers = ", ".join(map(str, layers[:12])) + (", …" if layers[12:] else "")
    return f"{count} heads in each of the layers {numbers}"
