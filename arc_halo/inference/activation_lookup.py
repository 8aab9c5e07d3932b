"""Captured activations of an input: found by the weights, the structure and what was given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError
from arc_halo.inference.activation_captures import read_entry
from arc_halo.inference.fingerprints import weights_root
from arc_halo.inference.inputs import IDS, input_digest
from arc_halo.inference.selections import (
    Positions,
    Selection,
    cast,
    check_dtype,
    given_positions,
    place_among,
    resolve,
)
from arc_halo.inference.structures import structure_digest
from arc_halo.inference.watchable import check_watchable, patterns_of
from arc_halo.store import activations as store_of
from arc_halo.store.activations import Entry
from arc_halo.store.rows import Connection
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load(
    store: WeightStore,
    model: Any,
    parts: Mapping[str, NDArray[Any]],
    *,
    names: str | Iterable[str] = "*",
    positions: Positions | None = None,
    dtype: str | None = None,
    variant: str = "",
) -> dict[str, NDArray[Any]]:
    """What is stored of an input, by the names of parts that fit; what is not there is left out.

    `model` is a module, or roots of weights: then `InvalidInputError` is raised where what is
    stored with these is of several models. Every entry that is given counts a hit.
    """
    patterns = patterns_of(names)
    count = parts[IDS].shape[1] if IDS in parts else None
    if positions is not None and count is None:
        raise InvalidInputError("without tokens there are no positions to choose from")
    wanted = given_positions(positions)
    asked = Selection(
        positions=resolve(wanted, count) if count is not None else None, dtype=check_dtype(dtype)
    )
    with store.pool.connection() as conn:
        entries = _entries(conn, model, input_digest(parts), variant)
    if len({(entry.weights_root, entry.structure_digest) for entry in entries}) > 1:
        raise InvalidInputError(
            "activations of several models with these weights are stored",
            hint="give the module itself, or see `arc-halo activations ls`",
            code="AH006",
        )
    chosen = _chosen(entries, asked, patterns)
    found = {}
    for name, entry in chosen.items():
        array = read_entry(store, entry)
        if array is not None:
            found[name] = _as_asked(array, entry, asked)
    with store.pool.connection() as conn:
        store_of.count_hits(conn, [chosen[name].entry_id for name in found])
    return found


def _entries(conn: Connection, model: Any, digest: bytes, variant: str) -> list[Entry]:
    if isinstance(model, list):
        return store_of.find(conn, model, digest)
    check_watchable(model, variant)
    return store_of.find(conn, [weights_root(model)], digest, structure_digest(model, variant))


def _chosen(
    entries: Sequence[Entry], asked: Selection, patterns: Sequence[str]
) -> dict[str, Entry]:
    """Of each part the entry that has what is asked for: that itself before what has more."""
    found: dict[str, Entry] = {}
    for entry in entries:
        name, selection = entry.layer_name, Selection.from_json(entry.selection)
        if not any(fnmatchcase(name, pattern) for pattern in patterns) or not selection.has(asked):
            continue
        if name not in found or selection == asked:
            found[name] = entry
    return found


def _as_asked(array: NDArray[Any], entry: Entry, asked: Selection) -> NDArray[Any]:
    stored = Selection.from_json(entry.selection)
    if asked.positions is not None and asked.positions != stored.positions:
        array = array[:, list(place_among(stored, asked.positions))]
    return cast(array, entry.layer_name, asked.dtype)
