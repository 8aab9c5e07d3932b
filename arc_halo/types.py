"""The values that every layer speaks of, and the descriptors that plugins yield."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from arc_halo.errors import PluginError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arc_halo.outputs import Float64, Outputs

    FloatArray = NDArray[np.floating[Any]]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """What names a resource: `model/story@1.0.0`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor as its file or the database describes it.

    `dtype` is the safetensors name (`BF16`); `size_bytes` is the product of `shape` (1 for 0-d)
    times the element's size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


class WeightReader(Protocol):
    """Weights in some file format, opened; tensors come in the order of their storage."""

    @property
    def tensors(self) -> Sequence[TensorInfo]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def files(self) -> Sequence[Path]:
        """Every file the weights are read from, the index of a sharded model included."""
        ...

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's raw little-endian bytes from byte `offset` on."""
        ...


ReadChunks = Callable[[TensorInfo], Iterator[memoryview]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A file format of weights.

    `open(path)` is a context manager giving a `WeightReader` and raises `FormatError` for a
    file that breaks the format. `write(path, tensors, metadata, read)` writes one file
    atomically, asking `read` for each tensor's bytes in turn.
    """

    name: str
    version: int
    summary: str
    suffixes: tuple[str, ...]
    open: Callable[[Path], AbstractContextManager[WeightReader]]
    write: Callable[[Path, Sequence[TensorInfo], Mapping[str, str], ReadChunks], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCodec:
    """Lossless bytes to bytes, for one chunk of a tensor.

    `encode(raw, dtype=...)` returns the body, or None where encoding does not pay (the chunk is
    then stored otherwise). `decode(body, out)` fills `out`, whose length is the raw length, and
    raises `CodecError` for a damaged body. The body describes itself: decoding gets no dtype,
    because equal bytes of different dtypes are one chunk. Both are called from several threads.

    A codec that `needs_base` takes deltas: `encode(raw, dtype=..., base=...)` and
    `decode(body, out, base=...)` get the raw bytes of the base chunk, as many as `raw` has.
    """

    name: str
    version: int
    summary: str
    encode: Callable[..., bytes | None]
    decode: Callable[..., None]
    needs_base: bool = False


class ChunkBodies(Protocol):
    """An open place for the bodies of chunks, by the digest of the chunk's raw bytes.

    Called from several threads. What cannot be done raises `BodyStoreError`.
    """

    def put(self, bodies: Mapping[bytes, bytes | memoryview]) -> None:
        """Keep each body, in place of the one that is there; durable when this returns."""
        ...

    def get(self, digests: Sequence[bytes]) -> Mapping[bytes, bytes | memoryview]:
        """The bodies that are there; what is missing is left out."""
        ...

    def pages(self, *, older_than: timedelta) -> Iterator[Sequence[bytes]]:
        """The digests of bodies written longer ago than that, some hundreds at a time."""
        ...

    def delete(self, digests: Sequence[bytes]) -> None:
        """Remove bodies; one that is not there is no error."""
        ...

    def claim(self, marker: str) -> str:
        """Leave `marker` in the store unless there is one; the one that is there now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyStore:
    """A kind of place for the bodies of chunks.

    `open(url)` is a context manager giving `ChunkBodies`; secrets come from the environment, never
    from the URL. Without `open`, bodies stand in the catalogue's own rows, as `postgres` has it.
    """

    name: str
    version: int
    summary: str
    open: Callable[[str], AbstractContextManager[ChunkBodies]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkExecutor:
    """A place where the workers of a merge run.

    `open(address, workers)` is a context manager giving a `concurrent.futures.Executor` that runs
    so many functions at once; left by an exception, it has what runs end. Workers that do not
    share the program's memory are given a picklable job, and connect to the database themselves;
    remote ones find its address in ARC_HALO_DATABASE_URL of their own environment.

    Nothing depends on what the executor remembers: the tasks of a merge are rows of the database.
    """

    name: str
    version: int
    summary: str
    open: Callable[[str | None, int], AbstractContextManager[Executor]]
    shares_memory: bool = False
    is_remote: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor: the same elements of each member, and of the base if there is one.

    `start` is the flat index of its first element.
    """

    tensors: tuple[FloatArray, ...]
    base: FloatArray | None
    start: int


Scan = Callable[[], Iterator[Block]]
"""Reads a tensor from its first block to its last, each time it is called."""

Part = Literal["elements", "rows", "tensor"]


@dataclass(frozen=True, slots=True)
class SurveyTensor:
    """A tensor of the merge as a survey sees it: `scan` reads it part by part.

    `size` counts elements; the parts of one that `is_wide` are float64, not float32.
    """

    name: str
    size: int
    is_wide: bool
    scan: Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseContext:
    """What a weight strategy may know beside its params.

    `weights` has one number a member, as declared, `roots` names the weights that each is of.
    `dtype` is the safetensors name of what the result will be rounded to, "" where that is unknown.
    `base` is the base model's part where the reactor names one. `shape` is the whole tensor's,
    `start` the flat index at which the part begins. `measured` is what the strategy's `measure`
    has returned, `surveyed` what its `survey` has for this tensor. Arrays are float32 (float64 for
    F64 members).
    """

    tensor: str
    weights: tuple[float, ...]
    base: FloatArray | None = None
    shape: tuple[int, ...] = ()
    start: int = 0
    roots: tuple[bytes, ...] = ()
    measured: Any = None
    surveyed: Any = None
    dtype: str = ""

    def at(self, block: Block) -> FuseContext:
        """The context of a part. Spelt out: `replace` would take as long as adding the part up."""
        return FuseContext(
            tensor=self.tensor,
            weights=self.weights,
            base=block.base,
            shape=self.shape,
            start=block.start,
            roots=self.roots,
            measured=self.measured,
            surveyed=self.surveyed,
            dtype=self.dtype,
        )


FuseWeights = Callable[..., "FloatArray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionStrategy:
    """A way to fuse models: their weights, their outputs, or both.

    `fuse_weights(tensors, context, *, ...)` gets one array a member, all of one shape, and
    returns the fused array of that shape; it must not write into its inputs. Its keyword-only
    parameters are the properties of `params_schema`, exactly. `version` says when bits change; a
    drop-in file may leave it out and is then versioned by the SHA-256 of its text.

    `part` says what it is called with: a whole `tensor`; `rows`, which are vectors along the last
    axis, as matrices [rows, columns]; or `elements`, as vectors. The parts of a tensor depend on
    its shape alone, come in order, and take a fixed amount of memory. What needs the whole tensor
    first is measured: `measure(scan, context, *, ...)`, with the same
    keywords, may call `scan` as often as it likes, and what it returns is `context.measured`.
    What needs all tensors first is surveyed: `survey(tensors, *, ...)` gets every tensor that will
    be fused, as `SurveyTensor`s in the order of their names, with the params of the reactor. It
    returns JSON for each tensor by name, which is then `context.surveyed` and a part of the
    tensor's key; or None where the params ask for nothing of the kind.

    A param that is one of `member_params` may come as a list, with a number for each member.

    `combine_outputs(outputs, context, *, ...)` gets the `Outputs` of each member that answered, all
    to the same inputs, and a `CombineContext`; it returns `Outputs` to these inputs.
    `fit_outputs(outputs, labels, context, *, ...)`, with the same keywords, learns from examples
    what it needs for that: it returns arrays and JSON by name, which are then `context.fitted`.
    `answer_of(text, *, ...)`, with the same keywords, is what an answer in words comes to: texts of
    which it is the same are the same answer, when they are counted or held against labels.

    `numerics` is `exact` where only + - * / and square roots are used, in an order that the shape
    decides: the same bits anywhere. `platform` allows for BLAS, SVD, exp and trigonometry. What
    `is_random` chooses by the members' roots. Where it `is_symmetric` the order of members, each
    with its weight and params, does not matter; it then gets them in the order of their names, so
    that rounding shows nothing of the recipe's order.
    """

    name: str
    version: int | None = None
    summary: str
    params_schema: JsonObject = field(
        default_factory=lambda: {"type": "object", "additionalProperties": False}
    )
    fuse_weights: FuseWeights | None = None
    measure: Callable[..., Any] | None = None
    survey: Callable[..., Mapping[str, Any] | None] | None = None
    part: Part = "tensor"
    numerics: Literal["exact", "platform"] = "platform"
    is_random: bool = False
    is_symmetric: bool = False
    combine_outputs: Callable[..., Any] | None = None
    fit_outputs: Callable[..., Mapping[str, Any]] | None = None
    answer_of: Callable[..., str] | None = None
    needs_base: bool = False
    takes_base: bool = False
    member_params: tuple[str, ...] = ()
    min_members: int = 1
    max_members: int | None = None

    def __post_init__(self) -> None:
        for function in (
            self.fuse_weights,
            self.measure,
            self.survey,
            self.combine_outputs,
            self.fit_outputs,
            self.answer_of,
        ):
            if function is not None:
                _check_params(self.name, function, self.params_schema)

    @property
    def uses_base(self) -> bool:
        """Whether a base that the reactor names decides anything."""
        return self.needs_base or self.takes_base

    @property
    def fuses(self) -> tuple[Literal["weights", "outputs"], ...]:
        both: tuple[tuple[Literal["weights", "outputs"], object], ...] = (
            ("weights", self.fuse_weights),
            ("outputs", self.combine_outputs),
        )
        return tuple(what for what, function in both if function is not None)


def _check_params(name: str, function: Callable[..., Any], schema: JsonObject) -> None:
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    declared = set(schema.get("properties", {}))
    takes_others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if not keywords <= declared or (keywords != declared and not takes_others):
        raise PluginError(
            f"{name!r}: its function takes the keywords {sorted(keywords)}, "
            f"its params_schema declares {sorted(declared)}",
            hint="give every schema property a keyword-only parameter of the same name",
        )


class RunningModel(Protocol):
    """A model that answers. One whose `tokens` is a `TokenModel` can be fused token by token."""

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        """What it answers to a batch: one entry an input, in their order.

        Raises what it likes: that is the member's failure, handled by the reactor's policy.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What tokens are, so that logits of two models can be fused: equal ones mean the same.

    `size` counts the columns of logits; `tokenizer` is the SHA-256 of tokenizer.json, or `bytes`.
    """

    size: int
    tokenizer: str

    def __str__(self) -> str:
        return f"{self.size} tokens of the tokenizer {self.tokenizer[:12]}"


class TokenSession(Protocol):
    """Texts that a model goes on with, token by token; what came before is not computed again."""

    @property
    def logits(self) -> Float64:
        """[texts, vocabulary] in float64: of the token that follows each text."""
        ...

    def step(self, tokens: Sequence[int]) -> Float64:
        """Put a token behind each text; the logits of what follows then."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the texts only, by their places, which are in order."""
        ...


class TokenModel(Protocol):
    """A causal language model at the level of tokens; called from several threads.

    `end_tokens` end a text; `context_length` is how many tokens it takes, None for any number.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def end_tokens(self) -> frozenset[int]: ...

    @property
    def context_length(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def score(self, tokens: Sequence[int]) -> Float64:
        """[tokens, vocabulary] in float64: logits of what follows each token of a text."""
        ...

    def begin(self, prompts: Sequence[Sequence[int]]) -> TokenSession:
        """Read texts, none of them empty, to go on with them."""
        ...


def token_model(running: RunningModel) -> TokenModel | None:
    """What a running model offers as its attribute `tokens`; None where it has none."""
    found: TokenModel | None = getattr(running, "tokens", None)
    return found


def chat_encoder(model: TokenModel) -> Callable[[Sequence[JsonObject]], list[int]] | None:
    """What a model offers as `encode_chat`: the tokens of a conversation up to where the answer
    begins, of messages with a `role` and a `content`, a text; None where it has none."""
    found: Callable[[Sequence[JsonObject]], list[int]] | None = getattr(model, "encode_chat", None)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerContext:
    """What a runner may know of the model that it runs, and how it comes to files and secrets.

    `find_file` resolves a path of the manifest and refuses one outside of the project; `secret`
    gives the value of an environment variable, and `check_url` passes an address, if the project's
    `settings.allow` lists them. `tensors` reads the weights one after another, as arrays;
    `tokenizer` is the model's tokenizer.json. `predictors` has what plugins provide for `python`.
    `timeout_seconds` is how long the reactor waits for an answer.
    """

    model: str
    architecture: JsonObject
    find_file: Callable[[str], Path]
    secret: Callable[[str], str]
    check_url: Callable[[str], None]
    predictors: Mapping[str, Predictor]
    tensors: Callable[[], Iterator[tuple[TensorInfo, Any]]]
    tokenizer: bytes | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRunner:
    """A way to have models answer.

    `open(context, *, ...)` is a context manager giving a `RunningModel`, which is called from
    several threads. Its keyword-only parameters are the properties of `params_schema`, exactly.
    """

    name: str
    version: int | None = None
    summary: str
    open: Callable[..., AbstractContextManager[RunningModel]]
    params_schema: JsonObject = field(
        default_factory=lambda: {"type": "object", "additionalProperties": False}
    )

    def __post_init__(self) -> None:
        _check_params(self.name, self.open, self.params_schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A function that the runner `python` calls: scikit-learn, ONNX, anything.

    `predict(inputs)` gets a batch and returns `Outputs`, or an array [inputs, classes] of
    probabilities, or a list of texts. `load(context)`, if there is one, is called once with the
    `RunnerContext`, and what it returns is then the first argument: `predict(loaded, inputs)`.
    """

    name: str
    version: int | None = None
    summary: str
    predict: Callable[..., Any]
    load: Callable[[RunnerContext], Any] | None = None
