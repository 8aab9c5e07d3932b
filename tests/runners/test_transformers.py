"""Models that transformers runs: their weights, their tokens, their texts, against torch's own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arc_halo.errors import MemberError
from arc_halo.runners import transformers as runner
from arc_halo.runners.generating import log_softmax
from tests.runners import models

pytestmark = pytest.mark.torch
WEIGHTS = Path(__file__).parents[2] / "examples" / "weights"
VOCABULARY = 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Directories of small random models, as transformers saves them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
    configs = {
        "llama": AutoConfig.for_model(
            "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **sizes,
        ),
        "tied": AutoConfig.for_model(
            "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True, **sizes,
        ),
        "gpt2": AutoConfig.for_model(
            "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, **sizes
        ),
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    for name, config in configs.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
    return directory


NAMES = pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])


def opened(directory, **params):
    return runner.open_transformers(
        models.context_of(directory), **{"tokenizer": "bytes", **params}
    )


def reference(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).float().eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["base", "scripture", "python"])
def test_weights_in_the_module_are_bit_equal_to_the_files(name, dtype):
    from safetensors.torch import load_file

    stored = load_file(WEIGHTS / name / "model.safetensors")
    with opened(WEIGHTS / name, dtype=dtype) as model:
        found = model.tokens._module.state_dict()
    assert found.keys() == stored.keys()
    for each, tensor in stored.items():
        assert str(found[each].dtype) == f"torch.{dtype}"
        assert found[each].bfloat16().equal(tensor), each


@NAMES
def test_parameters_and_buffers_are_those_that_transformers_loads(tiny, name):
    expected = reference(tiny / name)
    with opened(tiny / name) as model:
        module = model.tokens._module
    assert module.state_dict().keys() == expected.state_dict().keys()
    for each, tensor in expected.state_dict().items():
        assert module.state_dict()[each].equal(tensor), each
    buffers = dict(module.named_buffers())
    for each, tensor in expected.named_buffers():
        assert buffers[each].equal(tensor), each


def test_weights_that_are_tied_are_one_tensor(tiny):
    with opened(tiny / "tied") as model:
        module = model.tokens._module
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_weights_of_the_right_dtype_are_not_copied():
    given = {}

    def tensors():
        for info, array in models.tensors_of(WEIGHTS / "base"):
            given[info.name] = array.ctypes.data
            yield info, array

    context = models.context_of(WEIGHTS / "base", tensors=tensors)
    with runner.open_transformers(context, tokenizer="bytes", dtype="bfloat16") as model:
        found = {name: each.data_ptr() for name, each in model.tokens._module.named_parameters()}
    assert found == given


def no_tensors():
    raise AssertionError("the weights are not asked for")


@pytest.mark.parametrize("device", ["cuda", "cuda:9999", "xpu", "mps"])
def test_a_device_that_is_not_there_is_refused_before_weights_are_read(device):
    import torch

    if torch.accelerator.is_available() and device == torch.accelerator.current_accelerator().type:
        pytest.skip(f"there is {device} here")
    context = models.context_of(WEIGHTS / "base", tensors=no_tensors)
    with (
        pytest.raises(MemberError, match=f"there is no device {device} here, only .*cpu") as told,
        runner.open_transformers(context, tokenizer="bytes", device=device),
    ):
        pass
    assert "`device: auto` takes the best" in told.value.hint


def test_all_of_a_module_is_on_its_device(tiny):
    import torch

    from arc_halo.runners._modules import load_module

    # Any device would do, and this one is everywhere.
    module = load_module(models.context_of(tiny / "llama"), "float32", torch.device("meta"))
    assert {each.device.type for each in (*module.parameters(), *module.buffers())} == {"meta"}


def test_the_best_device_answers_as_the_cpu_does(tiny):
    with opened(tiny / "llama", max_tokens=4) as model:
        expected = model.tokens.score([5, 9, 3])
    with opened(tiny / "llama", max_tokens=4, device="auto") as model:
        np.testing.assert_allclose(model.tokens.score([5, 9, 3]), expected, rtol=0, atol=1e-4)
        assert model.answer(["\x05\x09", "\x03", "\x04"]).details["completion_tokens"] == [4] * 3


@NAMES
def test_teacher_forced_logits_are_those_of_transformers(tiny, name):
    import torch

    tokens = list(range(1, 40))
    with torch.no_grad():
        expected = reference(tiny / name)(torch.tensor([tokens])).logits[0].double().numpy()
    with opened(tiny / name) as model:
        found = model.tokens.score(tokens)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@NAMES
def test_reusing_what_was_read_gives_the_same_tokens_as_reading_all_anew(tiny, name):
    prompts = [[5, 9, 3], [7, 1, 2], [11], [4, 4, 8, 1, 60]]
    with opened(tiny / name) as model:
        session = model.tokens.begin(prompts)
        texts = [list(prompt) for prompt in prompts]
        for _ in range(30):
            anew = np.stack([model.tokens.score(text)[-1] for text in texts])
            np.testing.assert_allclose(session.logits, anew, rtol=0, atol=1e-5)
            chosen = session.logits.argmax(axis=1).tolist()
            assert chosen == anew.argmax(axis=1).tolist()
            for text, token in zip(texts, chosen, strict=True):
                text.append(token)
            session.step(chosen)


@NAMES
def test_a_session_goes_on_with_some_of_its_texts(tiny, name):
    prompts = [[5, 9, 3], [7, 1, 2], [11], [4, 4, 8]]
    with opened(tiny / name) as model:
        session = model.tokens.begin(prompts)
        session.step([1, 2, 3, 4])
        session.keep([1, 3])
        found = session.step([6, 7])
        expected = [model.tokens.score([*p, *t])[-1] for p, t in
                    (([7, 1, 2], [2, 6]), ([4, 4, 8], [4, 7]))]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["scripture", "python"])
def test_greedy_texts_are_those_that_transformers_generates(name):
    import torch

    prompts = ["In the beginning", "def main(", "x"]
    model = reference(WEIGHTS / name)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt.encode())])
        made = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        expected.append(bytes(made[0, ids.shape[1] :].tolist()).decode())
    with opened(WEIGHTS / name, max_tokens=24) as running:
        answer = running.answer(prompts)
    assert list(answer.texts) == expected
    answer.check(3)


def test_confidence_is_the_geometric_mean_of_what_the_tokens_got(tiny):
    with opened(tiny / "llama", max_tokens=5) as model:
        prompt = [5, 9, 3]
        answer = model.answer([bytes(prompt).decode()])
        text = list(prompt)
        nats = []
        for _ in range(5):
            row = log_softmax(model.tokens.score(text)[-1])
            text.append(int(row.argmax()))
            nats.append(row.max())
    assert answer.confidence[0] == pytest.approx(np.exp(np.mean(nats)))
    assert answer.details == {
        "prompt_tokens": [3], "completion_tokens": [5], "finish_reason": ["length"],
    }  # fmt: skip


def test_what_is_drawn_depends_on_the_seed_alone():
    with opened(WEIGHTS / "base", temperature=1, max_tokens=30, seed=3) as model:
        first = model.answer(["The", "The"])
        assert model.answer(["The", "The"]).texts == first.texts
    assert first.texts[0] != first.texts[1]
    with opened(WEIGHTS / "base", temperature=1, max_tokens=30, seed=4) as model:
        assert model.answer(["The", "The"]).texts != first.texts


def test_a_text_ends_before_a_stop():
    with opened(WEIGHTS / "scripture", max_tokens=60) as model:
        whole = model.answer(["In the beginning"]).texts[0]
    stop = whole[10:14]
    with opened(WEIGHTS / "scripture", max_tokens=60, stop=[stop]) as model:
        answer = model.answer(["In the beginning"])
    assert answer.texts[0] == whole[: whole.index(stop)]
    assert answer.details["finish_reason"] == ["stop"]


def test_a_text_ends_where_the_context_does(tiny):
    with opened(tiny / "gpt2", max_tokens=500) as model:
        answer = model.answer(["\x05" * 60])
        assert answer.details["completion_tokens"] == [4]
        with pytest.raises(MemberError, match="64 tokens, and the model takes 64"):
            model.answer(["\x05" * 64])


def test_threads_get_the_answers_that_one_gets(tiny):
    prompts = [chr(1 + place) * (1 + place % 5) for place in range(24)]
    with opened(tiny / "llama", max_tokens=12) as model:
        alone = [model.answer([prompt]).texts for prompt in prompts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda prompt: model.answer([prompt]).texts, prompts)) == alone


def test_a_model_of_its_own_tokenizer_speaks_by_it(tiny):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    document = tokenizer.to_str().encode()
    context = models.context_of(tiny / "llama", tokenizer=document)
    with runner.open_transformers(context, max_tokens=4) as model:
        assert model.tokens.encode("w3 w60 other") == [3, 60, 0]
        answer = model.answer([{"prompt": "w5 w9 w3"}])
        assert model.tokens.vocabulary.size == VOCABULARY
    with opened(tiny / "llama", max_tokens=4) as model:
        expected = model.tokens.begin([[5, 9, 3]]).logits.argmax()
    assert answer.texts[0].split()[0] == f"w{expected}"


def test_a_model_without_a_tokenizer_is_told_so(tiny):
    with (
        pytest.raises(MemberError, match="it has no tokenizer"),
        runner.open_transformers(models.context_of(tiny / "llama")),
    ):
        pass


def _changed(directory, change):
    return lambda: change(list(models.tensors_of(directory)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[1:], r"its weights lack lm_head.weight"),
        (
            lambda tensors: [*tensors, (replace(tensors[0][0], name="extra.bias"), tensors[0][1])],
            r"its architecture has no extra.bias",
        ),
        (
            lambda tensors: [(replace(tensors[0][0], shape=(3,)), tensors[0][1]), *tensors[1:]],
            r"lm_head.weight is \[3\], and \[64, 32\] in its architecture",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(tiny, change, message):
    context = models.context_of(tiny / "llama", tensors=_changed(tiny / "llama", change))
    with (
        pytest.raises(MemberError, match=message),
        runner.open_transformers(context, tokenizer="bytes"),
    ):
        pass


def test_weights_that_are_tied_and_differ_are_refused(tiny):
    def change(tensors):
        info, array = next(each for each in tensors if each[0].name == "model.embed_tokens.weight")
        return [*tensors, (replace(info, name="lm_head.weight"), array + 1)]

    context = models.context_of(tiny / "tied", tensors=_changed(tiny / "tied", change))
    with (
        pytest.raises(MemberError, match="differ, and its architecture ties them"),
        runner.open_transformers(context, tokenizer="bytes"),
    ):
        pass


@pytest.mark.parametrize("architecture", [{}, {"model_type": "vgg"}, {"model_type": "bert_no"}])
def test_an_architecture_that_transformers_does_not_know_is_refused(tiny, architecture):
    context = models.context_of(tiny / "llama", architecture=architecture)
    with pytest.raises(MemberError), runner.open_transformers(context, tokenizer="bytes"):
        pass


def test_code_that_a_config_names_is_not_run(tiny):
    said = json.loads((tiny / "llama" / "config.json").read_text())
    said["auto_map"] = {"AutoModelForCausalLM": "somebody/code--modeling.Model"}
    context = models.context_of(tiny / "llama", architecture=said)
    with runner.open_transformers(context, tokenizer="bytes") as model:
        assert type(model.tokens._module).__module__.startswith("transformers.models.llama")
