"""What every tensor codec promises, as tests."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_halo.errors import CodecError
from arc_halo.tensors.dtypes import DTYPES, numpy_dtype, raw_bytes, view
from arc_halo.testing.comparing import check_same
from arc_halo.types import JsonObject, TensorCodec

Sample: TypeAlias = tuple[str, bytes]
"""A dtype and the raw bytes of a chunk."""

GOLDEN_BYTES = 20480
GUARD = b"\xa5" * 64
DECODE_LIMIT_BYTES = 32 * 2**20


def _samples() -> Mapping[str, Sample]:
    numbers = np.random.Generator(np.random.PCG64(2024))
    weights = numbers.normal(scale=0.02, size=131072)

    def of(dtype: str, values: NDArray[Any]) -> Sample:
        return dtype, bytes(raw_bytes(values.astype(numpy_dtype(dtype))))

    bfloat16 = of("BF16", weights)[1]
    return {
        "weights": ("BF16", bfloat16),
        "half": of("F16", weights[:20480]),
        "single": of("F32", weights[:20480]),
        "double": of("F64", weights[:10240]),
        "small": of("F8_E4M3", weights[:20480]),
        "clean": of("F32", view(bfloat16, "BF16", [131072])[:20480]),
        "complex": of("C64", weights.view(np.complex128)[:10240]),
        "noise": ("U8", numbers.bytes(20480)),
        "zeros": ("F32", bytes(65536)),
        "counter": of("I64", np.arange(-2560, 2560)),
        "ragged": ("BF16", bfloat16[:20001]),
    }


SAMPLES = MappingProxyType(_samples())


class CodecContract:
    """Subclass it with a `codec`, and what its released versions wrote, as `golden`.

    That is a folder of bodies made once by `write_golden`. While there is one version only, whose
    bytes depend on no library, it may be the digests of bodies, as `golden_digests` gives them:
    nothing is written otherwise then. A codec that needs a base is given `base_of` each chunk, and
    other bases too.

    Example:

        class TestZlib(CodecContract):
            codec = zlib_codec
            golden = Path(__file__).parent / "golden"
    """

    codec: ClassVar[TensorCodec]
    golden: ClassVar[Path | Mapping[str, str | None]]

    @pytest.fixture(params=SAMPLES)
    def sample(self, request: pytest.FixtureRequest) -> Sample:
        """Each of the chunks that the tests below are run with."""
        return SAMPLES[request.param]

    def test_any_bytes_of_any_dtype_come_back(self) -> None:
        @given(raw=st.binary(max_size=600), dtype=st.sampled_from(sorted(DTYPES)))
        def check(raw: bytes, dtype: str) -> None:
            _check_round_trip(self.codec, dtype, raw)

        check()

    def test_any_bytes_come_back_with_any_base(self) -> None:
        @given(raw=st.binary(max_size=600), data=st.data(), dtype=st.sampled_from(sorted(DTYPES)))
        def check(raw: bytes, data: st.DataObject, dtype: str) -> None:
            base = data.draw(st.binary(min_size=len(raw), max_size=len(raw)))
            _check_round_trip(self.codec, dtype, raw, base=base)

        check()

    def test_whole_chunks_come_back(self, sample: Sample) -> None:
        _check_round_trip(self.codec, *sample)

    def test_whole_chunks_come_back_whatever_dtype_they_are_said_to_have(
        self, sample: Sample
    ) -> None:
        for dtype in DTYPES:
            _check_round_trip(self.codec, dtype, sample[1])

    def test_whole_chunks_come_back_with_a_base_that_is_nothing_like_them(
        self, sample: Sample
    ) -> None:
        dtype, raw = sample
        for base in (bytes(len(raw)), b"\xff" * len(raw), random.Random(5).randbytes(len(raw))):
            _check_round_trip(self.codec, dtype, raw, base=base)

    def test_a_base_is_taken_exactly_if_it_is_said_to_be_needed(self) -> None:
        for function in (self.codec.encode, self.codec.decode):
            assert ("base" in inspect.signature(function).parameters) == self.codec.needs_base

    def test_an_empty_chunk_comes_back(self) -> None:
        _check_round_trip(self.codec, "F32", b"")

    def test_equal_chunks_have_equal_bodies(self, sample: Sample) -> None:
        dtype, raw = sample
        bodies = {_body(self.codec, dtype, bytes(bytearray(raw))) for _ in range(3)}
        count = len(bodies)
        assert count == 1

    def test_only_out_is_written(self, sample: Sample) -> None:
        raw, body = _encode(self.codec, sample)
        room = bytearray(GUARD + bytes(len(raw)) + GUARD)
        _decode(self.codec, body, memoryview(room)[len(GUARD) : -len(GUARD)], base_of(raw))
        check_same(bytes(room), GUARD + raw + GUARD, "more than `out` is written")

    def test_a_truncated_body_is_noticed(self, sample: Sample) -> None:
        raw, body = _encode(self.codec, sample)
        out = memoryview(bytearray(len(raw)))
        for length in {0, 1, 2, 5, len(body) // 2, len(body) - 1}:
            with pytest.raises(CodecError):
                _decode(self.codec, body[:length], out, base_of(raw))

    def test_a_body_with_more_behind_it_is_noticed(self, sample: Sample) -> None:
        raw, body = _encode(self.codec, sample)
        with pytest.raises(CodecError):
            _decode(self.codec, body + b"\0", memoryview(bytearray(len(raw))), base_of(raw))

    def test_a_body_of_another_length_is_noticed(self, sample: Sample) -> None:
        raw, body = _encode(self.codec, sample)
        for size_bytes in (0, len(raw) - 1, len(raw) + 1, 2 * len(raw)):
            with pytest.raises(CodecError):
                _decode(self.codec, body, memoryview(bytearray(size_bytes)), bytes(size_bytes))

    def test_a_body_is_not_decoded_where_body_out_and_base_disagree(self, sample: Sample) -> None:
        raw, body = _encode(self.codec, sample)
        longer = memoryview(bytearray(len(raw) + 1))
        cases = [(longer, base_of(raw))]
        if self.codec.needs_base:
            base = base_of(raw)
            cases += [(longer[1:], base[:-1]), (longer[1:], base + b"\0"), (longer[1:], b"")]
        for out, base in cases:
            with pytest.raises(CodecError):
                _decode(self.codec, body, out, base)

    def test_damage_leads_to_codec_errors_only_and_takes_little_memory(
        self, sample: Sample
    ) -> None:
        # A body, or a base that is not its own, may decode to other bytes: the chunk's digest finds
        # those. It may not do worse.
        raw, body = _encode(self.codec, sample)
        out = memoryview(bytearray(len(raw)))
        for damaged in _damage(body):
            _decode_or_codec_error(self.codec, damaged, out, base_of(raw))
        for base in (bytes(len(raw)), b"\xff" * len(raw), random.Random(7).randbytes(len(raw))):
            _decode_or_codec_error(self.codec, body, out, base)

    def test_several_threads_may_call_it_at_once(self) -> None:
        jobs = [*SAMPLES.values()] * 4
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda job: _check_round_trip(self.codec, *job), jobs))

    def test_released_bodies_still_decode(self) -> None:
        if isinstance(self.golden, Path):
            _check_golden_bodies(self.codec, self.golden)

    def test_what_is_written_is_what_was_released(self) -> None:
        if isinstance(self.golden, Mapping):
            _check_golden_digests(self.codec, self.golden)


def base_of(raw: bytes) -> bytes:
    """What a chunk is a delta against in these tests: every 16th byte differs in its lowest bit."""
    base = np.frombuffer(raw, np.uint8).copy()
    base[::16] ^= 1
    return base.tobytes()


def write_golden(
    codec: TensorCodec, folder: Path, *, samples: Iterable[str] = tuple(SAMPLES)
) -> None:
    """Add bodies of this version of `codec` to `folder`; one that exists stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {entry["file"]: entry for entry in _read_golden(folder)}
    for sample in samples:
        file = f"{codec.name}-{codec.version}-{sample}.body"
        body = _golden_body(codec, sample)
        if body is not None and file not in listed:
            (folder / file).write_bytes(body)
            listed[file] = _golden_entry(codec, file, SAMPLES[sample][1][:GOLDEN_BYTES], sample)
    entries = sorted(listed.values(), key=lambda entry: str(entry["file"]))
    (folder / "golden.json").write_text(json.dumps(entries, indent=1) + "\n")


def golden_digests(
    codec: TensorCodec, *, samples: Iterable[str] = tuple(SAMPLES)
) -> dict[str, str | None]:
    """The SHA-256 of each sample's body, None where it does not pay: what to keep as `golden`."""
    bodies = {name: _golden_body(codec, name) for name in samples}
    return {
        name: None if body is None else hashlib.sha256(body).hexdigest()
        for name, body in bodies.items()
    }


def _golden_body(codec: TensorCodec, sample: str) -> bytes | None:
    dtype, raw = SAMPLES[sample]
    return _body(codec, dtype, raw[:GOLDEN_BYTES])


def _check_golden_bodies(codec: TensorCodec, folder: Path) -> None:
    mine = [body for body in _read_golden(folder) if body["codec"] == codec.name]
    assert any(body["version"] == codec.version for body in mine), (
        f"no golden body of {codec.name} version {codec.version} in {folder}: "
        "make some with arc_halo.testing.write_golden and commit them"
    )
    for body in mine:
        stored = (folder / body["file"]).read_bytes()
        out = bytearray(body["size_bytes"])
        _decode(codec, stored, memoryview(out), _golden_base(body))
        assert hashlib.sha256(out).hexdigest() == body["sha256"], body["file"]


def _check_golden_digests(codec: TensorCodec, golden: Mapping[str, str | None]) -> None:
    assert any(golden.values()), (
        f"no golden digest of {codec.name}: keep what arc_halo.testing.golden_digests gives"
    )
    assert golden_digests(codec, samples=golden) == dict(golden), (
        f"{codec.name} version {codec.version} writes other bytes than it did: undo that, or raise "
        "the version, still decode what the old one wrote, and keep its bodies (write_golden)"
    )


def _body(codec: TensorCodec, dtype: str, raw: bytes, base: bytes | None = None) -> bytes | None:
    if not codec.needs_base:
        return codec.encode(memoryview(raw), dtype=dtype)
    base = base_of(raw) if base is None else base
    return codec.encode(memoryview(raw), dtype=dtype, base=memoryview(base))


def _decode(codec: TensorCodec, body: bytes, out: memoryview, base: bytes) -> None:
    if codec.needs_base:
        codec.decode(memoryview(body), out, base=memoryview(base))
    else:
        codec.decode(memoryview(body), out)


def _check_round_trip(
    codec: TensorCodec, dtype: str, raw: bytes, base: bytes | None = None
) -> None:
    base = base_of(raw) if base is None else base
    body = _body(codec, dtype, raw, base)
    if body is not None:
        out = bytearray(len(raw))
        _decode(codec, body, memoryview(out), base)
        check_same(bytes(out), raw, "other bytes come back")


def _encode(codec: TensorCodec, sample: Sample) -> tuple[bytes, bytes]:
    """A body and its raw bytes: the sample's, or as many zeros where those do not pay."""
    dtype, raw = sample
    zeros = bytes(len(raw))
    for content, said in ((raw, dtype), (zeros, dtype), (zeros, "F32")):
        body = _body(codec, said, content)
        if body is not None:
            return content, body
    raise AssertionError(f"{codec.name} does not even encode {len(raw)} zero bytes")


def _damage(body: bytes) -> Iterator[bytes]:
    choose = random.Random(len(body))
    head = range(min(48, len(body)))
    anywhere = [choose.randrange(len(body)) for _ in range(48)]
    for index in (*head, *anywhere):
        for value in (0, 0x7F, 0x80, 0xFF, body[index] ^ 1, choose.randrange(256)):
            yield body[:index] + bytes([value]) + body[index + 1 :]
    for size in (0, 1, 7, 16, 64, 1000, len(body)):
        yield choose.randbytes(size)


def _decode_or_codec_error(codec: TensorCodec, body: bytes, out: memoryview, base: bytes) -> None:
    tracemalloc.start()
    try:
        _decode(codec, body, out, base)
    except CodecError:
        pass
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < DECODE_LIMIT_BYTES


def _read_golden(folder: Path) -> list[JsonObject]:
    path = folder / "golden.json"
    listed: list[JsonObject] = json.loads(path.read_text()) if path.exists() else []
    return listed


def _golden_entry(codec: TensorCodec, file: str, raw: bytes, sample: str) -> JsonObject:
    entry: JsonObject = {
        "file": file,
        "codec": codec.name,
        "version": codec.version,
        "size_bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    if codec.needs_base:
        base_sha256 = hashlib.sha256(base_of(raw)).hexdigest()
        entry["base"] = {"of": sample, "sha256": base_sha256}
    return entry


def _golden_base(entry: JsonObject) -> bytes:
    """The base that a golden body was made with, `base_of` the sample; empty where none was."""
    if "base" not in entry:
        return b""
    base = base_of(SAMPLES[entry["base"]["of"]][1][: entry["size_bytes"]])
    found = hashlib.sha256(base).hexdigest()
    assert found == entry["base"]["sha256"], f"the sample {entry['base']['of']!r} has changed"
    return base
