"""The activation cache: what parts of a model gave for an input, stored once and found again.

An activation is found by the root of the weights, the structure of the module, the digest of what
the model was given, and the part's name. Another weight, another adapter at work, another mask:
nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import InvalidInputError, RefusedError
from arc_halo.inference.capturing import SeenInput, Watch, first_tensor
from arc_halo.inference.causal_models import plain, unsteady_rope
from arc_halo.inference.fingerprints import module_weights, weights_root
from arc_halo.inference.inputs import IDS, input_digest, joined
from arc_halo.inference.keeping import Keeping
from arc_halo.inference.selections import (
    Given,
    Positions,
    Selection,
    cast,
    check_dtype,
    check_has_tokens,
    given_positions,
    resolve,
    worth_keeping,
)
from arc_halo.inference.structures import structure_digest
from arc_halo.inference.watchable import check_watchable, named_parts, patterns_of
from arc_halo.store import activations as store_of
from arc_halo.store.activations import Entry, Key, NewEntry
from arc_halo.store.loaded_weights import recognise
from arc_halo.tensors import digests, dtypes
from arc_halo.tensors.torch_tensors import as_array
from arc_halo.weights.arrays import build_arrays, fresh_key
from arc_halo.weights.building import Recipe
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedInput(Mapping[str, "NDArray[Any]"]):
    """What the parts of a model gave for one input, by their names.

    `id` is that of the capture, by which it is listed and deleted, `digest` the input's. `tokens`
    is [batch, tokens], None where the model was given none; `selection` what was kept.
    """

    id: UUID
    digest: bytes
    tokens: NDArray[Any] | None
    selection: Selection
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


class Capture(Mapping[str, "NDArray[Any]"]):
    """Captures activations while it is in a `with`, and stores them when that ends.

    Nothing is stored where it ends with an error. Afterwards `inputs` has what was captured, and
    the capture itself is a mapping of that where there was one input. `stored` counts what is new
    in the database, `known` what had been captured before.
    """

    def __init__(
        self,
        store: WeightStore,
        module: Any,
        *,
        names: str | Iterable[str],
        positions: Positions | None,
        dtype: str | None,
        variant: str,
        keeping: Keeping,
        root: bytes | None = None,
    ) -> None:
        self.inputs: list[CapturedInput] = []
        self.stored = self.known = self.new_bytes = 0
        self._store, self._module = store, module
        self._positions: Given | None = given_positions(positions)
        self._dtype = check_dtype(dtype)
        self._variant, self._keeping, self._given_root = variant, keeping, root
        check_watchable(module, variant)
        self._watch = Watch(module, named_parts(module, patterns_of(names)), self._keep)

    def __enter__(self) -> Capture:
        self.inputs, self.stored, self.known, self.new_bytes = [], 0, 0, 0
        self._weights = None if self._given_root else module_weights(self._module)
        self._root = self._weights.root if self._weights else self._given_root or b""
        self._structure = structure_digest(self._module, self._variant)
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._watch.__exit__()
        if kind is None:
            self._finish()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._only[name]

    def __iter__(self) -> Any:
        return iter(self._only)

    def __len__(self) -> int:
        return len(self._only)

    @property
    def _only(self) -> CapturedInput:
        if len(self.inputs) != 1:
            raise InvalidInputError(
                f"{len(self.inputs)} inputs were captured, and not one"
                if self.inputs
                else "nothing is captured before the `with` ends",
                hint="take one of `captured.inputs`",
            )
        return self.inputs[0]

    def _keep(self, name: str, output: Any, seen: SeenInput) -> NDArray[Any] | None:
        tensor = first_tensor(output)
        if tensor is None:
            return None
        if self._positions is not None and seen.size is not None:
            span = seen.spans[-1]
            check_has_tokens(tensor.shape, name, (seen.size[0], len(span)))
            wanted = worth_keeping(self._positions, span)
            if len(wanted) < len(span):
                tensor = tensor[:, [place - span.start for place in wanted]]
        # A view of memory that the model goes on to write to would change.
        return cast(as_array(tensor, copy=True), name, self._dtype)

    def _finish(self) -> None:
        self._watch.check_seen()
        self._watch.check_gave()
        if self._weights and weights_root(self._module) != self._root:
            raise InvalidInputError(
                "the weights changed while activations were captured",
                hint="capture before or after a step of training, not around it",
            )
        if structure_digest(self._module, self._variant) != self._structure:
            raise InvalidInputError("the model's settings changed while activations were captured")
        if any(len(each.passes) > 1 for each in self._watch.inputs):
            _check_is_steady(self._module)
        # Of an input that came twice, the first.
        found = {each.digest: each for each in map(self._put_together, self._watch.inputs[::-1])}
        self.inputs = list(found.values())[::-1]
        self._write()

    def _put_together(self, seen: SeenInput) -> CapturedInput:
        tokens = seen.size
        if self._positions is not None and tokens is None:
            raise InvalidInputError(
                "the model was given no tokens to choose positions from",
                hint="leave `positions` out",
            )
        positions = resolve(self._positions, tokens[1]) if tokens else None
        arrays = {name: self._whole(seen, name, positions) for name in seen.names}
        digest = input_digest(seen.parts)
        return CapturedInput(
            id=self._key(digest).capture_id,
            digest=digest,
            tokens=seen.parts.get(IDS),
            selection=Selection(positions=positions, dtype=self._dtype),
            arrays=arrays,
        )

    def _whole(self, seen: SeenInput, name: str, positions: tuple[int, ...] | None) -> NDArray[Any]:
        """What a part gave at all positions, whatever passes they came in."""
        parts = seen.outputs(name)
        _check_is_of_all(name, parts, seen)
        if self._positions is None and len(seen.passes) == 1:
            return parts[0]
        kept = [worth_keeping(self._positions, span) for span in seen.spans]
        lengths = [len(each) for each in kept]
        if [part.shape[1] if part.ndim > 1 else -1 for part in parts] != lengths:
            raise InvalidInputError(
                f"{name} gives no value for each token: of several passes it cannot be put "
                "together",
                hint="name other modules, or run the whole sequence in one pass",
            )
        array = joined(parts)
        if positions is None:
            return array
        places = {position: place for place, position in enumerate(chain.from_iterable(kept))}
        return array[:, [places[position] for position in positions]]

    def _write(self) -> None:
        new: dict[str, NDArray[Any]] = {}
        entries: list[NewEntry] = []
        with self._store.pool.connection() as conn:
            if self._weights:
                recognise(conn, self._root, self._weights.tensors, self._weights.parameters)
            for each in self.inputs:
                key = self._key(each.digest)
                found = store_of.find(conn, [self._root], each.digest, self._structure)
                known = [entry for entry in found if _is_of(entry, each)]
                store_of.count_hits(conn, [entry.entry_id for entry in known])
                self.known += len(known)
                missing = each.arrays.keys() - {entry.layer_name for entry in known}
                for name in (name for name in each.arrays if name in missing):
                    new[f"{each.digest.hex()}.{name}"] = each.arrays[name]
                    entries.append(_entry(key, name, each))
        size_bytes = sum(array.nbytes for array in new.values())
        budget_bytes = self._keeping.budget_bytes
        if size_bytes > budget_bytes:
            raise RefusedError(
                f"{size_bytes:,} bytes were captured, and {budget_bytes:,} may be kept",
                hint="name fewer modules or positions, a smaller dtype, or a larger budget_bytes",
            )
        if new:
            self._store_new(new, entries)

    def _store_new(self, new: Mapping[str, NDArray[Any]], entries: Sequence[NewEntry]) -> None:
        built = build_arrays(
            self._store, Recipe(purpose="write", key=fresh_key(), recipe={"of": "activations"}), new
        )
        self.new_bytes = built.new_bytes
        with self._store.pool.connection() as conn, conn.transaction():
            store_of.lock(conn)
            self.stored = store_of.insert(conn, entries, self._keeping.ttl)
            store_of.evict(conn, self._keeping.budget_bytes)

    def _key(self, digest: bytes) -> Key:
        return Key(weights_root=self._root, structure_digest=self._structure, input_digest=digest)


def _check_is_of_all(name: str, parts: Sequence[NDArray[Any]], seen: SeenInput) -> None:
    """Raise for logits of some tokens alone, which the input does not say."""
    kept, tokens = seen.kept_logits, seen.size[1] if seen.size else None
    if len(parts) == 1 and kept != tokens and parts[0].ndim > 1 and parts[0].shape[1] == kept:
        raise InvalidInputError(
            f"{name or 'the model'} gives logits of {kept} of {tokens} tokens alone",
            hint="run the model without logits_to_keep, or name other modules",
        )


def _check_is_steady(module: Any) -> None:
    """Raise for a model that gives something else pass by pass than for the whole at once."""
    config: Any = getattr(plain(module), "config", None)
    rope = unsteady_rope(config) if hasattr(config, "to_json_string") else None
    if rope is not None:
        raise InvalidInputError(
            f"with {rope} rope the first tokens are read otherwise when more are to come: what was "
            "captured in several passes is of no one input",
            hint="capture one pass over the whole sequence: model(ids)",
        )


def _is_of(entry: Entry, each: CapturedInput) -> bool:
    return entry.layer_name in each.arrays and entry.selection == each.selection.as_json()


def _entry(key: Key, name: str, each: CapturedInput) -> NewEntry:
    array = each.arrays[name]
    dtype = dtypes.name_of(array.dtype)
    selection: JsonObject = each.selection.as_json()
    digest = digests.tensor_digest(dtype, array.shape, dtypes.raw_bytes(array))
    return NewEntry(key=key, layer_name=name, selection=selection, digest=digest)
