"""The benchmark of first tokens, tiny: what should be there is, and what should not is not."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import inference_ttft  # noqa: E402
import tensor_site  # noqa: E402

pytestmark = pytest.mark.torch


def test_each_mode_finds_what_it_is_named_for(tmp_path, monkeypatch):
    small = {"hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 1}
    monkeypatch.setattr(inference_ttft, "SIZES", {**inference_ttft.SIZES, **small})
    with tensor_site.site(tmp_path) as at:
        fields = {"url": at.create_database("ttft"), "postmaster": at.postmaster, "tokens": 256}
        modes = ("store", "cold", "stored", "half", "half", "missed")
        found = [inference_ttft.measure(mode, **fields) for mode in modes]
    assert [each["cached_tokens"] for each in found] == [0, 0, 255, 128, 128, 0]
    assert all(each["seconds"] > 0 < each["client"] for each in found)
