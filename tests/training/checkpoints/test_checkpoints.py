"""Checkpoints: what is saved comes back bit for bit, whole, or not at all."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from arc_halo.errors import CheckpointError, InvalidInputError, NotFoundError
from arc_halo.training.checkpoints import saving
from arc_halo.training.checkpoints.checkpoints import Checkpoints, Keeping
from arc_halo.training.checkpoints.retention import Retention
from arc_halo.weights.collecting import collect, simulate
from arc_halo.weights.verifying import verify

ROW = "SELECT {} FROM model_checkpoints WHERE session_id = %s ORDER BY step"


def trained(seed=0, size=70_000):
    """A model and the state of its optimizer, as a loop in numpy has them."""
    rng = np.random.default_rng(seed)
    model = {"w": rng.normal(size=size).astype(np.float32), "b": np.float32([1, -0.0, np.nan])}
    optimizer = {
        "state": {0: {"m": rng.normal(size=size), "v": np.zeros(3), "step": 7}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}],
        "empty": {},
    }
    return model, optimizer


def bits(state):
    """A state as something that compares bit by bit."""
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(bits, state))
    return (state.dtype.str, state.tobytes()) if isinstance(state, np.ndarray) else repr(state)


def zeros(model):
    return {name: np.zeros_like(array) for name, array in model.items()}


class Counting:
    """A scheduler with state of its own."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_all_that_was_saved_comes_back_bit_for_bit(checkpoints):
    model, optimizer = trained()
    saved = checkpoints.save(
        step=3,
        epoch=0.5,
        model=model,
        optimizer=optimizer,
        scheduler=Counting(5),
        scaler={"scale": 65536.0},
        data={"epoch": 1, "order": list(range(100))},
        extra={"note": "x\0y", "huge": 2**100},
        metrics={"loss": np.float32(0.5), "worst": math.nan},
    )
    point = saved.checkpoint
    assert (point.step, point.epoch, point.type, point.metrics) == (
        3, 0.5, "full", {"loss": 0.5, "worst": "NaN"},
    )  # fmt: skip
    fresh, state, scheduler, scaler = zeros(model), {}, Counting(), {}
    kept = fresh["w"]
    done = checkpoints.restore(model=fresh, optimizer=state, scheduler=scheduler, scaler=scaler)
    assert bits(fresh) == bits(model)
    assert kept is fresh["w"]
    assert bits(state) == bits(optimizer)
    assert (scheduler.count, scaler) == (5, {"scale": 65536.0})
    assert done.restored == ("model", "optimizer", "scheduler", "scaler", "rng")
    assert done.left == ()
    assert done.data == {"epoch": 1, "order": list(range(100))}
    assert done.extra == {"note": "x\0y", "huge": 2**100}
    assert done.checkpoint == point


def test_the_random_generators_go_on_from_where_they_were(checkpoints):
    mine = np.random.default_rng(3)
    mine.random(5)
    checkpoints.save(step=1, model=trained()[0], named_generators={"mine": mine})
    expected = random.random(), np.random.rand(), mine.random()
    random.seed(0), np.random.seed(0)
    fresh = np.random.default_rng(0)
    checkpoints.restore(named_generators={"mine": fresh})
    assert (random.random(), np.random.rand(), fresh.random()) == expected
    before = random.getstate()
    assert "rng" in checkpoints.restore(rng=False).left
    assert random.getstate() == before


def test_a_loop_in_numpy_goes_on_as_if_it_was_never_interrupted(store, new_session):
    def loop(model, state, steps):
        losses = []
        for _ in range(steps):
            noise = np.random.normal(size=model["w"].shape) * random.random()
            state["m"] = 0.9 * state["m"] + model["w"] - noise
            state["t"] += 1
            model["w"] -= (0.1 / state["t"]) * state["m"]
            losses.append(float((model["w"] ** 2).sum()).hex())
        return losses

    def begin():
        np.random.seed(1), random.seed(1)
        return {"w": np.linspace(0, 1, 5000)}, {"m": np.zeros(5000), "t": 0}

    model, state = begin()
    expected = loop(model, state, 40), model["w"].tobytes()
    model, state = begin()
    first = loop(model, state, 20)
    session = new_session()
    Checkpoints(store, session).save(step=20, model=model, optimizer=state)
    np.random.seed(99), random.seed(99)
    model, state = {"w": np.zeros(5000)}, {}
    Checkpoints(store, session).restore(model=model, optimizer=state)
    assert (first + loop(model, state, 20), model["w"].tobytes()) == expected


def test_tensors_that_did_not_change_write_no_chunk(checkpoints, sql):
    model, optimizer = trained(size=300_000)
    first = checkpoints.save(step=1, model=model, optimizer=optimizer)
    count = "SELECT count(*) FROM chunk_bodies"
    before = sql(count)
    random.seed(4)
    checkpoints.save(step=2, model=model, optimizer=optimizer, rng=False)
    assert sql(count) == before
    assert first.new_bytes > 0
    model["b"][0] += 1
    changed = checkpoints.save(step=3, model=model, optimizer=optimizer, rng=False)
    assert changed.new_bytes == model["b"].nbytes


def test_what_changed_a_little_is_kept_as_a_difference_one_deep(checkpoints, store, sql):
    model, optimizer = trained(size=300_000)
    for step in range(4):
        checkpoints.save(step=step, model=model, optimizer=optimizer)
        model["w"] *= np.float32(1 + 1e-6)
        optimizer["state"][0]["m"] *= 1 + 1e-14
    deltas = sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL")[0][0]
    assert deltas > 10
    assert sql(
        "SELECT count(*) FROM chunk_bodies AS d JOIN chunk_bodies AS b ON b.digest = d.base_digest"
        " WHERE b.base_digest IS NOT NULL"
    ) == [(0,)]
    fixed = Checkpoints(replace(store, codec="zstd"), checkpoints.list()[0].session_id)
    fixed.save(step=9, model=model, optimizer=optimizer)
    assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(deltas,)]


def test_the_first_checkpoint_is_a_difference_from_the_model_it_trains(
    store, new_session, checkpoints, sql
):
    model, _ = trained(size=300_000)
    base = checkpoints.save(step=0, model=model).checkpoint
    ((model_id,),) = sql(
        "INSERT INTO models (model_name, version, model_type, architecture_config, weight_set_id,"
        " status) VALUES ('m', '1', 'other', '{}', %s, 'ready') RETURNING id",
        base.weight_set_id,
    )
    model["w"] *= np.float32(1 + 1e-6)
    Checkpoints(store, new_session(model_id=model_id)).save(step=1, model=model)
    assert sql("SELECT count(*) > 3 FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(True,)]


@pytest.mark.parametrize("moment", ["at once", "while it is stored"])
def test_what_changes_after_an_async_save_does_not_show_in_it(checkpoints, monkeypatch, moment):
    model, optimizer = trained()
    expected = bits(model), bits(optimizer)
    go_on = threading.Event()
    store_it = saving.save
    monkeypatch.setattr(saving, "save", lambda *given: go_on.wait(30) and store_it(*given))
    if moment == "at once":
        go_on.set()
    pending = checkpoints.save(step=1, model=model, optimizer=optimizer, async_=True)
    model["w"] *= 0
    optimizer["state"][0]["m"][:] = 9
    optimizer["groups"][0]["lr"] = 5
    optimizer["groups"][0]["params"].append(7)
    if moment == "while it is stored":
        assert not pending.is_done
        assert not pending.wait(0)
    go_on.set()
    assert pending.result(60).checkpoint.step == 1
    fresh, state = zeros(model), {}
    checkpoints.restore(model=fresh, optimizer=state)
    assert (bits(fresh), bits(state)) == expected


def test_what_goes_wrong_in_the_background_comes_out_once(checkpoints, sql):
    model, _ = trained()
    sql("ALTER TABLE model_checkpoints ADD CHECK (step <> 1) NOT VALID")
    pending = checkpoints.save(step=1, model=model, async_=True)
    with pytest.raises(Exception, match="check"):
        pending.result()
    assert checkpoints.save(step=2, model=model).checkpoint.step == 2
    checkpoints.save(step=1, model=model, async_=True)
    with pytest.raises(Exception, match="check"):
        checkpoints.save(step=3, model=model)
    checkpoints.save(step=1, model=model, async_=True)
    with pytest.raises(Exception, match="check"):
        checkpoints.close()
    checkpoints.close()
    assert [point.step for point in checkpoints.list()] == [2]


def test_a_part_that_is_not_there_is_told_and_nothing_is_restored(checkpoints):
    model, optimizer = trained()
    checkpoints.save(step=1, model=model, optimizer=optimizer, rng=False)
    fresh = zeros(model)
    with pytest.raises(CheckpointError, match=r"step 1 \(full\) has no scaler: nothing"):
        checkpoints.restore(model=fresh, optimizer={}, scaler={}, rng=False)
    with pytest.raises(CheckpointError, match="has no rng") as caught:
        checkpoints.restore(model=fresh)
    assert "rng=False" in caught.value.hint
    assert not fresh["w"].any()
    done = checkpoints.restore(model=fresh, rng=False)
    assert (done.restored, done.left) == (("model",), ("optimizer",))
    with pytest.raises(CheckpointError, match="has no extra"):
        _ = done.extra


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"w": np.zeros(5, np.float32)}, r"b: not in the model"),
        ({"w": np.zeros(5, np.float32), "b": np.zeros(1), "c": np.zeros(1)}, "c: not in the check"),
        ({"w": np.zeros(4, np.float32), "b": np.zeros(1)}, r"w: F32 \[5\] in the .*, F32 \[4\] in"),
        ({"w": np.zeros(5, np.float16), "b": np.zeros(1)}, r"w: F32 \[5\] in the .*, F16 \[5\] in"),
    ],
)
def test_a_model_that_is_another_is_told(checkpoints, model, said):
    checkpoints.save(step=1, model={"w": np.ones(5, np.float32), "b": np.ones(1)})
    with pytest.raises(CheckpointError, match=said):
        checkpoints.restore(model=model)
    assert not any(array.any() for array in model.values())


def test_a_state_of_another_form_is_told(checkpoints):
    model, _ = trained()
    checkpoints.save(step=1, model=model, optimizer=[Counting(1), Counting(2)], data=5)
    with pytest.raises(CheckpointError, match="3 are given"):
        checkpoints.restore(optimizer=[Counting()] * 3)
    with pytest.raises(CheckpointError, match="a mapping is given"):
        checkpoints.restore(optimizer={})
    with pytest.raises(CheckpointError, match="nothing can be restored into a int"):
        checkpoints.restore(data=1)
    two = [Counting(), Counting()]
    checkpoints.restore(optimizer=two)
    assert [each.count for each in two] == [1, 2]


def test_a_checkpoint_is_found_by_id_step_latest_and_best(checkpoints, store, new_session):
    saved = {}
    for step, loss in ((10, 3), (20, 1), (30, 2)):
        model = {"w": np.full(3, step)}
        saved[step] = checkpoints.save(
            step=step, model=model, metrics={"loss": loss}, best_metric="loss"
        ).checkpoint

    def at(which, whose=checkpoints):
        model = {"w": np.zeros(3, int)}
        whose.restore(which, model=model)
        return model["w"][0]

    assert [at(which) for which in (10, "latest", "best")] == [10, 30, 20]
    assert at(saved[10].id) == at(str(saved[10].id), Checkpoints(store, new_session())) == 10
    for which in (11, saved[10].session_id):
        with pytest.raises(NotFoundError, match="no checkpoint"):
            at(which)
    with pytest.raises(InvalidInputError, match="'newest' is no checkpoint"):
        at("newest")


def test_a_checkpoint_is_read_without_a_place_for_it(checkpoints):
    model, optimizer = trained()
    checkpoints.save(step=3, model=model, optimizer=optimizer, extra={"note": "mine"})
    found = checkpoints.read(3)
    assert bits(dict(found.weights)) == bits(model)
    assert bits(found.state("optimizer")) == bits(optimizer)
    assert found.state("extra") == {"note": "mine"}
    assert found.leaves.keys() == {"optimizer", "extra", "rng"}


def test_one_is_let_go_unless_it_is_pinned_or_forked_from(checkpoints, store, session, new_session):
    model, _ = trained(size=100)
    for step in (1, 2, 3):
        checkpoints.save(step=step, model=model, pinned=step == 2)
    with Checkpoints(store, new_session(parent_id=session, forked_at_step=3)) as fork:
        assert not fork.remove(1)
    assert [checkpoints.remove(step) for step in (1, 2, 3)] == [True, False, False]
    assert [point.step for point in checkpoints.list()] == [2, 3]
    with pytest.raises(NotFoundError):
        checkpoints.remove(1)


def test_latest_is_one_that_holds_what_is_asked_for(checkpoints):
    model, optimizer = trained()
    checkpoints.save(step=1, model=model, optimizer=optimizer)
    checkpoints.save(step=2, model=model, type="weights_only")
    checkpoints.save(step=3, optimizer=optimizer, type="optimizer_only")
    assert checkpoints.restore(model=zeros(model), optimizer={}).checkpoint.step == 1
    assert checkpoints.restore(model=zeros(model)).checkpoint.step == 2
    assert checkpoints.restore(optimizer={}).checkpoint.step == 3
    with pytest.raises(NotFoundError, match="can hold model, optimizer"):
        checkpoints.restore(3, model=zeros(model), optimizer={})


@pytest.mark.parametrize(
    "given",
    [
        {"type": "weights_only", "model": {"w": np.zeros(1)}, "optimizer": {}},
        {"type": "optimizer_only", "model": {"w": np.zeros(1)}, "optimizer": {}},
        {"type": "optimizer_only"},
        {"type": "full", "optimizer": {}},
        {"type": "half", "model": {"w": np.zeros(1)}},
        {"model": {}},
        {"model": 5},
        {"model": {"w": np.zeros(1)}, "step": -1},
        {"model": {"w": np.zeros(1)}, "step": True},
        {"model": {"w": np.zeros(1)}, "step": "7"},
        {"model": {"w": np.zeros(1)}, "step": 7.5},
        {"model": {"w": np.zeros(1)}, "metrics": {"loss": "low"}},
        {"model": {"w": np.zeros(1)}, "best_metric": 5},
        {"model": {"w": np.zeros(1)}, "best_mode": "least"},
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_saved(checkpoints, given):
    with pytest.raises(InvalidInputError):
        checkpoints.save(**{"step": 1, **given})
    assert checkpoints.list() == []


def test_a_step_may_be_a_whole_float(checkpoints):
    assert checkpoints.save(step=5.0, model={"w": np.zeros(1)}).checkpoint.step == 5
    assert checkpoints.save(step=np.float32(6), model={"w": np.zeros(1)}).checkpoint.step == 6
    with pytest.raises(InvalidInputError, match="the step is '7'"):
        checkpoints.save(step="7", model={"w": np.zeros(1)})


def test_what_cannot_be_kept_is_told_by_its_part_and_path(checkpoints):
    with pytest.raises(CheckpointError, match=r"extra: \['f'\]: builtins.function cannot be kept"):
        checkpoints.save(step=1, model=trained()[0], extra={"f": lambda: 1})
    with pytest.raises(CheckpointError, match="model: 'w': numpy dtype 'complex128'"):
        checkpoints.save(step=1, model={"w": np.zeros(1, complex)})
    assert checkpoints.list() == []


def test_the_best_is_the_best_ever_also_after_a_resume(store, session, checkpoints):
    def save(whose, step, **given):
        return whose.save(step=step, model={"w": np.full(3, step)}, **given)

    def best():
        return [point.step for point in checkpoints.list() if point.is_best]

    for step, loss in ((1, 0.5), (2, math.nan), (3, 0.4), (4, 0.4)):
        save(checkpoints, step, metrics={"loss": loss}, best_metric="loss")
    assert best() == [3]
    resumed = Checkpoints(store, session, keeping=Keeping(best_metric="loss"))
    save(resumed, 5, metrics={"loss": 0.45})
    save(resumed, 6)
    assert best() == [3]
    save(resumed, 3, metrics={"loss": 0.6})
    assert best() == [4]
    save(resumed, 7, metrics={"accuracy": 0.1}, best_metric="accuracy", best_mode="max")
    assert best() == [7]


def test_the_policy_is_applied_with_each_checkpoint_and_says_why(store, session, sql):
    kept = Checkpoints(
        store,
        session,
        keeping=Keeping(policy=Retention(keep_last=2, keep_every=4), best_metric="loss"),
    )
    gone = []
    for step in range(1, 8):
        saved = kept.save(
            step=step,
            model={"w": np.full(3, step)},
            metrics={"loss": abs(step - 2)},
            pinned=step == 1,
        )
        gone += saved.gone
    assert gone == [3, 5]
    assert sql(ROW.format("step, kept_because"), session) == [
        (1, "pinned"),
        (2, "best"),
        (4, "keep_every"),
        (6, "keep_last"),
        (7, "latest, keep_last"),
    ]
    kept.pin(1, pinned=False)
    told = kept.prune(Retention(keep_last=1), dry_run=True)
    assert [point.step for point in told.gone] == [1, 4, 6]
    assert len(kept.list()) == 5
    before = sql("SELECT sum(stored_bytes) FROM chunk_bodies")[0][0]
    assert kept.prune(Retention(keep_last=1)).gone == told.gone
    foretold = simulate(store, grace=timedelta(0))
    collected = collect(store, grace=timedelta(0))
    assert (foretold.weight_sets, foretold.freed_bytes) == (
        collected.weight_sets,
        collected.freed_bytes,
    )
    assert told.own_bytes == collected.freed_bytes - _garbage(sql, before, collected)
    assert [point.step for point in kept.list()] == [2, 7]


def _garbage(sql, before, collected):
    """What no checkpoint had any more before they were pruned: of those let go earlier."""
    after = sql("SELECT sum(stored_bytes) FROM chunk_bodies")[0][0]
    assert before - after == collected.freed_bytes
    return collected.freed_bytes * 2 // 5


def test_a_fork_has_what_it_came_from_and_it_is_kept(store, session, checkpoints, new_session):
    for step in (10, 20, 30):
        checkpoints.save(step=step, model={"w": np.full(3, step)})
    fork = Checkpoints(store, new_session(parent_id=session, forked_at_step=25))
    model = {"w": np.zeros(3, int)}
    assert fork.restore(model=model).checkpoint.step == 20
    assert model["w"][0] == 20
    with pytest.raises(NotFoundError):
        fork.restore(30, model=model)
    fork.save(step=22, model=model)
    assert fork.restore(model=model).checkpoint.step == 22
    checkpoints.prune(Retention(keep_last=1))
    assert [point.step for point in checkpoints.list()] == [20, 30]
    with pytest.raises(CheckpointError, match="another session went on from"):
        checkpoints.save(step=20, model={"w": np.full(3, 21)})


def test_a_step_saved_again_is_replaced_unless_it_is_pinned(checkpoints):
    for value in (1, 2):
        checkpoints.save(step=5, model={"w": np.full(3, value)}, rng=False)
    model = {"w": np.zeros(3, int)}
    checkpoints.restore(model=model, rng=False)
    assert (model["w"][0], len(checkpoints.list())) == (2, 1)
    checkpoints.pin(5)
    checkpoints.save(step=5, model=model, rng=False)
    with pytest.raises(CheckpointError, match="step 5 is pinned"):
        checkpoints.save(step=5, model={"w": np.full(3, 3)}, rng=False)


def test_who_lost_the_session_saves_no_more(store, session, sql):
    ((lease,),) = sql("SELECT lease FROM training_sessions")
    mine = Checkpoints(store, session, lease=lease)
    mine.save(step=1, model=trained()[0])
    sql("UPDATE training_sessions SET lease = gen_random_uuid()")
    with pytest.raises(CheckpointError, match="taken this training session up"):
        mine.save(step=2, model=trained()[0])
    assert [point.step for point in mine.list()] == [1]
    sql("DELETE FROM training_sessions")
    with pytest.raises(NotFoundError, match="no training session"):
        mine.save(step=3, model=trained()[0])


def test_collection_keeps_it_and_takes_what_was_let_go(checkpoints, store, sql):
    model, optimizer = trained()
    checkpoints.save(step=1, model=model, optimizer=optimizer)
    collect(store, grace=timedelta(0))
    assert verify(store).findings == []
    fresh, state = zeros(model), {}
    checkpoints.restore(model=fresh, optimizer=state)
    assert (bits(fresh), bits(state)) == (bits(model), bits(optimizer))
    sql("DELETE FROM model_checkpoints")
    collect(store, grace=timedelta(0))
    assert sql("SELECT count(*) FROM chunk_bodies") == [(0,)]


def test_a_collection_just_before_it_can_be_seen_costs_nothing_but_time(
    checkpoints, store, monkeypatch
):
    enter, calls = saving._enter, []

    def after_a_collection(*given):
        if not calls:
            calls.append(collect(store, grace=timedelta(0)))
        return enter(*given)

    monkeypatch.setattr(saving, "_enter", after_a_collection)
    model, optimizer = trained()
    checkpoints.save(step=1, model=model, optimizer=optimizer)
    assert calls[0].weight_sets == 2
    fresh = zeros(model)
    checkpoints.restore(model=fresh)
    assert bits(fresh) == bits(model)


def test_damage_is_told_by_the_tensor(checkpoints, database, sql):
    import psycopg

    from arc_halo.errors import CorruptChunkError

    model, optimizer = trained()
    checkpoints.save(step=1, model=model, optimizer=optimizer)
    with psycopg.connect(database) as conn:
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(
            "UPDATE chunk_bodies SET body = set_byte(body, 9, 255 - get_byte(body, 9))"
            " WHERE raw_bytes > 200000"
        )
    with pytest.raises(CorruptChunkError, match=r"tensor 'w'"):
        checkpoints.restore(model=zeros(model))
    with pytest.raises(CorruptChunkError, match=r'optimizer\["state",0,"m"\]'):
        checkpoints.restore(optimizer={})


def test_tied_and_odd_tensors_come_back(checkpoints, sql):
    shared = np.arange(100_000, dtype=np.float32)
    model = {
        "a": shared,
        "b": shared,
        "scalar": np.array(2.5),
        "none": np.zeros((0, 3), np.int8),
        "steps": np.arange(12).reshape(3, 4)[:, ::2],
        "big": np.arange(3, dtype=">f8"),
        "flag": np.array([True, False]),
        "version": 3,
    }
    checkpoints.save(step=1, model=model, rng=False)
    assert sql("SELECT count(*) FROM tensor_metadata WHERE size_bytes = 400000") == [(1,)]
    fresh = {k: np.zeros_like(v) if isinstance(v, np.ndarray) else 0 for k, v in model.items()}
    checkpoints.restore(model=fresh, rng=False)
    assert bits(fresh) == bits(model)
