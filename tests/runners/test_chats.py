"""Chat templates: where they are read from, and what they make of conversations."""

from __future__ import annotations

import json

import jsonschema
import pytest

from arc_halo.errors import MemberError
from arc_halo.runners import transformers as runner
from arc_halo.runners._chats import ChatTemplate, read_template
from tests.runners import models

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no ' + message.role) }}{% endif %}"
    "<turn> {{ message.role }} {{ message.content }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant{% endif %}"
)
CHAT = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4"},
]


@pytest.mark.parametrize(
    ("said", "is_valid"),
    [
        (False, True), ("{{ messages }}", True), ({"file": "a.jinja"}, True),
        (True, False), ("", False), ({}, False), ({"file": "a", "more": 1}, False), (None, False),
    ],
)  # fmt: skip
def test_a_chat_template_is_a_text_or_a_file_or_none(said, is_valid):
    checker = jsonschema.Draft202012Validator(runner.PARAMS)
    assert checker.is_valid({"chat_template": said}) is is_valid


def test_a_template_may_stand_in_the_manifest(make_context):
    assert read_template(make_context(), TEMPLATE) == ChatTemplate(text=TEMPLATE)


def test_a_template_may_be_a_file(make_context, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    found = read_template(make_context(), {"file": "chat_template.jinja"})
    assert found == ChatTemplate(text=TEMPLATE)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}],
    ],
)
def test_a_tokenizer_config_has_a_template_and_its_tokens(make_context, tmp_path, template):
    config = {
        "chat_template": template,
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "pad_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_template(make_context(), {"file": "tokenizer_config.json"})
    assert found == ChatTemplate(text=TEMPLATE, special={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"chat_template": 3}', '{"chat_template": [{"name": "tools"}]}']
)
def test_a_file_without_a_template_is_told(make_context, tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(MemberError, match=r"tokenizer_config\.json: this has no chat template"):
        read_template(make_context(), {"file": "tokenizer_config.json"})


def test_a_file_outside_of_the_project_is_refused(make_context):
    with pytest.raises(MemberError, match=r"/etc/hostname"):
        read_template(make_context(), {"file": "/etc/hostname"})


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """The directory of a small model with a tokenizer that puts `<s>` before every text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForCausalLM

    words = ["<unk>", "<s>", "</s>", "<turn>", "user", "assistant", "w1", "w2", "w3", "w4"]
    tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<turn>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = AutoConfig.for_model(
        "llama", vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=[2, 3],
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("talker")
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    return directory


def opened(directory, template, **params):
    context = models.context_of(directory, tokenizer=(directory / "tokenizer.json").read_bytes())
    return runner.open_transformers(context, chat_template=template, max_tokens=4, **params)


@pytest.mark.torch
def test_a_conversation_has_the_tokens_that_transformers_gives_it(talker):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(talker / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    expected = reference.apply_chat_template(
        CHAT, chat_template=TEMPLATE, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert expected == [1, 3, 4, 6, 7, 2, 3, 5, 8, 2, 3, 4, 9, 2, 3, 5]
    with opened(talker, TEMPLATE) as model:
        assert model.tokens.encode_chat(CHAT) == expected
        assert model.answer([{"messages": CHAT}]).details["prompt_tokens"] == [16]


@pytest.mark.torch
def test_texts_and_models_without_a_template_stay_as_they_were(talker):
    with opened(talker, TEMPLATE) as model:
        assert model.answer(["w1 w2"]).details["prompt_tokens"] == [3]
    with opened(talker, False) as model:
        lines = model.tokens.encode("user: w1\nassistant:")
        answer = model.answer([{"messages": [{"role": "user", "content": "w1"}]}])
    assert answer.details["prompt_tokens"] == [len(lines)]


@pytest.mark.torch
@pytest.mark.parametrize(
    "template",
    [
        "{% if",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/hostname' %}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_fails_or_leaves_its_sandbox_is_refused_when_it_is_opened(talker, template):
    with (
        pytest.raises(MemberError, match="its chat template fails") as told,
        opened(talker, template),
    ):
        pass
    assert "`chat_template`" in told.value.hint


@pytest.mark.torch
def test_messages_that_a_template_refuses_are_told_with_its_words(talker):
    with (
        opened(talker, TEMPLATE) as model,
        pytest.raises(MemberError, match="TemplateError: no system"),
    ):
        model.answer([{"messages": [{"role": "system", "content": "w1"}, *CHAT]}])


@pytest.mark.torch
def test_bytes_have_no_chat_template(talker):
    with (
        pytest.raises(MemberError, match="needs the model's own tokenizer"),
        opened(talker, TEMPLATE, tokenizer="bytes"),
    ):
        pass
