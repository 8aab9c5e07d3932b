"""`arc-halo lineage`: what a model, or one tensor of it, was made of, and what was made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import NotFoundError
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from uuid import UUID

    from arc_halo.store.fused import FusedTensor
    from arc_halo.store.models import ModelRecord
    from arc_halo.store.rows import Connection


@click.command("lineage")
@click.argument("model")
@click.option("--tensor", metavar="NAME", help="One tensor of it.")
@click.pass_obj
def lineage(invocation: Invocation, model: str, tensor: str | None) -> None:
    """Show what a fused model was made of, up to what was imported, and what was made of it.

    Of a tensor: the params and weights that were used, the tensors that went in, and what was
    seen on the way: norms of the changes, their cosines, conflicts of signs, density.

    \b
    Examples:
      arc-halo lineage story
      arc-halo lineage story@1.0.0 --output json
      arc-halo lineage story --tensor model.norm.weight
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.reconcile.showing import find_model

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record = find_model(conn, model)
            if record is None:
                raise NotFoundError(
                    f"there is no model {model!r}", hint="see `arc-halo get models`"
                )
            if tensor is None:
                facts = _of_model(conn, record)
                lines = _model_lines(facts)
            else:
                facts = _of_tensor(conn, record, tensor)
                lines = _tensor_lines(facts)
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(lines)),
        json=lambda: as_json(facts),
        markdown=lambda: "```\n" + "\n".join(lines) + "\n```",
    )


def _of_model(conn: Connection, record: ModelRecord) -> JsonObject:
    from arc_halo.store import reactors

    root = bytes(record.root) if record.root else None
    return {
        "model": record.full_name,
        "root": f"sha256:{root.hex()}" if root else None,
        "made_by": _merges(conn, record, set()),
        "made_of_it": reactors.made_of(conn, root) if root else [],
    }


def _merges(conn: Connection, record: ModelRecord | None, told: set[UUID]) -> list[JsonObject]:
    """The merges that made this model's weights, and those behind their inputs.

    Merges that made equal weights for other models are no lineage of this one. What was `told` is
    not told again.
    """
    from arc_halo.reconcile.showing import find_model
    from arc_halo.store import reactors

    if record is None or record.root is None or record.id in told:
        return []
    told.add(record.id)
    found = []
    for merge in reactors.lineage(conn, bytes(record.root)):
        if merge.model_id != record.id:
            continue
        for item in merge.inputs:
            source = find_model(conn, item["model"])
            is_same = (
                source is not None
                and source.root is not None
                and (bytes(source.root).hex() == (item["root"] or "").removeprefix("sha256:"))
            )
            if is_same and (behind := _merges(conn, source, told)):
                item["made_by"] = behind
        found.append(
            {
                "reactor": merge.reactor,
                "strategy": merge.strategy,
                "strategy_version": merge.strategy_version,
                "params": merge.params,
                "finished_at": merge.finished_at.isoformat() if merge.finished_at else None,
                "inputs": merge.inputs,
            }
        )
    return found


def _of_tensor(conn: Connection, record: ModelRecord, name: str) -> JsonObject:
    from arc_halo.names import did_you_mean
    from arc_halo.store import builds, fused

    root = bytes(record.root) if record.root else b""
    found = builds.sets_by_root(conn, [root]).get(root)
    tensors = {t.name: t for t in builds.set_tensors(conn, found.id)} if found else {}
    if name not in tensors or found is None:
        raise NotFoundError(
            f"{record.full_name} has no tensor {name!r}",
            hint=did_you_mean(name, tensors) or f"see `arc-halo tensors ls {record.full_name}`",
        )
    digest = bytes(tensors[name].digest)
    products = fused.made_of(conn, digest)
    made = fused.of_set(conn, found.id, name) if _is_merged(conn, record) else []
    return {
        "model": record.full_name,
        "tensor": name,
        "digest": f"sha256:{digest.hex()}",
        "made_by": [_tensor_facts(conn, each, {digest}) for each in made],
        "made_of_it": [{"model": each.model, "tensor": each.name} for each in products],
    }


def _tensor_facts(conn: Connection, made: FusedTensor, told_of: set[bytes]) -> JsonObject:
    """How a tensor was fused, and its inputs; of what was told of before only the name."""
    from arc_halo.fusion.tensor_recipes import told_sources

    recipe = made.recipe
    if recipe is None:
        return {"taken_from": made.labels[0]}
    told = told_sources(recipe)
    weights = [*recipe["weights"], *[None] * len(told)]
    base = len(recipe["members"]) if recipe["base"] else None
    inputs: list[JsonObject] = []
    seen: set[str] = set()
    for place, (source, label) in enumerate(zip(told, made.labels, strict=True)):
        if weights[place] is None and place != base and source["tensor"] in seen:
            continue  # an input that gives rows to another one
        seen.add(source["tensor"])
        item = {**label, "digest": f"sha256:{source['tensor']}", "weight": weights[place]}
        item["is_base"] = place == base
        digest = bytes.fromhex(source["tensor"])
        if digest not in told_of:
            told_of.add(digest)
            if behind := _made_there(conn, label, digest):
                item["made_by"] = [_tensor_facts(conn, each, told_of) for each in behind]
        inputs.append(item)
    return {
        "strategy": recipe["strategy"],
        "strategy_version": recipe["strategy_version"],
        "params": recipe["params"],
        "key": f"sha256:{(made.key or b'').hex()}",
        "cpu_seconds": made.cpu_seconds,
        "inputs": inputs,
        "facts": made.facts,
    }


def _made_there(conn: Connection, label: JsonObject, digest: bytes) -> list[FusedTensor]:
    """How the model that an input came from got this tensor; nothing if it was imported.

    Equal tensors of other models are no ancestors, and a model that has other weights by now tells
    nothing of these.
    """
    from arc_halo.reconcile.showing import find_model
    from arc_halo.store import builds, fused

    record = find_model(conn, label["model"])
    if record is None or record.root is None or not _is_merged(conn, record):
        return []
    found = builds.sets_by_root(conn, [bytes(record.root)]).get(bytes(record.root))
    made = fused.of_set(conn, found.id, label["tensor"]) if found else []
    return [each for each in made if each.digest is None or bytes(each.digest) == digest]


def _is_merged(conn: Connection, record: ModelRecord) -> bool:
    """Whether a merge made this model, and not only the same weights for another one."""
    from arc_halo.store import reactors

    merges = reactors.lineage(conn, bytes(record.root)) if record.root else []
    return any(merge.model_id == record.id for merge in merges)


def _model_lines(facts: JsonObject) -> list[str]:
    lines = [f"{facts['model']}  {facts['root'] or 'has no weights'}"]
    if not facts["made_by"]:
        lines.append("  not fused here: its weights were imported")
    lines += _merge_lines(facts["made_by"], "  ")
    if facts["made_of_it"]:
        lines.append("  went into")
        lines += [
            f"    {each['model']:<24} {each['root']}  {each['strategy']}"
            for each in facts["made_of_it"]
        ]
    return lines


def _merge_lines(merges: list[JsonObject], indent: str) -> list[str]:
    lines = []
    for merge in merges:
        lines.append(
            f"{indent}fused by {merge['strategy']} (version {merge['strategy_version']}) "
            f"with {json.dumps(merge['params'])} "
            f"in reactor/{merge['reactor']}, {merge['finished_at']}"
        )
        for item in merge["inputs"]:
            part = "base" if item["is_base"] else f"{item['role']}, weight {item['weight']:g}"
            lines.append(f"{indent}  {item['model']:<24} {item['root']}  {part}")
            lines += _merge_lines(item.get("made_by", []), indent + "    ")
    return lines


def _tensor_lines(facts: JsonObject) -> list[str]:
    lines = [f"{facts['model']}  {facts['tensor']}  {facts['digest']}"]
    if not facts["made_by"]:
        lines.append("  not fused here: it was imported")
    lines += _source_lines(facts["made_by"], "  ")
    if facts["made_of_it"]:
        lines.append("  went into")
        lines += [f"    {each['model']}  {each['tensor']}" for each in facts["made_of_it"]]
    return lines


def _source_lines(made: list[JsonObject], indent: str) -> list[str]:
    lines = []
    for each in made:
        if "taken_from" in each:
            source = each["taken_from"]
            lines.append(f"{indent}taken as it is from {source['model']}  {source['tensor']}")
            continue
        lines.append(
            f"{indent}fused by {each['strategy']} (version {each['strategy_version']}) "
            f"with {json.dumps(each['params'])}"
        )
        for item in each["inputs"]:
            part = "base" if item["is_base"] else "read for the others"
            if item["weight"] is not None:
                part = f"weight {item['weight']:g}"
            lines.append(f"{indent}  {item['model']:<24} {item['digest']}  {part}")
            lines += _source_lines(item.get("made_by", []), indent + "    ")
        seen = ", ".join(f"{name} {_shown(value)}" for name, value in each["facts"].items())
        lines.append(f"{indent}  seen: {seen}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
