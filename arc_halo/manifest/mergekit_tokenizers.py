"""What a mergekit document says of the result's tokens, as a reactor says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arc_halo.manifest.mergekit_settings import Refuse
from arc_halo.types import JsonObject

FIELDS = ("tokenizer", "tokenizer_source")
MOST = 65536

ModelName = Callable[[object, str], str | None]
"""The name that a model gets, by its path and the place where it stands."""


def vocabulary(
    document: Mapping[str, Any],
    members: Sequence[str],
    base: str | None,
    model: ModelName,
    refuse: Refuse,
) -> str | JsonObject | None:
    """A reactor's `tokenizer`; None where the document wants none."""
    given = [field for field in FIELDS if document.get(field) is not None]
    if len(given) != 1:
        if given:
            refuse("tokenizer, tokenizer_source: only one of them can be meant")
        return None
    (field,) = given
    told = document[field] if field == "tokenizer" else {"source": document[field]}
    if not isinstance(told, dict):
        refuse("tokenizer: it is no mapping")
        return None
    for key in told:
        if key not in ("source", "pad_to_multiple_of"):
            why = "rows are not chosen token by token" if key == "tokens" else "it is unknown"
            refuse(f"tokenizer.{key}: {why}")
    where = field if field == "tokenizer_source" else "tokenizer.source"
    of = _of(told.get("source", "union"), where, members, base, model, refuse)
    padding = told.get("pad_to_multiple_of")
    if padding is None:
        return of
    if type(padding) is not int or not 1 <= padding <= MOST:
        refuse(f"tokenizer.pad_to_multiple_of: a whole number from 1 to {MOST} is needed")
    return {"of": of, "pad_to_multiple_of": padding}


def _of(
    source: object,
    where: str,
    members: Sequence[str],
    base: str | None,
    model: ModelName,
    refuse: Refuse,
) -> str | None:
    if source == "union" or (source == "base" and base is not None):
        return str(source)
    # Without a base theirs means the first model.
    name = next(iter(members), None) if source == "base" else model(source, where)
    if name is not None and name not in (*members, base):
        refuse(f"{where}: {source} is no model of the merge")
    return f"{name}@1.0.0" if name in ("union", "base") else name
