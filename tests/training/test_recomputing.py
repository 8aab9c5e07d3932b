"""What is computed again, and what that is estimated to save."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.architectures import LayerShape
from arc_halo.errors import InvalidInputError
from arc_halo.training.recomputing import activation_bytes, chosen_layers, plan

GPT2 = {"model_type": "gpt2", "n_layer": 4, "n_head": 8, "n_embd": 64, "n_positions": 32}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 32,
}


@given(
    batch=st.integers(1, 64),
    length=st.integers(1, 4096),
    heads=st.integers(1, 64),
    head_size=st.integers(1, 128),
)
def test_the_estimate_of_a_gpt_is_that_of_the_paper(batch, length, heads, head_size):
    hidden = heads * head_size
    found = plan(
        {**GPT2, "n_head": heads, "n_embd": hidden},
        batch_size=batch,
        sequence_length=length,
        dtype="F16",
        attention="eager",
    )
    expected = length * batch * hidden * 34 + 5 * heads * length**2 * batch
    assert {layer.activation_bytes for layer in found.layers} == {expected}
    assert {layer.saved_bytes for layer in found.layers} == {expected - 2 * length * batch * hidden}


def test_fused_attention_keeps_a_number_for_each_row_of_scores_and_not_the_scores():
    eager = plan(GPT2, dtype="F16", attention="eager").layers[0].activation_bytes
    fused = plan(GPT2, dtype="F16").layers[0].activation_bytes
    assert eager - fused == 5 * 8 * 32**2 - 4 * 8 * 32


def test_a_gate_and_fewer_keys_count_as_they_are_kept():
    tokens = 2 * 32
    norms_and_inputs = 4 * 64
    attention = 2 * 64 + 2 * 2 * 8
    feed_forward = 4 * 160
    expected = 4 * tokens * (norms_and_inputs + attention + feed_forward) + 4 * tokens * 8
    assert plan(LLAMA, batch_size=2).layers[0].activation_bytes == expected


def test_kin_without_a_gate_keep_less():
    kin = plan({**LLAMA, "model_type": "starcoder2"}).layers[0].activation_bytes
    assert plan(LLAMA).layers[0].activation_bytes - kin == 4 * 32 * 2 * 160


def test_dropout_that_is_off_keeps_no_masks():
    off = {**GPT2, "resid_pdrop": 0.0, "attn_pdrop": 0}
    with_masks = plan(GPT2, dtype="F16", attention="eager").layers[0].activation_bytes
    without = plan(off, dtype="F16", attention="eager").layers[0].activation_bytes
    assert with_masks - without == 2 * 32 * 64 + 3 * 8 * 32**2


@given(
    shape=st.builds(
        LayerShape,
        hidden_size=st.integers(1, 10_000),
        intermediate_size=st.integers(1, 40_000),
        num_heads=st.integers(1, 128),
        num_kv_heads=st.integers(1, 128),
        head_dim=st.integers(1, 256),
        activation=st.none(),
        normalization=st.just("rmsnorm"),
        position_encoding=st.just("rotary"),
    ),
    flags=st.tuples(*[st.booleans()] * 4),
)
def test_a_layer_keeps_more_than_its_input_and_twice_as_much_of_two_batches(shape, flags):
    names = ("is_gated", "is_eager", "drops_outputs", "drops_scores")

    def kept(batch: int) -> int:
        return activation_bytes(
            shape,
            batch_size=batch,
            sequence_length=16,
            element_bytes=2,
            **dict(zip(names, flags, strict=True)),
        )

    assert kept(1) > 2 * 16 * shape.hidden_size
    assert kept(2) == 2 * kept(1)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", {0, 1, 2, 3}),
        ("none", set()),
        ({"every": 2}, {0, 2}),
        ({"every": 3}, {0, 3}),
        ([3, 1], {1, 3}),
    ],
)
def test_layers_are_chosen_by_word_distance_or_number(layers, expected):
    assert chosen_layers(layers, 4) == expected
    found = plan(GPT2, layers=layers)
    assert {layer.layer_index for layer in found.layers if layer.is_checkpointed} == expected
    assert [layer.module_name for layer in found.layers] == [f"transformer.h.{i}" for i in range(4)]


@pytest.mark.parametrize("layers", [[4], [-1], "some"])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(InvalidInputError):
        plan(GPT2, layers=layers)


def test_what_is_kept_at_most_is_what_is_left_and_one_layer_computed_again():
    found = plan(GPT2, layers={"every": 2})
    whole = found.layers[0].activation_bytes
    saved = found.layers[0].saved_bytes
    assert found.activation_bytes == 4 * whole
    assert found.saved_bytes == 2 * saved
    assert found.peak_bytes == 4 * whole - 2 * saved + saved
    assert plan(GPT2, layers="none").peak_bytes == 4 * whole


def test_the_line_for_people_has_the_batch_it_is_for():
    text = str(plan(GPT2, layers=[0], batch_size=3, sequence_length=2048, dtype="BF16"))
    assert text.startswith("1 of 4 layers computed again: about ")
    assert " of activations at the peak, " in text
    assert " after the forward pass, " in text
    assert text.endswith(" without, for 3 x 2,048 tokens in BF16")


def test_without_a_length_nothing_is_estimated():
    config = {key: value for key, value in GPT2.items() if key != "n_positions"}
    found = plan(config)
    assert found.activation_bytes is None
    assert str(found) == "4 of 4 layers computed again"


def test_a_model_of_another_family_is_planned_by_the_name_of_its_layers():
    config = {"model_type": "odd", "num_layers": 2, "n_positions": 32}
    found = plan(config, layers=[1], modules="blocks")
    assert [(layer.module_name, layer.is_checkpointed) for layer in found.layers] == [
        ("blocks.0", False),
        ("blocks.1", True),
    ]
    assert found.saved_bytes is None
    with pytest.raises(InvalidInputError, match="where a model of this family has its layers"):
        plan(config)


def test_a_config_without_a_number_of_layers_is_refused():
    with pytest.raises(InvalidInputError, match="does not say how many layers"):
        plan({"num_layers": True}, modules="blocks")


def test_a_dtype_that_no_activations_have_is_refused():
    with pytest.raises(InvalidInputError, match="I8"):
        plan(GPT2, dtype="I8")
