"""The index of a sharded model, read: which file holds which tensor, and that it is so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from arc_halo.errors import FormatError
from arc_halo.formats._files import open_regular, read_exactly, unreadable
from arc_halo.formats._header import MAX_HEADER_BYTES, parse_index, refuse
from arc_halo.formats.sharding import INDEX_SUFFIX


def read_weight_map(index: Path) -> dict[str, str]:
    """The index's `weight_map`. Raises `FormatError`."""
    with ExitStack() as stack:
        descriptor, size_bytes = open_regular(index, stack)
        if size_bytes > MAX_HEADER_BYTES:
            refuse(str(index), f"an index of more than {MAX_HEADER_BYTES:,} bytes")
        return parse_index(read_exactly(descriptor, size_bytes, 0, index), str(index))


def check_weight_map(
    weight_map: Mapping[str, str], held: Iterable[tuple[Path, Iterable[str]]], index: Path
) -> None:
    """Refuse shards (each with the names it holds) that are not as the index says."""
    missing = dict(weight_map)
    for path, names in held:
        for name in names:
            if weight_map.get(name) != path.name:
                what = f"{index.name} places it in {weight_map.get(name, 'no shard')}"
                refuse(str(path), what, tensor=name)
            del missing[name]
    for name, file in missing.items():
        refuse(str(index), f"{file} does not hold it", tensor=name)


def find_model(directory: Path, *, usual: str, suffixes: tuple[str, ...]) -> Path:
    """The one model in a directory: an index or the file `usual`, else the only file of `suffixes`.

    Raises `FormatError` where that is none or several.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as exc:
        raise unreadable(directory, exc) from exc
    indexes = [n for n in names if n.endswith(tuple(s + INDEX_SUFFIX for s in suffixes))]
    if usual in names or indexes:
        candidates = indexes + [usual] * (usual in names)
    else:
        candidates = [name for name in names if name.endswith(suffixes)]
    if len(candidates) != 1:
        raise FormatError(
            f"{directory} holds {len(candidates)} models: {', '.join(candidates) or 'none'}",
            hint=f"name the {suffixes[0]} file or the {INDEX_SUFFIX} itself",
        )
    return directory / candidates[0]
