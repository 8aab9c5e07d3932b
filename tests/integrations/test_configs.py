"""Settings of other programs as configs: plain values, no secrets."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import PurePosixPath

import pytest

from arc_halo.integrations._configs import as_config, is_secret


class Mode(Enum):
    STEPS = "steps"


def test_values_are_plain() -> None:
    config = as_config(
        {
            "lr": 0.5, "steps": 3, "on": True, "off": None, "mode": Mode.STEPS, "inf": math.inf,
            "sizes": (1, 2), "words": {"b", "a"}, "nested": {1: {"deep": 2}},
            "path": PurePosixPath("a/b"), "object": object(), "kind": dict, "nul": "a\0b",
            "half": "\ud800",
        }
    )  # fmt: skip
    assert json.loads(json.dumps(config)) == {
        "lr": 0.5, "steps": 3, "on": True, "off": None, "mode": "steps", "inf": "inf",
        "sizes": [1, 2], "words": ["a", "b"], "nested": {"1": {"deep": 2}},
        "path": "a/b", "object": "object", "kind": "dict", "nul": "a\ufffdb", "half": "?",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "api_key", "apikey", "apiKey", "password", "DB_PASSWORD",
     "client-secret", "aws_secret_access_key", "authToken", "credentials"],
)  # fmt: skip
def test_what_has_the_name_of_a_secret_is_left_out(name: str) -> None:
    assert is_secret(name, "s3cr3t")
    assert "s3cr3t" not in json.dumps(as_config({name: "s3cr3t", "in": {name: ["s3cr3t"]}}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 5), ("token", None), ("use_auth_token", True), ("tokenizer", "bytes"),
     ("key", "a"), ("secretary", "Ann"), ("eos_token_id", 2), ("keyword", "x")],
)  # fmt: skip
def test_what_is_no_secret_stays(name: str, value: object) -> None:
    assert as_config({name: value}) == {name: value}


def test_passwords_in_addresses_are_covered() -> None:
    config = as_config({"storage": "postgresql://me:hunter2@there/db"})
    assert config == {"storage": "postgresql://me:***@there/db"}
