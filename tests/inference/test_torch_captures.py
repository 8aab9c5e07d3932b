"""Activations of torch models, captured, stored and found again, or not."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.weights.collecting import collect

pytestmark = pytest.mark.torch

NAMES = ["model.layers.*.mlp"]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def llama(torch):
    return make_llama(torch)


def make_llama(torch, **settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    given = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(given | settings))).eval()


@pytest.fixture
def ids(torch):
    return torch.tensor([[1, 5, 9, 3, 8]])


def run(model, ids, **given):
    import torch

    with torch.no_grad():
        return model(ids, **given)


def run_and_change(model, ids):
    run(model, ids)
    model.lm_head.weight.data[0, 0] += 1


def oracle(model, name, ids):
    """What a part gives, by a hook of the test's own."""
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, a, out: found.append(out))
    run(model, ids)
    hook.remove()
    return found[0].numpy()


def test_what_parts_gave_is_found_again_bit_for_bit(halo, llama, ids):
    with halo.inference.capture(llama, NAMES) as captured:
        run(llama, ids)
    assert (captured.stored, captured.known) == (2, 0)
    found = halo.inference.activations(llama, ids, names=NAMES)
    assert sorted(found) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    for name, array in found.items():
        assert np.array_equal(array, oracle(llama, name, ids))
        assert np.array_equal(array, captured[name])
    assert [each.id for each in halo.inference.activation_captures()] == [captured.inputs[0].id]
    as_tensors = halo.inference.activations(llama, [1, 5, 9, 3, 8], torch=True)
    assert as_tensors["model.layers.0.mlp"].shape == (1, 5, 16)


def test_one_weight_changed_is_a_miss(halo, llama, ids, torch):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    weight = llama.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[0, 0] += 1e-3
    assert halo.inference.activations(llama, ids) == {}
    with torch.no_grad():
        weight.copy_(make_llama(torch).model.layers[1].mlp.down_proj.weight)
    assert len(halo.inference.activations(llama, ids)) == 2


def test_equal_weights_of_another_config_are_a_miss(halo, llama, ids, torch):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    other = make_llama(torch, rms_norm_eps=1e-3)
    assert halo.inference.activations(other, ids) == {}
    assert len(halo.inference.activations(make_llama(torch), ids)) == 2


def test_a_model_that_was_saved_and_loaded_finds_what_was_captured(halo, llama, ids, tmp_path):
    from transformers import AutoModelForCausalLM

    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    llama.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert len(halo.inference.activations(loaded, ids)) == 2
    loaded.generate(ids, max_new_tokens=2)
    loaded.set_attn_implementation("eager")
    loaded.config.output_hidden_states = True
    assert len(halo.inference.activations(loaded, ids)) == 2
    loaded.config.rope_parameters = {"rope_theta": 5e5, "rope_type": "default"}
    assert halo.inference.activations(loaded, ids) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"input_ids": [1, 5, 9, 3, 7]},
        {"input_ids": [1, 5, 9, 3]},
        {"input_ids": [[1, 5, 9, 3, 8]] * 2},
        {"input_ids": [1, 5, 9, 3, 8], "attention_mask": [0, 1, 1, 1, 1]},
        {"input_ids": [1, 5, 9, 3, 8], "inputs": {"position_ids": [[1, 2, 3, 4, 5]]}},
    ],
)
def test_another_input_is_a_miss(halo, llama, ids, other):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    assert halo.inference.activations(llama, **other) == {}


def test_a_mask_that_hides_nothing_and_counted_positions_change_nothing(halo, llama, ids, torch):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(5)[None])
    assert len(halo.inference.activations(llama, ids)) == 2
    assert len(halo.inference.activations(llama, ids.int(), attention_mask=[[1] * 5])) == 2


def test_a_capture_made_before_is_not_stored_twice(halo, llama, ids, sql):
    for expected in ((2, 0), (0, 2)):
        with halo.inference.capture(llama, NAMES) as captured:
            run(llama, ids)
        assert (captured.stored, captured.known) == expected
    with halo.inference.capture(llama, "model.layers.*") as captured:
        run(llama, ids)
        run(llama, ids)
    assert captured.known == 2
    assert len(captured.inputs) == 1
    assert sql("SELECT count(*) - count(DISTINCT layer_name) FROM activation_cache") == [(0,)]


def test_hits_are_counted(halo, llama, ids, sql):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    halo.inference.activations(llama, ids)
    halo.inference.activations(llama, ids, names="*.0.mlp")
    halo.inference.activations(llama, [4])
    assert sql("SELECT layer_name, hit_count FROM activation_cache ORDER BY 1") == [
        ("model.layers.0.mlp", 2),
        ("model.layers.1.mlp", 1),
    ]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [("last", [4]), ([0, -2], [0, 3]), (slice(1, 3), [1, 2]), (2, [2]), (range(5), range(5))],
)
def test_positions_are_chosen(halo, llama, ids, positions, expected):
    with halo.inference.capture(llama, NAMES, positions=positions) as captured:
        run(llama, ids)
    whole = oracle(llama, "model.layers.0.mlp", ids)
    assert np.array_equal(captured["model.layers.0.mlp"], whole[:, list(expected)])
    found = halo.inference.activations(llama, ids, positions=positions)
    assert np.array_equal(found["model.layers.0.mlp"], whole[:, list(expected)])
    assert (halo.inference.activations(llama, ids) == {}) == (list(expected) != [0, 1, 2, 3, 4])


def test_less_is_taken_out_of_more(halo, llama, ids):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    whole = oracle(llama, "model.layers.0.mlp", ids)
    found = halo.inference.activations(llama, ids, positions=[3, 1], dtype="F16")
    assert np.array_equal(found["model.layers.0.mlp"], whole[:, [3, 1]].astype(np.float16))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_dtypes_are_cast_as_torch_casts_them(halo, llama, ids, torch, dtype):
    with halo.inference.capture(llama, NAMES, dtype=dtype):
        run(llama, ids)
    found = halo.inference.activations(llama, ids, torch=True)["model.layers.1.mlp"]
    target = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    whole = torch.from_numpy(oracle(llama, "model.layers.1.mlp", ids))
    assert torch.equal(found, whole.to(target))


def test_a_value_that_a_dtype_cannot_hold_is_told(halo, llama, ids, torch, sql):
    with torch.no_grad():
        llama.model.layers[0].mlp.down_proj.weight *= 1e9
    with (
        pytest.raises(InvalidInputError, match="F16 cannot hold"),
        halo.inference.capture(llama, NAMES, dtype="F16"),
    ):
        run(llama, ids)
    assert sql("SELECT count(*) FROM activation_cache") == [(0,)]


def test_in_generation_all_tokens_that_were_fed_are_one_input(halo, llama, ids):
    with halo.inference.capture(llama, NAMES) as captured:
        out = llama.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    fed = out[:, :-1]
    assert np.array_equal(captured.inputs[0].tokens, fed.numpy())
    found = halo.inference.activations(llama, fed)["model.layers.1.mlp"]
    np.testing.assert_allclose(found, oracle(llama, "model.layers.1.mlp", fed), atol=1e-6)


@pytest.mark.parametrize("positions", ["last", [0, -2], slice(3, None, 2), [9, 4], iter([1, 5])])
def test_positions_are_those_of_all_that_was_generated(halo, llama, ids, positions):
    listed = list(positions) if not isinstance(positions, str | slice) else positions
    given = iter(listed) if isinstance(listed, list) else listed
    with halo.inference.capture(llama, NAMES, positions=given) as captured:
        out = llama.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    whole = oracle(llama, "model.layers.1.mlp", out[:, :-1])
    expected = whole[:, -1:] if listed == "last" else whole[:, listed]
    np.testing.assert_allclose(captured["model.layers.1.mlp"], expected, atol=1e-6)
    found = halo.inference.activations(llama, out[:, :-1], positions=listed)
    assert np.array_equal(found["model.layers.1.mlp"], captured["model.layers.1.mlp"])


def test_a_padded_batch_is_generated_and_found_by_its_mask(halo, llama, torch):
    ids, mask = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    with halo.inference.capture(llama, NAMES) as captured:
        llama.generate(ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    (only,) = captured.inputs
    assert only["model.layers.0.mlp"].shape == (2, 6, 16)
    longer = np.pad(mask.numpy(), ((0, 0), (0, 2)), constant_values=1)
    places = (longer.cumsum(-1) - 1).clip(0)
    for given in (places, np.where(longer == 0, 1, places)):
        found = halo.inference.activations(
            llama, only.tokens, attention_mask=longer, inputs={"position_ids": given}
        )
        if found:
            break
    assert len(found) == 2


def test_what_depends_on_the_whole_length_is_not_put_together(halo, torch, ids, sql):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = make_llama(torch, rope_parameters=rope)
    with (
        pytest.raises(InvalidInputError, match="dynamic rope"),
        halo.inference.capture(model, NAMES),
    ):
        model.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert sql("SELECT count(*) FROM activation_cache") == [(0,)]
    with halo.inference.capture(model, NAMES):
        run(model, ids)
    assert len(halo.inference.activations(model, ids)) == 2


def test_beams_and_caches_that_were_filled_before_are_refused(halo, llama, ids, sql):
    with pytest.raises(InvalidInputError, match="exchanged"), halo.inference.capture(llama, NAMES):
        llama.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False)
    before = run(llama, ids)
    cache = before.get("cache", before.get("past_key_values"))
    name = "cache" if "cache" in before else "past_key_values"
    with (
        pytest.raises(InvalidInputError, match="not known here"),
        halo.inference.capture(llama, NAMES),
    ):
        run(llama, ids[:, :1], **{name: cache})
    assert sql("SELECT count(*) FROM activation_cache") == [(0,)]
    llama.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False)


def test_hooks_are_gone_afterwards_even_when_the_model_fails(halo, llama, ids):
    with pytest.raises(IndexError), halo.inference.capture(llama, NAMES):
        run(llama, ids + 100)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llama.modules())


def test_a_pass_that_failed_is_left_out(halo, llama, ids):
    with halo.inference.capture(llama, NAMES) as captured:
        for given in (ids, ids + 100):
            try:
                run(llama, given)
            except IndexError:
                continue
    assert np.array_equal(captured.inputs[0].tokens, ids.numpy())
    assert len(captured.inputs) == 1


def test_captures_stand_within_one_another_and_are_used_again(halo, llama, ids, torch):
    llama.set_attn_implementation("eager")
    capture = halo.inference.capture(llama, NAMES)
    with halo.inference.capture_attention(llama) as looks, capture:
        with halo.inference.capture(llama, "model.norm") as norm:
            run(llama, ids)
        run(llama, ids[:, :2])
    assert (len(looks.ids), len(capture.inputs), len(norm)) == (2, 2, 1)
    with capture:
        run(llama, ids)
    assert (len(capture.inputs), capture.known, capture.stored) == (1, 2, 0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llama.modules())


def test_a_module_that_runs_twice_in_a_pass_has_a_name_for_each(halo, torch):
    shared = torch.nn.Linear(3, 3)
    module = torch.nn.Sequential(shared, torch.nn.ReLU(), shared).eval()
    with halo.inference.capture(module, "0") as captured:
        run(module, torch.rand(2, 3))
    assert list(captured) == ["0", "0#2"]


def test_what_a_model_goes_on_to_write_to_is_kept_as_it_was(halo, torch):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, x):
            found = self.inner(x)
            before = found.clone()
            found += 100
            return before

    module = Residual().eval()
    with halo.inference.capture(module, "inner") as captured:
        before = run(module, torch.rand(1, 2))
    assert np.array_equal(captured["inner"], before.numpy())


def test_a_model_that_trains_or_has_hooks_of_others_is_refused(halo, llama, ids):
    llama.model.layers[1].train()
    with pytest.raises(InvalidInputError, match="training mode"):
        halo.inference.capture(llama, NAMES)
    llama.eval()
    llama.model.layers[0].mlp.register_forward_hook(lambda module, args, out: out * 0)
    with pytest.raises(InvalidInputError, match="hooks"):
        halo.inference.capture(llama, NAMES)
    with halo.inference.capture(llama, NAMES, variant="without layer 0"):
        run(llama, ids)
    assert len(halo.inference.activations(llama, ids, variant="without layer 0")) == 2
    assert halo.inference.activations(llama, ids, variant="another") == {}


def test_weights_that_change_during_a_capture_store_nothing(halo, llama, ids, torch, sql):
    with (
        pytest.raises(InvalidInputError, match="weights changed"),
        halo.inference.capture(llama, NAMES),
    ):
        run_and_change(llama, ids)
    assert sql("SELECT count(*) FROM activation_cache") == [(0,)]


def attention_of(halo, llama):
    llama.set_attn_implementation("eager")
    return halo.inference.capture_attention(llama)


def test_names_that_fit_nothing_and_passes_that_were_none_are_told(halo, llama, ids):
    with pytest.raises(InvalidInputError, match="named 'model"):
        halo.inference.capture(llama, ["model.layers.9.mlp"])
    for names in ([], (), None, 5, ["model.norm", 5], b"model.norm"):
        with pytest.raises(InvalidInputError, match="names no modules"):
            halo.inference.capture(llama, names)
        with pytest.raises(InvalidInputError, match="names no modules"):
            halo.inference.activations(llama, ids, names=names)
    for capture in (halo.inference.capture(llama, NAMES), attention_of(halo, llama)):
        with pytest.raises(InvalidInputError, match="nothing went through"), capture:
            run(llama.model, ids)


def test_parts_that_gave_nothing_are_told(halo, llama, ids, sql):
    with (
        pytest.raises(InvalidInputError, match=r"'model.layers' gave no tensor") as refused,
        halo.inference.capture(llama, "model.layers"),
    ):
        run(llama, ids)
    assert '"model.layers.*"' in str(refused.value.hint)
    with halo.inference.capture(llama, ["model.layers", "model.norm"]) as captured:
        run(llama, ids)
    assert list(captured) == ["model.norm"]


def test_what_the_whole_model_gives_is_captured_by_the_empty_name(halo, llama, ids):
    with halo.inference.capture(llama, "*") as captured:
        logits = run(llama, ids).logits
    assert np.array_equal(captured[""], logits.numpy())
    assert np.array_equal(captured["lm_head"], logits.numpy())


def test_logits_of_some_tokens_are_not_kept_as_those_of_all(halo, llama, ids, sql):
    with (
        pytest.raises(InvalidInputError, match="lm_head gives logits of 2 of 5 tokens"),
        halo.inference.capture(llama, ["*.mlp", "lm_head"]),
    ):
        run(llama, ids, logits_to_keep=2)
    assert sql("SELECT count(*) FROM activation_cache") == [(0,)]
    with halo.inference.capture(llama, NAMES):
        run(llama, ids, logits_to_keep=2)
    with halo.inference.capture(llama, "lm_head") as captured:
        run(llama, ids, logits_to_keep=0)
    assert captured["lm_head"].shape == (1, 5, 32)


def test_the_root_alone_finds_them_too(halo, llama, ids):
    from arc_halo.inference.fingerprints import weights_root

    root = weights_root(llama)
    with halo.inference.capture(llama, NAMES, root=root):
        run(llama, ids)
    assert len(halo.inference.activations(root, ids)) == 2
    assert len(halo.inference.activations(f"sha256:{root.hex()}", ids)) == 2
    assert len(halo.inference.activations(llama, ids)) == 2


def test_a_registered_model_is_enough_to_find_them(halo, llama, ids, torch, tmp_path):
    """Loaded it has buffers beside its weights, and with them another root."""
    llama.save_pretrained(tmp_path / "story")
    halo.models.import_weights("story@1.0.0", tmp_path / "story", model_type="transformer")
    loaded = type(llama).from_pretrained(tmp_path / "story").eval()
    with halo.inference.capture(loaded, NAMES):
        run(loaded, ids)
    (capture,) = halo.inference.activation_captures(model="story")
    assert capture.model == "story@1.0.0"
    assert len(halo.inference.activations("story@1.0.0", ids)) == 2
    assert halo.inference.activations("story", [[1, 2]]) == {}
    with pytest.raises(NotFoundError):
        halo.inference.activations("tale", ids)
    with halo.inference.capture(loaded.half(), NAMES):
        run(loaded, ids)
    assert len(halo.inference.activation_captures()) == 2
    assert len(halo.inference.activations("story", ids)) == 2


def test_any_module_is_captured_by_what_it_was_given(halo, torch):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    given = torch.rand(2, 3)
    with halo.inference.capture(module, "0") as captured:
        run(module, given)
    name = "input"
    found = halo.inference.activations(module, inputs={name: given})
    assert np.array_equal(found["0"], captured["0"])
    with (
        pytest.raises(InvalidInputError, match="no tokens to choose"),
        halo.inference.capture(module, "0", positions="last"),
    ):
        run(module, given)


def test_a_text_that_a_module_was_given_is_a_part_of_the_input(halo, torch):
    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, x, task):
            return self.inner(x) * len(task)

    module, given = Told().eval(), torch.rand(1, 2)
    with halo.inference.capture(module, "") as captured:
        run(module, given, task="sum")
    found = halo.inference.activations(module, inputs={"x": given, "task": "sum"})
    assert np.array_equal(found[""], captured[""])
    assert halo.inference.activations(module, inputs={"x": given, "task": "max"}) == {}


def test_gpt2_is_captured_too(halo, torch):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()  # fmt: skip
    ids = torch.tensor([[3, 1, 4]])
    with halo.inference.capture(model, ["transformer.h.*.attn", "*.mlp.act"]) as captured:
        run(model, ids)
    assert {name: array.shape[-1] for name, array in captured.items()} == {
        "transformer.h.0.attn": 16, "transformer.h.0.mlp.act": 64,
        "transformer.h.1.attn": 16, "transformer.h.1.mlp.act": 64,
    }  # fmt: skip


def test_what_was_used_longest_ago_goes_beyond_the_budget(halo, llama, torch, sql):
    inputs = [torch.tensor([[each, 2, 3]]) for each in range(3)]
    for each in inputs[:2]:
        with halo.inference.capture(llama, NAMES):
            run(llama, each)
    halo.inference.activations(llama, inputs[0])
    with halo.inference.capture(llama, NAMES, budget_bytes=4 * 192):
        run(llama, inputs[2])
    assert sql("SELECT sum(size_bytes) FROM activation_cache") == [(4 * 192,)]
    there = [bool(halo.inference.activations(llama, each)) for each in inputs]
    assert there == [True, False, True]
    with (
        pytest.raises(RefusedError, match="192 may be kept"),
        halo.inference.capture(llama, NAMES, budget_bytes=192),
    ):
        run(llama, inputs[1])


def test_what_is_over_is_a_miss_and_captured_anew(halo, llama, ids, sql):
    with halo.inference.capture(llama, NAMES, ttl_seconds=60):
        run(llama, ids)
    assert len(halo.inference.activations(llama, ids)) == 2
    sql("UPDATE activation_cache SET expires_at = now() - interval '1 second'")
    assert halo.inference.activations(llama, ids) == {}
    with halo.inference.capture(llama, "*.0.mlp") as captured:
        run(llama, ids)
    assert captured.stored == 1
    assert sql("SELECT layer_name, expires_at FROM activation_cache") == [
        ("model.layers.0.mlp", None)
    ]


def test_collection_keeps_what_is_cached_and_takes_what_was_evicted(halo, llama, ids, sql):
    with halo.inference.capture(llama, NAMES):
        run(llama, ids)
    sql("DELETE FROM activation_cache WHERE layer_name = 'model.layers.1.mlp'")
    collected = collect(halo.project.weights, grace=timedelta(0))
    assert (collected.weight_sets, collected.tensors) == (1, 1)
    assert list(halo.inference.activations(llama, ids)) == ["model.layers.0.mlp"]
    sql("DELETE FROM activation_cache")
    assert collect(halo.project.weights, grace=timedelta(0)).tensors == 1
