"""Attention of transformers models, captured a head a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, RefusedError
from arc_halo.inference.capturing import SeenInput, Watch
from arc_halo.inference.fingerprints import module_weights
from arc_halo.inference.inputs import IDS, input_digest
from arc_halo.inference.keeping import Keeping
from arc_halo.inference.patterns import assembled, pack
from arc_halo.inference.selections import check_dtype
from arc_halo.inference.token_texts import TokenTexts
from arc_halo.inference.watchable import check_watchable
from arc_halo.plain import check_texts, whole
from arc_halo.store import attention as store_of
from arc_halo.store.attention import NewCapture, NewPattern
from arc_halo.store.loaded_weights import recognise
from arc_halo.store.rows import Pool
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
        layers: int | Iterable[int] | None,
        heads: int | Iterable[int] | None,
        dtype: str,
        keeping: Keeping,
        token_texts: TokenTexts | None = None,
        label: str | None = None,
        session_id: UUID | None = None,
    ) -> None:
        if check_dtype(dtype) is None:
            raise InvalidInputError("dtype=None is none to keep attention in", code="AH006")
        check_texts(label=label)
        check_watchable(module, variant="attention")
        _check_gives_attention(module)
        self.ids: list[UUID] = []
        self._pool, self._module = pool, module
        self._least_bytes = 0
        self._heads = _numbers("heads", heads)
        self._dtype, self._keeping, self._token_texts = dtype, keeping, token_texts
        self._label, self._session_id = label, session_id
        self._layers = _attention_layers(module, _numbers("layers", layers))
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
        if size_bytes > budget_bytes:
            raise RefusedError(
                f"{size_bytes:,} bytes were captured, and {budget_bytes:,} may be kept",
                hint="choose layers, heads or a smaller dtype, or a larger budget_bytes",
            )

    def _write(self) -> None:
        self._watch.check_seen()
        weights = module_weights(self._module)
        found = [each for seen in self._watch.inputs for each in self._captured(seen, weights.root)]
        self._check_budget(sum(capture.size_bytes for capture, _ in found))
        with self._pool.connection() as conn, conn.transaction():
            store_of.lock(conn)
            recognise(conn, weights.root, weights.tensors, weights.parameters)
            self.ids = [
                store_of.insert(conn, capture, patterns, self._keeping.ttl)
                for capture, patterns in found
            ]
            store_of.evict(conn, self._keeping.budget_bytes)

    def _captured(self, seen: SeenInput, root: bytes) -> list[tuple[NewCapture, list[NewPattern]]]:
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
        ids, digest = seen.parts.get(IDS), input_digest(seen.parts)
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
        return [_storable(text) for text in self._token_texts(tokens)]


def _numbers(name: str, given: Any) -> list[int] | None:
    """Which layers or heads are meant, in their order; None for all."""
    if given is None:
        return None
    listed = list(given) if isinstance(given, Iterable) else [given]
    found = {number for each in listed if (number := whole(each)) is not None}
    if not found or any(whole(each) is None for each in listed):
        raise InvalidInputError(
            f"{name}={given!r} says none", hint="write a number from 0, or a list", code="AH006"
        )
    return sorted(found)


def _attention_layers(module: Any, layers: Sequence[int] | None) -> dict[str, tuple[int, Any]]:
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
