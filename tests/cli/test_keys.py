"""`arc-halo keys` and the mistakes of `arc-halo serve`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import psycopg
import pytest

from arc_halo.cli.main import run


@pytest.fixture
def call(database, capsys, monkeypatch, tmp_path):
    """Runs `arc-halo …`; its exit code, its result and what else it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)

    def call(*arguments):
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_key_is_printed_once_and_kept_as_its_digest(call, database):
    code, out, err = call("keys", "create", "laptop", "--tenant", "acme")
    key = out.strip()
    assert code == 0
    assert key.startswith("ah-")
    assert len(key) == len("ah-") + 43
    assert err == "it is not shown again\n"
    with psycopg.connect(database) as conn:
        rows = conn.execute("SELECT name, tenant, key_sha256, expires_at FROM api_keys").fetchall()
    assert rows == [("laptop", "acme", hashlib.sha256(key.encode()).digest(), None)]
    assert key not in call("keys", "ls")[1]


def test_two_keys_are_never_the_same(call):
    assert call("keys", "create", "a")[1] != call("keys", "create", "b")[1]


def test_a_key_may_have_an_end(call, database):
    assert call("keys", "create", "guest", "--expires", "30d")[0] == 0
    with psycopg.connect(database) as conn:
        row = conn.execute("SELECT expires_at - created_at = '30 days' FROM api_keys").fetchone()
    assert row == (True,)
    assert call("keys", "create", "other", "--expires", "soon")[0] == 64


def test_a_name_is_used_once_until_it_is_revoked(call):
    assert call("keys", "create", "laptop")[0] == 0
    code, out, err = call("keys", "create", "laptop")
    assert (code, out) == (5, "")
    assert "error[AH013]: there is a key 'laptop' already" in err
    assert call("keys", "revoke", "laptop")[:2] == (0, "revoked the key laptop\n")
    assert call("keys", "revoke", "laptop")[0] == 1
    assert call("keys", "create", "laptop")[0] == 0
    found = json.loads(call("keys", "ls", "--output", "json")[1])["keys"]
    assert [each["revoked_at"] is None for each in found] == [False, True]


def test_a_key_is_revoked_by_its_id(call):
    made = json.loads(call("keys", "create", "laptop", "--output", "json")[1])
    assert made["key"].startswith("ah-")
    assert call("keys", "revoke", made["id"])[0] == 0


def test_keys_are_listed_in_every_form(call):
    assert call("keys", "ls")[1] == "There are no keys.\n"
    call("keys", "create", "laptop", "--tenant", "acme")
    assert call("keys", "ls")[1].splitlines()[1].startswith("laptop  acme    20")
    assert "| laptop | acme |" in call("keys", "ls", "--output", "markdown")[1]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129])
def test_a_name_that_is_none_is_refused(call, name):
    assert call("keys", "create", name)[0] == 4


def test_a_server_for_others_needs_keys(call):
    code, _, err = call("serve", "--no-keys", "--host", "0.0.0.0")
    assert code == 64
    assert "without keys others could ask" in err


def test_a_server_without_reactors_does_not_start(call):
    code, _, err = call("serve", "--port", "0")
    assert code == 1
    assert "there is no reactor that runs here" in err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("--max-body", "much", 4), ("--port", "70000", 64), ("--concurrency", "0", 64)],
)
def test_a_limit_that_is_none_is_refused(call, option, value, expected):
    assert call("serve", option, value)[0] == expected


def test_without_its_packages_a_server_says_what_to_install(call, monkeypatch):
    for name in ("running", "app"):
        monkeypatch.delitem(sys.modules, f"arc_halo.serving.{name}", raising=False)
        monkeypatch.delattr(f"arc_halo.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call("serve")
    assert code == 64
    assert "needs the package uvicorn" in err
    assert "pip install 'arc-halo[serve]'" in err


def test_the_program_does_without_what_serves() -> None:
    code = (
        "import sys, arc_halo.cli.main, arc_halo.plugins as p; p.PluginManager().runners;"
        "print([m for m in ('httpx', 'starlette', 'uvicorn', 'anyio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("time", ["0", "0h", "00d"])
def test_a_key_that_is_never_good_is_not_made(call, database, time):
    code, out, err = call("keys", "create", "brief", "--expires", time)
    assert (code, out) == (64, "")
    assert f"a key that expires after {time} is never good" in err
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)
