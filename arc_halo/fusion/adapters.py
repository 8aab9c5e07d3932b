"""LoRA adapters, added to a member's tensors while they are read.

An adapter is a model of its own: the tensors are those that PEFT writes, the architecture is its
`adapter_config.json`. To a matrix W of [rows, columns] it adds s * B A, with B of [rows, rank], A
of [rank, columns] and s = alpha / rank, or alpha / sqrt(rank) for rank-stabilised ones.

E. Hu et al., "LoRA" (ICLR 2022); D. Kalajdzievski, "A rank stabilization scaling factor" (2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.compatibility import Known, Table, is_computable
from arc_halo.fusion.recipes import AdapterInput
from arc_halo.fusion.tensor_recipes import LowRank, TensorSource
from arc_halo.types import JsonObject

PREFIX = "base_model.model."
_PART = re.compile(r"\.lora_(embedding_)?([AB])(?:\.[^.]+)?(?:\.weight)?$")
KNOWN_TYPE = "LORA"
RESIDUAL = ("pissa", "olora", "corda")
"""Ways to begin that take something off the model; PEFT can convert what came of them."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What an adapter does to a member: low-rank updates, and tensors in place of the member's."""

    updates: Mapping[str, LowRank]
    replaced: Mapping[str, TensorSource]


def fit(adapter: AdapterInput, table: Table, member: Table) -> Fitted:
    """Find the member's tensors that the adapter changes.

    Raises `IncompatibleModelsError` for an adapter that is none we know, or whose tensors do not
    fit: all of them have to.
    """
    _check_kind(adapter)
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, TensorSource] = {}
    embeddings: set[str] = set()
    problems: list[str] = []
    for name, tensor in table.tensors.items():
        plain = name.removeprefix(PREFIX)
        part = _PART.search(plain)
        if part is None:
            _replace(replaced, problems, table, member, name, plain)
            continue
        target = plain[: part.start()] + ".weight"
        pairs.setdefault(target, {})[part[2]] = name
        if part[1]:
            embeddings.add(target)
        if target not in member.tensors:
            problems.append(f"{name}: {member.name} has no {target}")
        elif not is_computable(tensor.dtype):
            problems.append(f"{name}: dtype {tensor.dtype} cannot be computed with")
    updates: dict[str, LowRank] = {}
    for target, parts in pairs.items() if not problems else ():
        if missing := {"A", "B"} - parts.keys():
            problems.append(f"{target}: its lora_{missing.pop()} is missing")
            continue
        is_transposed = bool(adapter.config.get("fan_in_fan_out")) or target in embeddings
        a, b = (table.tensors[parts[part]] for part in "AB")
        problems += _shape_problems(target, member.tensors[target], a, b, is_transposed)
        scale = adapter.scale * _scale(adapter.config, target, int((a.shape or [1])[0]))
        if not a.shape or not a.shape[0] or not math.isfinite(scale):
            problems.append(f"{target}: rank {list(a.shape)[:1]}, scale {scale:g}")
            continue
        updates[target] = LowRank(
            a=source_of(table, parts["A"]),
            b=source_of(table, parts["B"]),
            rank=int(a.shape[0]) if a.shape else 0,
            scale=scale,
            is_transposed=is_transposed,
        )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:10])
        raise IncompatibleModelsError(
            f"the adapter {adapter.model} does not fit {member.name}:{listed}",
            hint="an adapter is for the model that it was trained on",
        )
    return Fitted(updates, replaced)


def source_of(table: Table, name: str) -> TensorSource:
    tensor = table.tensors[name]
    return TensorSource(model=table.name, tensor=name, dtype=tensor.dtype, digest=tensor.digest)


def _check_kind(adapter: AdapterInput) -> None:
    config = adapter.config
    kind = config.get("peft_type", KNOWN_TYPE)
    wrong = None
    if kind != KNOWN_TYPE:
        wrong = f"is of the type {kind}"
    elif config.get("use_dora"):
        wrong = "has magnitudes (DoRA)"
    elif not all(_is_number(each) for each in (config.get("lora_alpha"), *_alphas(config))):
        wrong = "has no lora_alpha in its architecture, or one that is no number"
    elif str(config.get("init_lora_weights")).partition("_")[0] in RESIDUAL:
        wrong = f"was begun by {config['init_lora_weights']}, and changes the model beside it"
    if wrong:
        raise IncompatibleModelsError(
            f"the adapter {adapter.model} {wrong}",
            hint="adapters are LoRA; their architecture is the `adapter_config.json` beside them",
        )


def _replace(
    replaced: dict[str, TensorSource],
    problems: list[str],
    table: Table,
    member: Table,
    name: str,
    plain: str,
) -> None:
    """A tensor that was trained as a whole stands in place of the member's."""
    found, dtype = member.tensors.get(plain), table.tensors[name].dtype
    if found is None:
        problems.append(f"{name}: {member.name} has no {plain}")
    elif list(found.shape) != list(table.tensors[name].shape):
        problems.append(f"{name}: shape {list(table.tensors[name].shape)}, not {list(found.shape)}")
    elif found.dtype != dtype and not (is_computable(found.dtype) and is_computable(dtype)):
        problems.append(f"{name}: dtype {dtype}, not {found.dtype}")
    else:
        replaced[plain] = source_of(table, name)


def _shape_problems(
    target: str, found: Known, a: Known, b: Known, is_transposed: bool
) -> Iterator[str]:
    left, right = (
        (list(a.shape)[::-1], list(b.shape)[::-1]) if is_transposed else (b.shape, a.shape)
    )
    shapes = [list(each) for each in (found.shape, left, right)]
    if any(len(shape) != 2 for shape in shapes):
        yield f"{target}: only matrices are adapted"
    elif [shapes[1][0], shapes[2][1]] != shapes[0] or shapes[1][1] != shapes[2][0]:
        yield f"{target}: {shapes[1]} times {shapes[2]} is not {shapes[0]}"


def _scale(config: JsonObject, target: str, rank: int) -> float:
    module = target.removesuffix(".weight")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else max(1, rank))


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return False  # then it is a name, and nothing but that


def _alphas(config: JsonObject) -> list[Any]:
    patterns = config.get("alpha_pattern")
    return list(patterns.values()) if isinstance(patterns, dict) else []


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _by_pattern(patterns: Any, module: str, usual: Any) -> Any:
    """PEFT's patterns are ends of module names, or regular expressions for them."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if module == pattern or module.endswith(f".{pattern}") or _matches(pattern, module):
            return value
    return usual
