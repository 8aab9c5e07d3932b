"""From documents back to a manifest: the blocks that would declare what a database has.

What a manifest need not say is left out: defaults, and what follows from something else. What it
cannot say is told in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from arc_halo.formats.finding import USUAL, format_of_name
from arc_halo.manifest.caches import BLOCKS, as_written
from arc_halo.manifest.documents import (
    INFERENCE,
    KINDS,
    MODEL,
    REACTOR,
    STRATEGY,
    TRAINING,
    Lifecycle,
    canonical,
)
from arc_halo.manifest.params import with_defaults
from arc_halo.manifest.paths import allowing
from arc_halo.manifest.reactors import RUN_DEFAULTS, WORDS
from arc_halo.manifest.schema import INT8
from arc_halo.manifest.trainings import LOGGING, RECOMPUTING, RETENTION
from arc_halo.plugins import PluginManager
from arc_halo.sizes import manifest_size
from arc_halo.types import JsonObject, Key

SECTIONS: Final[Mapping[str, str]] = {
    STRATEGY: "strategies",
    MODEL: "models",
    REACTOR: "reactors",
    TRAINING: "training",
    INFERENCE: "inference",
}
"""Where each kind is declared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A resource as a database has it: its document, and what is to become of it.

    `weights_format` is that of the file that its weights came from, where that is known.
    """

    key: Key
    spec: JsonObject
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    is_managed: bool = True
    weights_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What declares a resource: its name in its section, and its fields.

    `remarks` say what it lacks, `unmanaged` what it declares that nobody manages: itself, or the
    model that it makes.
    """

    key: Key
    data: JsonObject
    remarks: tuple[str, ...] = ()
    unmanaged: tuple[Key, ...] = ()

    @property
    def section(self) -> str:
        return SECTIONS[self.key.kind]


def blocks_of(
    recorded: Mapping[Key, Recorded], plugins: PluginManager, aliases: Mapping[str, str]
) -> list[Block]:
    """The blocks that declare `recorded`, in the order of kinds and names.

    `aliases` has an alias of each model that is referred to and not among them, by full name.
    """
    declarer = _Declarer(recorded, plugins, aliases)
    keys = sorted(recorded, key=lambda key: (KINDS.index(key.kind), key.name))
    return [declarer.block(key) for key in keys if key not in declarer.produced]


def referred_models(spec: JsonObject) -> set[str]:
    """The models that the document of a reactor or of a training names."""
    members = spec.get("members", ())
    adapters = (adapter["model"] for member in members for adapter in member.get("adapters", ()))
    single = (spec.get("model"), spec.get("base"))
    return {*(member["model"] for member in members), *adapters, *filter(None, single)}


class _Declarer:
    """Turns documents into blocks; `produced` are those that stand in their reactor's block."""

    def __init__(
        self,
        recorded: Mapping[Key, Recorded],
        plugins: PluginManager,
        aliases: Mapping[str, str],
    ) -> None:
        self._recorded = recorded
        self._plugins = plugins
        self._aliases = aliases
        self._remarks: list[str] = []
        outputs = (each.spec["produces"] for key, each in recorded.items() if key.kind == REACTOR)
        keys = (Key(kind=MODEL, name=name) for name in outputs if name)
        self.produced = frozenset(key for key in keys if key in recorded)

    def block(self, key: Key) -> Block:
        each = self._recorded[key]
        self._remarks = []
        data = self._fields(each)
        data |= _told(each.spec, ("description",))
        data |= _told({"tags": _ordered(each.spec.get("tags", {}))}, ("tags",))
        data |= _lifecycle(each.lifecycle)
        made = Key(kind=MODEL, name=each.spec.get("produces") or "")
        declared = (self._recorded[k] for k in (key, made) if k in self._recorded)
        return Block(
            key=key,
            data=data,
            remarks=tuple(self._remarks),
            unmanaged=tuple(each.key for each in declared if not each.is_managed),
        )

    def _fields(self, each: Recorded) -> JsonObject:
        match each.key.kind:
            case "model":
                return self._model(each)
            case "strategy":
                return self._strategy(each.spec)
            case "reactor":
                return self._reactor(each.spec)
            case "training":
                return self._training(each.spec)
            case _:
                return self._cache(each.spec)

    def _model(self, each: Recorded) -> JsonObject:
        spec = each.spec
        weights = self._weights(each)
        tokenizer = (spec.get("tokenizer") or {}).get("source")
        return {
            "type": spec["type"],
            **_told({"architecture": _ordered(spec["architecture"])}, ("architecture",)),
            **({"weights": weights} if weights else {}),
            **({"tokenizer": tokenizer} if tokenizer else {}),
            **self._model_extras(spec),
        }

    def _model_extras(self, spec: JsonObject) -> JsonObject:
        """What a model that a merge makes may say of itself, too."""
        runner = self._runner(spec.get("runner"))
        return {
            **({"runner": runner} if runner else {}),
            **_told({"aliases": sorted(spec.get("aliases", ()))}, ("aliases",)),
        }

    def _weights(self, each: Recorded) -> JsonObject | None:
        weights = each.spec.get("weights")
        if not weights or (weights["source"] is None and "weights" in each.lifecycle.ignore):
            return None
        source = weights["source"]
        if source is None:
            source = f"weights/{each.key.name}.safetensors"
            self._remark(f"its weights came from no file: arc-halo export {each.key.name}, first")
        elif Path(source).is_absolute() or ".." in Path(source).parts:
            self._remark(f"its weights are outside of the project: {allowing(Path(source))}")
        said: JsonObject = {"source": source, "digest": weights["root"]}
        formats = {name: provided.item for name, provided in self._plugins.formats.items()}
        name = Path(source).name
        guess = format_of_name(name, formats) if Path(source).suffix else USUAL
        if each.weights_format not in (None, guess):
            said["format"] = each.weights_format
        return said

    def _runner(self, runner: JsonObject | None) -> JsonObject | None:
        if not runner:
            return None
        uses = runner["uses"]
        provided = self._plugins.runners.get(uses)
        self._need(provided, "runner", uses)
        schema = provided.item.params_schema if provided else {}
        params = _beyond(runner["params"], with_defaults({}, schema))
        return {"uses": uses, **_told({"params": params}, ("params",))}

    def _strategy(self, spec: JsonObject) -> JsonObject:
        params = _beyond(spec["params"], self._defaults(spec["uses"]))
        return {"uses": spec["uses"], **_told({"params": params}, ("params",))}

    def _defaults(self, uses: str) -> JsonObject:
        """The params that a strategy has where nothing is said."""
        provided = self._plugins.strategies.get(uses)
        self._need(provided, "strategy", uses)
        return with_defaults({}, provided.item.params_schema) if provided else {}

    def _reactor(self, spec: JsonObject) -> JsonObject:
        declared = self._recorded.get(Key(kind=STRATEGY, name=spec["strategy"]))
        defaults = self._defaults(spec["uses"])
        known = {**defaults, **declared.spec["params"]} if declared else defaults
        order = [member["model"] for member in spec["members"]]
        optional: JsonObject = {
            "params": _beyond(spec["params"], known),
            "base": self._refer(spec["base"]) if spec.get("base") else None,
            "members": [self._member(member) for member in spec["members"]],
            "tensors": [self._rule(rule) for rule in spec.get("tensors", ())],
            "slices": [self._slice(each, order) for each in spec.get("slices", ())],
            "compute": spec["compute"] if spec.get("compute", "F32") != "F32" else None,
            "out_dtype": spec.get("out_dtype"),
            "tokenizer": self._vocabulary(spec.get("tokenizer")),
            "interactions": [self._interaction(edge) for edge in spec.get("interactions", ())],
            "produces": self._product(spec.get("produces")),
            "run": self._run(spec.get("run") or {}),
            "config": _ordered(spec.get("config", {})),
        }
        return {
            "type": spec["type"],
            "strategy": spec["strategy"],
            **_told(optional, tuple(optional)),
        }

    def _member(self, member: JsonObject) -> JsonObject:
        defaults = {"role": "secondary", "weight": 1.0, "priority": None, "cost": 1.0}
        adapters = [
            self._refer(each["model"])
            if each["scale"] == 1
            else {"model": self._refer(each["model"]), "scale": each["scale"]}
            for each in member.get("adapters", ())
        ]
        return {
            "model": self._refer(member["model"]),
            **_beyond({name: member[name] for name in defaults if name in member}, defaults),
            **_told(
                {"adapters": adapters, "domains": member.get("domains", [])},
                ("adapters", "domains"),
            ),
        }

    def _rule(self, rule: JsonObject) -> JsonObject:
        match = rule["match"]
        return {"match": match[0] if len(match) == 1 else match, **self._part(rule)}

    def _slice(self, each: JsonObject, order: Sequence[str]) -> JsonObject:
        layers = {self._refer(m): each["layers"][m] for m in order if m in each["layers"]}
        base = {} if each.get("base") is None else {"base": each["base"]}
        return {"layers": layers, **base, **self._part(each)}

    def _part(self, part: JsonObject) -> JsonObject:
        params = {
            name: {self._refer(model): inner for model, inner in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in part.get("params", {}).items()
        }
        weights = {self._refer(model): value for model, value in part.get("weights", {}).items()}
        return _told({"params": params, "weights": weights}, ("params", "weights"))

    def _vocabulary(self, tokenizer: JsonObject | None) -> JsonObject | str | None:
        if tokenizer is None:
            return None
        of = tokenizer["of"] if tokenizer["of"] in WORDS else self._refer(tokenizer["of"])
        rows = tokenizer["pad_to_multiple_of"]
        return of if rows == 1 else {"of": of, "pad_to_multiple_of": rows}

    def _interaction(self, edge: JsonObject) -> JsonObject:
        return {
            "from": self._refer(edge["from"]),
            "to": self._refer(edge["to"]),
            "kind": edge["kind"],
            **_beyond({"weight": edge["weight"]}, {"weight": 1.0}),
        }

    def _product(self, name: str | None) -> JsonObject | None:
        if name is None:
            return None
        model, _, version = name.partition("@")
        made = self._recorded.get(Key(kind=MODEL, name=name))
        if made is None:
            self._remark(f"what it makes, model/{name}, is of another project, or of nobody")
            return {"model": model, "version": version}
        return {"model": model, "version": version, **self._model_extras(made.spec)}

    def _run(self, run: JsonObject) -> JsonObject:
        said = _beyond(run, RUN_DEFAULTS)
        if said.get("fallback"):
            said["fallback"] = self._refer(said["fallback"])
        return said

    def _training(self, spec: JsonObject) -> JsonObject:
        logging = _beyond(spec.get("logging") or {}, {**LOGGING, "spool_bytes": 2**30})
        if "spool_bytes" in logging:
            logging["spool_bytes"] = manifest_size(logging["spool_bytes"])
        recomputing = spec.get("gradient_checkpointing")
        said: JsonObject = {
            "model": self._refer(spec["model"]),
            "total_epochs": spec.get("total_epochs"),
            "total_steps": spec.get("total_steps"),
            "config": _ordered(spec.get("config", {})),
            "dataset": _ordered(spec.get("dataset", {})),
            "group": spec.get("group"),
            "notes": spec.get("notes"),
            "metrics": spec.get("metrics"),
            "retention": _told(spec.get("retention") or {}, tuple(RETENTION)),
            "logging": logging,
        }
        found = _told(said, tuple(said))
        if recomputing is not None:
            found["gradient_checkpointing"] = _beyond(recomputing, RECOMPUTING)
        return found

    def _cache(self, spec: JsonObject) -> JsonObject:
        fields = ("budget", "ttl", "block_tokens", "codec", "quota", "quotas")
        said = _told(spec, fields)
        if said.get("codec", INT8) != INT8:
            self._need(self._plugins.codecs.get(said["codec"]), "codec", said["codec"])
        told = _beyond(said, BLOCKS)
        return {name: as_written(name, value) for name, value in told.items()}

    def _refer(self, name: str) -> str:
        """A reference to a model; one that is not declared here has to go by an alias."""
        if Key(kind=MODEL, name=name) in self._recorded:
            return name
        if name in self._aliases:
            return f"{name.partition('@')[0]}:{self._aliases[name]}"
        self._remark(f"model/{name} is declared nowhere here, and has no alias to go by")
        return name

    def _need(self, provided: object, what: str, name: str) -> None:
        if provided is None:
            self._remark(f"no loaded plugin provides the {what} {name!r}: list it in `plugins`")

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)


def _lifecycle(lifecycle: Lifecycle) -> JsonObject:
    return {
        **({"protected": True} if lifecycle.protected else {}),
        **({"deletion": lifecycle.deletion} if lifecycle.deletion != "delete" else {}),
        **({"ignore": list(lifecycle.ignore)} if lifecycle.ignore else {}),
    }


def _told(data: JsonObject, fields: Sequence[str]) -> JsonObject:
    """The fields that say something."""
    return {name: data[name] for name in fields if data.get(name) not in (None, [], {})}


def _beyond(data: JsonObject, defaults: JsonObject) -> JsonObject:
    """What is not as the defaults have it."""
    return {
        name: value
        for name, value in data.items()
        if name not in defaults or not _is_same(value, defaults[name])
    }


def _is_same(a: Any, b: Any) -> bool:
    """Equal as JSON, where true is not 1, and 1.0 is."""
    if type(a) in (int, float) and type(b) in (int, float):
        return bool(a == b)
    return canonical(a) == canonical(b)


def _ordered(value: Any) -> Any:
    """Mappings with their keys in order, all the way down."""
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(each) for each in value] if isinstance(value, list) else value
