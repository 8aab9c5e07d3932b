"""What the benchmark of the tensor store measures inside a process, each in a fresh one.

    python benchmarks/tensor_probes.py PROBE ARGUMENTS

takes its arguments as one JSON object and prints another. Imports of modules and the opening of
connections are over before the measured part begins.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tensor_bare as bare
from tensor_deltas import xor_codec
from tensor_site import charged, peak_resident_mib, resident_mib

Said = dict[str, Any]

THREADS = 2
LOADS = 5


def import_file(
    *,
    url: str,
    path: str,
    postmaster: int,
    codec: str | None = None,
    label: str = "model",
    hashed: bool = False,
    delta_from: str | None = None,
    deltas: str | None = None,
) -> Said:
    """`import_weights` of a file; with the hashing of it that goes before, where `hashed`.

    `deltas` is `xor` to have chunks kept as XOR with those of `delta_from`, not as our deltas.
    """
    from arc_halo.transfer.importing import import_weights
    from arc_halo.transfer.sources import DigestCache, source_facts

    file, form = Path(path), _safetensors()
    base = bytes.fromhex(delta_from) if delta_from else None
    with _store(url, deltas) as store:
        root = b"" if hashed else source_facts(file, form, DigestCache(None)).root
        with charged(postmaster) as found:
            if hashed:
                root = source_facts(file, form, DigestCache(None)).root
            import_weights(store, file, form, root, label=label, codec=codec, delta_from=base)
        found["root"] = root.hex()
    return found


def import_within(*, url: str, path: str, postmaster: int, codec: str | None = None) -> Said:
    """The memory that an import takes beyond what the process had before, in MiB."""
    from arc_halo.transfer.importing import import_weights
    from arc_halo.transfer.sources import DigestCache, source_facts

    file, form = Path(path), _safetensors()
    with _store(url) as store:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = resident_mib()
        with charged(postmaster) as found:
            root = source_facts(file, form, DigestCache(None)).root
            import_weights(store, file, form, root, label="model", codec=codec)
        found["peak_mib"] = peak_resident_mib() - start
    return found


def load_set(*, url: str, root: str, postmaster: int) -> Said:
    """Every tensor of the set as an array: the median of several times, after one that warms."""
    from arc_halo.store import builds
    from arc_halo.weights.reading import read_arrays

    key = bytes.fromhex(root)
    with _store(url) as store:

        def load() -> int:
            with store.pool.connection() as conn:
                weight_set = builds.sets_by_root(conn, [key])[key]
                rows = builds.set_tensors(conn, weight_set.id)
            arrays = read_arrays(store, weight_set.id, rows)
            return sum(array.nbytes for array in arrays.values())

        return _median_time(load, postmaster)


def bare_ingest(*, url: str, path: str, postmaster: int, connections: int = THREADS) -> Said:
    """The bare loop that reads, hashes and inserts the chunks of a file."""
    with bare.connections(url, connections) as conns, charged(postmaster) as found:
        bare.ingest(conns, Path(path))
    return found


def bare_load(*, url: str, postmaster: int, connections: int) -> Said:
    """COPY OUT of the rows of the one set there is, and their SHA-256: as `load_set`."""
    with bare.connections(url, connections) as conns:
        sizes = _part_sizes(conns[0], connections)
        return _median_time(
            lambda: sum(array.nbytes for array in bare.load(conns, sizes)), postmaster
        )


def bare_merge(*, url: str, postmaster: int, members: int) -> Said:
    """Bare reads of as many sets and writes of one."""
    with bare.connections(url, members + 1) as conns, charged(postmaster) as found:
        bare.merge(conns[:-1], conns[-1])
    return found


def bare_rows(*, url: str, directory: str, postmaster: int, connections: int = THREADS) -> Said:
    """COPY of exported rows into empty tables."""
    with bare.connections(url, connections) as conns, charged(postmaster) as found:
        bare.copy_rows(conns, Path(directory))
    return found


def zipnn_bytes(*, path: str, postmaster: int) -> Said:
    """The bytes of the floating point tensors of a file, and what ZipNN makes of them.

    A tensor that does not shrink counts as it is.
    """
    from tensor_files import read_tensors
    from zipnn import ZipNN

    names = {"BF16": "bfloat16", "F32": "float32"}
    raw_bytes = stored_bytes = 0
    for dtype, raw in read_tensors(Path(path)).values():
        if dtype in names:
            packer = ZipNN(input_format="byte", bytearray_dtype=names[dtype])
            # It rearranges the bytes that it is given.
            stored_bytes += min(len(raw), len(packer.compress(bytearray(raw))))
            raw_bytes += len(raw)
    return {"client": 0, "server": 0, "raw_bytes": raw_bytes, "stored_bytes": stored_bytes}


@contextmanager
def _store(url: str, deltas: str | None = None) -> Iterator[Any]:
    """The store as a project opens it, with a connection a thread open."""
    import numpy as np  # noqa: F401  is loaded before anything is measured

    from arc_halo.plugins import PluginManager
    from arc_halo.store.connection import pool
    from arc_halo.weights.store import WeightStore

    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    if deltas == "xor":
        codecs["delta"] = xor_codec()
    with pool(url, 2 * THREADS + 2) as opened:
        with opened.connection(), opened.connection():
            pass
        yield WeightStore(pool=opened, codecs=codecs, threads=THREADS)


def _median_time(load: Callable[[], int], postmaster: int) -> Said:
    """The costs of one load of several: what a page of fresh memory costs varies tenfold."""
    load()
    rounds = []
    for _ in range(LOADS):
        with charged(postmaster, writes=False) as found:
            found["bytes"] = load()
        rounds.append(found)
    return sorted(rounds, key=lambda each: float(each["client"] + each["server"]))[LOADS // 2]


def _safetensors() -> Any:
    from arc_halo.plugins import PluginManager

    return PluginManager().formats["safetensors"].item


def _part_sizes(conn: Any, parts: int) -> list[int]:
    rows = conn.execute(
        "SELECT sum(size_bytes) FROM weight_set_tensors "
        "JOIN tensor_metadata ON tensor_metadata.id = tensor_id "
        "GROUP BY ordinal %% %(parts)s ORDER BY ordinal %% %(parts)s",
        {"parts": parts},
    ).fetchall()
    sizes = [int(size) for (size,) in rows]
    assert len(sizes) == parts
    assert math.prod(sizes)
    return sizes


PROBES = {
    probe.__name__: probe
    for probe in (
        import_file,
        import_within,
        load_set,
        bare_ingest,
        bare_load,
        bare_merge,
        bare_rows,
        zipnn_bytes,
    )
}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
