"""The tokenizers of a project's models: read, recorded, or come to by a merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from arc_halo.errors import InvalidInputError, ManifestError, Problem
from arc_halo.fusion.recipes import vocabularies_of
from arc_halo.fusion.vocabularies import contradict
from arc_halo.manifest.documents import Declaration, Desired, ModelSpec, ReactorSpec
from arc_halo.manifest.tokenizers import Tokenizer, parse_tokenizer, read_tokenizer
from arc_halo.reconcile.changes import Conflict
from arc_halo.store import tokenizers
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.types import JsonObject, Key


def read_tokenizers(desired: Desired) -> dict[Key, Tokenizer]:
    """Those whose files are there, each read once. Raises `ManifestError` with every problem."""
    found: dict[Key, Tokenizer] = {}
    by_label: dict[str, Tokenizer] = {}
    problems: list[Problem] = []
    for key, declaration in desired.declarations.items():
        spec = declaration.spec
        if not isinstance(spec, ModelSpec) or spec.tokenizer is None:
            continue
        label = spec.tokenizer.label
        try:
            if label not in by_label and spec.tokenizer.path.exists():
                by_label[label] = read_tokenizer(spec.tokenizer.path, label)
        except InvalidInputError as exc:
            problems.append(_problem(desired, declaration, exc.message, exc.hint, "AH011"))
            continue
        if label in by_label:
            found[key] = by_label[label]
    if problems:
        raise ManifestError(problems)
    return found


class Tokenizers:
    """What tokenizer each model has, as far as it is known; that of a merge once it is planned.

    `used` are those that a plan refers to, by digest.
    """

    def __init__(
        self,
        desired: Desired,
        files: Mapping[Key, Tokenizer],
        recorded: Mapping[Key, JsonObject],
        conn: Connection | None,
    ) -> None:
        self.used: dict[bytes, Tokenizer] = {each.digest: each for each in files.values()}
        self._conn = conn
        self._rows: dict[str, int] = {}
        self._documents: dict[str, JsonObject | None] = {
            name: model.tokenizer for name, model in desired.registered.items()
        }
        problems = []
        for key, declaration in desired.declarations.items():
            spec = declaration.spec
            if not isinstance(spec, ModelSpec) or key in desired.merges:
                continue
            label = spec.tokenizer.label if spec.tokenizer else None
            if label is None:
                self._documents[key.name] = None
            elif key in files:
                self._documents[key.name] = _json(files[key].digest, label)
            elif (known := recorded.get(key, {})).get("source") == label:
                self._documents[key.name] = known
            else:
                message = f"the tokenizer of {key}, {label}, is not there"
                hint = "put the file in its place: it was never read from there"
                problems.append(_problem(desired, declaration, message, hint, "AH011"))
        if problems:
            raise ManifestError(problems)

    def document(self, name: str) -> JsonObject | None:
        """What a model's document says of its tokenizer."""
        return self._documents.get(name)

    def rows(self, name: str) -> int | None:
        """The rows of a merged model for its tokens, where they were aligned."""
        return self._rows.get(name)

    def add_merge(self, name: str, spec: ReactorSpec) -> None:
        """The tokenizer of what a merge produces: the one it says, else its base's or first's."""
        found = self.of_merge(spec)
        first = spec.base or spec.members[0].model
        vocabularies = vocabularies_of(spec, found) if found is not None else None
        if vocabularies is not None:
            digest = vocabularies.result.digest
            self.used[digest] = vocabularies.result
            self._documents[name] = _json(digest, None)
            self._rows[name] = vocabularies.row_count
            return
        document = self._documents.get(first)
        self._documents[name] = {**document, "source": None} if document else None
        if first in self._rows:
            self._rows[name] = self._rows[first]

    def of_merge(self, spec: ReactorSpec) -> dict[str, Tokenizer] | None:
        """Those a merge aligns, by the models' names; None where one is missing."""
        if spec.tokenizer is None:
            return {}
        found = {name: self._find(name) for name in spec.inputs}
        known = {name: each for name, each in found.items() if each is not None}
        return known if len(known) == len(found) else None

    def conflicts(self, key: Key, spec: ReactorSpec) -> Iterator[Conflict]:
        """What keeps a merge from being made: a tokenizer that is missing where rows are to be
        aligned, or rows of different tokens where they are not."""
        names = [name for name in spec.inputs if self._documents.get(name)]
        if spec.tokenizer is None:
            for one, other in combinations(names, 2):
                if self._contradict(one, other):
                    yield Conflict(
                        key=key,
                        code="AH070",
                        message=f"{key} is to be fused from {one} and {other}, whose vocabularies "
                        "differ",
                        hint="align them by `tokenizer: union` in the reactor",
                    )
                    return
            return
        for name in spec.inputs:
            if name not in names:
                yield Conflict(
                    key=key,
                    code="AH023",
                    message=f"{key} is to be fused with its rows aligned, and model/{name} has no "
                    "tokenizer",
                    hint=f"declare `tokenizer:` for {name}",
                )

    def _contradict(self, one: str, other: str) -> bool:
        if self._documents[one] == self._documents[other]:
            return False
        first, second = self._find(one), self._find(other)
        return first is not None and second is not None and contradict(first, second)

    def _find(self, name: str) -> Tokenizer | None:
        document = self._documents.get(name)
        if document is None:
            return None
        digest = bytes.fromhex(document["digest"].removeprefix("sha256:"))
        if digest not in self.used and self._conn is not None:
            stored = tokenizers.documents(self._conn, [digest])
            if digest in stored:
                self.used[digest] = parse_tokenizer(stored[digest], f"the tokenizer of {name}")
        return self.used.get(digest)


def _json(digest: bytes, source: str | None) -> JsonObject:
    return {"digest": format_digest(digest), "source": source}


def _problem(
    desired: Desired, declaration: Declaration, message: str, hint: str | None, code: str
) -> Problem:
    return desired.problem(declaration, ("tokenizer",), code, message, hint)
