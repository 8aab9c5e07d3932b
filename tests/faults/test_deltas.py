"""A delta is as good as its base: one that is damaged or gone is told of, by the tensor's name."""

from __future__ import annotations

import re

import numpy as np
import psycopg
import pytest

from arc_halo.errors import CorruptChunkError, MissingChunkError, WeightsError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.transfer.exporting import export_weights
from arc_halo.weights.reading import read_array, read_arrays, read_pieces
from tests.faults.contents import write_contents
from tests.faults.scenes import Scene, check_error

(SAFETENSORS,) = arc_halo_weight_formats()
SHAPE = (150_000,)
"""Three chunks of float32, the last one shorter."""

NOTE = (2,)

BASE_OF = """
digest = (SELECT c.base_digest FROM tensor_data AS d
          JOIN chunk_bodies AS c ON c.digest = d.chunk_digest
          WHERE d.chunk_index = %s AND c.base_digest IS NOT NULL)
"""
FLIP = "set_byte(body, octet_length(body) / 2, get_byte(body, octet_length(body) / 2) # 1)"
CUT = "substring(body FROM 1 FOR octet_length(body) - 1)"
DAMAGES = {
    "a flipped bit": f"UPDATE chunk_bodies SET body = {FLIP} WHERE {BASE_OF}",
    "a short body": f"""UPDATE chunk_bodies SET body = {CUT}, stored_bytes = octet_length({CUT})
                        WHERE {BASE_OF}""",
    "another length": f"UPDATE chunk_bodies SET raw_bytes = 5 WHERE {BASE_OF}",
    "gone": f"DELETE FROM chunk_bodies WHERE {BASE_OF}",
    "not named": f"""UPDATE chunk_bodies SET base_digest = NULL
                     WHERE base_digest = (SELECT digest FROM chunk_bodies WHERE {BASE_OF})""",
    "another's": f"""UPDATE chunk_bodies SET base_digest =
                       (SELECT d.chunk_digest FROM tensor_data AS d
                        JOIN tensor_metadata AS t ON t.id = d.tensor_id WHERE t.dtype = 'U8')
                     WHERE base_digest = (SELECT digest FROM chunk_bodies WHERE {BASE_OF})""",
}


@pytest.fixture
def tuned(scene, tmp_path):
    """A model whose layer is stored as deltas against that of another."""
    layer = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    found = []
    for name, values in (("base", layer), ("tuned", layer * np.float32(1.0001))):
        contents = {"layer": ("F32", SHAPE, values.tobytes()), "note": ("U8", NOTE, b"ok")}
        file = write_contents(tmp_path / f"{name}.safetensors", contents)
        found.append(Scene(scene.server, scene.database, file))
    base, tuned = found
    with scene.store(codec=None) as store:
        base.bring_in(store)
        tuned.bring_in(store, delta_from=base.root)
    assert scene.query("SELECT count(*) FROM chunk_bodies WHERE codec = 'delta'") == [(3,)]
    return tuned


def tamper(scene, statement, *parameters):
    with psycopg.connect(scene.url) as conn:
        conn.execute("SET LOCAL session_replication_role = replica")
        assert conn.execute(statement, parameters).rowcount == 1


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_delta_whose_base_is_damaged_or_gone_is_an_error_that_names_the_tensor(
    tuned, tmp_path, damage, index
):
    tamper(tuned, DAMAGES[damage], index)
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    with tuned.store() as store:
        rows, set_id = tuned.rows(store), tuned.set_id(store)
        ways = (
            lambda: read_array(store, rows["layer"], "layer"),
            lambda: list(read_pieces(store, rows["layer"], "layer")),
            lambda: read_arrays(store, set_id, list(rows.values())),
            lambda: export_weights(store, set_id, out, SAFETENSORS, metadata={}),
        )
        for way in ways:
            with pytest.raises((CorruptChunkError, MissingChunkError)) as caught:
                way()
            check_error(caught.value, WeightsError)
            assert re.match(f"tensor 'layer': chunk {index} ", caught.value.message)
        assert list(out.parent.iterdir()) == []
        assert read_array(store, rows["note"], "note").tobytes() == b"ok"


@pytest.mark.parametrize("damage", ["a flipped bit", "gone"])
def test_a_damaged_base_is_not_built_upon(scene, tmp_path, damage):
    """The next fine-tune is stored whole there, and reads back."""
    layer = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    scenes = []
    for n in range(2):
        values = layer * np.float32(1 + n / 10_000)
        contents = {"layer": ("F32", SHAPE, values.tobytes())}
        file = write_contents(tmp_path / f"{n}.safetensors", contents)
        scenes.append(Scene(scene.server, scene.database, file))
    base, tuned = scenes
    first = "digest = (SELECT chunk_digest FROM tensor_data WHERE chunk_index = 0)"
    with scene.store(codec=None) as store:
        base.bring_in(store)
        statement = {
            "a flipped bit": f"UPDATE chunk_bodies SET body = {FLIP} WHERE {first}",
            "gone": f"DELETE FROM chunk_bodies WHERE {first}",
        }
        tamper(scene, statement[damage])
        tuned.bring_in(store, delta_from=base.root)
        tuned.check_reads(store)
    assert scene.query("SELECT count(*) FROM chunk_bodies WHERE codec = 'delta'") == [(2,)]


def test_the_base_of_a_delta_cannot_be_deleted(tuned):
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        tuned.execute(DAMAGES["gone"].replace("%s", "0"))
