"""The benchmark of training, tiny: its parts run, and say what they measured."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tensor_site  # noqa: E402
import training_reading  # noqa: E402
import training_site  # noqa: E402

from arc_halo.store.connection import connect  # noqa: E402


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    with tensor_site.site(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture
def on(at, request):
    url = at.create_database(request.node.name[:60])
    return training_site.Grounds(at=at, url=url)


def test_an_envelope_that_keeps_every_extreme_has_no_bucket_without_its_own(on):
    rows = list(training_reading.envelope(on, 5000, 1))
    assert [row.what.split(",")[-1].strip() for row in rows[::2]] == ["CPU-s", "CPU-s"]
    assert [row.figure for row in rows[1::2]] == ["0 of 1000", "0 of 1000"]


def test_a_size_is_that_of_all_points_with_their_index(on):
    (row,) = training_reading.size(on, 20_000)
    assert 60 < float(row.figure.split()[0]) < 200
    with connect(on.url) as conn:
        assert conn.execute("SELECT count(*) FROM training_metrics").fetchone() == (20_000,)


def test_without_mlflow_the_comparison_is_missed_and_says_why(on):
    (row,) = training_reading.history(on, 100, 1)
    assert row.is_met is False
    assert "--mlflow" in row.figure


def test_a_probe_reads_all_points_that_were_written(on):
    on.fill(on.session("s"), ["loss", "lr"], 250, 100)
    cost = on.probe("read", session="s", key="loss")
    assert cost.said["points"] == 250
    assert cost.cpu > 0
