"""The Python API: models, tensors and reactors, on a database that a project may share."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import arc_halo
import arc_halo.api.tensors
from arc_halo.errors import (
    ArcHaloError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
    SchemaMismatchError,
    UnknownPluginError,
)

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8}
Halo = arc_halo.Halo


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


def create(halo: Halo, name: str = "poet", version: str = "1.0.0", **fields: Any) -> UUID:
    given = {"model_type": "transformer", "architecture_config": {}} | fields
    return halo.models.create_model(model_name=name, version=version, **given)


def manage(halo: Halo, directory: Path) -> None:
    """Applies a manifest with the model `owned@1` and the reactor `owned`."""
    raw = np.ones(2, np.float32).tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (directory / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    (directory / "arc_halo.yaml").write_text(
        "version: 1\nproject: owner\n"
        "models: {owned@1: {type: other, weights: w.safetensors}}\n"
        "reactors:\n  owned: {type: merge, strategy: linear, members: [{model: owned}],"
        ' produces: {model: made, version: "1"}}\n'
    )
    url = halo.project.url
    with arc_halo.Project(directory, database_url=url, environ={}) as project:
        project.apply(project.plan())


# Connecting


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, arc_halo; print([m for m in ('numpy', 'psycopg', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_everything_public_is_there() -> None:
    for name in arc_halo.__all__:
        assert getattr(arc_halo, name) is not None
    assert dir(arc_halo) == sorted(arc_halo.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        arc_halo.nothing_of_the_kind  # noqa: B018


def test_connecting_migrates_unless_told_not_to(tmp_path: Path, empty_database: str) -> None:
    with pytest.raises(SchemaMismatchError):
        arc_halo.connect(empty_database, project=tmp_path, migrate=False)
    with arc_halo.connect(empty_database, project=tmp_path) as halo:
        assert halo.models.list() == []
    with arc_halo.connect(empty_database, project=tmp_path, migrate=False) as halo:
        assert halo.reactors.list() == []


def test_a_connection_is_in_the_environment_it_names(tmp_path: Path, database: str) -> None:
    (tmp_path / "arc_halo.yaml").write_text("version: 1\nproject: p\n")
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "prod.yaml").write_text("settings: {retain_revisions: 3}\n")
    with arc_halo.connect(database, project=tmp_path, env="prod") as halo:
        assert (halo.project.env, halo.project.retain_revisions) == ("prod", 3)


def test_an_address_that_cannot_be_read_is_our_error_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ArcHaloError) as caught:
        arc_halo.connect("postgresql://u:secret@/x?nonsense=1", project=tmp_path)
    assert "secret" not in str(caught.value)


# Models


def test_a_model_is_created_and_found_again(halo: Halo) -> None:
    made = create(halo, architecture_config=LLAMA, description="it rhymes")
    assert isinstance(made, UUID)
    for reference in ("poet", "poet@1.0.0", made, str(made)):
        assert halo.models.get(reference).id == made
    record = halo.models.get(made)
    assert (record.full_name, record.type, record.architecture) == (
        "poet@1.0.0", "transformer", LLAMA,
    )  # fmt: skip
    assert (record.description, record.status, record.family) == (
        "it rhymes", "registered", "llama",
    )  # fmt: skip
    assert (record.root, record.weight_set_id, record.aliases) == (None, None, [])
    with halo.project.connection() as conn:
        counts = conn.execute(
            "SELECT layer_count, head_count FROM v_model_architecture WHERE model_id = %s", [made]
        )
        assert counts.fetchall() == [(2, 8)]


def test_models_are_listed_by_name_and_version(halo: Halo) -> None:
    create(halo, "b")
    create(halo, "a", "1")
    create(halo, "a", "2")
    assert [m.full_name for m in halo.models.list()] == ["a@1", "a@2", "b@1.0.0"]
    assert [m.full_name for m in halo.models.list("a")] == ["a@1", "a@2"]
    assert halo.models.list("c") == []


def test_a_name_of_several_versions_has_to_be_told(halo: Halo) -> None:
    create(halo, "a", "1")
    create(halo, "a", "2")
    with pytest.raises(InvalidInputError, match="a@1, a@2") as caught:
        halo.models.get("a")
    assert caught.value.error_code == "AH022"


def test_a_version_is_created_once(halo: Halo) -> None:
    create(halo)
    with pytest.raises(RefusedError, match=r"model/poet@1\.0\.0 exists already"):
        create(halo)
    assert len(halo.models.list()) == 1


@pytest.mark.parametrize(
    "fields",
    [{"name": "Poet"}, {"name": ""}, {"version": "1 0"}, {"version": ""}, {"model_type": "poem"}],
)
def test_what_no_model_may_be_is_refused(halo: Halo, fields: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        create(halo, **fields)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert halo.models.list() == []


def test_a_file_of_weights_becomes_a_model(halo: Halo, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    done = halo.models.import_weights("poet@1", path)
    assert (done.model, done.action, done.tensor_count, done.size_bytes) == (
        "poet@1", "created", 1, 24)  # fmt: skip
    assert halo.models.get("poet").root == done.root
    assert halo.models.get("poet").family == "llama"
    assert halo.tensors.read("poet", "w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert halo.models.import_weights("poet@1", str(path)).action == "unchanged"
    tuned = halo.models.import_weights("poet@2", path, delta_from="poet@1", model_type="other")
    assert (tuned.root, tuned.new_bytes) == (done.root, 0)


def test_what_a_model_has_is_replaced_by_force_only(halo: Halo, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for value, action in ((1, "created"), (2, "updated")):
        save_file({"w": np.full(3, value, np.float32)}, path)
        if action == "updated":
            with pytest.raises(RefusedError):
                halo.models.import_weights("poet@1", path)
        assert halo.models.import_weights("poet@1", path, force=True).action == action
    assert halo.tensors.read("poet", "w").tolist() == [2, 2, 2]
    create(halo, "bare")
    with pytest.raises(NotFoundError) as caught:
        halo.models.import_weights("poet@2", path, delta_from="bare")
    assert caught.value.error_code == "AH064"


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("__metadata__", {}),
        ("w", {"a": 1}),
        ("w", {"a": "\0"}),
        ("w", {"\ud800": "a"}),
        ("w", {1: "a"}),
        ("\ud800", {}),
        (7, {}),
    ],
)
def test_what_no_file_could_hold_is_refused_before_it_is_stored(
    halo: Halo, name: Any, metadata: Any
) -> None:
    made = create(halo)
    with pytest.raises(InvalidInputError) as caught:
        halo.tensors.write(made, {name: np.ones(3)}, metadata=metadata)
    assert caught.value.error_code == "AH006"
    assert halo.models.get(made).root is None


def test_a_model_deleted_while_it_is_written_is_told(
    halo: Halo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create(halo)
    build = arc_halo.api.tensors.build_arrays

    def overtaken(*arguments: Any, **fields: Any) -> Any:
        with halo.project.connection() as conn:
            conn.execute("DELETE FROM models")
        return build(*arguments, **fields)

    monkeypatch.setattr(arc_halo.api.tensors, "build_arrays", overtaken)
    with pytest.raises(NotFoundError, match="deleted meanwhile"):
        halo.tensors.write(made, {"w": np.ones(3)})


def test_a_handle_behaves_as_an_array_does(halo: Halo) -> None:
    made = create(halo)
    halo.tensors.write(made, {"w": np.arange(6).reshape(3, 2), "one": np.array(1.0)})
    handle = halo.tensors.open(made, "w")
    assert [row.tolist() for row in handle] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(TypeError):
        list(halo.tensors.open(made, "one"))
    with pytest.raises(ValueError, match="always a copy"):
        np.asarray(handle, copy=False)


def test_loading_what_no_array_can_hold_names_the_tensor(halo: Halo, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = json.dumps({"f4": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    halo.models.import_weights("m@1", path)
    with pytest.raises(ArcHaloError, match="tensor 'f4'"):
        halo.tensors.load("m")


def test_a_model_is_deleted_unless_somebody_needs_it(halo: Halo) -> None:
    create(halo, "a")
    halo.reactors.create(name="r", reactor_type="merge", strategy="linear", members=["a"])
    with pytest.raises(RefusedError, match="used by reactor/r"):
        halo.models.delete("a")
    create(halo, "b")
    halo.models.delete("b")
    assert [record.name for record in halo.models.list()] == ["a"]
    with pytest.raises(NotFoundError):
        halo.models.delete("b")


def test_rows_are_a_slice(halo: Halo) -> None:
    made = create(halo)
    halo.tensors.write(made, {"w": np.ones((3, 2))})
    for rows in (5, [1, 2]):
        with pytest.raises(InvalidInputError, match="rows are a slice"):
            halo.tensors.read(made, "w", rows=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", [5, None, b"poet"])
def test_what_names_no_model_is_not_found(halo: Halo, what: Any) -> None:
    with pytest.raises(NotFoundError):
        halo.models.get(what)
    assert halo.models.list("a\0") == []


def test_a_record_names_its_model_as_it_stands_now(halo: Halo) -> None:
    record = halo.models.get(create(halo))
    halo.tensors.write(record, {"w": np.ones((3, 2), np.float32)})
    assert halo.models.get(record).status == "ready"
    assert halo.tensors.read(record, "w").sum() == 6
    with pytest.raises(NotFoundError, match=r"^poet@1\.0\.0 has no tensor 'b'"):
        halo.tensors.read(record, "b")
    layout = arc_halo.KVLayout(
        dtype="F32", layers=(arc_halo.LayerShape(heads=1, key_size=8, value_size=8),)
    )
    for given in (record, record.id, "poet"):
        with halo.inference.session(given) as session:
            assert session.model == "poet@1.0.0"
        halo.inference.kv_cache(layout, weights=given).close()
    with pytest.raises(InvalidInputError, match="None is no root of weights"):
        halo.inference.kv_cache(layout, weights=None)  # type: ignore[arg-type]
    assert halo.training.session(record, name="one").model == "poet@1.0.0"
    halo.models.delete(record)


@pytest.mark.parametrize("what", [None, object()], ids=["None", "an object"])
def test_what_is_no_model_is_told_without_its_repr(halo: Halo, what: Any) -> None:
    for ask in (halo.models.get, halo.inference.session, halo.tensors.names):
        with pytest.raises(NotFoundError) as told:
            ask(what)
        assert told.value.message in (
            "there is no model None",
            "there is no model of the type object",
        )


def test_a_config_that_json_cannot_hold_is_our_error(halo: Halo) -> None:
    for value in (float("nan"), "\0", "\ud800"):
        with pytest.raises(ArcHaloError):
            create(halo, architecture_config={"a": value})
    assert halo.models.list() == []


@pytest.mark.parametrize("reference", ["ghost", "ghost@1", "ghost:live", "not a name", ""])
def test_an_unknown_model_is_not_found(halo: Halo, reference: str) -> None:
    for ask in (halo.models.get, halo.tensors.names):
        with pytest.raises(NotFoundError) as caught:
            ask(reference)
        assert caught.value.error_code == "AH055"
    with pytest.raises(NotFoundError):
        halo.models.get(uuid4())


def test_a_name_may_look_like_an_id(halo: Halo) -> None:
    name = uuid4().hex
    made = create(halo, name)
    assert halo.models.get(name).id == made


def test_an_alias_of_a_manifest_is_a_reference_too(halo: Halo, tmp_path: Path) -> None:
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: p\nmodels: {a@1: {}, a@2: {aliases: [live]}}\n"
    )
    with arc_halo.Project(tmp_path, database_url=halo.project.url, environ={}) as project:
        project.apply(project.plan())
    assert halo.models.get("a:live").version == "2"


# Tensors


def test_arrays_come_back_as_they_were(halo: Halo) -> None:
    create(halo)
    random = np.random.default_rng(1)
    arrays = {
        "matrix": random.normal(size=(300, 400)).astype(np.float32),
        "half": random.normal(size=5).astype(ml_dtypes.bfloat16),
        "small": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
        "mask": np.array([True, False]),
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3), np.float16),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.int16)[::2],
        "swapped": np.arange(3, dtype=">i4"),
    }
    root = halo.tensors.write("poet", arrays, metadata={"by": "test"})
    assert halo.tensors.names("poet") == list(arrays)
    for name, array in arrays.items():
        found = halo.tensors.read("poet", name)
        assert (found.dtype, found.shape) == (array.dtype.newbyteorder("<"), array.shape), name
        assert np.array_equal(found, array), name
    record = halo.models.get("poet")
    assert record.root is not None
    assert root == "sha256:" + bytes(record.root).hex()
    assert (record.status, record.metadata, record.tensor_count) == ("ready", {"by": "test"}, 10)
    assert record.parameter_count == sum(array.size for array in arrays.values())


def test_an_array_read_is_the_readers_own(halo: Halo) -> None:
    create(halo)
    halo.tensors.write("poet", {"w": np.zeros(3, np.float32)})
    halo.tensors.read("poet", "w")[:] = 7
    assert halo.tensors.read("poet", "w").tolist() == [0, 0, 0]


def test_writing_replaces_all_and_keeps_the_history(halo: Halo) -> None:
    made = create(halo)
    roots = [
        halo.tensors.write("poet", arrays)
        for arrays in (
            {"a": np.zeros(2), "b": np.ones(2)},
            {"a": np.zeros(2)},
            {},
            {"b": np.ones(2), "a": np.zeros(2)},
        )
    ]
    assert roots[0] == roots[3] != roots[1] != roots[2]
    with halo.project.connection() as conn:
        history = conn.execute(
            "SELECT encode(root, 'hex') FROM model_weight_history WHERE model_id = %s ORDER BY id",
            [made],
        ).fetchall()
        parts = conn.execute("SELECT count(*) FROM model_weights").fetchone()
    assert [f"sha256:{root}" for (root,) in history] == roots
    assert parts == (2,)


def test_the_rest_of_the_model_stays_when_weights_are_written(halo: Halo) -> None:
    made = create(halo, architecture_config=LLAMA, description="kept")
    halo.tensors.write(made, {"model.layers.1.mlp.up_proj.weight": np.zeros(2)})
    record = halo.models.get("poet")
    assert (record.id, record.description, record.architecture) == (made, "kept", LLAMA)
    with halo.project.connection() as conn:
        layers = conn.execute("SELECT count(*) FROM transformer_layers").fetchone()
        part = conn.execute("SELECT weight_type, layer_id IS NULL FROM model_weights").fetchone()
    assert (layers, part) == ((2,), ("up_proj", False))


def test_a_model_without_weights_has_no_tensors(halo: Halo) -> None:
    create(halo)
    assert halo.tensors.names("poet") == []
    with pytest.raises(NotFoundError, match="has no tensor 'w'"):
        halo.tensors.read("poet", "w")


def test_an_unknown_tensor_is_guessed(halo: Halo) -> None:
    create(halo)
    halo.tensors.write("poet", {"lm_head.weight": np.zeros(1)})
    with pytest.raises(NotFoundError) as caught:
        halo.tensors.read("poet", "lm_head.weigth")
    assert caught.value.hint == "did you mean 'lm_head.weight'?"


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.array(["text"])},
        {"w": np.array([None])},
        {"w": np.zeros(1, np.complex128)},
        {"w": np.zeros(1, "datetime64[s]")},
        {"with\0nul": np.zeros(1)},
        {"half a \ud800": np.zeros(1)},
        {"n" * 5000: np.zeros(1)},
    ],
    ids=["text", "object", "complex128", "time", "nul", "surrogate", "long"],
)
def test_what_cannot_be_stored_is_our_error_and_changes_nothing(
    halo: Halo, arrays: dict[str, np.ndarray]
) -> None:
    create(halo)
    if "n" * 5000 in arrays:
        arrays = {np.random.default_rng(1).bytes(4000).hex(): np.zeros(1)}
    with pytest.raises(ArcHaloError):
        halo.tensors.write("poet", arrays)
    assert halo.models.get("poet").root is None


def test_the_weights_of_a_managed_model_are_not_written(halo: Halo, tmp_path: Path) -> None:
    manage(halo, tmp_path)
    root = halo.models.get("owned").root
    with pytest.raises(RefusedError, match="belongs to the project 'owner'") as caught:
        halo.tensors.write("owned", {"w": np.zeros(2)})
    assert caught.value.error_code == "AH053"
    assert halo.models.get("owned").root == root


# Reactors


def test_a_reactor_is_created_and_models_are_added(halo: Halo) -> None:
    for name in "abc":
        create(halo, name)
    made = halo.reactors.create(
        name="mix", reactor_type="ensemble", strategy="voting", members=["a"],
        params={"kind": "soft"}, description="two or three",
    )  # fmt: skip
    assert isinstance(made, UUID)
    halo.reactors.add_model("mix", "b@1.0.0", role="validator", weight=0.25, priority=2)
    halo.reactors.add_model("mix", halo.models.get("c").id)
    document = halo.reactors.get("mix")
    assert document["members"] == [
        {
            "model": "a@1.0.0",
            "role": "secondary",
            "weight": 1.0,
            "priority": None,
            "adapters": [],
            "cost": 1.0,
            "domains": [],
        },
        {
            "model": "b@1.0.0",
            "role": "validator",
            "weight": 0.25,
            "priority": 2,
            "adapters": [],
            "cost": 1.0,
            "domains": [],
        },
        {
            "model": "c@1.0.0",
            "role": "secondary",
            "weight": 1.0,
            "priority": None,
            "adapters": [],
            "cost": 1.0,
            "domains": [],
        },
    ]
    assert (document["type"], document["uses"], document["params"]) == (
        "ensemble", "voting", {"kind": "soft", "ties": "first_class"},
    )  # fmt: skip
    status = halo.reactors.status("mix")
    assert (status["reactor_id"], status["member_count"], status["status"]) == (
        made, 3, "registered",
    )  # fmt: skip
    assert [row["reactor_name"] for row in halo.reactors.list()] == ["mix"]


def test_a_reactor_may_begin_without_members(halo: Halo) -> None:
    halo.reactors.create(name="mix", reactor_type="cascade", strategy="voting")
    assert halo.reactors.get("mix")["members"] == []


def test_a_reactor_is_created_once(halo: Halo) -> None:
    halo.reactors.create(name="mix", reactor_type="cascade", strategy="voting")
    with pytest.raises(RefusedError, match="reactor/mix exists already"):
        halo.reactors.create(name="mix", reactor_type="ensemble", strategy="voting")
    assert halo.reactors.get("mix")["type"] == "cascade"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": "Mix"}, InvalidInputError),
        ({"reactor_type": "salad"}, InvalidInputError),
        ({"strategy": "liner"}, UnknownPluginError),
        ({"strategy": "linear"}, InvalidInputError),
        ({"reactor_type": "merge"}, InvalidInputError),
        ({"members": ["ghost"]}, NotFoundError),
        ({"members": ["a", "a@1.0.0"]}, ArcHaloError),
        ({"params": {"normalise": True}}, InvalidInputError),
    ],
    ids=["name", "type", "strategy", "of weights", "of outputs", "member", "twice", "params"],
)
def test_what_no_reactor_may_be_is_refused(
    halo: Halo, fields: dict[str, Any], error: type[ArcHaloError]
) -> None:
    create(halo, "a")
    with pytest.raises(error):
        halo.reactors.create(
            **{"name": "mix", "reactor_type": "ensemble", "strategy": "voting", **fields}
        )
    assert halo.reactors.list() == []


def test_a_member_is_added_once_and_in_a_role_there_is(halo: Halo) -> None:
    create(halo, "a")
    halo.reactors.create(name="mix", reactor_type="ensemble", strategy="voting", members=["a"])
    with pytest.raises(RefusedError, match="is a member of mix already"):
        halo.reactors.add_model("mix", "a")
    create(halo, "b")
    with pytest.raises(InvalidInputError):
        halo.reactors.add_model("mix", "b", role="boss")
    with pytest.raises(ArcHaloError):
        halo.reactors.add_model("mix", "b", weight=float("nan"))
    assert len(halo.reactors.get("mix")["members"]) == 1


def test_a_managed_reactor_is_not_changed(halo: Halo, tmp_path: Path) -> None:
    manage(halo, tmp_path)
    create(halo, "a")
    with pytest.raises(RefusedError, match="belongs to the project 'owner'"):
        halo.reactors.add_model("owned", "a")
    assert len(halo.reactors.get("owned")["members"]) == 1


def test_an_unknown_reactor_is_not_found(halo: Halo) -> None:
    create(halo, "a")
    for ask in (
        halo.reactors.get,
        halo.reactors.status,
        lambda name: halo.reactors.add_model(name, "a"),
    ):
        with pytest.raises(NotFoundError) as caught:
            ask("ghost")
        assert caught.value.error_code == "AH055"


def test_what_the_api_made_is_a_conflict_for_a_manifest(halo: Halo, tmp_path: Path) -> None:
    create(halo, "owned", "1")
    with pytest.raises(RefusedError, match="no project manages it"):
        manage(halo, tmp_path)
    assert [m.full_name for m in halo.models.list()] == ["owned@1"]


def test_after_the_end_it_says_so(tmp_path: Path, database: str) -> None:
    with arc_halo.connect(database, project=tmp_path) as halo:
        pass
    for call in (halo.models.list, halo.inference.list, lambda: halo.models.get("poet")):
        with pytest.raises(InvalidInputError, match="it is closed"):
            call()
