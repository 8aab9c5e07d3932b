from __future__ import annotations

import json
import os
import subprocess
import sys

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from arc_halo import embedded
from arc_halo.cli.db import address, db
from arc_halo.cli.invocation import Invocation
from arc_halo.cli.target import target_of
from arc_halo.errors import ConnectionFailedError, InvalidInputError, ManifestError, UsageError

SECRET = "pl4nted-s3cret"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Neither in a project nor with a database in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("NEON_DATABASE_URL", raising=False)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "arc_halo.yaml").write_text("version: 1\nproject: demo\n")
    yield tmp_path
    embedded.stop(tmp_path, force=True)


def run(invocation, *arguments):
    return CliRunner().invoke(db, list(arguments), obj=invocation, catch_exceptions=False)


def test_start_keeps_the_server_and_stop_ends_it(project):
    started = run(Invocation(project=project), "start")
    assert "running:" in started.stdout
    with psycopg.connect(embedded.status(project).url):
        pass
    assert run(Invocation(project=project), "stop").stdout == "stopped\n"
    assert run(Invocation(project=project), "stop").stdout == "it was not running\n"


def test_status_starts_nothing_and_is_json_on_request(project):
    facts = json.loads(run(Invocation(project=project, output="json"), "status").stdout)
    assert (facts["database"], facts["running"], facts["stays"]) == ("embedded", False, False)
    assert not (project / ".arc-halo").exists()


def test_status_is_markdown_on_request(project):
    assert (
        "| running | no |" in run(Invocation(project=project, output="markdown"), "status").stdout
    )


def test_status_of_another_database_names_where_it_comes_from(project, monkeypatch):
    monkeypatch.setenv("NEON_DATABASE_URL", f"postgresql://u:{SECRET}@db.example.org/x")
    said = run(Invocation(project=project), "status").output
    assert "NEON_DATABASE_URL" in said
    assert "postgresql://u@db.example.org/x" in said
    assert SECRET not in said


def test_start_notes_that_the_project_uses_another_database(project):
    (project / ".env").write_text("ARC_HALO_DATABASE_URL=postgresql://db.example.org/x\n")
    assert "ARC_HALO_DATABASE_URL" in run(Invocation(project=project), "start").stderr


def test_url_prints_an_address_that_connects(project):
    resting = run(Invocation(project=project), "url")
    assert "db start" in resting.stderr
    run(Invocation(project=project), "start")
    printed = run(Invocation(project=project), "url")
    assert printed.stderr == ""
    assert printed.stdout == resting.stdout
    with psycopg.connect(printed.stdout.strip()):
        pass


def test_url_leaves_the_password_out():
    printed = run(Invocation(database_url=f"host=db.example.org password={SECRET} user=u"), "url")
    assert printed.output == "postgresql://u@db.example.org\n"


@pytest.mark.parametrize(
    "words",
    [
        {"host": "db.example.org", "port": "5433", "user": "u", "dbname": "x"},
        {"host": "::1", "port": "5433", "dbname": "x"},
        {"host": "/run/post gres", "user": "a@b/c", "dbname": "d%e f"},
        {"host": "a,b", "port": "1,2", "dbname": "x", "sslmode": "require"},
        {"host": "a", "options": "-c work_mem=1MB", "application_name": "q&a=?#"},
        {"user": "only"},
        {},
    ],
)
def test_an_address_means_what_it_meant_without_its_password(words):
    given = psycopg.conninfo.make_conninfo("", **words, password=SECRET)
    assert conninfo_to_dict(address(given)) == words


def test_psql_runs_in_the_projects_own_server_which_then_stops(project):
    # In a process of its own: psql writes to the real standard output.
    program = "import sys; from arc_halo.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "db", "psql", "--project", str(project)]
    asked = [*command, "-XAtc", "SELECT current_user || current_setting('application_name')"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout == "arc_haloarc-halo psql\n"
    assert not embedded.status(project).running
    failed = subprocess.run(
        [*command, "--", "--output", str(project / "out"), "-v", "ON_ERROR_STOP=1"],
        input="SELECT 17; SELECT 1/0;",
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 3
    assert "17" in (project / "out").read_text()


def test_psql_gets_the_password_in_its_environment_only(tmp_path, monkeypatch):
    fake = tmp_path / "psql"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$*" "$PGPASSWORD" > "${0%/*}/said"\nexit 7\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    result = run(Invocation(database_url=f"postgresql://u:{SECRET}@db.example.org/x"), "psql", "-l")
    arguments, password = (tmp_path / "said").read_text().splitlines()
    assert result.exit_code == 7
    assert password == SECRET
    assert SECRET not in arguments
    assert "sslmode=verify-full" in arguments
    assert arguments.endswith(" -l")


def test_the_bundled_psql_is_not_used_where_tls_is_needed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConnectionFailedError, match="no TLS"):
        run(Invocation(database_url="postgresql://db.example.org/x"), "psql")


def test_outside_of_a_project_the_embedded_server_has_no_place():
    for command in ("start", "stop", "status", "url", "psql"):
        with pytest.raises(UsageError, match=r"arc_halo\.yaml"):
            run(Invocation(), command)


def test_the_manifest_names_the_database_with_its_variables(project, monkeypatch):
    (project / "arc_halo.yaml").write_text(
        "version: 1\nproject: demo\n"
        "database: {url: 'postgresql://${HALO_USER:-u}@db/x', password: {env: HALO_PW}}\n"
    )
    monkeypatch.setenv("HALO_PW", SECRET)
    target = target_of(Invocation(project=project))
    assert target.origin == "arc_halo.yaml"
    assert conninfo_to_dict(target.url)["password"] == SECRET
    assert conninfo_to_dict(target.url)["user"] == "u"


def test_a_manifest_that_cannot_be_read_matters_only_where_it_decides(project):
    (project / "arc_halo.yaml").write_text("a: [\n")
    with pytest.raises(ManifestError):
        target_of(Invocation(project=project))
    assert target_of(Invocation(project=project, database_url="embedded")).kind == "embedded"
    assert run(Invocation(project=project), "stop").stdout == "it was not running\n"


@pytest.mark.parametrize("database", ["5", "[a]", "{url: '${UNSET_FOR_SURE:?say it}'}"])
def test_a_database_that_is_no_address_is_invalid_input(project, database):
    text = f"version: 1\nproject: demo\ndatabase: {database}\n"
    (project / "arc_halo.yaml").write_text(text)
    with pytest.raises(InvalidInputError):
        target_of(Invocation(project=project))


@pytest.mark.parametrize("command", ["start", "stop", "status", "url", "psql"])
def test_every_help_has_an_example(command):
    assert "Example" in run(None, command, "--help").stdout
