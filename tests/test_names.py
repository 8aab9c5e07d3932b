"""What may be a name, a version, a reference."""

from __future__ import annotations

import pytest

from arc_halo.names import (
    ModelReference,
    did_you_mean,
    id_digits,
    is_name,
    is_version,
    parse_reference,
)
from arc_halo.store.connection import Connection


@pytest.mark.parametrize("text", ["a", "0", "a.b-c_d", "a" * 128, "9lives"])
def test_these_are_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text", ["", "A", "-a", ".a", "_a", "a b", "a@1", "a:b", "a/b", "é", "a" * 129, "a\n", "\uff41"]
)
def test_these_are_not(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize("text", ["1", "1.0.0", "2024-01-01", "V1+build_2", "a" * 64])
def test_these_are_versions(text: str) -> None:
    assert is_version(text)


@pytest.mark.parametrize("text", ["", ".1", "-1", "1 0", "1@2", "1:2", "a" * 65, "1\n", "\u0661"])
def test_these_are_no_versions(text: str) -> None:
    assert not is_version(text)


@pytest.mark.parametrize(
    ("text", "name", "version", "alias"),
    [
        ("poet", "poet", None, None),
        ("poet@1.0.0", "poet", "1.0.0", None),
        ("poet:live", "poet", None, "live"),
    ],
)
def test_a_reference_is_read_and_written(
    text: str, name: str, version: str | None, alias: str | None
) -> None:
    reference = parse_reference(text)
    assert reference == ModelReference(name=name, version=version, alias=alias)
    assert str(reference) == text


@pytest.mark.parametrize(
    "text", ["", "@1", ":live", "poet@", "poet:", "poet@1:live", "poet:live@1", "Poet", "a b"]
)
def test_these_are_no_references(text: str) -> None:
    assert parse_reference(text) is None


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("0F6E2a", "0f6e2a"),
        ("0f6e2a-", "0f6e2a"),
        ("0f6e2a1b-8c3d-4e5f-9a0b-1c2d3e4f5a6b", "0f6e2a1b8c3d4e5f9a0b1c2d3e4f5a6b"),
        ("0f6e2", ""),
        ("night-3", ""),
        ("0" * 33, ""),
        ("", ""),
    ],
)
def test_an_id_is_known_by_its_beginning(text: str, digits: str) -> None:
    assert id_digits(text) == digits


def test_a_guess_is_made_only_when_something_is_close() -> None:
    assert did_you_mean("liner", ["slerp", "linear"]) == "did you mean 'linear'?"
    assert did_you_mean("xyz", ["slerp", "linear"]) is None
    assert did_you_mean("xyz", []) is None


@pytest.mark.parametrize(
    "text", ["a", "a.b-c_d", "a" * 128, "a" * 129, "A", "-a", "a@", "é", "a\n", ""]
)
def test_the_database_agrees_about_names(conn: Connection, text: str) -> None:
    row = conn.execute("SELECT %s ~ '^[a-z0-9][a-z0-9._-]{0,127}$'", [text]).fetchone()
    assert row == (is_name(text),)
