"""The weight files a manifest names, and what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.documents import Declaration, Desired, ModelSpec, WeightsSource
from arc_halo.manifest.tokenizers import Tokenizer
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.tokenizers import read_tokenizers
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.sources import Advance, DigestCache, SourceFacts, source_facts
from arc_halo.types import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files that are there, by model, and the models whose weights are absent."""

    facts: Mapping[Key, SourceFacts] = field(default_factory=dict)
    tokenizers: Mapping[Key, Tokenizer] = field(default_factory=dict)
    absent: tuple[Key, ...] = ()


def read_sources(
    desired: Desired, plugins: PluginManager, cache: DigestCache, *, advance: Advance | None = None
) -> Sources:
    """Digest every source of weights the manifest names; unchanged files are not read again.

    Raises `ManifestError` for a file that is not the one its `digest` promises.
    """
    facts: dict[Key, SourceFacts] = {}
    absent: list[Key] = []
    problems: list[Problem] = []
    for key, declaration in desired.declarations.items():
        source = source_of(declaration)
        if source is None:
            continue
        if not source.path.exists():
            absent.append(key)
            continue
        found = source_facts(
            source.path,
            plugins.format(source.format),
            cache,
            roots=source.roots,
            advance=advance,
        )
        facts[key] = found
        if source.digest not in (None, found.root):
            problems.append(
                desired.problem(
                    declaration,
                    ("weights", "digest"),
                    "AH063",
                    f"{source.label} has the digest {format_digest(found.root)}, "
                    f"not the one {key} declares",
                    "put the right file in its place, or change `weights.digest`",
                )
            )
    cache.save()
    if problems:
        raise ManifestError(problems)
    return Sources(facts=facts, tokenizers=read_tokenizers(desired), absent=tuple(absent))


def check_all_there(desired: Desired) -> None:
    """Raise `ManifestError` for weights that are absent, of which nothing was ever imported."""
    problems = [
        not_there(desired, declaration)
        for declaration in desired.declarations.values()
        if (source := source_of(declaration)) is not None and not source.path.exists()
    ]
    if problems:
        raise ManifestError(problems)


def not_there(desired: Desired, declaration: Declaration) -> Problem:
    source = source_of(declaration)
    label = source.label if source else ""
    return desired.problem(
        declaration,
        ("weights",),
        "AH025",
        f"the weights of {declaration.key}, {label}, are not there",
        "put the file in its place: it was never imported from there",
    )


def weight_files(desired: Desired, cache: DigestCache) -> Iterator[Path]:
    """Every file of weights that the manifest names; of one that is absent, where it would be."""
    for declaration in desired.declarations.values():
        if (source := source_of(declaration)) is not None:
            yield source.path
            yield from cache.known_files(source.path, source.format)


def source_of(declaration: Declaration) -> WeightsSource | None:
    """Where a model's weights come from, if it is a model that has any."""
    spec = declaration.spec
    return spec.weights if isinstance(spec, ModelSpec) else None
