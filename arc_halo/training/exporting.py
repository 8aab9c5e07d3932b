"""Points taken elsewhere: CSV in the core, Parquet through pyarrow (extra `parquet`).

A row is a point. Series come one after another, each in the order of its steps, and no more than a
page of points is held at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

import numpy as np

from arc_halo.errors import ArcHaloError
from arc_halo.formats._files import replacing
from arc_halo.store.rows import Connection
from arc_halo.training import reading
from arc_halo.training.reading import Series

if TYPE_CHECKING:
    from arc_halo.store.training_reading import SessionRow

COLUMNS = ("session_id", "session_name", "scope", "metric", "step", "epoch", "value", "recorded_at")
_PARQUET_SUFFIXES = (".parquet", ".pq")

Exported = tuple["SessionRow", Series]


def pages(
    conn: Connection,
    named: Sequence[str | UUID],
    *,
    metric: str = "*",
    scope: str | None = None,
) -> Iterator[Exported]:
    """The points of sessions, page by page, those of forks with what they have of their parents.

    Sessions are looked up before the first page. Raises `NotFoundError`.
    """
    found = {row.id: row for row in (reading.session(conn, each) for each in named)}

    def each() -> Iterator[Exported]:
        for row in found.values():
            for page in reading.pages(conn, row.id, metric=metric, scope=scope):
                yield row, page

    return each()


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in _PARQUET_SUFFIXES


def check_parquet() -> None:
    """Raise `ArcHaloError` where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ArcHaloError(
            "pyarrow is not installed",
            hint="pip install 'arc-halo[parquet]', or export to a .csv",
            code="AH030",
        ) from exc


def write_file(exported: Iterable[Exported], path: Path) -> int:
    """Write points to a .parquet, or as CSV to any other; how many.

    The file appears complete or not at all.
    """
    with replacing(path) as file:
        if is_parquet(path):
            return write_parquet(exported, file)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        count = write_csv(exported, text)
        text.detach()
        return count


def write_csv(exported: Iterable[Exported], file: IO[str]) -> int:
    """Write points as CSV; how many.

    Numbers read back as they are; NaN and the infinities are `nan`, `inf` and `-inf`, an epoch that
    was not given is empty, times are UTC.
    """
    import csv

    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    count = 0
    for session, page in exported:
        before = (str(session.id), session.name or "", page.scope, page.key)
        rows.writerows((*before, *point) for point in _points(page))
        count += len(page)
    return count


def write_parquet(exported: Iterable[Exported], file: BinaryIO) -> int:
    """Write points as Parquet, a row group a page; how many."""
    import pyarrow as pa
    from pyarrow import parquet

    names = pa.dictionary(pa.int32(), pa.string())
    kinds = (names, names, names, names, pa.int64(), pa.float32(), pa.float64())
    times = pa.timestamp("us", tz="UTC")
    schema = pa.schema(list(zip(COLUMNS, (*kinds, times), strict=True)))
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for session, page in exported:
            size = len(page)
            texts = [str(session.id), session.name, page.scope, page.key]
            columns: list[Any] = [_repeated(pa, text, size) for text in texts]
            columns += [
                pa.array(page.steps),
                pa.array(page.epochs, mask=np.isnan(page.epochs)),
                pa.array(page.values),
                pa.array(page.times.astype(np.int64), type=pa.int64()).cast(times),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=size)
            count += size
    return count


def _points(page: Series) -> Iterator[tuple[Any, ...]]:
    # As float32 prints them: 0.1, not 0.10000000149011612.
    epochs = ["" if text == "nan" else text for text in page.epochs.astype(str).tolist()]
    times = np.datetime_as_string(page.times, unit="us", timezone="UTC").tolist()
    return zip(page.steps.tolist(), epochs, page.values.tolist(), times, strict=True)


def _repeated(pa: Any, text: str | None, count: int) -> Any:
    indices = np.zeros(count, dtype=np.int32)
    mask = np.full(count, text is None)
    return pa.DictionaryArray.from_arrays(
        pa.array(indices, mask=mask), pa.array([text or ""], type=pa.string())
    )
