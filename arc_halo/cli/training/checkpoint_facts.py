"""How checkpoints and what differs between two of them are told: to people, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.store.checkpoints import Checkpoint
    from arc_halo.training.checkpoints.comparing import CheckpointDiff, TensorChange
    from arc_halo.types import JsonObject

SHORT = 8
"""Digits of an id that are shown where there is no room for all."""

HEADER = ("id", "step", "type", "size", "metrics", "saved", "kept because")
TENSORS = ("part", "tensor", "change", "size", "shared", "norm", "relative", "largest", "elements")
VALUES = ("part", "value", "first", "second")
MAX_VALUE = 40

Table = tuple["Sequence[str]", "Sequence[Sequence[str]]"]


def row(point: Checkpoint) -> tuple[str, ...]:
    from arc_halo.sizes import format_size, format_time

    metrics = [f"{name} {_number(float(value))}" for name, value in point.metrics.items()]
    return (
        str(point.id)[:SHORT],
        str(point.step),
        point.type,
        format_size(point.size_bytes),
        ", ".join(metrics) or "-",
        format_time(point.created_at),
        point.kept_because or "-",
    )


def as_facts(point: Checkpoint) -> JsonObject:
    """A checkpoint as JSON."""
    from datetime import UTC

    return {
        "id": str(point.id),
        "session": str(point.session_id),
        "step": point.step,
        "epoch": point.epoch,
        "type": point.type,
        "root": f"sha256:{bytes(point.root).hex()}" if point.root else None,
        "size_bytes": point.size_bytes,
        "metrics": point.metrics,
        "is_best": point.is_best,
        "best_metric": point.best_metric,
        "best_mode": point.best_mode,
        "is_pinned": point.is_pinned,
        "is_forked": point.is_forked,
        "kept_because": point.kept_because,
        "created_at": point.created_at.astimezone(UTC).isoformat(),
    }


def weights_of(point: Checkpoint) -> int:
    """The weight set of a checkpoint. Raises `NotFoundError` where it has no weights."""
    if point.weight_set_id is None:
        raise NotFoundError(
            f"the checkpoint of step {point.step} ({point.type}) has no weights",
            hint="name one of type full or weights_only",
        )
    return point.weight_set_id


def diff_tables(found: CheckpointDiff) -> list[Table]:
    """What differs, as tables: of tensors and of values, where there are any."""
    tensors = [_tensor_row(each) for each in found.tensors]
    values = [
        (each.part, each.path, _shown(each.first), _shown(each.second)) for each in found.values
    ]
    return [(header, rows) for header, rows in ((TENSORS, tensors), (VALUES, values)) if rows]


def diff_summary(found: CheckpointDiff, named: str) -> str:
    from arc_halo.sizes import format_count, format_size

    equal = f"{format_count(found.equal_tensors, 'tensor')}, {format_size(found.equal_bytes)}"
    if found.is_equal:
        return f"{named} are equal: {equal}."
    differ = [
        format_count(len(listed), noun)
        for listed, noun in ((found.tensors, "tensor"), (found.values, "value"))
        if listed
    ]
    shared = format_size(found.shared_bytes), format_size(found.size_bytes)
    text = f"{' and '.join(differ)} differ; equal: {equal}. {shared[0]} of {shared[1]} are shared."
    if odd := sum(each.distance.not_finite for each in found.tensors if each.distance):
        text += f" NaN or infinite in the second: {format_count(odd, 'element')}."
    return text


def diff_facts(first: Checkpoint, second: Checkpoint, found: CheckpointDiff) -> JsonObject:
    from dataclasses import asdict

    return {
        "first": as_facts(first),
        "second": as_facts(second),
        "equal_tensors": found.equal_tensors,
        "equal_bytes": found.equal_bytes,
        "shared_bytes": found.shared_bytes,
        "size_bytes": found.size_bytes,
        "tensors": [asdict(each) for each in found.tensors],
        "values": [asdict(each) for each in found.values],
    }


def _tensor_row(each: TensorChange) -> tuple[str, ...]:
    from arc_halo.sizes import format_size

    far = each.distance
    return (
        each.part,
        each.name,
        f"{each.first} -> {each.second}" if each.change == "reshaped" else each.change,
        format_size(each.size_bytes),
        format_size(each.shared_bytes),
        _number(far.norm if far else None),
        _number(far.relative if far else None),
        _number(far.largest if far else None),
        f"{far.changed_share:.1%}" if far else "-",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _shown(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…"
