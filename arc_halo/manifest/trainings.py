"""Trainings: what their sessions begin with, checked against the model that is trained."""

from __future__ import annotations

from dataclasses import dataclass

from arc_halo.architectures import read_architecture
from arc_halo.config import parse_size
from arc_halo.manifest.documents import TrainingSpec
from arc_halo.manifest.problems import Found, Problems
from arc_halo.manifest.references import References
from arc_halo.sizes import format_count
from arc_halo.types import JsonObject

RETENTION: JsonObject = {"keep_last": None, "keep_best": None, "keep_every": None}
LOGGING: JsonObject = {
    "flush_seconds": 1.0,
    "heartbeat_seconds": 10.0,
    "system_seconds": None,
    "spool_bytes": "1GiB",
}
INTERVALS = ("flush_seconds", "heartbeat_seconds", "system_seconds")
RECOMPUTING: JsonObject = {
    "layers": "all",
    "modules": None,
    "batch_size": 1,
    "sequence_length": None,
    "dtype": "F32",
    "attention": "sdpa",
}


@dataclass(slots=True, kw_only=True)
class TrainingResolver:
    """Makes the spec of a training whose model is known and whose parts fit together."""

    problems: Problems
    references: References

    def spec(self, found: Found) -> TrainingSpec | None:
        """What the training says, or None when its model is not known."""
        data = found.data
        model = self.references.find(found, ("model",), data["model"])
        self._check_retention(found)
        if model is None:
            return None
        return TrainingSpec(
            model=model,
            total_epochs=data.get("total_epochs"),
            total_steps=data.get("total_steps"),
            config=data.get("config", {}),
            dataset=data.get("dataset", {}),
            group=data.get("group"),
            notes=data.get("notes"),
            metrics=_metrics(data.get("metrics")),
            retention=_filled(data.get("retention"), RETENTION),
            logging=_logging(data.get("logging", {})),
            gradient_checkpointing=_filled(data.get("gradient_checkpointing"), RECOMPUTING),
            description=data.get("description"),
            tags=data.get("tags", {}),
        )

    def check_layers(self, found: Found, spec: TrainingSpec, architecture: JsonObject) -> None:
        """The layers that it lists are those of the model, as far as its config tells."""
        listed = (spec.gradient_checkpointing or {}).get("layers")
        count = read_architecture(architecture).layer_count
        if not isinstance(listed, list) or not count:
            return
        for index, layer in enumerate(listed):
            if layer >= count:
                message = f"layer {layer}: {spec.model} has {format_count(count, 'layer')}"
                hint = f"layers are counted from 0; the last one is {count - 1}"
                place = ("gradient_checkpointing", "layers", index)
                self.problems.add(found, place, "AH007", message, hint)

    def _check_retention(self, found: Found) -> None:
        if "keep_best" in found.data.get("retention", {}) and "metrics" not in found.data:
            message = "keep_best: nothing says which metric decides what is best"
            hint = "add `metrics: {best: eval/loss}`"
            place = ("retention", "keep_best")
            self.problems.add(found, place, "AH027", message, hint, key=True)


def _metrics(data: JsonObject | None) -> JsonObject | None:
    """The best metric by scope and key."""
    if data is None:
        return None
    scope, slash, key = data["best"].partition("/")
    return {
        "best": f"{scope}/{key}" if slash else f"train/{scope}",
        "mode": data.get("mode", "min"),
    }


def _logging(data: JsonObject) -> JsonObject:
    whole = {**LOGGING, **data}
    return {
        **whole,
        **{name: float(whole[name]) for name in INTERVALS if whole[name] is not None},
        "spool_bytes": parse_size(str(whole["spool_bytes"])),
    }


def _filled(data: JsonObject | None, defaults: JsonObject) -> JsonObject | None:
    return None if data is None else {**defaults, **data}
