"""Verification finds every damage there is, says whose it is, and cries no wolf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from arc_halo.tensors.digests import LEAF_BYTES
from arc_halo.weights.findings import Finding
from arc_halo.weights.store import OpenBodies, WeightStore
from arc_halo.weights.verifying import Verified, part_of_digests, verify
from tests.weights.sets import made, noise

Sql = Callable[..., list[tuple[Any, ...]]]
Tamper = Callable[..., int]

FLIP = "set_byte(body, octet_length(body) / 2, get_byte(body, octet_length(body) / 2) # 1)"
MODELS = {
    "story": {"layer": 600_000, "head": 1_000, "scale": 4, "shared": 400_000},
    "poem": {"verse": 300_000, "shared": 400_000},
}


def model(sql: Sql, name: str, root: bytes) -> int:
    """Makes a model of these weights; the id of the set."""
    ((set_id,),) = sql("SELECT id FROM weight_sets WHERE root = %s", root)
    sql(
        """
        WITH model AS (
            INSERT INTO models (model_name, version, model_type, architecture_config,
                                weight_set_id, status)
            VALUES (%(name)s, '1', 'other', '{}', %(set)s, 'ready')
            ON CONFLICT (model_name, version) DO UPDATE SET weight_set_id = excluded.weight_set_id
            RETURNING id)
        INSERT INTO model_weight_history (model_id, weight_set_id, root)
        SELECT id, %(set)s, %(root)s FROM model RETURNING 1
        """.replace("%(name)s", "%s", 1)
        .replace("%(set)s", "%s")
        .replace("%(root)s", "%s"),
        name,
        set_id,
        set_id,
        root,
    )
    return int(set_id)


@pytest.fixture
def models(store: WeightStore, sql: Sql) -> dict[str, int]:
    """The weight sets of `MODELS` by name; they share a tensor."""
    return {
        name: model(sql, name, made(store, {t: noise(t, size) for t, size in tensors.items()}))
        for name, tensors in MODELS.items()
    }


def digest_of(sql: Sql, size: int, index: int = 0) -> bytes:
    """The chunk at a place in the tensor of this size."""
    ((digest,),) = sql(
        "SELECT chunk_digest FROM tensor_data JOIN tensor_metadata AS t ON t.id = tensor_id"
        " WHERE t.size_bytes = %s AND chunk_index = %s",
        size,
        index,
    )
    return bytes(digest)


def touched(finding: Finding) -> set[tuple[str, str, str]]:
    return {(holder.tensor, holder.kind, holder.name) for holder in finding.touches}


def test_what_is_whole_has_no_findings(store: WeightStore, models: dict[str, int]) -> None:
    assert verify(store) == Verified(
        chunks=9, raw_bytes=1_301_004, tensors=5, weight_sets=2, findings=[]
    )
    assert verify(store, models["poem"]) == Verified(
        chunks=4, raw_bytes=700_000, tensors=2, weight_sets=1, findings=[]
    )


def test_an_empty_database_is_whole(store: WeightStore) -> None:
    assert verify(store) == Verified()


DAMAGES = {
    "flipped": f"UPDATE chunk_bodies SET body = {FLIP} WHERE digest = %s",
    "short": "UPDATE chunk_bodies SET body = substr(body, 2), stored_bytes = stored_bytes - 1"
    " WHERE digest = %s",
    "empty": "UPDATE chunk_bodies SET body = '', stored_bytes = 0 WHERE digest = %s",
    "length": "UPDATE chunk_bodies SET raw_bytes = 7 WHERE digest = %s",
    "codec": "UPDATE chunk_bodies SET codec = 'zstd' WHERE digest = %s",
    "version": "UPDATE chunk_bodies SET codec_version = 99 WHERE digest = %s",
    "no such codec": "UPDATE chunk_bodies SET codec = 'lost' WHERE digest = %s",
    "gone": "DELETE FROM chunk_bodies WHERE digest = %s",
    "not here": "UPDATE chunk_bodies SET body = NULL, store_id = 7 WHERE digest = %s",
}


@pytest.mark.parametrize("scope", ["all", "story", "poem"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_a_chunk_is_found_once(
    store: WeightStore, models: dict[str, int], sql: Sql, tamper: Tamper, damage: str, scope: str
) -> None:
    digest = digest_of(sql, 400_000, 1)
    assert tamper(DAMAGES[damage], digest) == 1
    done = verify(store, models.get(scope))
    assert done.elsewhere == ({7: 1} if damage == "not here" else {})
    if damage == "not here":
        assert done.findings == []
        return
    (finding,) = done.findings
    assert finding.is_unread == (damage in ("no such codec", "version"))
    assert (finding.what, finding.digest) == ("chunk", digest)
    assert finding.is_missing == (damage == "gone")
    assert touched(finding) == {("shared", "model", "story@1"), ("shared", "model", "poem@1")}


def test_damage_elsewhere_is_not_the_model_s(
    store: WeightStore, models: dict[str, int], sql: Sql, tamper: Tamper
) -> None:
    tamper(DAMAGES["flipped"], digest_of(sql, 300_000, 0))
    assert verify(store, models["story"]).findings == []
    assert len(verify(store, models["poem"]).findings) == 1


def test_all_is_found_where_all_is_damaged(
    store: WeightStore, models: dict[str, int], tamper: Tamper
) -> None:
    assert tamper("UPDATE chunk_bodies SET body = set_byte(body, 0, 255 - get_byte(body, 0))") == 9
    done = verify(store)
    assert (len(done.findings), done.chunks) == (9, 9)


def test_history_checkpoints_and_builds_are_told(
    store: WeightStore, models: dict[str, int], sql: Sql, tamper: Tamper
) -> None:
    model(sql, "poem", made(store, {"other": b"x"}))
    sql(
        """
        WITH session AS (INSERT INTO training_sessions (session_name, model_name, model_version)
                         VALUES ('night', 'm', '1') RETURNING id)
        INSERT INTO model_checkpoints (session_id, step, checkpoint_type, weight_set_id, root,
                                       size_bytes)
        SELECT session.id, 500, 'full', s.id, s.root, 0 FROM session, weight_sets AS s
        WHERE s.id = %s RETURNING 1
        """,
        models["poem"],
    )
    tamper(DAMAGES["flipped"], digest_of(sql, 300_000, 1))
    (finding,) = verify(store).findings
    assert touched(finding) == {
        ("verse", "history", "poem@1"),
        ("verse", "checkpoint", "night step 500"),
    }


def test_what_nobody_has_is_damaged_all_the_same(
    store: WeightStore, sql: Sql, tamper: Tamper
) -> None:
    made(store, {"t": b"abc"})
    tamper("DELETE FROM weight_sets")
    tamper("DELETE FROM weight_set_tensors")
    tamper(DAMAGES["flipped"], digest_of(sql, 3))
    (finding,) = verify(store).findings
    assert finding.touches == ()


LISTS = {
    "a place is gone": "DELETE FROM tensor_data WHERE tensor_id = %s AND chunk_index = 1",
    "the last place is gone": "DELETE FROM tensor_data WHERE tensor_id = %s AND chunk_index = 2",
    "a place too many": "INSERT INTO tensor_data SELECT tensor_id, 3, chunk_digest"
    " FROM tensor_data WHERE tensor_id = %s AND chunk_index = 1",
    "places swapped": "UPDATE tensor_data SET chunk_index = 9 - chunk_index WHERE tensor_id = %s;",
    "another chunk": "UPDATE tensor_data AS d SET chunk_digest = o.chunk_digest"
    " FROM tensor_data AS o WHERE d.tensor_id = %s AND o.tensor_id = d.tensor_id"
    " AND d.chunk_index = 0 AND o.chunk_index = 1",
    "another digest": "UPDATE tensor_metadata SET digest = sha256('x') WHERE id = %s",
    "another shape": "UPDATE tensor_metadata SET shape = '{3}' WHERE id = %s",
    "another dtype": "UPDATE tensor_metadata SET dtype = 'LOST' WHERE id = %s",
}


@pytest.mark.parametrize("chunk_bytes", [LEAF_BYTES, 200_000])
@pytest.mark.parametrize("damage", LISTS)
def test_a_tensor_that_does_not_fit_its_chunks_is_found(
    make_store: Callable[..., WeightStore],
    sql: Sql,
    tamper: Tamper,
    damage: str,
    chunk_bytes: int,
) -> None:
    store = make_store(chunk_bytes=chunk_bytes)
    set_id = model(sql, "m", made(store, {"t": noise("t", 600_000), "u": b"u"}))
    ((tensor_id,),) = sql("SELECT id FROM tensor_metadata WHERE size_bytes = 600000")
    assert tamper(LISTS[damage].rstrip(";"), tensor_id) > 0
    for scope in (None, set_id):
        found = verify(store, scope).findings
        assert [f.what for f in found if f.what != "weights"] == ["tensor"]
        assert touched(found[0]) == {("t", "model", "m@1")}
        assert ("weights" in {f.what for f in found}) == (damage == "another digest")


SETS = {
    "a name": "UPDATE weight_set_tensors SET tensor_name = 'x' WHERE tensor_name = 'head'",
    "a tensor": "UPDATE weight_set_tensors AS m SET tensor_id = o.tensor_id"
    " FROM weight_set_tensors AS o WHERE m.tensor_name = 'head' AND o.tensor_name = 'verse'",
    "a member": "DELETE FROM weight_set_tensors WHERE tensor_name = 'head'",
    "the root": "UPDATE weight_sets SET root = sha256('x') WHERE tensor_count = 4",
    "a tensor's row": "DELETE FROM tensor_metadata WHERE size_bytes = 1000",
}


@pytest.mark.parametrize("damage", SETS)
def test_a_set_that_does_not_fit_its_root_is_found(
    store: WeightStore, models: dict[str, int], tamper: Tamper, damage: str
) -> None:
    assert tamper(SETS[damage]) == 1
    for scope in (None, models["story"]):
        (finding,) = verify(store, scope).findings
        assert finding.what == "weights"
        assert touched(finding) == {("", "model", "story@1")}
    assert verify(store, models["poem"]).findings == []


@pytest.fixture
def deltas(store: WeightStore, sql: Sql) -> dict[str, int]:
    """`base` of three chunks and `tuned` of three deltas."""
    base = noise("base", 600_000)
    root = made(store, {"t": base})
    tuned = bytes(byte ^ (place % 997 == 0) for place, byte in enumerate(base))
    made_of = made(store, {"t": tuned}, delta_from=root)
    assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(3,)]
    return {"base": model(sql, "base", root), "tuned": model(sql, "tuned", made_of)}


def base_and_delta(sql: Sql) -> tuple[bytes, bytes]:
    base, delta = sql(
        "SELECT base_digest, digest FROM chunk_bodies WHERE base_digest IS NOT NULL"
        " ORDER BY digest LIMIT 1"
    )[0]
    return bytes(base), bytes(delta)


@pytest.mark.parametrize("scope", ["all", "tuned"])
@pytest.mark.parametrize("damage", ["flipped", "gone", "version", "not here"])
def test_a_damaged_base_damages_its_deltas(
    store: WeightStore,
    deltas: dict[str, int],
    sql: Sql,
    tamper: Tamper,
    scope: str,
    damage: str,
) -> None:
    base, delta = base_and_delta(sql)
    assert tamper(DAMAGES[damage], base) == 1
    done = verify(store, deltas.get(scope))
    found = {f.digest: f for f in done.findings}
    if damage == "not here":
        assert (found, done.elsewhere) == ({}, {7: 2 if scope == "all" else 1})
        return
    assert found.keys() == {base, delta}
    assert "its base" in found[delta].problem or damage == "version"
    assert (found[base].delta_count, found[delta].delta_count) == (1, 0)
    assert touched(found[base]) == {("t", "model", "base@1"), ("t", "model", "tuned@1")}
    assert touched(found[delta]) == {("t", "model", "tuned@1")}
    assert len(verify(store, deltas["base"]).findings) == 1


def test_a_delta_without_a_base_is_found(
    store: WeightStore, deltas: dict[str, int], sql: Sql, tamper: Tamper
) -> None:
    base, delta = base_and_delta(sql)
    assert tamper("UPDATE chunk_bodies SET base_digest = NULL WHERE digest = %s", delta) == 1
    (finding,) = verify(store).findings
    assert (finding.digest, finding.problem) == (
        delta,
        "cannot be decoded: it is a delta without a base",
    )
    assert base != delta


def test_bodies_that_are_not_in_the_body_store_are_found(
    make_store: Callable[..., WeightStore], sql: Sql
) -> None:
    kept: dict[bytes, bytes] = {}

    class Bodies:
        def put(self, bodies: Any) -> None:
            kept.update({digest: bytes(body) for digest, body in bodies.items()})

        def get(self, digests: Any) -> Any:
            return {digest: kept[digest] for digest in digests if digest in kept}

    ((store_id,),) = sql(
        "INSERT INTO body_stores (kind, url) VALUES ('object', 'memory:') RETURNING id"
    )
    store = make_store(bodies=OpenBodies(store_id=store_id, bodies=Bodies()))  # type: ignore[arg-type]
    made(store, {"t": noise("t", 600_000)})
    assert verify(store).findings == []
    gone, damaged = digest_of(sql, 600_000, 0), digest_of(sql, 600_000, 2)
    del kept[gone]
    kept[damaged] = bytes(len(kept[damaged]))
    assert {f.digest for f in verify(store).findings} == {gone, damaged}
    done = verify(make_store())
    assert (done.findings, done.elsewhere) == ([], {store_id: 3})


def test_a_sample_is_a_part_of_the_digests() -> None:
    half = part_of_digests(0.5, 0.75)
    assert [(first[:1].hex(), last[:1].hex()) for first, last in half] == [
        ("00", "3f"),
        ("c0", "ff"),
    ]
    assert part_of_digests(1.0, 0.3) == [(bytes(32), b"\xff" * 32)]
    ((first, last),) = part_of_digests(0.25, 0.25)
    assert (first[0], last[0], last[-1]) == (0x40, 0x7F, 0xFF)


def test_samples_that_add_up_to_all_read_each_chunk_once(
    store: WeightStore, models: dict[str, int], sql: Sql, tamper: Tamper
) -> None:
    digest = digest_of(sql, 600_000, 1)
    tamper(DAMAGES["flipped"], digest)
    parts = [verify(store, part=part_of_digests(0.25, start / 4)) for start in range(4)]
    assert sum(part.chunks for part in parts) == 9
    assert [f.digest for part in parts for f in part.findings] == [digest]
    parts = [verify(store, models["poem"], part=part_of_digests(0.5, s / 2)) for s in range(2)]
    assert sum(part.chunks for part in parts) == 4


def test_lists_and_roots_are_checked_whatever_is_sampled(
    store: WeightStore, models: dict[str, int], tamper: Tamper
) -> None:
    tamper(SETS["a name"])
    done = verify(store, part=part_of_digests(1e-9, 0.5))
    assert (len(done.findings), done.tensors, done.weight_sets) == (1, 5, 2)
