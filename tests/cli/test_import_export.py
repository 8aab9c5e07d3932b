"""`arc-halo import` and `arc-halo export`: files to models and back, without a manifest."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import psycopg
import pytest

from arc_halo import connect, embedded
from arc_halo.cli.main import run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "weights"


@pytest.fixture
def shell(tmp_path, database, monkeypatch):
    """A directory without a manifest, and a database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    return lambda *arguments: run([str(argument) for argument in arguments])


@pytest.fixture
def answer(shell, capsys):
    """Runs a command that must succeed; its result as JSON."""

    def run_it(*arguments):
        capsys.readouterr()
        assert shell(*arguments, "--output", "json") == 0
        return json.loads(capsys.readouterr().out)

    return run_it


def write(path, tensors, metadata=None):
    header, body = ({"__metadata__": metadata} if metadata else {}), b""
    for name, raw in tensors.items():
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "U8", "shape": [len(raw)], "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def count(database, table):
    with psycopg.connect(database) as conn:
        return conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


# --- import ----------------------------------------------------------------------------------


def test_a_file_becomes_a_model_with_the_config_beside_it(shell, database, capsys):
    assert shell("import", DEMO / "base" / "model.safetensors", "--as", "base@2.0.0") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Imported base@2.0.0: 39 tensors, 6.1 MB, ")
    with connect(database) as halo:
        record = halo.models.get("base@2.0.0")
        assert (record.type, record.family, record.tensor_count) == ("transformer", "llama", 39)
        assert record.architecture == json.loads((DEMO / "base" / "config.json").read_text())
        assert record.metadata == {"format": "pt"}


def test_a_second_import_says_it_is_there_already(shell, answer, capsys, tmp_path):
    path = write(tmp_path / "m.safetensors", {"a": b"1" * 1000})
    first = answer("import", path, "--as", "m@1")
    assert (first["action"], first["tensor_count"], first["new_bytes"]) == ("created", 1, 1000)
    assert shell("import", path, "--as", "m@1") == 0
    assert capsys.readouterr().out == "m@1 has these weights already: 1 tensor, 1.0 kB\n"
    again = answer("import", path, "--as", "m@1")
    assert again == {**first, "action": "unchanged", "new_bytes": 0, "stored_bytes": 0}
    elsewhere = write(tmp_path / "n.safetensors", {"a": b"1" * 1000}, {"format": "np"})
    assert answer("import", elsewhere, "--as", "m@1")["action"] == "unchanged"
    assert answer("import", path, "--as", "m@2")["action"] == "created"


def test_a_fresh_embedded_database_is_made_and_migrated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("NEON_DATABASE_URL", raising=False)
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    try:
        assert run(["import", str(path), "--as", "m@1", "--database-url", "embedded"]) == 0
        shown = capsys.readouterr()
        assert shown.out == "Imported m@1: 1 tensor, 1 B, 1 B stored\n"
        assert "migrated the database" in shown.err
        assert run(["export", "m", "-o", "out", "--database-url", "embedded"]) == 0
        assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1
    finally:
        embedded.stop(tmp_path, force=True)


def test_without_a_database_no_new_one_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("NEON_DATABASE_URL", raising=False)
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    assert run(["import", str(path), "--as", "m@1"]) == 64
    assert names_in(tmp_path) == ["m.safetensors"]


def test_other_weights_are_refused_without_force_and_kept_in_the_history(
    shell, answer, database, tmp_path, capsys
):
    old = answer("import", write(tmp_path / "a.safetensors", {"a": b"1"}), "--as", "m@1")
    new = write(tmp_path / "b.safetensors", {"a": b"2"})
    assert shell("import", new, "--as", "m@1") == 5
    shown = capsys.readouterr().err
    assert "error[AH013]: model/m@1 is there already, with other weights" in shown
    assert "--force" in shown
    with connect(database) as halo:
        assert halo.tensors.read("m@1", "a").tobytes() == b"1"
    done = answer("import", new, "--as", "m@1", "--force")
    assert (done["action"], done["new_bytes"]) == ("updated", 1)
    assert done["root"] != old["root"]
    with connect(database) as halo:
        assert halo.tensors.read("m@1", "a").tobytes() == b"2"
    assert count(database, "model_weight_history") == 2


def test_a_model_without_weights_gets_them_without_force(answer, database, tmp_path):
    with connect(database) as halo:
        halo.models.create_model(
            model_name="m", model_type="vae", architecture_config={"z": 1}, version="1"
        )
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    (tmp_path / "config.json").write_text('{"of": "another model"}')
    assert answer("import", path, "--as", "m@1")["action"] == "updated"
    with connect(database) as halo:
        record = halo.models.get("m@1")
        assert (record.type, record.architecture, record.status) == ("vae", {"z": 1}, "ready")


def test_type_and_config_are_taken_where_they_are_named(shell, answer, database, tmp_path, capsys):
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    (tmp_path / "config.json").write_text('{"not": "this"}')
    (tmp_path / "mine.json").write_text('{"but": "this"}')
    answer("import", path, "--as", "m@1", "--type", "cnn", "--config", tmp_path / "mine.json")
    with connect(database) as halo:
        record = halo.models.get("m@1")
        assert (record.type, record.architecture) == ("cnn", {"but": "this"})
    (tmp_path / "mine.json").write_text('{"now": "this"}')
    changed = ("import", path, "--as", "m@1", "--type", "gan", "--config", tmp_path / "mine.json")
    assert shell(*changed) == 5
    assert "with other type and architecture" in capsys.readouterr().err
    done = answer(*changed, "--force")
    assert (done["action"], done["new_bytes"]) == ("updated", 0)
    with connect(database) as halo:
        record = halo.models.get("m@1")
        assert (record.type, record.architecture) == ("gan", {"now": "this"})


def test_a_model_of_a_project_is_left_to_it(shell, tmp_path, capsys):
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: shop\nmodels: {m@1: {type: cnn, architecture: {}}}\n"
    )
    assert shell("apply") == 0
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    assert shell("import", path, "--as", "m@1", "--force") == 5
    shown = capsys.readouterr().err
    assert "error[AH053]: model/m@1 belongs to the project 'shop'" in shown


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--as", "m"], 4, "error[AH006]: 'm' does not name a version"),
        (["--as", "M@1"], 4, "error[AH006]"),
        (["--as", "m:production"], 4, "error[AH006]"),
        (["--as", "m@1", "--type", "transformr"], 4, "did you mean 'transformer'?"),
        (["--as", "m@1", "--codec", "plane"], 1, "error[AH032]"),
        (["--as", "m@1", "--format", "safetensor"], 1, "did you mean 'safetensors'?"),
        (["--as", "m@1", "--delta-from", "gone@1"], 1, "error[AH055]"),
        (["--as", "m@1", "--config", "gone.json"], 4, "error[AH011]"),
        ([], 64, "Missing option '--as'"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_stored(
    shell, database, tmp_path, capsys, options, code, message
):
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    assert shell("import", path, *options) == code
    assert message in capsys.readouterr().err
    assert count(database, "models") == count(database, "weight_builds") == 0


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("gone.safetensors", None, "error[AH025]"),
        ("broken.safetensors", b"broken", "error[AH026]"),
        ("model.npz", b"", "error[AH032]: no loaded plugin reads 'model.npz'"),
        ("model.bin", b"\x80\x02.", "error[AH026]"),
    ],
)
def test_a_file_that_is_no_model_leaves_nothing(
    shell, database, tmp_path, capsys, file, content, error
):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    assert shell("import", tmp_path / file, "--as", "m@1") == 4
    assert error in capsys.readouterr().err
    assert count(database, "models") == count(database, "weight_builds") == 0


def test_a_directory_is_imported_in_the_format_it_holds(answer, shell, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "model.safetensors", {"a": b"1"})
    (tmp_path / "one" / "training_args.bin").write_bytes(b"")
    assert answer("import", tmp_path / "one", "--as", "m@1")["tensor_count"] == 1
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "pytorch_model.bin").write_bytes(b"no archive")
    assert shell("import", tmp_path / "two", "--as", "m@2") == 4
    assert "pytorch_model.bin: it is not a zip archive of torch.save" in capsys.readouterr().err


def test_a_name_that_lies_can_be_told_its_format(answer, tmp_path):
    path = write(tmp_path / "weights.dat", {"a": b"1"})
    assert answer("import", path, "--as", "m@1", "--format", "safetensors")["action"] == "created"


def test_deltas_against_a_model_are_smaller_and_read_the_same(answer, database, tmp_path):
    base = DEMO / "base" / "model.safetensors"
    answer("import", base, "--as", "base@1")
    header = int.from_bytes(base.read_bytes()[:8], "little") + 8
    changed = bytearray(base.read_bytes())
    for place in range(header, len(changed), 5000 * 2):
        changed[place] ^= 1
    path = tmp_path / "tuned.safetensors"
    path.write_bytes(changed)
    done = answer("import", path, "--as", "tuned@1", "--delta-from", "base")
    assert done["stored_bytes"] < done["new_bytes"] / 10
    answer("export", "tuned", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == path.read_bytes()


# --- export ----------------------------------------------------------------------------------


@pytest.fixture
def stored(answer, tmp_path):
    """A model of three tensors of 1000 bytes."""
    tensors = {name: name.encode() * 1000 for name in "abc"}
    return answer("import", write(tmp_path / "m.safetensors", tensors), "--as", "m@1")


def test_an_export_in_shards_is_imported_as_the_same_weights(
    stored, shell, answer, tmp_path, capsys
):
    out = tmp_path / "out"
    assert shell("export", "m", "-o", out, "--max-shard-size", "2kB") == 0
    assert capsys.readouterr().out == (
        f"Exported m@1: 3 tensors, 3.0 kB to {out}/model.safetensors.index.json and 2 shards\n"
    )
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names_in(out) == ["config.json", *files, "model.safetensors.index.json"]
    again = answer("import", out, "--as", "again@1")
    assert (again["root"], again["new_bytes"]) == (stored["root"], 0)


def test_shards_are_not_overwritten_without_force_and_leave_nothing_with_it(
    stored, shell, answer, tmp_path, capsys
):
    out = tmp_path / "out"
    sharded = answer("export", "m", "-o", out, "--max-shard-size", "1kB")
    assert len(sharded["files"]) == 5
    (out / "config.json").unlink()
    assert shell("export", "m", "-o", out) == 5
    assert "error[AH014]" in capsys.readouterr().err
    whole = answer("export", "m", "-o", out, "--force")
    assert whole["files"] == [str(out / "model.safetensors"), str(out / "config.json")]
    assert names_in(out) == ["config.json", "model.safetensors"]
    assert shell("export", "m", "-o", out, "--max-shard-size", "1kB") == 5
    answer("export", "m", "-o", out, "--max-shard-size", "1kB", "--force")
    assert names_in(out) == sorted(Path(name).name for name in sharded["files"])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--max-shard-size", "big"], 4, "error[AH090]: 'big' is not a size"),
        (["--max-shard-size", "0"], 4, "error[AH090]: shards of 0 hold nothing"),
        (["--format", "torch"], 1, "error[AH032]: the format 'torch' cannot be written"),
        (["--format", "safetensor"], 1, "did you mean 'safetensors'?"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(
    stored, shell, tmp_path, capsys, options, code, message
):
    assert shell("export", "m", "-o", tmp_path / "out", *options) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_format_is_written_by_its_name(stored, shell, tmp_path, capsys):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "plain.py").write_text(PLUGIN)
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: shop\nplugins: [plugins/plain.py]\n"
    )
    assert shell("export", "m", "-o", "out", "--format", "plain") == 0
    assert names_in(tmp_path / "out") == ["config.json", "model.plain"]
    assert (tmp_path / "out" / "model.plain").read_text() == "a 1000\nb 1000\nc 1000\n"
    assert shell("export", "m", "-o", "two", "--format", "plain", "--max-shard-size", "1kB") == 1
    assert "error[AH032]: the format 'plain' has no shards" in capsys.readouterr().err


PLUGIN = """\
from arc_halo import WeightFormat, hookimpl


@hookimpl
def arc_halo_weight_formats():
    yield WeightFormat(
        name="plain", version=1, summary="sizes", suffixes=(".plain",), open=None, write=write
    )


def write(path, tensors, metadata, read):
    lines = [f"{tensor.name} {sum(map(len, read(tensor)))}" for tensor in tensors]
    path.write_text("\\n".join(lines) + "\\n")
"""
