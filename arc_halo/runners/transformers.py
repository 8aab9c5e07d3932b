"""The runner `transformers`: causal language models, their weights straight from the database."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arc_halo.errors import MemberError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import Outputs
from arc_halo.runners._devices import PATTERN, device_of
from arc_halo.runners.generating import Continued, Decoding, Text, prompt_tokens, write, written
from arc_halo.types import JsonObject, ModelRunner, RunnerContext, TokenModel

if TYPE_CHECKING:
    from arc_halo.runners._tokenizers import Tokenizer

PARAMS: JsonObject = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "tokenizer": {
            "enum": ["model", "bytes"],
            "default": "model",
            "description": "The model's own tokenizer.json, or bytes, of which each is a token.",
        },
        "chat_template": {
            "oneOf": [
                {"const": False},
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "minLength": 1}},
                },
            ],
            "default": False,
            "description": "How messages become a text: a Jinja template, or `{file: PATH}`.",
        },
        "dtype": {
            "enum": ["float32", "bfloat16"],
            "default": "float32",
            "description": "What it computes in, and what its weights take in memory.",
        },
        "device": {
            "type": "string",
            "pattern": PATTERN,
            "default": "cpu",
            "description": "Where it computes: cpu, cuda, cuda:1, xpu, mps, or auto, the best.",
        },
        "max_tokens": {
            "type": "integer",
            "minimum": 1,
            "default": 64,
            "description": "The most tokens of an answer.",
        },
        "temperature": {
            "type": "number",
            "minimum": 0,
            "default": 0,
            "description": "0 takes the likeliest token, more draws one.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2**63 - 1,
            "default": 0,
            "description": "Decides what is drawn.",
        },
        "stop": {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "default": [],
            "description": "Texts before which an answer ends.",
        },
        "threads": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "Threads that torch computes with, for every model of the process.",
        },
    },
}


@hookimpl
def arc_halo_runners() -> Iterator[ModelRunner]:
    yield ModelRunner(
        name="transformers",
        version=1,
        summary="causal language models, from their weights in the database, needs torch",
        open=open_transformers,
        params_schema=PARAMS,
    )


@contextmanager
def open_transformers(
    context: RunnerContext,
    *,
    tokenizer: str = "model",
    chat_template: str | JsonObject | bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    threads: int | None = None,
) -> Iterator[Generator]:
    """The model in the memory of `device`, once, in `dtype`.

    Raises `MemberError` where torch or transformers is not installed, for a chat template that
    fails, for a device that is not there, and for weights that are not those of the architecture.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MemberError(
                f"{package} is not installed", hint="pip install 'arc-halo[torch]'", code="AH030"
            )
    from arc_halo.runners._modules import load_module
    from arc_halo.runners._sessions import ModuleTokens
    from arc_halo.runners._tokenizers import tokenizer_of

    words = tokenizer_of(context, tokenizer)
    encode_chat = _chat_encoder(context, words, chat_template)
    if threads is not None:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
    module = load_module(context, dtype, device_of(device))
    tokens = ModuleTokens(module, words, context.architecture, encode_chat)
    decoding = Decoding(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=tuple(stop))
    yield Generator(tokens, decoding)


def _chat_encoder(
    context: RunnerContext, words: Tokenizer, said: str | JsonObject | bool
) -> Callable[[Sequence[JsonObject]], list[int]] | None:
    """Conversations to tokens by the chat template; None where there is none."""
    from arc_halo.runners._chats import Chat, read_template
    from arc_halo.runners._tokenizers import StoredTokenizer

    if isinstance(said, bool):
        return None
    if not isinstance(words, StoredTokenizer) or context.tokenizer is None:
        raise MemberError(
            "a chat template needs the model's own tokenizer", hint="leave `tokenizer: bytes` out"
        )
    chat = Chat(read_template(context, said), context.tokenizer, context.architecture)
    encode = words.encode_marked
    return lambda messages: encode(chat.render(messages))


class Generator:
    """A language model that goes on with what it is given; `tokens` has it token by token."""

    def __init__(self, tokens: TokenModel, decoding: Decoding) -> None:
        self.tokens = tokens
        self._decoding = decoding

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        """What follows each text. A draw depends on the place of the input in the batch."""
        prompts = [prompt_tokens(self.tokens, each) for each in inputs]
        texts = [
            Text(
                self.tokens.decode,
                self.tokens.end_tokens,
                self._decoding,
                prompt_count=len(prompt),
                context_length=self.tokens.context_length,
            )
            for prompt in prompts
        ]
        session = Continued(self.tokens)

        def logits_of(rows: Sequence[int]) -> Any:
            return session.logits(rows, [prompts[row] + texts[row].tokens for row in rows])

        for _ in write(texts, self._decoding, logits_of):
            pass
        return written(texts)
