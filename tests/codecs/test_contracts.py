"""Our own codecs keep the contract that is shipped for everybody's."""

from __future__ import annotations

from pathlib import Path

from arc_halo.codecs import delta, planes, raw, zstd
from arc_halo.testing import CodecContract

GOLDEN = Path(__file__).parent / "golden"


class TestRaw(CodecContract):
    codec = next(raw.arc_halo_tensor_codecs())
    golden = GOLDEN


class TestZstd(CodecContract):
    codec = next(zstd.arc_halo_tensor_codecs())
    golden = GOLDEN


class TestPlanes(CodecContract):
    codec = next(planes.arc_halo_tensor_codecs())
    golden = GOLDEN


class TestDelta(CodecContract):
    codec = next(delta.arc_halo_tensor_codecs())
    golden = GOLDEN
