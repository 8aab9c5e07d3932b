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
from arc_halo.store.activations import Entry, Key
from arc_halo.tensors import digests
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

    `model` is a module, or the root of its weights alone: then `InvalidInputError` is raised where
    several structures with these weights are stored. Every entry that is given counts a hit.
    """
    patterns = patterns_of(names)
    key = key_of(model, parts, variant)
    count = parts[IDS].shape[1] if IDS in parts else None
    if positions is not None and count is None:
        raise InvalidInputError("without tokens there are no positions to choose from")
    wanted = given_positions(positions)
    asked = Selection(
        positions=resolve(wanted, count) if count is not None else None, dtype=check_dtype(dtype)
    )
    with store.pool.connection() as conn:
        entries = store_of.find(conn, key)
    if len({entry.structure_digest for entry in entries}) > 1:
        raise InvalidInputError(
            "activations of several models with these weights are stored",
            hint="give the module in place of its root",
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


def given_root(root: bytes | str) -> bytes:
    """A root of weights as bytes, written as `sha256:…` or not."""
    found = digests.parse_digest(root) if isinstance(root, str) else root
    if not isinstance(found, bytes) or len(found) != digests.DIGEST_BYTES:
        raise InvalidInputError(
            f"{root!r} is no root of weights",
            hint=f"write sha256:…, or give its {digests.DIGEST_BYTES} bytes",
            code="AH006",
        )
    return found


def key_of(model: Any, parts: Mapping[str, NDArray[Any]], variant: str = "") -> Key:
    """What activations of a model for an input are found by."""
    digest = input_digest(parts)
    if isinstance(model, (str, bytes)):
        return Key(weights_root=given_root(model), input_digest=digest)
    check_watchable(model, variant)
    return Key(
        weights_root=weights_root(model),
        structure_digest=structure_digest(model, variant),
        input_digest=digest,
    )


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
