"""Which layers are computed again in the backward pass, and what memory that is estimated to save.

The estimate counts what one layer keeps for the backward pass, term by term as Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models" (2022, arXiv:2205.05198, section
4.1, without tensor and sequence parallelism). For b sequences of s tokens, of hidden size h, with
a query heads and k key-value heads of size d, a feed-forward size f, activations of e bytes and
dropout masks of one byte an element, a layer keeps:

    the inputs of its two norms                                  2 e sbh
    the input of the query, key and value projections            e sbh
    queries, keys, values, the input of the output projection    e sb (2 ad + 2 kd)
    eager attention alone: the scores after softmax              e abs^2
    the input of the feed-forward part                           e sbh
    the input and output of its activation                       2 e sbf, 4 e sbf with a gate
    dropout masks of both outputs, where the config drops any    2 sbh
    eager attention that drops scores: the mask and the result   (1 + e) abs^2

With e = 2, ad = kd = h, f = 4h, dropout and eager attention that is the paper's sbh (34 + 5 as/h).
What is ours: other values of e, k, d and f; no terms for dropout that is off; a gate, whose
product with the activation's output needs both of them, and is kept itself; and `sdpa`, which
keeps no scores but four bytes for each row of them, the logarithm of its sum. Not counted: copies
that an implementation makes (norms in F32, repeated keys, activations that are put together of
several operations), embeddings and logits.

A layer that is computed again keeps its input alone: e sbh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arc_halo.architectures import (
    LAYER_COUNTS,
    MAX_LAYERS,
    LayerShape,
    read_architecture,
)
from arc_halo.errors import InvalidInputError
from arc_halo.sizes import format_count, format_size
from arc_halo.store.gradient_checkpoints import GradientCheckpoint
from arc_halo.types import JsonObject

Layers = str | Sequence[int] | Mapping[str, int]
"""`all`, `none`, `{"every": 2}` for every second one from the first, or some by number."""

MODULES: Mapping[str, str] = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "bert": "bert.encoder.layer",
}
"""Where the modules of each family have their layers."""

ELEMENT_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CONTEXT_SIZES = ("max_position_embeddings", "n_positions", "n_ctx")
DROPOUT: Mapping[str, tuple[tuple[str, str], float]] = {
    "llama": (("resid_pdrop", "attention_dropout"), 0.0),
    "gpt2": (("resid_pdrop", "attn_pdrop"), 0.1),
    "bert": (("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.1),
}
"""Where configs say how much is dropped of outputs and of scores, and what holds where not."""

GATED_FAMILIES = ("llama",)
UNGATED = ("starcoder2",)
"""Of those families, by `model_type`: kin whose feed-forward part has no gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLayer:
    """A layer of a plan. Bytes are those kept without it, and those of them that it saves."""

    layer_index: int
    module_name: str
    is_checkpointed: bool
    activation_bytes: int | None
    saved_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputingPlan:
    """Which layers are computed again; `modules` is the list of them in the torch module.

    `sequence_length` is None where nothing says it. Nothing is estimated then, nor for a model of
    a family that is not known.
    """

    layers: tuple[PlannedLayer, ...]
    modules: str
    batch_size: int
    sequence_length: int | None
    dtype: str

    @property
    def checkpointed_count(self) -> int:
        return sum(layer.is_checkpointed for layer in self.layers)

    @property
    def activation_bytes(self) -> int | None:
        """What all layers would keep without the plan."""
        return _total([layer.activation_bytes for layer in self.layers])

    @property
    def saved_bytes(self) -> int | None:
        """What it saves of that while the forward pass is done."""
        return _total([layer.saved_bytes for layer in self.layers])

    @property
    def peak_bytes(self) -> int | None:
        """The most kept at one time: what the plan leaves, and one layer computed again."""
        return _peak(self.layers)

    def __str__(self) -> str:
        """One line for people."""
        count = format_count(len(self.layers), "layer")
        text = f"{self.checkpointed_count:,} of {count} computed again"
        if (estimate := _estimate_text(self.layers)) is None:
            return text
        batch = f"{self.batch_size:,} x {self.sequence_length:,} tokens in {self.dtype}"
        return f"{text}: {estimate}, for {batch}"


def plan(
    architecture: JsonObject,
    *,
    layers: Layers = "all",
    modules: str | None = None,
    batch_size: int = 1,
    sequence_length: int | None = None,
    dtype: str = "F32",
    attention: str = "sdpa",
    layer_count: int | None = None,
) -> RecomputingPlan:
    """What is computed again of a model with this config, and what that saves.

    `layer_count` is that of a module that is there; without one the config says it. Raises
    `InvalidInputError` where neither does, where both do not agree, where a layer is not one of
    them, and where `modules` is needed and not given.
    """
    known = read_architecture(architecture)
    count = layer_count or known.layer_count or _layer_count(architecture)
    if known.layer_count and known.layer_count != count:
        raise InvalidInputError(
            f"the module has {format_count(count, 'layer')}, the model {known.layer_count}",
            hint="plan for the model that is trained",
            code="AH027",
        )
    chosen = chosen_layers(layers, count)
    place = modules or modules_of(architecture)
    length = sequence_length or _context_size(architecture)
    whole = None
    hidden = 0
    if known.layer is not None and known.family is not None and length is not None:
        drops = _dropout(known.family, architecture)
        whole = activation_bytes(
            known.layer,
            batch_size=batch_size,
            sequence_length=length,
            element_bytes=_element_bytes(dtype),
            is_gated=is_gated(known.family, architecture),
            is_eager=attention == "eager",
            drops_outputs=drops[0],
            drops_scores=drops[1],
        )
        hidden = ELEMENT_BYTES[dtype] * batch_size * length * known.layer.hidden_size
    return RecomputingPlan(
        layers=tuple(
            PlannedLayer(
                layer_index=index,
                module_name=f"{place}.{index}",
                is_checkpointed=index in chosen,
                activation_bytes=whole,
                saved_bytes=_saved(whole, hidden, index in chosen),
            )
            for index in range(count)
        ),
        modules=place,
        batch_size=batch_size,
        sequence_length=length,
        dtype=dtype,
    )


def modules_of(architecture: JsonObject) -> str:
    """Where a module with this config has its layers. Raises `InvalidInputError`."""
    place = MODULES.get(read_architecture(architecture).family or "")
    if place is None:
        raise InvalidInputError(
            "it is not known where a model of this family has its layers",
            hint="say it: `modules: model.layers`",
            code="AH027",
        )
    return place


def recomputing_text(architecture: JsonObject, document: JsonObject) -> str:
    """What a `gradient_checkpointing` comes to, in one line, or why that is not known."""
    try:
        return str(plan(architecture, **document))
    except InvalidInputError as exc:
        return f"what gradient checkpointing saves is not known: {exc.message}"


def recorded_text(layers: Sequence[GradientCheckpoint]) -> str | None:
    """What a session has recorded of its layers, in one line; None where it recorded nothing."""
    if not layers:
        return None
    count = sum(layer.is_checkpointed for layer in layers)
    text = f"{count:,} of {format_count(len(layers), 'layer')}"
    estimate = _estimate_text(layers)
    return text if estimate is None else f"{text}: {estimate}"


def chosen_layers(layers: Layers, count: int) -> frozenset[int]:
    """The layers that a selector names, of so many. Raises `InvalidInputError` for another."""
    if layers == "all":
        return frozenset(range(count))
    if layers == "none":
        return frozenset()
    if isinstance(layers, Mapping):
        return frozenset(range(0, count, layers["every"]))
    if isinstance(layers, str):
        raise InvalidInputError(
            f"{layers!r} names no layers",
            hint="say all, none, {every: 2}, or the layers in a list",
            code="AH006",
        )
    for layer in layers:
        if not 0 <= layer < count:
            raise InvalidInputError(
                f"there is no layer {layer}: the model has {format_count(count, 'layer')}",
                hint="layers are counted from 0",
                code="AH007",
            )
    return frozenset(layers)


def activation_bytes(
    layer: LayerShape,
    *,
    batch_size: int,
    sequence_length: int,
    element_bytes: int,
    is_gated: bool,
    is_eager: bool,
    drops_outputs: bool,
    drops_scores: bool,
) -> int:
    """What one layer keeps for the backward pass: the terms of this module's description."""
    tokens = batch_size * sequence_length
    rows = tokens * layer.num_heads
    hidden = tokens * layer.hidden_size
    queries = rows * layer.head_dim
    keys = tokens * layer.num_kv_heads * layer.head_dim
    inner = tokens * (layer.intermediate_size or 4 * layer.hidden_size)
    elements = 4 * hidden + 2 * queries + 2 * keys + (4 if is_gated else 2) * inner
    kept = element_bytes * elements + (2 * hidden if drops_outputs else 0)
    if not is_eager:
        return kept + 4 * rows
    scores = rows * sequence_length
    return kept + scores * (element_bytes + ((1 + element_bytes) if drops_scores else 0))


def is_gated(family: str, architecture: JsonObject) -> bool:
    """Whether the feed-forward part of a family's layers has a gate."""
    return family in GATED_FAMILIES and architecture.get("model_type") not in UNGATED


def _saved(whole: int | None, hidden: int, is_checkpointed: bool) -> int | None:
    if whole is None:
        return None
    return whole - hidden if is_checkpointed else 0


def _estimate_text(layers: Sequence[PlannedLayer | GradientCheckpoint]) -> str | None:
    """What is kept and when, in words; None where it is not known."""
    whole = _total([layer.activation_bytes for layer in layers])
    saved = _total([layer.saved_bytes for layer in layers])
    peak = _peak(layers)
    if whole is None or saved is None or peak is None:
        return None
    return (
        f"about {format_size(peak)} of activations at the peak, "
        f"{format_size(whole - saved)} after the forward pass, {format_size(whole)} without"
    )


def _peak(layers: Sequence[PlannedLayer | GradientCheckpoint]) -> int | None:
    """What is left after the forward pass, and the largest layer that is computed again."""
    whole = _total([layer.activation_bytes for layer in layers])
    saved = _total([layer.saved_bytes for layer in layers])
    if whole is None or saved is None:
        return None
    return whole - saved + max((layer.saved_bytes or 0 for layer in layers), default=0)


def _total(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) and parts else None


def _layer_count(architecture: JsonObject) -> int:
    for key in LAYER_COUNTS:
        value = architecture.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_LAYERS:
            return value
    raise InvalidInputError(
        "the model's config does not say how many layers it has",
        hint=f"it would by one of {', '.join(LAYER_COUNTS)}",
        code="AH027",
    )


def _context_size(architecture: JsonObject) -> int | None:
    for key in CONTEXT_SIZES:
        value = architecture.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _dropout(family: str, architecture: JsonObject) -> tuple[bool, bool]:
    (outputs, scores), default = DROPOUT[family]
    return bool(architecture.get(outputs, default)), bool(architecture.get(scores, default))


def _element_bytes(dtype: str) -> int:
    if dtype not in ELEMENT_BYTES:
        raise InvalidInputError(
            f"activations of dtype {dtype!r} are not known",
            hint=f"known are {', '.join(ELEMENT_BYTES)}",
            code="AH006",
        )
    return ELEMENT_BYTES[dtype]
