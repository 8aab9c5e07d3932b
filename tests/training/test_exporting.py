"""Points as CSV and Parquet, read back by others."""

from __future__ import annotations

import csv
import io
import math
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from arc_halo.errors import NotFoundError
from arc_halo.store import training_reading
from arc_halo.training import exporting

sys.path.insert(0, str(Path(__file__).parent))

from recorded import BEGAN, add_points, add_session

ODD = {0: 0.1, 1: math.nan, 2: math.inf, 3: -math.inf, 4: 5e-324, 5: -0.0, 2**62: 1 / 3}


@pytest.fixture
def session(conn):
    session = add_session(conn, 'ni"ght,\n1')
    add_points(conn, session, ODD)
    add_points(conn, session, {7: 1.5}, "accuracy", "eval", epoch_steps=None)
    return session


def written(conn, named, **asked):
    text = io.StringIO()
    count = exporting.write_csv(exporting.pages(conn, named, **asked), text)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(rows) == count
    return rows


def test_what_is_written_as_csv_reads_back_to_the_bit(conn, session):
    first, *others = written(conn, [session])
    assert (first["session_id"], first["session_name"]) == (str(session), 'ni"ght,\n1')
    assert (first["scope"], first["metric"], first["epoch"]) == ("eval", "accuracy", "")
    steps = [int(row["step"]) for row in others]
    values = np.array([float(row["value"]) for row in others])
    assert steps == list(ODD)
    assert values.tobytes() == np.array(list(ODD.values())).tobytes()
    assert others[1]["epoch"] == "0.1"
    at = datetime.fromisoformat(others[2]["recorded_at"])
    assert at == BEGAN + timedelta(seconds=2)


def test_what_is_written_as_parquet_reads_back_to_the_bit(conn, session, tmp_path, monkeypatch):
    monkeypatch.setattr(training_reading, "PAGE_POINTS", 3)
    path = tmp_path / "points.parquet"
    assert exporting.write_file(exporting.pages(conn, [session]), path) == len(ODD) + 1
    table = parquet.read_table(path)
    assert tuple(table.column_names) == exporting.COLUMNS
    loss = table.slice(1)
    assert loss["step"].to_pylist() == list(ODD)
    assert loss["value"].to_numpy().tobytes() == np.array(list(ODD.values())).tobytes()
    assert table["epoch"].to_pylist()[:2] == [None, 0.0]
    assert table["metric"].to_pylist()[:2] == ["accuracy", "loss"]
    assert loss["recorded_at"].to_pylist()[2] == BEGAN + timedelta(seconds=2)
    assert parquet.ParquetFile(path).num_row_groups == 4


def test_a_session_without_a_name_has_none_in_both(conn, tmp_path):
    session = add_session(conn)
    add_points(conn, session, {1: 1.0})
    (row,) = written(conn, [session])
    assert row["session_name"] == ""
    exporting.write_file(exporting.pages(conn, [session]), tmp_path / "p.parquet")
    assert parquet.read_table(tmp_path / "p.parquet")["session_name"].to_pylist() == [None]


def test_a_file_of_csv_is_what_is_printed(conn, session, tmp_path):
    text = io.StringIO()
    exporting.write_csv(exporting.pages(conn, [session]), text)
    count = exporting.write_file(exporting.pages(conn, [session]), tmp_path / "p.csv")
    assert count == len(ODD) + 1
    assert (tmp_path / "p.csv").read_bytes().decode() == text.getvalue()


def test_an_export_that_fails_leaves_nothing_behind(conn, session, tmp_path):
    def failing():
        yield from exporting.pages(conn, [session])
        raise RuntimeError

    for name in ("p.csv", "p.parquet"):
        with pytest.raises(RuntimeError):
            exporting.write_file(failing(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_asked_for_is_exported(conn, session):
    other = add_session(conn, parent_id=session, forked_at_step=3)
    add_points(conn, other, {4: 4.0})
    rows = written(conn, [session, other, session], metric="l*", scope="train")
    assert [row["session_id"] for row in rows] == [str(session)] * len(ODD) + [str(other)] * 5
    assert written(conn, [session], metric="none") == []


def test_a_session_that_is_not_there_is_noticed_before_anything_is_written(conn, session):
    with pytest.raises(NotFoundError):
        exporting.pages(conn, [session, "other"])
