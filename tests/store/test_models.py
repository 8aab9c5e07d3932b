"""The registry's queries: finding, layers and heads, aliases, who uses what."""

from __future__ import annotations

from uuid import UUID

import pytest

from arc_halo.store import aliases, models
from arc_halo.store.connection import Connection

LAYER = {
    "layer_type": "decoder", "hidden_size": 8, "intermediate_size": 16, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 2, "activation": "silu", "normalization": "rmsnorm",
    "position_encoding": "rotary",
}  # fmt: skip


def add(conn: Connection, *full_names: str, **fields: object) -> dict[str, UUID]:
    items = []
    for full_name in full_names:
        name, _, version = full_name.partition("@")
        item = {"name": name, "version": version, "type": "other", "architecture": {}, "tags": {}}
        items.append(item | fields)
    return models.upsert(conn, items)


def hold(conn: Connection, ids: dict[str, UUID], holders: dict[str, list[str]]) -> None:
    listed = [
        {"model_id": str(ids[model]), "alias": alias}
        for model, names in holders.items()
        for alias in names
    ]
    aliases.replace(conn, [ids[model] for model in holders], listed)


def held(conn: Connection) -> set[tuple[str, str]]:
    return {(m.full_name, alias) for m in models.find(conn) for alias in m.aliases}


def test_a_model_is_found_by_everything_it_is_called(conn: Connection) -> None:
    ids = add(conn, "a@1", "a@2", "b@1")
    hold(conn, ids, {"a@2": ["live"]})
    assert [m.full_name for m in models.find(conn)] == ["a@1", "a@2", "b@1"]
    assert [m.id for m in models.find(conn, id=ids["a@1"])] == [ids["a@1"]]
    assert [m.full_name for m in models.find(conn, name="a")] == ["a@1", "a@2"]
    assert [m.full_name for m in models.find(conn, name="a", version="2")] == ["a@2"]
    assert [m.full_name for m in models.find(conn, name="a", alias="live")] == ["a@2"]
    assert models.find(conn, name="b", alias="live") == []


def test_writing_a_model_again_keeps_its_id(conn: Connection) -> None:
    first = add(conn, "a@1")
    assert add(conn, "a@1", type="moe") == first
    (record,) = models.find(conn)
    assert (record.type, record.status) == ("moe", "registered")


def test_the_digest_of_a_row_is_of_its_content(conn: Connection) -> None:
    add(conn, "a@1", "b@1")
    rows = models.live(conn, ["a@1", "b@1", "ghost@1"])
    assert rows.keys() == {"a@1", "b@1"}
    assert rows["a@1"].digest == rows["b@1"].digest
    add(conn, "b@1", description="x")
    assert models.live(conn, ["b@1"])["b@1"].digest != rows["b@1"].digest
    add(conn, "b@1")
    assert models.live(conn, ["b@1"])["b@1"].digest == rows["b@1"].digest
    assert models.live(conn, []) == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_layers_and_heads_are_replaced(conn: Connection, count: int) -> None:
    ids = add(conn, "a@1", "b@1")
    listed = list(ids.values())
    two = [{"model_id": str(id_), "layer_count": 2, **LAYER} for id_ in listed]
    models.replace_layers(conn, listed, two)
    item = {"model_id": str(ids["a@1"]), "layer_count": count, **LAYER}
    models.replace_layers(conn, [ids["a@1"]], [item] if count else [])
    found = conn.execute(
        "SELECT model_name, layer_count, head_count FROM v_model_architecture ORDER BY 1"
    )
    assert found.fetchall() == [("a", count, 4 * count), ("b", 2, 8)]


def test_an_alias_moves_and_its_history_says_when(conn: Connection) -> None:
    ids = add(conn, "a@1", "a@2", "b@1")
    hold(conn, ids, {"a@1": ["live", "old"], "b@1": ["live"]})
    hold(conn, ids, {"a@1": ["old"], "a@2": ["live"]})
    assert held(conn) == {("a@1", "old"), ("a@2", "live"), ("b@1", "live")}
    history = conn.execute(
        "SELECT model_name, alias, version, released_at IS NULL FROM model_alias_history"
    ).fetchall()
    assert set(history) == {
        ("a", "live", "1", False),
        ("a", "live", "2", True),
        ("a", "old", "1", True),
        ("b", "live", "1", True),
    }
    assert len(history) == 4


def test_an_alias_is_taken_over_from_a_model_that_is_not_written(conn: Connection) -> None:
    ids = add(conn, "a@1", "a@2")
    hold(conn, ids, {"a@1": ["live"]})
    hold(conn, ids, {"a@2": ["live"]})
    assert held(conn) == {("a@2", "live")}
    current = "SELECT version FROM model_alias_history WHERE released_at IS NULL"
    assert conn.execute(current).fetchall() == [("2",)]


def test_an_alias_leads_to_its_model(conn: Connection) -> None:
    ids = add(conn, "a@1", architecture={"n": 1})
    hold(conn, ids, {"a@1": ["live"]})
    assert aliases.find(conn, [("a", "live"), ("a", "ghost"), ("b", "live")]) == [
        ("a", "live", "1", "other", {"n": 1}, None, None)
    ]


def test_renaming_takes_the_aliases_along_and_nobody_elses(conn: Connection) -> None:
    ids = add(conn, "a@1", "a@2", "c@1")
    hold(conn, ids, {"a@1": ["one"], "a@2": ["two"], "c@1": ["one"]})
    models.rename(conn, "a@1", "b@7")
    assert held(conn) == {("b@7", "one"), ("a@2", "two"), ("c@1", "one")}
    assert models.find(conn, name="b")[0].id == ids["a@1"]


def test_only_the_models_named_are_deleted(conn: Connection) -> None:
    add(conn, "a@1", "a@2", "b@1")
    models.delete(conn, ["a@1", "b@2", "ghost@1"])
    assert [m.full_name for m in models.find(conn)] == ["a@2", "b@1"]


def test_those_who_use_a_model_are_found(conn: Connection) -> None:
    ids = add(conn, "a@1", "b@1", "c@1")
    conn.execute(
        "INSERT INTO cognitive_fusion_reactors (reactor_name, reactor_type, strategy_name,"
        " strategy_uses, base_model_id) VALUES ('r', 'merge', 's', 's', %s), ('q', 'merge', 's',"
        " 's', NULL)",
        [ids["b@1"]],
    )
    conn.execute(
        "INSERT INTO reactor_models (reactor_id, model_id, ordinal, role)"
        " SELECT id, %s, 0, 'primary' FROM cognitive_fusion_reactors",
        [ids["a@1"]],
    )
    conn.execute("INSERT INTO training_definitions (name, model_id) VALUES ('t', %s)", [ids["a@1"]])
    found = models.dependants(conn, ["a@1", "b@1", "c@1"])
    assert sorted(found) == [
        ("reactor/q", "a@1"),
        ("reactor/r", "a@1"),
        ("reactor/r", "b@1"),
        ("training/t", "a@1"),
    ]
