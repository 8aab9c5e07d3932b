"""The contract suites notice what they are there for: each broken promise by its own test."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest

from arc_halo import FusionStrategy, TensorCodec
from arc_halo.codecs import planes, raw
from arc_halo.errors import CodecError
from arc_halo.testing import CodecContract, StrategyContract, golden_digests, write_golden
from arc_halo.testing.codecs import SAMPLES


def mean(tensors, context):
    return np.average(np.stack(tensors), axis=0, weights=context.weights).astype(tensors[0].dtype)


def scaled_by_the_tensor(tensors, context):
    return mean(tensors, context) / np.abs(tensors[0]).max()


CALLS = itertools.count()


def drifting(tensors, context):
    return mean(tensors, context) + np.float32(1e-7) * next(CALLS)


class Mean(StrategyContract):
    strategy = FusionStrategy(
        name="mean",
        version=1,
        summary="mean",
        fuse_weights=mean,
        part="elements",
        is_symmetric=True,
    )

    def oracle(self, tensors, weights, base, params):
        total = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
        return total / sum(weights)


def test_a_strategy_that_is_what_its_oracle_says_passes() -> None:
    for dtype in (np.float32, np.float64):
        Mean().test_it_is_what_its_oracle_says_if_it_has_one(dtype)
    Mean().test_its_part_is_all_that_it_needs()
    Mean().test_it_does_not_matter_how_tensors_are_read()


def test_a_strategy_that_is_not_what_its_oracle_says_is_noticed() -> None:
    class Wrong(Mean):
        strategy = replace(Mean.strategy, fuse_weights=lambda tensors, context: tensors[0])

    with pytest.raises(AssertionError):
        Wrong().test_it_is_what_its_oracle_says_if_it_has_one(np.float32)


def test_an_oracle_that_forgets_its_answer_is_noticed() -> None:
    class Forgetful(Mean):
        def oracle(self, tensors, weights, base, params):
            np.mean(tensors, axis=0)

    with pytest.raises((AssertionError, TypeError)):
        Forgetful().test_it_is_what_its_oracle_says_if_it_has_one(np.float32)


@pytest.mark.parametrize("part", ["elements", "rows"])
def test_a_strategy_that_needs_more_than_its_part_is_noticed(part) -> None:
    class Narrow(Mean):
        strategy = replace(Mean.strategy, fuse_weights=scaled_by_the_tensor, part=part)

    with pytest.raises(AssertionError, match="measure that"):
        Narrow().test_its_part_is_all_that_it_needs()


def test_a_strategy_whose_bits_are_not_exact_is_noticed() -> None:
    class Loose(Mean):
        strategy = replace(Mean.strategy, fuse_weights=drifting, numerics="exact")

    with pytest.raises(AssertionError, match="exact"):
        Loose().test_it_does_not_matter_how_tensors_are_read()


def test_a_strategy_that_is_wrong_about_the_order_of_members_is_noticed() -> None:
    class Quiet(Mean):
        strategy = replace(Mean.strategy, is_symmetric=False)

    class First(Mean):
        strategy = replace(Mean.strategy, fuse_weights=lambda tensors, context: tensors[0])

    Mean().test_the_order_of_members_matters_unless_it_is_symmetric()
    with pytest.raises(AssertionError, match="say is_symmetric=True"):
        Quiet().test_the_order_of_members_matters_unless_it_is_symmetric()
    with pytest.raises(AssertionError, match="it is not symmetric"):
        First().test_the_order_of_members_matters_unless_it_is_symmetric()


class Raw(CodecContract):
    codec = next(raw.arc_halo_tensor_codecs())
    golden = golden_digests(codec)


def test_a_codec_that_writes_what_it_wrote_passes() -> None:
    Raw().test_what_is_written_is_what_was_released()


def deflate(raw, *, dtype):
    return zlib.compress(raw)


def inflate(body, out):
    try:
        out[:] = zlib.decompress(body)
    except (zlib.error, ValueError) as exc:
        raise CodecError(str(exc)) from exc


@pytest.mark.parametrize(
    "codec",
    [
        TensorCodec(name="raw", version=1, summary="other", encode=deflate, decode=inflate),
        next(planes.arc_halo_tensor_codecs()),
    ],
    ids=["other bytes", "bytes where there were none"],
)
def test_a_codec_that_writes_other_bytes_than_it_did_is_noticed(codec) -> None:
    class Changed(CodecContract):
        golden = Raw.golden

    Changed.codec = codec
    with pytest.raises(AssertionError, match="writes other bytes"):
        Changed().test_what_is_written_is_what_was_released()


def test_a_codec_that_loses_something_is_noticed_and_where() -> None:
    class Lossy(Raw):
        codec = TensorCodec(
            name="lossy",
            version=1,
            summary="",
            encode=lambda raw, *, dtype: bytes(raw[:-1]) + b"\x00",
            decode=lambda body, out: out.__setitem__(slice(None), body),
        )

    with pytest.raises(AssertionError, match="1 of 262144 bytes differ, the first is that at"):
        Lossy().test_whole_chunks_come_back(SAMPLES["weights"])


def test_a_codec_without_golden_digests_is_noticed() -> None:
    class Bare(Raw):
        golden = {"noise": None}  # noqa: RUF012

    with pytest.raises(AssertionError, match="golden_digests"):
        Bare().test_what_is_written_is_what_was_released()


def test_a_codec_that_does_not_decode_what_it_wrote_is_noticed(tmp_path) -> None:
    write_golden(Raw.codec, tmp_path, samples=["ragged"])

    class Other(CodecContract):
        codec = TensorCodec(name="raw", version=1, summary="", encode=deflate, decode=inflate)
        golden = tmp_path

    with pytest.raises(CodecError):
        Other().test_released_bodies_still_decode()
