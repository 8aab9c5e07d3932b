"""Batches of points: one of each step, in columns, on the wire and on disk."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import TrainingError
from arc_halo.training.points import Batch, Logged, highest_steps, split
from arc_halo.training.spool import Spool, decode, encode

SERIES = [("loss", "train"), ("loss", "eval"), ("cpu", "system")]
logged_points = st.lists(
    st.builds(
        lambda key, step, epoch, value, time: (*key, step, epoch, value, time),
        st.sampled_from(SERIES),
        st.integers(0, 12) | st.integers(0, 2**63 - 1),
        st.just(math.nan) | st.floats(0, 100, width=32),
        st.floats(),
        st.floats(1e9, 2e9),
    )
)


def batch_of(*steps: int, value: float = 1.0) -> Batch:
    return Batch.of([("loss", "train", step, math.nan, value, 1.7e9) for step in steps])


@given(logged_points)
def test_of_points_with_one_step_the_last_counts(logged: list[Logged]) -> None:
    numbers = {key: number for number, key in enumerate(SERIES, 7)}
    expected = {
        (numbers[metric, scope], step): value for metric, scope, step, _, value, _ in logged
    }
    points = Batch.of(logged).numbered(numbers)
    columns = (points.series.tolist(), points.steps.tolist(), points.values.tolist())
    assert [repr(point) for point in zip(*columns, strict=True)] == [
        repr((*place, value)) for place, value in sorted(expected.items())
    ]


@given(logged_points, st.dictionaries(st.integers(0, 3), st.integers(-1, 12)))
def test_what_lies_beyond_the_highest_step_is_new(
    logged: list[Logged], highest: dict[int, int]
) -> None:
    points = Batch.of(logged).numbered({key: number for number, key in enumerate(SERIES)})
    new, known = split(points, highest)
    assert len(new) + len(known) == len(points)
    places = zip(new.series.tolist(), new.steps.tolist(), strict=True)
    assert all(step > highest.get(number, -1) for number, step in places)
    places = zip(known.series.tolist(), known.steps.tolist(), strict=True)
    assert all(step <= highest.get(number, -1) for number, step in places)
    assert highest_steps(points) == {
        number: max(points.steps[points.series == number].tolist())
        for number in set(points.series.tolist())
    }


@given(logged_points)
def test_a_batch_on_disk_is_the_batch(logged: list[Logged]) -> None:
    batch = Batch.of(logged)
    found = decode(encode(batch))
    assert found is not None
    assert found.keys == batch.keys
    for column in ("series", "epochs", "steps", "values", "micros"):
        one, other = getattr(found.points, column), getattr(batch.points, column)
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@given(logged_points, st.data())
def test_a_damaged_file_is_noticed(logged: list[Logged], data: st.DataObject) -> None:
    whole = encode(Batch.of(logged))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    assert decode(bytes(flipped)) is None
    assert decode(whole[:place]) is None


def test_batches_come_out_of_a_spool_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=10**6)
    for step in range(12):
        spool.put(batch_of(step))
    again = Spool(tmp_path / "spool", limit_bytes=10**6)
    again.put(batch_of(12))
    steps = []
    for path, batch in again.batches():
        steps += batch.points.steps.tolist()
        again.drop(path)
    assert steps == list(range(13))
    again.close()
    assert not (tmp_path / "spool").exists()


def test_a_full_spool_takes_no_more(tmp_path: Path) -> None:
    size = len(encode(batch_of(1)))
    spool = Spool(tmp_path, limit_bytes=2 * size)
    spool.put(batch_of(1))
    spool.put(batch_of(2))
    with pytest.raises(TrainingError, match="is full"):
        spool.put(batch_of(3))
    spool.drop(spool.files()[0])
    spool.put(batch_of(3))


def test_a_damaged_file_of_a_spool_is_put_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=10**6)
    spool.put(batch_of(1))
    spool.put(batch_of(2))
    first = spool.files()[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(TrainingError, match="are damaged"):
        list(spool.batches())
    assert [batch.points.steps.tolist() for _, batch in spool.batches()] == [[2]]
    assert first.with_suffix(".damaged").is_file()


def test_a_spool_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match="cannot be spooled"):
        Spool(tmp_path / "file" / "spool", limit_bytes=10**6).put(batch_of(1))


def test_what_a_full_disk_took_of_a_batch_is_not_left_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(TrainingError, match="cannot be spooled"):
            spool.put(batch_of(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_end_is_put_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=10**6)
    for damaged in (b"", b"{}", b"[]", b'{"lease": 5, "status": "failed", "error": null}'):
        (tmp_path / "end.json").write_bytes(damaged)
        assert spool.end() is None
        assert [path.name for path in tmp_path.iterdir()] == ["end.damaged"]


def test_times_are_kept_to_the_microsecond() -> None:
    batch = Batch.of([("loss", "train", 1, math.nan, 0.5, 946684800.000001)])
    assert batch.points.micros.tolist() == [1]
    assert batch.points.values.dtype == np.float64
