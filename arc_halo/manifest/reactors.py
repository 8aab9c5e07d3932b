"""Reactors: their strategy, members and interactions, checked against one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from arc_halo.manifest.collect import Names
from arc_halo.manifest.documents import (
    AdapterSpec,
    Gradient,
    InteractionSpec,
    MemberSpec,
    ReactorSpec,
    RuleSpec,
    SliceSpec,
    VocabularySpec,
)
from arc_halo.manifest.params import params_problems, with_defaults, with_gradients
from arc_halo.manifest.problems import Found, Pointer, Problems
from arc_halo.manifest.references import References
from arc_halo.plugins import PluginManager
from arc_halo.types import FusionStrategy, JsonObject

RUN_DEFAULTS: JsonObject = {
    "on_failure": "fail",
    "fallback": None,
    "quorum": 1,
    "timeout": None,
    "threshold": 0.8,
    "choose": "all",
    "record": "full",
    "record_ttl": None,
    "level": "answers",
    "max_tokens": 64,
    "temperature": 0,
    "seed": 0,
    "stop": [],
}

OF_TOKENS = ("max_tokens", "temperature", "seed", "stop")
"""What is said of how tokens are chosen, and nothing elsewhere."""


@dataclass(slots=True, kw_only=True)
class ReactorResolver:
    """Makes the spec of a reactor whose references lead somewhere and whose strategy fits."""

    plugins: PluginManager
    problems: Problems
    names: Names
    references: References

    def spec(self, found: Found) -> ReactorSpec | None:
        """What the reactor says, or None when something is wrong with it."""
        count = len(self.problems.listed)
        strategy = self._strategy_of(found)
        members = self._members(found)
        base = found.data.get("base")
        base_name = self.references.find(found, ("base",), base) if base else None
        interactions = self._interactions(found, members)
        if strategy is not None:
            self._check_params(found, strategy[0])
        places = self._places(found, members, base_name)
        run = self._run(found, members)
        if strategy is None or len(self.problems.listed) > count:
            return None
        uses, params = strategy
        produces = found.data.get("produces")
        spec = ReactorSpec(
            type=found.data["type"],
            strategy=found.data["strategy"],
            uses=uses,
            params=params,
            members=tuple(members),
            base=base_name,
            **parts_of(found.data, places),
            interactions=tuple(interactions),
            produces=f"{produces['model']}@{produces['version']}" if produces else None,
            run=run,
            config=found.data.get("config", {}),
            description=found.data.get("description"),
            tags=found.data.get("tags", {}),
        )
        self._check_fit(found, spec)
        return spec

    def _strategy_of(self, found: Found) -> tuple[str, JsonObject] | None:
        name, inline = found.data["strategy"], found.data.get("params", {})
        declared = self.names.strategies.get(name)
        uses = declared.data["uses"] if declared else name
        if uses not in self.plugins.strategies:
            if declared is None:
                known = [*self.plugins.strategies, *self.names.strategies]
                self.problems.unknown_strategy(found, ("strategy",), name, known)
            return None
        schema = self.plugins.strategies[uses].item.params_schema
        params = {**(declared.data.get("params", {}) if declared else {}), **inline}
        if declared and inline:
            self._add_params(found, ("params",), params, schema)
        return uses, with_defaults(params, schema)

    def _members(self, found: Found) -> list[MemberSpec]:
        members: list[MemberSpec] = []
        for index, data in enumerate(found.data["members"]):
            pointer = ("members", index, "model")
            name = self.references.find(found, pointer, data["model"])
            if name is None:
                continue
            if any(member.model == name for member in members):
                self.problems.add(found, pointer, "AH013", f"{name} is already a member", None)
                continue
            adapters = self._adapters(found, index, data)
            members.append(member_spec(data, name, adapters))
        return members

    def _adapters(self, found: Found, index: int, data: JsonObject) -> list[str]:
        """The full names of a member's adapters."""
        names = []
        for place, each in enumerate(data.get("adapters", ())):
            pointer = ("members", index, "adapters", place)
            text = each if isinstance(each, str) else each["model"]
            inner = pointer if isinstance(each, str) else (*pointer, "model")
            names.append(self.references.find(found, inner, text) or text)
            if found.data["type"] != "merge":
                message = f"a reactor of type {found.data['type']} takes no adapters"
                self.problems.add(found, pointer, "AH023", message, None)
        return names

    def _interactions(self, found: Found, members: Sequence[MemberSpec]) -> list[InteractionSpec]:
        edges: list[InteractionSpec] = []
        for index, data in enumerate(found.data.get("interactions", ())):
            source = self._end(found, ("interactions", index, "from"), data["from"], members)
            target = self._end(found, ("interactions", index, "to"), data["to"], members)
            edge = InteractionSpec(
                source=source or "",
                target=target or "",
                kind=data["kind"],
                weight=float(data.get("weight", 1.0)),
            )
            self._check_edge(found, index, edge, edges)
            edges.append(edge)
        self._check_cycles(found, edges)
        return edges

    def _run(self, found: Found, members: Sequence[MemberSpec]) -> JsonObject:
        """How the reactor runs, defaults filled in; nothing for a merge, which does not."""
        data = found.data.get("run", {})
        if found.data["type"] == "merge":
            if "run" in found.data:
                message = "run: a merge is made when it is applied, and does not run"
                self.problems.add(found, ("run",), "AH023", message, None, key=True)
            return {}
        run = {**RUN_DEFAULTS, **data}
        if run["fallback"] is not None:
            run["fallback"] = self._end(found, ("run", "fallback"), run["fallback"], members)
        elif run["on_failure"] == "fallback":
            message = "on_failure: fallback, and no member is named that answers then"
            self.problems.add(
                found, ("run", "on_failure"), "AH023", message, "add `fallback: MODEL`"
            )
        self._check_level(found, run)
        self._check_idle(found, run)
        self._check_voters(found, run)
        return run

    def _check_idle(self, found: Found, run: JsonObject) -> None:
        """What changes nothing beside what else is said: it was meant otherwise."""
        for name, why in idle_settings(found.data["type"], run).items():
            if name in found.data.get("run", {}):
                message = f"{name}: it changes nothing {why}"
                self.problems.add(found, ("run", name), "AH023", message, "remove it", key=True)

    def _check_voters(self, found: Found, run: JsonObject) -> None:
        """Somebody has to answer, and as many as the quorum says."""
        listed = found.data["members"]
        voters = sum(each.get("role") != "validator" for each in listed)
        if not voters:
            message = "all members are validators: nobody answers"
            self.problems.add(found, ("members",), "AH023", message, None, key=True)
        elif run["quorum"] > voters:
            beside = "" if voters == len(listed) else ", validators aside"
            message = f"quorum: {run['quorum']} of {voters} members{beside}"
            self.problems.add(found, ("run", "quorum"), "AH023", message, None)

    def _check_level(self, found: Found, run: JsonObject) -> None:
        """Tokens are fused by ensembles, and params of tokens are for them."""
        if run["level"] == "tokens":
            if found.data["type"] != "ensemble":
                message = f"level: a reactor of type {found.data['type']} fuses no tokens"
                hint = "only an ensemble does"
                self.problems.add(found, ("run", "level"), "AH023", message, hint)
            return
        for name in OF_TOKENS:
            if name in found.data.get("run", {}):
                message = f"{name}: this reactor does not write token by token"
                hint = "add `level: tokens`; members by themselves have it in `runner.params`"
                self.problems.add(found, ("run", name), "AH023", message, hint, key=True)

    def _check_cycles(self, found: Found, edges: Sequence[InteractionSpec]) -> None:
        """What members of a hierarchy wait for must come to an end."""
        if found.data["type"] != "hierarchical":
            return
        waits: dict[str, set[str]] = {}
        for edge in edges:
            waits.setdefault(edge.second, set()).add(edge.first)
        try:
            tuple(TopologicalSorter(waits).static_order())
        except CycleError as exc:
            circle = list(pairwise(exc.args[1]))
            links = [edge for link in circle for edge in edges if (edge.first, edge.second) == link]
            said = ", ".join(f"{each.source} {each.kind} {each.target}" for each in links)
            message = f"the interactions go round in a circle: {said}"
            hint = "break one of these links"
            self.problems.add(found, ("interactions",), "AH021", message, hint, key=True)

    def _check_params(self, found: Found, uses: str) -> None:
        """Those of rules and slices."""
        strategy = self.plugins.strategies[uses].item
        schema = with_gradients(strategy.params_schema, strategy.member_params)
        for field in ("tensors", "slices"):
            for index, data in enumerate(found.data.get(field, ())):
                place: Pointer = (field, index, "params")
                self._add_params(found, place, data.get("params", {}), schema)

    def _add_params(
        self, found: Found, place: Pointer, params: JsonObject, schema: JsonObject
    ) -> None:
        whole = (*found.pointer, *place)
        for pointer, phrase in params_problems(params, schema, whole):
            self.problems.add(found, (*place, *pointer), phrase.code, phrase.message, phrase.hint)

    def _places(
        self, found: Found, members: Sequence[MemberSpec], base: str | None
    ) -> dict[str, str]:
        """The full names of the models that rules, slices and vocabulary name, by the text."""
        places: dict[str, str] = {}
        for field in ("tensors", "slices"):
            for index, data in enumerate(found.data.get(field, ())):
                seen: dict[tuple[Pointer, str], str] = {}
                for pointer, text in _named(data):
                    name = self._end(found, (field, index, *pointer), text, members)
                    places[text] = name or text
                    before = seen.setdefault((pointer[:-1], places[text]), text)
                    if before != text:
                        message = f"{text} is {before}, which is there already"
                        place = (field, index, *pointer)
                        self.problems.add(found, place, "AH013", message, None, key=True)
        text = vocabulary_of(found.data)["of"]
        if text not in WORDS:
            places[text] = self._vocabulary(found, text, members, base) or text
        return places

    def _vocabulary(
        self, found: Found, text: str, members: Sequence[MemberSpec], base: str | None
    ) -> str | None:
        """The full name of the model whose tokenizer it is to be: a member, or the base."""
        pointer: Pointer = ("tokenizer",)
        if isinstance(found.data["tokenizer"], dict):
            pointer = ("tokenizer", "of")
        name = self.references.find(found, pointer, text)
        if name is not None and name not in (base, *(member.model for member in members)):
            message = f"{name} is neither a member of {found.name} nor its base"
            self.problems.add(found, pointer, "AH020", message, "say union, base or a member")
        return name

    def _end(
        self, found: Found, pointer: Pointer, text: str, members: Sequence[MemberSpec]
    ) -> str | None:
        name = self.references.find(found, pointer, text)
        are_known = len(members) == len(found.data["members"])
        if name is not None and are_known and all(member.model != name for member in members):
            message = f"{name} is not a member of {found.name}"
            self.problems.add(found, pointer, "AH020", message, None)
        return name

    def _check_edge(
        self, found: Found, index: int, edge: InteractionSpec, others: Sequence[InteractionSpec]
    ) -> None:
        if edge.source == edge.target and edge.source:
            message = f"{edge.source} cannot interact with itself"
            self.problems.add(found, ("interactions", index, "to"), "AH023", message, None)
        same = (edge.source, edge.target, edge.kind)
        if edge.source and any((o.source, o.target, o.kind) == same for o in others):
            message = f"{edge.source} {edge.kind} {edge.target} is there already"
            self.problems.add(found, ("interactions", index), "AH013", message, None)

    def _check_merge(self, found: Found, spec: ReactorSpec) -> None:
        """What is about tensors is for those that fuse weights, and has to make sense."""
        if spec.type != "merge":
            for field in ("tensors", "slices", "compute", "out_dtype", "tokenizer"):
                if field in found.data:
                    message = f"{field}: a reactor of type {spec.type} fuses outputs, not tensors"
                    self.problems.add(found, (field,), "AH023", message, None, key=True)
        if spec.tokenizer is not None and spec.tokenizer.of == "base" and spec.base is None:
            message = "tokenizer: base, and the reactor has no base"
            hint = "add `base: MODEL`, or name a member"
            self.problems.add(found, ("tokenizer",), "AH023", message, hint)
        for index, each in enumerate(spec.slices):
            for text, (first, end) in found.data["slices"][index]["layers"].items():
                if end <= first:
                    message = f"layers of {text}: it ends at {end}, before it has begun"
                    hint = "write [first, end]; the end is not taken along"
                    self.problems.add(
                        found, ("slices", index, "layers", text), "AH007", message, hint
                    )
            if len({end - first for first, end in each.layers.values()}) > 1:
                message = "a slice takes as many layers of each member"
                self.problems.add(found, ("slices", index, "layers"), "AH023", message, None)

    def _check_fit(self, found: Found, spec: ReactorSpec) -> None:
        strategy = self.plugins.strategies[spec.uses].item
        counts = member_counts(spec)
        count = next((c for c in counts if not takes_count(strategy, c)), counts[0])
        self._check_merge(found, spec)
        if (told := unfit(strategy, spec.type)) is not None:
            self.problems.add(found, ("strategy",), "AH023", *told)
        if not takes_count(strategy, count):
            wanted = _range(strategy.min_members, strategy.max_members)
            message = f"the strategy {spec.uses!r} takes {wanted} members, not {count}"
            self.problems.add(found, ("members",), "AH023", message, None)
        if strategy.needs_base and spec.base is None:
            message = f"the strategy {spec.uses!r} needs a base model"
            self.problems.add(found, (), "AH023", message, "add `base: MODEL`", key=True)


def unfit(strategy: FusionStrategy, reactor_type: str) -> tuple[str, str] | None:
    """Why a reactor of that type cannot have that strategy, and what to do; None where it can."""
    needed = "weights" if reactor_type == "merge" else "outputs"
    if needed in strategy.fuses:
        return None
    return (
        f"the strategy {strategy.name!r} does not fuse {needed}",
        f"it fuses {' and '.join(strategy.fuses)}; `arc-halo plugins` lists the others",
    )


def parts_of(data: JsonObject, places: Mapping[str, str]) -> JsonObject:
    """The fields of a `ReactorSpec` that say what differs among tensors.

    `places` has the full name of each model by the text that is written.
    """
    return {
        "tensors": tuple(
            RuleSpec(
                match=_texts(rule["match"]),
                params=_params(rule, places),
                weights=_weights(rule, places),
            )
            for rule in data.get("tensors", ())
        ),
        "slices": tuple(
            SliceSpec(
                layers={places[t]: (first, end) for t, (first, end) in each["layers"].items()},
                base=each.get("base"),
                params=_params(each, places),
                weights=_weights(each, places),
            )
            for each in data.get("slices", ())
        ),
        "compute": data.get("compute", "F32"),
        "out_dtype": data.get("out_dtype"),
        "tokenizer": _vocabulary_spec(data, places),
    }


def named_members(data: JsonObject) -> Iterator[str]:
    """What the rules and slices of a reactor call members."""
    for part in (*data.get("tensors", ()), *data.get("slices", ())):
        for _, text in _named(part):
            yield text


def _named(part: JsonObject) -> Iterator[tuple[Pointer, str]]:
    """Where a rule or slice names members, and how."""
    for kind in ("weights", "layers"):
        for text in part.get(kind, {}):
            yield (kind, text), text
    for param, value in part.get("params", {}).items():
        if isinstance(value, dict):
            for text in value:
                yield ("params", param, text), text


def _params(part: JsonObject, places: Mapping[str, str]) -> JsonObject:
    """The params of a rule or slice, with the full names of models."""
    return {
        name: {places[text]: each for text, each in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in part.get("params", {}).items()
    }


def idle_settings(kind: str, run: JsonObject) -> dict[str, str]:
    """The settings of a run that change nothing, and where that is so."""
    idle = {}
    if kind != "cascade":
        idle["threshold"] = f"in a reactor of type {kind}: a cascade has one"
    if kind != "parallel":
        idle["choose"] = f"in a reactor of type {kind}: a parallel one chooses"
    if kind == "cascade" and run["quorum"] > 1:
        idle["quorum"] = "in a cascade, which asks no more members than it must"
    if run["fallback"] is not None and run["on_failure"] != "fallback":
        idle["fallback"] = f"with `on_failure: {run['on_failure']}`"
    if run["record_ttl"] is not None and run["record"] == "none":
        idle["record_ttl"] = "with `record: none`"
    return idle


WORDS = ("union", "base", None)
"""What `tokenizer` may say that is no model; None where it says nothing."""


def vocabulary_of(data: JsonObject) -> JsonObject:
    """What a reactor says of its tokenizer, in its long form."""
    value = data.get("tokenizer")
    return value if isinstance(value, dict) else {"of": value}


def _vocabulary_spec(data: JsonObject, places: Mapping[str, str]) -> VocabularySpec | None:
    long = vocabulary_of(data)
    of: str | None = long["of"]
    if of is None:
        return None
    return VocabularySpec(
        of=of if of in WORDS else places[of],
        pad_to_multiple_of=long.get("pad_to_multiple_of", 1),
    )


def _texts(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _weights(data: JsonObject, places: Mapping[str, str]) -> dict[str, Gradient]:
    return {
        places[text]: tuple(map(float, weight)) if isinstance(weight, list) else float(weight)
        for text, weight in data.get("weights", {}).items()
    }


def member_counts(spec: ReactorSpec) -> list[int]:
    """How many members are fused at once: of each slice those that it names."""
    return [len(each.layers) for each in spec.slices] or [len(spec.members)]


def takes_count(strategy: FusionStrategy, count: int) -> bool:
    """Whether a strategy fuses so many members."""
    return strategy.min_members <= count <= (strategy.max_members or count)


def adapter_texts(member: JsonObject) -> list[str]:
    """The references to adapters that a member holds."""
    listed = member.get("adapters", ())
    return [each if isinstance(each, str) else each["model"] for each in listed]


def member_spec(data: JsonObject, model: str, adapters: Sequence[str]) -> MemberSpec:
    """A member as it is written, of the model and the adapters that it names."""
    scales = [
        1.0 if isinstance(each, str) else float(each.get("scale", 1.0))
        for each in data.get("adapters", ())
    ]
    return MemberSpec(
        model=model,
        role=data.get("role", "secondary"),
        weight=float(data.get("weight", 1.0)),
        priority=data.get("priority"),
        cost=float(data.get("cost", 1.0)),
        domains=tuple(data.get("domains", ())),
        adapters=tuple(
            AdapterSpec(model=name, scale=scale)
            for name, scale in zip(adapters, scales, strict=True)
        ),
    )


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"exactly {low}" if low == high else f"{low} to {high}"
