"""Names of devices, as manifests have them."""

from __future__ import annotations

import jsonschema
import pytest

from arc_halo.runners.transformers import PARAMS


def is_valid(device):
    return jsonschema.Draft202012Validator(PARAMS).is_valid({"device": device})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "xpu:1", "mps"])
def test_a_device_has_a_name(device):
    assert is_valid(device)


@pytest.mark.parametrize(
    "device",
    ["", "gpu", "cuda:", "cuda:01", "cuda:-1", "cpu:0", "mps:0", "meta", 0, None],
)
def test_what_is_no_name_of_one_is_refused(device):
    assert not is_valid(device)
