"""Attention of real models, captured and read back; and what says that none is given."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError

pytestmark = pytest.mark.torch

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
IDS = [[1, 5, 9, 3, 8, 4, 7]]
SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make(name: str, attention: str = "eager"):
    import torch
    import transformers

    torch.manual_seed(11)
    gpt2 = {
        "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    settings = {
        "Llama": SMALL | {"num_key_value_heads": 2},
        "Mistral": SMALL | {"num_key_value_heads": 1, "sliding_window": 3},
        "GPT2": gpt2,
        "Bert": SMALL | {"intermediate_size": 24},
    }[name]
    kind = {"GPT2": "GPT2LMHeadModel", "Bert": "BertModel"}.get(name, f"{name}ForCausalLM")
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, kind)(config).eval()
    # Spread out, so that heads differ.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    model.set_attn_implementation(attention)
    return model


def run(model, ids=None, **given):
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS if ids is None else ids), **given)


def attentions(model, ids=None):
    """[layer, batch, head, query, key], as transformers gives them."""
    return np.stack([each.numpy() for each in run(model, ids, output_attentions=True).attentions])


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT2", "Bert"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_head_comes_back_as_transformers_gives_it(halo, name, dtype):
    model = make(name)
    with halo.inference.capture_attention(model, dtype=dtype) as captured:
        run(model)
    expected = attentions(model)
    attention = halo.inference.attention(captured.ids[0])
    assert [(each.layer_index, each.head_index) for each in attention.heads] == [
        (layer, head) for layer in range(2) for head in range(4)
    ]
    for layer in range(2):
        for number in range(4):
            head, pattern = attention.head(layer, number), expected[layer, 0, number]
            assert head.shape.is_causal == (name != "Bert")
            cast = pattern.astype(NUMPY[dtype])
            assert np.array_equal(head.matrix(), cast)
            assert all(np.array_equal(head.row(q), cast[q]) for q in range(-7, 7))
            np.testing.assert_allclose(head.sink_mass, pattern[:, 0], rtol=1e-6)
            np.testing.assert_allclose(head.peak, pattern.max(-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sql_reads_one_row_as_python_does(halo, sql, dtype):
    model = make("Mistral")
    with halo.inference.capture_attention(model, dtype=dtype) as captured:
        run(model)
    head = halo.inference.attention(captured.ids[0]).head(1, 2)
    for query in range(7):
        ((row,),) = sql("SELECT attention_row(%s, 1, 2, %s)", captured.ids[0], query)
        assert np.array_equal(np.float32(row), np.float32(head.row(query)[: query + 1]))


def test_the_view_has_the_figures_of_every_head(halo, sql):
    model = make("Llama")
    with halo.inference.capture_attention(model, label="one") as captured:
        run(model)
    expected = attentions(model).astype(np.float64)
    found = sql(
        "SELECT layer_index, head_index, mean_entropy, max_entropy, mean_sink_mass, max_peak"
        " FROM v_attention_heads WHERE label = 'one' ORDER BY 1, 2"
    )
    assert len(found) == 8
    for layer, head, mean_entropy, max_entropy, sink, peak in found:
        rows = expected[layer, 0, head].tolist()
        entropies = [-sum(p * math.log(p) for p in row if p) for row in rows]
        assert mean_entropy == pytest.approx(sum(entropies) / 7, rel=1e-5)
        assert max_entropy == pytest.approx(max(entropies), rel=1e-5)
        assert sink == pytest.approx(sum(row[0] for row in rows) / 7, rel=1e-5)
        assert peak == pytest.approx(max(map(max, rows)), rel=1e-5)
    first = halo.inference.attention("one").heads[0]
    assert (first.mean_entropy, captured.ids) == (
        found[0][2],
        [each.id for each in halo.inference.attention_captures()],
    )


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_an_implementation_that_gives_none_is_told(halo, attention):
    model = make("Llama", "eager")
    model.config._attn_implementation = attention
    with pytest.raises(InvalidInputError, match=attention) as refused:
        halo.inference.capture_attention(model)
    assert refused.value.hint is not None
    assert 'set_attn_implementation("eager")' in refused.value.hint
    assert 'attn_implementation="eager"' in refused.value.hint


def test_an_implementation_that_is_changed_within_is_told(halo, sql):
    model = make("Llama")
    with pytest.raises(InvalidInputError, match="'sdpa', which gives none"):
        run_with_sdpa(halo, model)
    assert sql("SELECT count(*) FROM attention_captures") == [(0,)]


def run_with_sdpa(halo, model):
    with halo.inference.capture_attention(model):
        model.set_attn_implementation("sdpa")
        run(model)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT2"])
def test_in_generation_the_passes_are_one_pattern(halo, name):
    import torch

    model = make(name)
    with halo.inference.capture_attention(model, dtype="F32") as captured:
        out = model.generate(
            torch.tensor(IDS), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
        )
    fed = out[:, :-1].tolist()
    attention = halo.inference.attention(captured.ids[0])
    assert attention.about.token_ids == fed[0]
    expected = attentions(model, fed)
    for layer in range(2):
        for head in range(4):
            found = attention.head(layer, head)
            assert found.shape.is_causal
            np.testing.assert_allclose(found.matrix(), expected[layer, 0, head], atol=1e-5)


def test_layers_and_heads_are_chosen_and_each_sequence_is_a_capture(halo):
    model = make("GPT2")
    ids = [[1, 2, 3], [4, 5, 6]]
    with halo.inference.capture_attention(model, layers=[1], heads=[3, 0], dtype="F32") as captured:
        run(model, ids)
    expected = attentions(model, ids)
    for row, capture in enumerate(captured.ids):
        attention = halo.inference.attention(capture)
        assert attention.about.token_ids == ids[row]
        assert [(each.layer_index, each.head_index) for each in attention.heads] == [(1, 0), (1, 3)]
        for head in (0, 3):
            assert np.array_equal(attention.head(1, head).matrix(), expected[1, row, head])
        with pytest.raises(NotFoundError, match="no head 1 of layer 1"):
            attention.head(1, 1)
    with pytest.raises(InvalidInputError, match="no layer 7"):
        halo.inference.capture_attention(model, layers=7)
    for wrong in ([], True, 1.5, "01", [None], slice(1)):
        for name in ("layers", "heads"):
            with pytest.raises(InvalidInputError, match=f"{name}=.* says none"):
                halo.inference.capture_attention(model, **{name: wrong})
    with pytest.raises(InvalidInputError, match="dtype=None"):
        halo.inference.capture_attention(model, dtype=None)
    with (
        pytest.raises(InvalidInputError, match="has 4 heads"),
        halo.inference.capture_attention(model, heads=4),
    ):
        run(model)


def test_tokens_have_the_texts_of_the_tokenizer(halo):
    model = make("Llama")
    letters = [f"<{each}>" for each in range(32)]
    with halo.inference.capture_attention(
        model, tokens=lambda ids: [letters[each] + "\0" for each in ids]
    ) as captured:
        run(model, [[3, 4]])
    assert halo.inference.attention(captured.ids[0]).tokens == ["<3>␀", "<4>␀"]
    with (
        pytest.raises(InvalidInputError, match="2 tokens have 1 texts"),
        halo.inference.capture_attention(model, tokens=lambda ids: ["x"]),
    ):
        run(model, [[3, 4]])


def test_captures_are_found_by_id_its_beginning_and_label(halo):
    model = make("GPT2")
    for _ in range(2):
        with halo.inference.capture_attention(model, label="facing") as captured:
            run(model)
    newest = captured.ids[0]
    for named in (newest, str(newest), newest.hex[:12], "facing"):
        assert halo.inference.attention(named).about.id == newest
    for named in ("nobody", newest.hex[:5], "\0", "12345678"):
        with pytest.raises(NotFoundError):
            halo.inference.attention(named)


def test_what_was_used_longest_ago_goes_beyond_the_budget(halo, sql):
    model = make("GPT2")
    size = 8 * 28 * 2
    ids = []
    for budget in (None, None, 2 * size):
        if len(ids) == 2:
            halo.inference.attention(ids[0])
        with halo.inference.capture_attention(model, budget_bytes=budget) as captured:
            run(model)
        ids += captured.ids
    assert sql("SELECT sum(size_bytes) FROM attention_captures") == [(2 * size,)]
    assert {each.id for each in halo.inference.attention_captures()} == {ids[0], ids[2]}
    assert sql("SELECT count(*) FROM attention_patterns") == [(16,)]
    with (
        pytest.raises(RefusedError, match="may be kept"),
        halo.inference.capture_attention(model, budget_bytes=size - 1),
    ):
        run(model)


def test_what_is_over_is_not_there(halo, sql):
    model = make("GPT2")
    with halo.inference.capture_attention(model, ttl_seconds=60, label="soon") as captured:
        run(model)
    halo.inference.attention("soon")
    sql("UPDATE attention_captures SET expires_at = now() - interval '1 second'")
    assert halo.inference.attention_captures() == []
    for named in ("soon", captured.ids[0]):
        with pytest.raises(NotFoundError):
            halo.inference.attention(named)


def test_a_capture_goes_with_its_session(halo, sql):
    model = make("GPT2")
    with (
        halo.inference.session("story@1.0.0") as session,
        halo.inference.capture_attention(model, session=session) as captured,
    ):
        run(model)
    assert halo.inference.attention(captured.ids[0]).about.session_id == session.id
    for unknown in (captured.ids[0], "nobody"):
        with pytest.raises(NotFoundError):
            halo.inference.capture_attention(model, session=unknown)
    sql("DELETE FROM inference_sessions")
    assert halo.inference.attention_captures() == []


def test_a_label_that_cannot_be_kept_is_told_before_the_model_runs(halo):
    with pytest.raises(InvalidInputError, match="label"):
        halo.inference.capture_attention(make("GPT2"), label="a\0b")


def test_padding_and_models_that_train_or_encode_and_decode(halo):
    import torch

    model = make("Llama")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    with halo.inference.capture_attention(model, dtype="F32") as captured:
        run(model, attention_mask=mask)
    expected = run(model, attention_mask=mask, output_attentions=True).attentions
    head = halo.inference.attention(captured.ids[0]).head(0, 1)
    assert np.array_equal(head.matrix(), expected[0][0, 1].numpy())
    with pytest.raises(InvalidInputError, match="training mode"):
        halo.inference.capture_attention(model.train())
    model.eval().config.is_encoder_decoder = True
    with pytest.raises(InvalidInputError, match="encoder-decoder"):
        halo.inference.capture_attention(model)
    with pytest.raises(InvalidInputError, match="no module whose class"):
        halo.inference.capture_attention(torch.nn.Sequential(torch.nn.Linear(2, 2)).eval())
