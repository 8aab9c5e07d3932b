"""What a manifest was made of: the digest that names it, and the files and variables behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from arc_halo.manifest.load import Source
from arc_halo.plugins import PluginManager

Digests = Mapping[str, bytes]


def manifest_digest(
    sources: Sequence[Source], plugins: PluginManager, named: Digests = MappingProxyType({})
) -> bytes:
    """Names what a manifest says: what changes its desired state changes the digest.

    That is its files, its overlay, the values of the variables it uses, the files of
    architectures that it names, and the plugins that interpret it.
    """
    digest = hashlib.sha256(b"arc-halo/manifest/1\0")
    for source in sources:
        digest.update(source.label.encode() + b"\0" + source.digest)
    for provider in plugins.providers:
        digest.update(f"{provider.name}\0{provider.version}\0".encode())
    if (overlay := sources[0].overlay) is not None:
        digest.update(b"overlay\0" + overlay.label.encode() + b"\0" + overlay.digest)
    for name, value in sorted(variable_digests(sources).items()):
        digest.update(b"variable\0" + name.encode() + b"\0" + (value or b"none"))
    for label, content in sorted(named.items()):
        digest.update(b"file\0" + label.encode() + b"\0" + content)
    return digest.digest()


def variable_digests(sources: Sequence[Source]) -> dict[str, bytes | None]:
    """The variables that were used: the SHA-256 of each value, None where there is none."""
    return {
        name: None if value is None else hashlib.sha256(value.encode(errors="replace")).digest()
        for name, value in sources[0].variables.items()
    }


def environment_of(sources: Sequence[Source]) -> str | None:
    """The environment whose overlay was merged."""
    overlay = sources[0].overlay
    return None if overlay is None else overlay.path.stem


def files_of(
    sources: Sequence[Source], plugins: PluginManager, named: Iterable[str]
) -> frozenset[Path]:
    """Every file behind a manifest, as it names them (links are not followed), and every
    directory in which `include` looked."""
    head = sources[0]
    overlay = [] if head.overlay is None else [head.overlay.path]
    labels = (*plugins.files, *named)
    return frozenset(
        [
            *(source.path for source in sources),
            *overlay,
            *head.looked_up_in,
            *(head.path.parent / label for label in labels),
        ]
    )
