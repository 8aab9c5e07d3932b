"""TLS to a real server whose certificate the tests made; the bundled PostgreSQL knows none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trustme

from arc_halo.cli.main import run
from arc_halo.errors import ConnectionFailedError
from arc_halo.store.connection import connect
from tests.faults.servers import PASSWORD, Server, kept, new_directory, wait_for

NAME = "db.example.org"
# Linux takes it for this machine and nobody takes it for loopback, so the server looks remote.
ADDRESS = "0.0.0.0"


@pytest.fixture(autouse=True)
def no_libpq_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the certificate of the authority that the server's is from."""
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def server(authority: trustme.CA) -> Iterator[Server]:
    """A server with TLS, which asks for a password, and no connections without TLS."""
    with kept(new_directory()) as server:
        server.programs = _programs()
        server.run(
            server.programs / "initdb", "--no-sync", "--auth=trust", "--username=postgres",
            "--encoding=UTF8", "--locale=C", "-D", server.data,
        )  # fmt: skip
        issued = authority.issue_cert(NAME)
        issued.private_key_pem.write_to_path(server.data / "server.key")
        issued.cert_chain_pems[0].write_to_path(server.data / "server.crt")
        for file in ("server.key", "server.crt"):
            (server.data / file).chmod(0o600)
            os.chown(server.data / file, server.account.uid, server.account.gid)
        with (server.data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\nfsync = off\n")
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.start(tcp=True)
        with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
            conn.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
            conn.execute("CREATE DATABASE models")
        yield server


def _programs() -> Path:
    """The programs of the newest PostgreSQL that the system has."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if not found:
        pytest.fail("no PostgreSQL with TLS is installed: apt-get install postgresql")
    return found[-1].parent


def address(server: Server, *, host: str = NAME, **words: object) -> str:
    query = "&".join(f"{name}={word}" for name, word in {"hostaddr": ADDRESS, **words}.items())
    return f"postgresql://postgres:{PASSWORD}@{host}:{server.port}/models?{query}"


def refused(url: str) -> tuple[str, str]:
    """What a refused connection says, and the hint."""
    with pytest.raises(ConnectionFailedError) as caught:
        connect(url, timeout_seconds=0)
    assert caught.value.error_code == "AH040"
    assert PASSWORD not in f"{caught.value!r} {caught.value.hint}"
    return str(caught.value), str(caught.value.hint)


def test_a_server_whose_certificate_and_name_are_right_is_used_from_end_to_end(
    server: Server, trusted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: tls\nstrategies:\n  even: {uses: linear}\n"
    )
    url = address(server, sslrootcert=trusted, channel_binding="require")
    place = ["--project", str(tmp_path), "--database-url", url]
    assert run(["migrate", "up", *place]) == 0
    assert run(["plan", "--detailed-exitcode", *place]) == 2
    assert run(["apply", *place]) == 0
    assert run(["plan", "--detailed-exitcode", *place]) == 0
    assert run(["doctor", *place]) == 0
    assert "encrypted, the server is verified" in capsys.readouterr().out


def test_a_certificate_of_an_unknown_authority_is_refused(server: Server, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    for url in (address(server), address(server, sslrootcert=stranger)):
        message, hint = refused(url)
        assert "certificate verify failed" in message
        assert "sslrootcert=FILE" in hint


def test_a_certificate_of_another_name_is_refused(server: Server, trusted: Path) -> None:
    message, hint = refused(address(server, host="other.example.org", sslrootcert=trusted))
    assert "does not match host name" in message
    assert "give the server's name as its certificate has it" in hint


def test_a_file_of_authorities_that_is_not_there_is_refused(server: Server) -> None:
    message, hint = refused(address(server, sslrootcert="/nowhere/ca.pem"))
    assert "/nowhere/ca.pem" in message
    assert "sslrootcert=FILE" in hint


def test_tls_without_verification_has_to_be_asked_for(server: Server) -> None:
    with connect(address(server, sslmode="require")) as conn:
        assert conn.pgconn.ssl_in_use


def test_a_server_that_has_switched_tls_off_is_refused(server: Server, trusted: Path) -> None:
    def switch(state: str) -> None:
        with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM SET ssl = {state}")
            conn.execute("SELECT pg_reload_conf()")
        wait_for(lambda: _ssl(server) == state)

    switch("off")
    try:
        message, hint = refused(address(server, sslrootcert=trusted))
    finally:
        switch("on")
    assert "does not support SSL" in message
    assert "sslmode=disable" in hint


def _ssl(server: Server) -> str:
    with psycopg.connect(server.url("postgres")) as conn:
        return str(conn.execute("SHOW ssl").fetchone()[0])
