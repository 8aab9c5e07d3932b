"""Texts written token by token: how a token is chosen, when a text ends, what can be shown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from arc_halo.errors import MemberError
from arc_halo.outputs import Outputs
from arc_halo.runners._prompts import answers_text, conversation_of, judged_text
from arc_halo.types import TokenModel, TokenSession, chat_encoder

if TYPE_CHECKING:
    from arc_halo.outputs import Float64

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What stands for a character whose bytes have not all come yet, or never will."""

FALLBACK_BYTES = 3
"""The most of these that one more token may turn into a character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How logits become a text: at temperature 0 the likeliest token, else a seeded draw."""

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Text:
    """A text while it is written. `reason` says why it ended, None while it has not."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        ends: frozenset[int],
        decoding: Decoding,
        *,
        prompt_count: int,
        context_length: int | None,
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Literal["stop", "length"] | None = None
        self._decode = decode
        self._ends = ends
        self._stop = tuple(stop for stop in decoding.stop if stop)
        self._prompt_count = prompt_count
        self._nats: list[float] = []
        self._limit = decoding.max_tokens
        if context_length is not None:
            self._limit = min(self._limit, context_length - prompt_count)
        if prompt_count < 1:
            raise MemberError("an empty prompt has nothing to go on with", code="AH007")
        if self._limit < 1:
            raise MemberError(
                f"the prompt has {prompt_count} tokens, and the model takes {context_length} "
                "in all",
                hint="ask less",
                code="AH007",
            )

    @property
    def confidence(self) -> float:
        """exp of the mean log-probability of its tokens, the one that ended it included."""
        return math.exp(min(0.0, math.fsum(self._nats) / len(self._nats))) if self._nats else 0.0

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt_count,
            "completion_tokens": len(self.tokens),
            "finish_reason": self.reason,
        }

    def add(self, token: int, log_probability: float) -> str:
        """Take a token; what is new of the text and will not change any more."""
        before = len(self.text)
        self._nats.append(log_probability)
        if token in self._ends:
            self.reason = "stop"
        else:
            self.tokens.append(token)
        whole = self._decode(self.tokens)
        places = [place for stop in self._stop if (place := whole.find(stop)) >= 0]
        if places:
            whole, self.reason = whole[: min(places)], "stop"
        elif self.reason is None and len(self.tokens) >= self._limit:
            self.reason = "length"
        shown = len(whole) if self.reason else _settled(whole, self._stop)
        self.text = whole[: max(shown, before)]
        return self.text[before:]


def write(
    texts: Sequence[Text],
    decoding: Decoding,
    logits_of: Callable[[Sequence[int]], Float64],
    noted: Callable[[Sequence[int], Sequence[int]], None] | None = None,
) -> Iterator[list[str]]:
    """Write texts to their ends, all at once; of each step, what is new of each.

    `logits_of(rows)` gives the logits [rows, vocabulary] of what follows the tokens of those texts
    that go on; `noted(rows, tokens)` is told what was chosen of them.
    """
    for step in itertools.count():
        rows = [row for row, text in enumerate(texts) if text.reason is None]
        if not rows:
            return
        tokens, nats = choose(logits_of(rows), decoding, rows, step)
        if noted is not None:
            noted(rows, tokens)
        pieces = [""] * len(texts)
        for row, token, each in zip(rows, tokens, nats, strict=True):
            pieces[row] = texts[row].add(token, each)
        yield pieces


class Continued:
    """A model's session, kept up with texts that grow: it reads what is new of them."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self._session: TokenSession | None = None
        self._counts: dict[int, int] = {}

    def logits(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> Float64:
        """Of what follows each text; `rows` number them, and stay the same from call to call."""
        if self._session is not None and self._follow(rows, texts):
            places = {row: place for place, row in enumerate(self._counts)}
            if len(rows) < len(places):
                self._session.keep([places[row] for row in rows])
            found = self._session.step([text[-1] for text in texts])
        else:
            self._session = self._model.begin(texts)
            found = self._session.logits
        self._counts = {row: len(text) for row, text in zip(rows, texts, strict=True)}
        return found

    def _follow(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> bool:
        return all(
            self._counts.get(row) == len(text) - 1 for row, text in zip(rows, texts, strict=True)
        )


def written(texts: Sequence[Text]) -> Outputs:
    """Texts that have ended, as answers."""
    import numpy as np

    usage = [text.usage for text in texts]
    return Outputs(
        texts=tuple(text.text for text in texts),
        confidence=np.array([text.confidence for text in texts]),
        details={name: [each[name] for each in usage] for name in (usage[0] if usage else ())},
    )


def choose(
    logits: Float64, decoding: Decoding, rows: Sequence[int], step: int
) -> tuple[list[int], list[float]]:
    """A token for each row of logits, and its log-probability at temperature 1.

    A draw depends on the seed, the number of the text and the step, and on nothing that was drawn
    before: by Philox, which counts (J. Salmon et al., SC 2011).
    """
    import numpy as np

    nats = log_softmax(logits)
    if decoding.temperature == 0:
        chosen = nats.argmax(axis=1)
    else:
        sums = np.exp(log_softmax(nats / decoding.temperature)).cumsum(axis=1)
        draws = np.array([_draw(decoding.seed, row, step) for row in rows]) * sums[:, -1]
        chosen = (sums <= draws[:, None]).sum(axis=1)
    return chosen.tolist(), np.take_along_axis(nats, chosen[:, None], axis=1)[:, 0].tolist()


def log_softmax(logits: Float64) -> Float64:
    """Along the last axis, in float64."""
    import numpy as np

    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def prompt_tokens(model: TokenModel, given: Any) -> list[int]:
    """The tokens that an input asks to go on: a conversation as the model reads one, where it says
    how, and the text of `prompt_of` otherwise."""
    encode_chat = chat_encoder(model)
    messages = None if encode_chat is None else conversation_of(given)
    if encode_chat is None or messages is None:
        return model.encode(prompt_of(given))
    return encode_chat(messages)


def prompt_of(given: Any) -> str:
    """The text that an input asks to go on: its `messages`, else itself, its `prompt` or `input`.

    Messages become lines `role: content`, and a last one that begins the assistant's answer. What
    other models have answered stands below it.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        messages = given.get("messages")
        if isinstance(messages, list) and all(map(_is_message, messages)) and messages:
            lines = [f"{each['role']}: {each['content']}\n" for each in messages]
            told = answers_text(given)
            return "".join(lines) + (f"user: {told}\n" if told else "") + "assistant:"
        for name in ("prompt", "input"):
            if isinstance(found := given.get(name), str | Mapping):
                parts = [prompt_of(found) + judged_text(given), answers_text(given)]
                return "\n\n".join(part for part in parts if part)
    raise MemberError(
        "an input is no text",
        hint="give a text, or a mapping with `prompt`, `input` or `messages`",
        code="AH006",
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _settled(text: str, stops: Sequence[str]) -> int:
    """How much of a text cannot be changed by what comes, or be the beginning of a stop."""
    held = 0
    while held < min(FALLBACK_BYTES, len(text)) and text[-1 - held] == UNFINISHED:
        held += 1
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return len(text) - held


def _draw(seed: int, row: int, step: int) -> float:
    import numpy as np

    return float(
        np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, step])).random()
    )
