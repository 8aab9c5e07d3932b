from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from arc_halo.config import (
    database_target,
    find_project,
    load_environment,
    parse_size,
    redact,
)
from arc_halo.errors import InvalidInputError

SECRET = "s3cr3t-w0rd"


def target(flag=None, environ=None, manifest=None):
    return database_target(flag=flag, environ=environ or {}, manifest_database=manifest)


def test_the_flag_beats_everything():
    environ = {"ARC_HALO_DATABASE_URL": "postgresql://b/b", "NEON_DATABASE_URL": "postgresql://d/d"}
    found = target("postgresql://a/a", environ, "postgresql://c/c")
    assert (found.kind, found.url, found.origin) == ("url", "postgresql://a/a", "--database-url")


def test_each_source_gives_way_to_the_one_before_it():
    environ = {"ARC_HALO_DATABASE_URL": "postgresql://b/b", "NEON_DATABASE_URL": "postgresql://d/d"}
    assert target(None, environ, "postgresql://c/c").origin == "ARC_HALO_DATABASE_URL"
    del environ["ARC_HALO_DATABASE_URL"]
    assert target(None, environ, "postgresql://c/c").origin == "arc_halo.yaml"
    assert target(None, environ).origin == "NEON_DATABASE_URL"
    assert target().origin == "embedded"


def test_an_empty_variable_counts_as_absent():
    assert target(None, {"ARC_HALO_DATABASE_URL": "", "NEON_DATABASE_URL": ""}).kind == "embedded"


def test_the_word_embedded_overrides_later_sources():
    found = target("embedded", {"NEON_DATABASE_URL": "postgresql://d/d"})
    assert (found.kind, found.url, found.origin) == ("embedded", None, "--database-url")


def test_a_value_that_is_no_address_is_refused_without_being_shown():
    with pytest.raises(InvalidInputError) as caught:
        target(None, {"ARC_HALO_DATABASE_URL": SECRET})
    assert caught.value.error_code == "AH090"
    assert SECRET not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://halo:{SECRET}@db/x",
        f"postgresql://db/x?password={SECRET}",
        f"host=db password={SECRET}",
    ],
)
def test_the_manifest_may_not_hold_a_password(address):
    for manifest in (address, {"url": address}):
        with pytest.raises(InvalidInputError) as caught:
            target(manifest=manifest)
        assert SECRET not in str(caught.value)


def test_the_manifest_names_a_variable_for_the_password():
    for address in ("postgresql://halo@db/x?sslmode=require", "host=db user=halo dbname=x"):
        found = target(
            environ={"PW": "a'b\\ c&d@e"}, manifest={"url": address, "password": {"env": "PW"}}
        )
        parts = conninfo_to_dict(found.url)
        assert parts["password"] == "a'b\\ c&d@e"
        assert (parts["user"], parts["host"], parts["dbname"]) == ("halo", "db", "x")


def test_a_missing_password_variable_is_named():
    with pytest.raises(InvalidInputError, match="PW is not set") as caught:
        target(manifest={"url": "postgresql://halo@db/x", "password": {"env": "PW"}})
    assert caught.value.error_code == "AH008"


@pytest.mark.parametrize("password", ["literal", 5, {"env": 3}, {"env": "A", "file": "B"}, None])
def test_a_manifest_password_that_is_not_a_reference_is_refused(password):
    with pytest.raises(InvalidInputError) as caught:
        target(manifest={"url": "postgresql://db/x", "password": password})
    assert caught.value.error_code == "AH006"
    assert "literal" not in str(caught.value)


def test_an_unknown_field_under_database_is_refused():
    with pytest.raises(InvalidInputError, match="'sslmode'"):
        target(manifest={"url": "postgresql://db/x", "sslmode": "require"})


def test_the_repr_of_a_target_shows_no_password():
    assert SECRET not in repr(target(f"postgresql://halo:{SECRET}@db/x"))


def test_dotenv_adds_variables_but_overrides_and_exports_nothing(tmp_path):
    (tmp_path / ".env").write_text("﻿AH_ONE=from file\nAH_TWO='a$b${HOME}'\nBARE\n", "utf-8")
    environment = load_environment(tmp_path, {"AH_ONE": "real"})
    assert environment == {"AH_ONE": "real", "AH_TWO": "a$b${HOME}"}
    assert "AH_TWO" not in os.environ


def test_dotenv_that_is_not_text_is_an_error_with_its_path(tmp_path):
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(InvalidInputError, match=r"\.env"):
        load_environment(tmp_path, {})


def test_without_dotenv_the_environment_is_copied(tmp_path):
    environ = {"A": "1"}
    copied = load_environment(tmp_path, environ)
    assert copied == environ
    assert copied is not environ
    assert load_environment(None, environ) == environ


def test_the_nearest_project_upwards_is_found(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find_project(inner) is None
    (tmp_path / "arc_halo.yaml").touch()
    assert find_project(inner) == tmp_path.resolve()
    (tmp_path / "a" / "arc_halo.yaml").touch()
    assert find_project(inner) == (tmp_path / "a").resolve()


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://halo:{SECRET}@db:5432/x?sslmode=require",
        f"postgres://:{SECRET}@db/x",
        f"cannot open postgresql://halo:{SECRET}@db/x, nor postgresql://a:{SECRET}@b/c",
        f"postgresql://halo:p@{SECRET}@db/x",
        f"postgresql://db/x?user=halo&password={SECRET}",
        f"host=db password={SECRET}",
        f"host=db password='it\\'s {SECRET}' user=x",
        f"PGPASSWORD={SECRET}",
        f"{{'host': 'db', 'password': '{SECRET}'}}",
        f"sslpassword = {SECRET}",
        f"https://{SECRET}@example.org/v1",
        f"https://example.org/v1?model=x&api_key={SECRET}",
        f"Authorization: Bearer {SECRET}-0123456789",
        f"the key sk-{SECRET}-0123456789 is wrong",
    ],
)
def test_redact_hides_the_password(text):
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://halo@db:5432/x?sslmode=require",
        "host=db user=halo dbname=x",
        'password authentication failed for user "halo"',
        "no password supplied",
    ],
)
def test_redact_leaves_other_text_alone(text):
    assert redact(text) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=3))
def test_redact_hides_any_password_of_a_url(password):
    assert redact(f"postgresql://u:{password}@h/d") == "postgresql://u:***@h/d"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 268435456),
        ("4096", 4096),
        ("1.5 GiB", 1610612736),
        ("64kB", 64000),
        ("0B", 0),
        (" 1tib ", 2**40),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "5 bananas", "1e9", "١٢", "1.MiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidInputError) as caught:
        parse_size(text)
    assert caught.value.error_code == "AH090"
