"""The bars of the tensor store that are ratios of CPU seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
from rows import Row
from tensor_bare import export_rows
from tensor_files import layers, noise, weights, write_bf16
from tensor_site import Cost, Site, empty, interleaved, ratio_row

RAW_INGEST, PLANES_INGEST, RAW_LOAD, PLANES_LOAD = 0.85, 0.85, 0.85, 0.5
SECOND_IMPORT, SMALL_TENSORS = 0.35, 0.4

SMALL_BYTES = 4096
INGEST_CONNECTIONS, LOAD_CONNECTIONS = 2, 1
"""As many as `import_weights` with two threads, and `read_arrays`, use."""

WRITTEN = """
SELECT pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_inserted(reltoastrelid)
FROM pg_class WHERE oid = 'chunk_bodies'::regclass
"""


def raw_ingest(site: Site, size_bytes: int, repetitions: int) -> Iterator[Row]:
    """`import_weights` with the codec raw against the bare loop, on bytes that do not shrink."""
    url, path = site.create_database("raw_ingest"), site.directory / "noise.safetensors"
    size_bytes = write_bf16(path, layers(size_bytes), noise)
    costs = interleaved(
        {
            "bare": lambda: site.probe(
                "bare_ingest", url=url, path=path, connections=INGEST_CONNECTIONS
            ),
            "ours": lambda: site.probe("import_file", url=url, path=path, codec="raw"),
        },
        repetitions,
        before=lambda: empty(url),
    )
    yield ratio_row("raw ingest / bare loop", costs, "bare", "ours", RAW_INGEST, ">=")
    yield _rates(size_bytes, costs)
    _clear(site, "raw_ingest", path)


def planes_ingest(site: Site, size_bytes: int, repetitions: int) -> Iterator[Row]:
    """The codec planes against raw, on normally distributed bfloat16 numbers."""
    url, path = site.create_database("planes_ingest"), site.directory / "weights.safetensors"
    size_bytes = write_bf16(path, layers(size_bytes), weights)
    costs = interleaved(
        {
            codec: lambda codec=codec: site.probe("import_file", url=url, path=path, codec=codec)
            for codec in ("raw", "planes")
        },
        repetitions,
        before=lambda: empty(url),
    )
    yield ratio_row("planes ingest / raw ingest", costs, "raw", "planes", PLANES_INGEST, ">=")
    yield _rates(size_bytes, costs)
    _clear(site, "planes_ingest", path)


def loads(site: Site, size_bytes: int, repetitions: int) -> Iterator[Row]:
    """Whole sets as arrays: raw against COPY OUT of the same rows, and planes against raw."""
    path = site.directory / "weights.safetensors"
    size_bytes = write_bf16(path, layers(size_bytes), weights)
    urls = {codec: site.create_database(f"{codec}_load") for codec in ("raw", "planes")}
    for codec, url in urls.items():
        root = site.probe("import_file", url=url, path=path, codec=codec).said["root"]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("VACUUM (ANALYZE)")
            conn.execute("CHECKPOINT")
    costs = interleaved(
        {
            "bare": lambda: site.probe("bare_load", url=urls["raw"], connections=LOAD_CONNECTIONS),
            "raw": lambda: site.probe("load_set", url=urls["raw"], root=root),
            "planes": lambda: site.probe("load_set", url=urls["planes"], root=root),
        },
        repetitions,
    )
    assert {cost.said["bytes"] for each in costs.values() for cost in each} == {size_bytes}
    yield ratio_row("raw load / bare COPY OUT + SHA-256", costs, "bare", "raw", RAW_LOAD, ">=")
    yield ratio_row("planes load / raw load", costs, "raw", "planes", PLANES_LOAD, ">=")
    yield _rates(size_bytes, costs)
    for codec in urls:
        _clear(site, f"{codec}_load", path)


def second_import(site: Site, size_bytes: int, repetitions: int) -> Iterator[Row]:
    """The same file once more under another name, hashing it included."""
    url, path = site.create_database("second_import"), site.directory / "weights.safetensors"
    write_bf16(path, layers(size_bytes), weights)
    costs: dict[str, list[Cost]] = {"first": [], "second": [], "forgotten": []}
    written = 0
    for _ in range(repetitions):
        empty(url)
        costs["first"].append(_hashed_import(site, url, path, "first"))
        before = _written(url)
        costs["second"].append(_hashed_import(site, url, path, "second"))
        with psycopg.connect(url) as conn:
            conn.execute("DELETE FROM weight_builds")
        costs["forgotten"].append(_hashed_import(site, url, path, "third"))
        written = max(written, _written(url) - before)
    yield ratio_row("second import / first", costs, "second", "first", SECOND_IMPORT, "<=")
    yield Row(
        what="chunk bodies written by it",
        figure=f"{written}",
        bar="0",
        is_met=written == 0,
    )
    forgotten = ratio_row("", costs, "forgotten", "first", SECOND_IMPORT, "<=")
    yield Row(what="the same, every chunk asked for by digest", figure=forgotten.figure)
    _clear(site, "second_import", path)


def small_tensors(site: Site, count: int, repetitions: int) -> Iterator[Row]:
    """Many tensors of one small chunk, all their rows, against COPY BINARY of those rows."""
    url, path = site.create_database("small_tensors"), site.directory / "small.safetensors"
    rows = site.directory / "rows"
    rows.mkdir()
    write_bf16(path, [(SMALL_BYTES // 2,)] * count, noise)
    site.probe("import_file", url=url, path=path, codec="raw")
    with psycopg.connect(url, autocommit=True) as conn:
        export_rows(conn, rows, INGEST_CONNECTIONS)
    costs = interleaved(
        {
            "bare": lambda: site.probe(
                "bare_rows", url=url, directory=rows, connections=INGEST_CONNECTIONS
            ),
            "ours": lambda: site.probe("import_file", url=url, path=path, codec="raw"),
        },
        repetitions,
        before=lambda: empty(url),
    )
    what = f"{count:,} tensors of 4 KiB / bare COPY of their rows"
    yield ratio_row(what, costs, "bare", "ours", SMALL_TENSORS, ">=")
    _clear(site, "small_tensors", path)


def _hashed_import(site: Site, url: str, path: Path, label: str) -> Cost:
    return site.probe("import_file", url=url, path=path, label=label, hashed=True)


def _written(url: str) -> int:
    """Rows of `chunk_bodies` and of the table of its large bodies ever inserted."""
    with psycopg.connect(url) as conn:
        found = conn.execute(WRITTEN).fetchone()
    assert found is not None
    return sum(map(int, found))


def _rates(size_bytes: int, costs: dict[str, list[Cost]]) -> Row:
    figures = [
        f"{name} {size_bytes / 1e6 / min(cost.cpu for cost in each):.0f}"
        for name, each in costs.items()
    ]
    return Row(what="best MB per CPU-s", figure=", ".join(figures))


def _clear(site: Site, database: str, path: Path) -> None:
    site.drop_database(database)
    path.unlink(missing_ok=True)
