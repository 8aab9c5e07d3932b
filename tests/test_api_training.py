"""`halo.training` on sessions that are over: their checkpoints read, notes added, deleted."""

from __future__ import annotations

import random

import numpy as np
import psycopg
import pytest

import arc_halo
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError


@pytest.fixture
def halo(tmp_path, database):
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def sql(database):
    def run(query):
        with psycopg.connect(database) as conn:
            return conn.execute(query).fetchall()

    return run


@pytest.fixture
def completed(halo):
    """A completed session with three checkpoints, the second of them the best."""
    with halo.training.session("story@1", name="tune", best_metric="loss") as run:
        for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
            run.log({"loss": loss}, step=step)
            run.checkpoint(
                model={"w": np.full(4, step, np.float32)},
                optimizer={"m": np.full(4, loss)},
                metrics={"loss": loss},
                rng=step != 20,
            )
    return halo.training.get("tune")


def test_a_checkpoint_of_a_completed_session_is_restored(completed):
    model, optimizer = {"w": np.empty(4, np.float32)}, {"m": np.empty(4)}
    restored = completed.checkpoints.restore("best", model=model, optimizer=optimizer)
    assert (restored.checkpoint.step, restored.restored) == (20, ("model", "optimizer"))
    assert (model["w"].tolist(), optimizer["m"].tolist()) == ([20] * 4, [1] * 4)


def test_generators_are_restored_from_a_completed_session_only_if_asked_for(completed):
    before, model = random.getstate(), {"w": np.empty(4, np.float32)}
    random.random()
    drawn = random.getstate()
    completed.checkpoints.restore(model=model)
    assert random.getstate() == drawn
    completed.checkpoints.restore(model=model, rng=True)
    assert random.getstate() == before


def test_checkpoints_of_a_completed_session_are_listed_found_and_read(completed):
    checkpoints = completed.checkpoints
    assert [each.step for each in checkpoints.list()] == [10, 20, 30]
    assert checkpoints.find().step == 30
    assert checkpoints.find(10).step == 10
    contents = checkpoints.read("best")
    assert contents.weights["w"].tolist() == [20] * 4
    assert contents.state("optimizer")["m"].tolist() == [1] * 4
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        checkpoints.restore(11)


def test_nothing_is_saved_in_a_session_that_is_only_read(completed):
    assert not hasattr(completed.checkpoints, "save")
    assert not hasattr(completed.checkpoints, "prune")


def test_a_session_is_deleted_with_its_points_and_checkpoints(halo, completed, sql):
    told = halo.training.delete("tune")
    assert [each.name for each in told.sessions] == ["tune"]
    assert (told.points[completed.id], len(told.checkpoints)) == (3, 3)
    assert told.own_bytes > 0
    for table in ("training_sessions", "training_series", "training_metrics", "model_checkpoints"):
        assert sql(f"SELECT count(*) FROM {table}") == [(0,)]
    with pytest.raises(NotFoundError, match="no training session 'tune'"):
        halo.training.delete("tune")


def test_a_session_at_work_is_not_deleted(halo, completed):
    run = halo.training.session("story@1", name="busy")
    with pytest.raises(RefusedError, match="at work"):
        halo.training.delete("busy", "tune", force=True)
    run.finish()
    assert {each.name for each in halo.training.list()} == {"tune", "busy"}
    halo.training.delete("busy", "tune")
    assert halo.training.list() == []


def test_pinned_checkpoints_and_history_of_forks_go_only_by_force(halo, completed):
    with halo.training.session("story@1", name="child", fork_from="tune", at_step=20) as child:
        child.log({"loss": 0.5}, step=21)
    with halo.training.session("story@1", name="grandchild", fork_from="child", at_step=21):
        pass
    with pytest.raises(RefusedError, match="lose that part of their history: child, grandchild"):
        halo.training.delete("tune")
    told = halo.training.delete("tune", force=True)
    assert [each.name for each in told.forks] == ["child", "grandchild"]
    assert halo.training.get("child").series("loss").steps.tolist() == [21]
    assert halo.training.get("grandchild").series("loss").steps.tolist() == [21]
    with halo.training.session("story@1", name="kept") as run:
        run.checkpoint(step=7, model={"w": np.ones(2)}, pinned=True)
    with pytest.raises(RefusedError, match="pinned, of the steps 7"):
        halo.training.delete("kept")
    assert len(halo.training.delete("kept", force=True).pinned) == 1


def test_forks_that_are_deleted_together_are_not_in_the_way(halo, completed):
    with halo.training.session("story@1", name="child", fork_from="tune", at_step=20):
        pass
    assert halo.training.delete("tune", "child").forks == []


def test_what_waits_on_the_disk_goes_with_its_session(halo, completed, tmp_path):
    spool = tmp_path / ".arc-halo" / "training" / str(completed.id)
    spool.mkdir(parents=True)
    (spool / "00000001.points").write_bytes(b"")
    halo.training.delete(completed.id)
    assert not spool.exists()


def test_tags_and_notes_are_added_to_a_session_that_is_over(halo, completed):
    completed.annotate(tags={"seed": 1}, notes="see https://me:secret@host/x")
    completed.annotate(tags={"kept": True})
    assert completed.about.tags == {"seed": 1, "kept": True}
    found = halo.training.get("tune").about
    assert found.tags == {"seed": 1, "kept": True}
    assert "secret" not in found.notes
    with pytest.raises(InvalidInputError):
        completed.annotate(tags={"model": object()})
    halo.training.delete("tune")
    with pytest.raises(NotFoundError):
        completed.annotate(notes="too late")


def test_a_key_may_say_its_scope(halo):
    with halo.training.session("story@1", name="scopes") as run:
        run.log({"loss": 2.0}, step=0)
        run.log({"loss": 3.0}, step=0, scope="eval")
        run.log({"val/acc": 4.0}, step=0)
    found = halo.training.get("scopes")
    for key, scope, value in (
        ("loss", None, 2),
        ("train/loss", None, 2),
        ("eval/loss", None, 3),
        ("eval/loss", "eval", 3),
        ("val/acc", None, 4),
        ("train/val/acc", None, 4),
    ):
        series = found.series(key, scope)
        assert series.values.tolist() == [value]
        assert found.envelope(key, scope).highs.tolist() == [value]
    assert (found.series("eval/loss").key, found.series("eval/loss").scope) == ("loss", "eval")
    with pytest.raises(NotFoundError, match="no series 'eval/loss' of train"):
        found.series("eval/loss", "train")
    with pytest.raises(InvalidInputError, match="another scope"):
        found.summaries(metric="eval/*", scope="train")
    assert [str(key) for key in found.list_series(metric="eval/*")] == ["eval/loss"]
    assert [str(key) for key in found.list_series(metric="val/*")] == ["train/val/acc"]


def test_a_status_that_there_is_not_is_refused(halo):
    with pytest.raises(InvalidInputError, match="status='done' is no status"):
        halo.training.list(status="done")


def test_a_model_that_is_not_registered_is_asked_for_its_version(halo):
    with pytest.raises(NotFoundError) as raised:
        halo.training.session("net")
    assert "net@1.0.0" in str(raised.value.hint)
