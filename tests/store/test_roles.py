"""The three roles: what each may do, what it is refused, and how they come to their rights.

Nobody here but the owner of the server is a superuser: the owner of the database may make roles and
no more, as on Neon.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from arc_halo import Project
from arc_halo.cli.db import db
from arc_halo.cli.doctor import examine_database
from arc_halo.cli.invocation import Invocation
from arc_halo.cli.main import run
from arc_halo.errors import DatabaseError, NotFoundError
from arc_halo.store import migrate, roles
from arc_halo.store.connection import connect
from arc_halo.store.migration_files import write_sum
from arc_halo.store.schema_drift import schema_drift

PASSWORD = "n0t-a-secret"

MANIFEST = """
version: 1
project: rights
models:
  base: {version: 1.0.0, type: other, weights: base.safetensors, aliases: [live]}
  tuned: {version: 1.0.0, type: other, weights: tuned.safetensors}
strategies:
  even: {uses: linear}
reactors:
  blend:
    type: merge
    strategy: even
    members: [{model: base}, {model: tuned}]
    produces: {model: blend, version: 1.0.0}
inference:
  kv_cache: {}
"""

READS = [
    "plan --detailed-exitcode", "show model/blend@1.0.0", "get models", "lineage blend@1.0.0",
    "diff base tuned", "migrate status", "tensors ls base", "tensors du", "training ls",
    "inference ls", "cache stats", "reactor status", "keys ls", "fuse verify blend",
    "drift", "history", "history show", "history alias base:live", "rollback 1 --dry-run",
    "plan --no-cache",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """Roles of the server that may log in, each by its right name."""

    prefix: str
    server_url: str

    def name(self, user: str) -> str:
        return f"{self.prefix}_{user}"

    def url(self, user: str, database: str) -> str:
        """The address of a database for a user."""
        parts = urlsplit(database)
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{quote(self.name(user))}:{PASSWORD}@{place}"))


@pytest.fixture(scope="module")
def users(server_url: str) -> Iterator[Users]:
    found = Users(prefix=f"ah_{uuid.uuid4().hex[:8]}", server_url=server_url)
    names = {"owner": "CREATEROLE", "plans": "", "applies": "", "migrates": "", "stranger": ""}
    with psycopg.connect(server_url, autocommit=True) as conn:
        for user, right in names.items():
            conn.execute(f"CREATE ROLE {found.name(user)} LOGIN {right} PASSWORD '{PASSWORD}'")
    yield found
    with psycopg.connect(server_url, autocommit=True) as conn:
        for role in (*roles.ROLES, *map(found.name, names)):
            conn.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture(scope="module")
def owned(create_database: Callable[[str | None], str], users: Users) -> Iterator[str]:
    """A migrated database of the owner's with the roles, each with a member."""
    url = create_database(None)
    _give(url, users)
    with connect(users.url("owner", url)) as conn:
        migrate.up(conn)
        roles.set_up(conn, members=_members(users))
    yield url
    _drop(users.server_url, url)


@pytest.fixture
def unmigrated(empty_database: str, users: Users) -> str:
    """An empty database of the owner's."""
    _give(empty_database, users)
    return empty_database


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.faults.contents import shake, write_contents

    directory = tmp_path_factory.mktemp("project")
    (directory / "arc_halo.yaml").write_text(MANIFEST)
    for name in ("base", "tuned"):
        tensor = ("F32", (8,), bytes(byte & 0x3F for byte in shake(name, 32)))
        write_contents(directory / f"{name}.safetensors", {"t": tensor})
    return directory


def _members(users: Users) -> list[tuple[str, str]]:
    joined = {roles.READER: "plans", roles.WRITER: "applies", roles.ADMIN: "migrates"}
    return [(role, users.name(user)) for role, user in joined.items()]


def _give(url: str, users: Users) -> None:
    name = urlsplit(url).path[1:]
    with psycopg.connect(users.server_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} OWNER TO {users.name('owner')}")


def _drop(server_url: str, url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")


def _refused(url: str, statement: str) -> str | None:
    """The SQLSTATE that a statement is refused with."""
    with psycopg.connect(url) as conn:
        try:
            conn.execute(statement)
        except psycopg.Error as exc:
            return exc.sqlstate
        conn.rollback()
    return None


PROJECT = "INSERT INTO projects (name) VALUES ('p')"
REVISION = """
    INSERT INTO revisions
        (project, revision, actor, host, tool_version, manifest_digest, plan_digest)
    VALUES ('p', 1, '', '', '', sha256(''), sha256(''))"""
CHANGE = """
    INSERT INTO revision_changes (project, revision, ordinal, action, kind, name)
    VALUES ('p', 1, 0, 'create', 'model', 'm')"""
STRATEGY = "INSERT INTO fusion_strategies (name, uses) VALUES ('s', 'linear')"

MAY = {
    "plans": [
        "SELECT * FROM revisions, api_keys, arc_halo_migrations, _yoyo_migration",
        "SELECT * FROM kv_cache_g0, v_model_architecture, v_training_progress, v_reactor_status",
        "SELECT calculate_model_parameters(gen_random_uuid())",
        "SELECT get_latest_checkpoint(gen_random_uuid())",
        "SELECT * FROM attention_row(gen_random_uuid(), 0, 0, 0)",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT * FROM models",
    ],
    "applies": [
        f"{PROJECT}; {REVISION}; {CHANGE}; UPDATE projects SET head_revision = 1",
        f"{STRATEGY}; UPDATE fusion_strategies SET description = ''; DELETE FROM fusion_strategies",
        "SELECT * FROM models FOR UPDATE",
        "LOCK TABLE ONLY kv_cache IN ACCESS EXCLUSIVE MODE; TRUNCATE kv_cache_g0",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT * FROM v_reactor_status",
    ],
    "migrates": [
        "CREATE TABLE new_one (); ALTER TABLE models ADD new_one int; DROP TABLE models CASCADE",
        "ALTER FUNCTION get_latest_checkpoint RENAME TO get_no_checkpoint",
        "DROP VIEW v_reactor_status; CREATE VIEW v_reactor_status AS SELECT 1",
        "DELETE FROM arc_halo_migrations; DELETE FROM _yoyo_migration",
        "CREATE INDEX ON models (status); ALTER TABLE kv_cache_g0 SET (fillfactor = 50)",
    ],
}

MAY_NOT = {
    "plans": [
        PROJECT,
        STRATEGY,
        "UPDATE models SET description = ''",
        "DELETE FROM managed_resources",
        "SELECT * FROM models FOR UPDATE",
        "SELECT * FROM weight_sets FOR KEY SHARE",
        "TRUNCATE kv_cache_g0",
        "LOCK TABLE models IN ROW EXCLUSIVE MODE",
        "COPY models (model_name, version, model_type) FROM STDIN",
        "CREATE TABLE t ()",
        "CREATE VIEW v AS SELECT 1",
        "ALTER TABLE models ADD t int",
        "DROP VIEW v_reactor_status",
        "SET ROLE arc_halo_writer",
        "CREATE ROLE r",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ],
    "applies": [
        "UPDATE revisions SET actor = 'somebody else'",
        "DELETE FROM revisions",
        "TRUNCATE revisions CASCADE",
        "UPDATE revision_changes SET after = NULL",
        "DELETE FROM revision_changes",
        "SELECT * FROM revisions FOR UPDATE",
        "DELETE FROM projects",
        "DELETE FROM model_weight_history",
        "DELETE FROM model_alias_history",
        "INSERT INTO _yoyo_migration (migration_hash) VALUES ('')",
        "DELETE FROM _yoyo_migration",
        "UPDATE arc_halo_migrations SET sha256 = sha256('')",
        "DELETE FROM arc_halo_migrations",
        "TRUNCATE models CASCADE",
        "CREATE TABLE t ()",
        "CREATE FUNCTION f() RETURNS int RETURN 1",
        "CREATE OR REPLACE FUNCTION get_latest_checkpoint(uuid) RETURNS uuid RETURN NULL",
        "CREATE INDEX ON models (status)",
        "ALTER TABLE models ADD t int",
        "ALTER TABLE revisions DISABLE TRIGGER ALL",
        "CREATE TRIGGER t BEFORE INSERT ON models EXECUTE FUNCTION arc_halo_refuse_update()",
        "DROP TABLE kv_cache_g0",
        "DELETE FROM embedding_indexes",
        "DROP VIEW v_reactor_status",
        "SET ROLE arc_halo_admin",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ],
    "migrates": [
        "CREATE ROLE r",
        "ALTER ROLE arc_halo_reader CREATEROLE",
        "CREATE SCHEMA s",
        "SET session_replication_role = replica",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
    ],
    "stranger": [
        "SELECT * FROM models",
        "SELECT * FROM v_reactor_status",
        "SELECT * FROM kv_cache_g0",
        "CREATE TABLE t ()",
    ],
}


def _cases(table: dict[str, list[str]]) -> list[object]:
    return [
        pytest.param(user, statement, id=f"{user}-{number}")
        for user, statements in table.items()
        for number, statement in enumerate(statements)
    ]


@pytest.mark.parametrize(("user", "statement"), _cases(MAY))
def test_a_member_of_a_role_may(users: Users, owned: str, user: str, statement: str) -> None:
    assert _refused(users.url(user, owned), statement) is None


@pytest.mark.parametrize(("user", "statement"), _cases(MAY_NOT))
def test_a_member_of_a_role_may_not(users: Users, owned: str, user: str, statement: str) -> None:
    assert _refused(users.url(user, owned), statement) == "42501"


def test_every_table_and_view_of_ours_can_be_read_and_is_the_admins(
    users: Users, owned: str
) -> None:
    with connect(users.url("plans", owned)) as conn:
        named = conn.execute("""
            SELECT relname::text, pg_get_userbyid(relowner)::text FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
        """).fetchall()
        for name, _ in named:
            conn.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(name)))
    assert len(named) > 80
    assert {owner for _, owner in named} == {roles.ADMIN}


def test_the_reader_plans_the_writer_applies_and_neither_migrates(
    users: Users, owned: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(user: str) -> Project:
        return Project(project, database_url=users.url(user, owned), environ={})

    with opened("plans") as reading:
        reading.check_schema()
        planned = reading.plan()
        with pytest.raises(DatabaseError, match=r"permission denied.*42501") as caught:
            reading.apply(planned)
        assert "arc_halo_writer applies" in str(caught.value.hint)
    with opened("applies") as writing:
        assert writing.migrate() == []
        writing.apply(writing.plan())
    with opened("plans") as reading:
        assert not reading.plan().changes
    place = ["--project", str(project), "--database-url", users.url("plans", owned)]
    for command in READS:
        assert run([*command.split(), *place]) == 0, command
    assert run(["export", "blend", "--out", str(tmp_path), *place]) == 0
    capsys.readouterr()
    assert run(["destroy", "--yes", *place]) == 1
    said = capsys.readouterr().err
    assert re.search(r"error\[AH044\]: permission denied for [^\n]*\n +hint: connect as", said)
    with opened("applies") as writing:
        writing.apply(writing.plan_destroy(), limits=writing.limits(allow_empty=True))


def test_doctor_says_which_role_it_is_and_fails_none(users: Users, owned: str) -> None:
    def rights(user: str) -> tuple[str, str]:
        with connect(users.url(user, owned)) as conn:
            found = {finding.check: finding for finding in examine_database(conn)}
        assert {name for name in found if found[name].state == "fail"} == set()
        return found["rights"].state, found["rights"].message

    assert rights("plans") == ("warn", f"{users.name('plans')} may plan, but not apply")
    assert rights("applies")[1].endswith("may apply, but not migrate")
    assert rights("migrates") == ("ok", f"{users.name('migrates')} may migrate, read and write")


def test_what_a_later_migration_makes_gets_the_same_rights(
    users: Users, owned: str, tmp_path: Path
) -> None:
    for path in migrate.migrations_directory().glob("*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    alone = "-- transactional: false\n"
    (tmp_path / "9998.alone.sql").write_text(f"{alone}CREATE TABLE alone (n int);\n")
    (tmp_path / "9998.alone.rollback.sql").write_text(f"{alone}DROP TABLE alone;\n")
    (tmp_path / "9999.later.sql").write_text("CREATE TABLE later (n int);\n")
    (tmp_path / "9999.later.rollback.sql").write_text("DROP TABLE later;\n")
    write_sum(tmp_path)
    with connect(users.url("migrates", owned)) as conn:
        last = migrate.status(conn)[-1].id
        migrate.up(conn, directory=tmp_path)
    with connect(users.url("applies", owned)) as conn:
        conn.execute("INSERT INTO later VALUES (1); INSERT INTO alone VALUES (1)")
    with connect(users.url("plans", owned)) as conn:
        assert conn.execute("SELECT later.n, alone.n FROM later, alone").fetchall() == [(1, 1)]
        assert schema_drift(conn) == ()
    with connect(users.url("owner", owned)) as conn:  # who made no table of it
        migrate.down(conn, to=last, directory=tmp_path)


def test_roles_made_before_the_first_migration_get_their_rights_with_it(
    users: Users, owned: str, unmigrated: str
) -> None:
    del owned  # the roles are there: this is the second database of the server
    with connect(users.url("owner", unmigrated)) as conn:
        statements = roles.set_up(conn, members=_members(users)).statements
    assert [each.split()[0] for each in statements] == ["GRANT"] * 3
    assert not any("CREATE ROLE" in each for each in statements)
    with connect(users.url("applies", unmigrated)) as conn:
        with pytest.raises(DatabaseError, match=r"permission denied.*42501") as caught:
            migrate.up(conn)
        assert "arc_halo_admin migrates" in str(caught.value.hint)
    with connect(users.url("migrates", unmigrated)) as conn:
        migrate.up(conn)
    assert _refused(users.url("plans", unmigrated), "SELECT * FROM models") is None
    assert _refused(users.url("plans", unmigrated), STRATEGY) == "42501"
    assert _refused(users.url("applies", unmigrated), STRATEGY) is None


def test_a_second_time_there_is_nothing_to_do_and_too_many_rights_are_taken_away(
    users: Users, owned: str
) -> None:
    with connect(users.url("owner", owned)) as conn, conn.transaction(force_rollback=True):
        assert roles.set_up(conn, members=_members(users)).statements == ()
        conn.execute("GRANT DELETE ON revisions TO arc_halo_writer")
        (statement,) = roles.set_up(conn).statements
        assert statement == 'REVOKE DELETE ON TABLE "public"."revisions" FROM "arc_halo_writer"'


def test_a_migrated_database_whose_roles_were_not_asked_for_is_left_alone(
    users: Users, owned: str, database: str
) -> None:
    del owned
    with connect(database) as conn:
        assert conn.execute(
            "SELECT tableowner FROM pg_tables WHERE tablename = 'models'"
        ).fetchone() != (roles.ADMIN,)
    assert _refused(users.url("plans", database), "SELECT * FROM models") == "42501"


def test_the_tables_of_somebody_else_in_the_schema_stay_theirs(users: Users, owned: str) -> None:
    with connect(users.url("owner", owned)) as conn, conn.transaction(force_rollback=True):
        conn.execute("CREATE TABLE diary (text text)")
        assert roles.set_up(conn).statements == ()


def test_the_command_prints_its_sql_makes_the_roles_and_says_what_it_did(
    users: Users, owned: str, unmigrated: str
) -> None:
    del owned
    url = users.url("owner", unmigrated)

    def command(*arguments: str, output: str = "text", stream: str = "stdout") -> str:
        invocation = Invocation(database_url=url, output=output)
        done = CliRunner().invoke(db, ["roles", *arguments], obj=invocation, catch_exceptions=False)
        return str(getattr(done, stream))

    script = command("--dry-run")
    assert 'GRANT CREATE ON SCHEMA "public" TO "arc_halo_admin";' in script
    assert json.loads(command("--dry-run", output="json"))["statements"]
    assert command() == "3 grants\n"
    assert command() == "nothing to do: the roles are there, with their rights\n"
    assert command("--dry-run") == f"-- {command()}"
    url = users.url("plans", unmigrated)
    higher = ("--member", f"reader={users.name('applies')}")
    assert "have an administrator run" in command("--dry-run", *higher, stream="stderr")
    url = users.url("owner", unmigrated)
    revoke = f"REVOKE arc_halo_writer FROM {users.name('applies')}"
    assert revoke in command("--dry-run", *higher, stream="stderr")
    with pytest.raises(NotFoundError, match="no role 'nobody-here'") as caught:
        command("--member", "reader=nobody-here")
    assert "CREATE ROLE" in str(caught.value.hint)


def test_who_may_not_make_roles_is_told_who_may(users: Users, owned: str) -> None:
    with (
        connect(users.url("applies", owned)) as conn,
        pytest.raises(DatabaseError, match="42501") as caught,
    ):
        roles.set_up(conn, members=[(roles.READER, users.name("stranger"))])
    assert "have an administrator" in str(caught.value.hint)
    assert "address of their own" in str(caught.value.hint)


@pytest.mark.parametrize("user", ["plans", "applies", "stranger"])
def test_what_is_printed_for_a_user_does_not_make_an_administrator_of_them(
    users: Users, owned: str, database: str, user: str
) -> None:
    with connect(database) as conn:
        conn.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with connect(users.url(user, database)) as conn:  # where the roles have no rights yet
        conn.execute("CREATE TABLE arc_halo_mine ()")
        fresh = roles.set_up(conn, dry_run=True)
    with connect(users.url(user, owned)) as conn:
        here = roles.set_up(conn, members=[(roles.READER, users.name("stranger"))], dry_run=True)
    assert {fresh.is_in_charge, here.is_in_charge} == {False}
    assert any("OWNER TO" in each for each in fresh.statements)
    assert here.statements == (f'GRANT "arc_halo_reader" TO "{users.name("stranger")}"',)
    for statement in fresh.statements:
        assert users.name(user) not in statement


def test_who_migrated_belongs_to_whom_the_tables_are_handed_to(
    users: Users, owned: str, empty_database: str
) -> None:
    del owned
    with connect(empty_database) as conn:
        conn.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with connect(users.url("stranger", empty_database)) as conn:
        migrate.up(conn)
        statements = roles.set_up(conn, dry_run=True).statements
    assert f'GRANT "arc_halo_admin" TO "{users.name("stranger")}"' in statements


def test_who_is_in_a_higher_role_too_is_told(users: Users, owned: str) -> None:
    both = [(roles.READER, users.name("migrates"))]
    told = roles.Wider(user=users.name("migrates"), role=roles.READER, also=roles.ADMIN)
    with connect(users.url("owner", owned)) as conn, conn.transaction(force_rollback=True):
        assert roles.set_up(conn).wider == ()
        assert roles.set_up(conn, members=both, dry_run=True).wider == (told,)
        assert roles.set_up(conn, members=both).wider == (told,)
        assert roles.set_up(conn).wider == (told,)


def test_vectors_made_at_run_time_are_read_by_all_and_go_with_what_the_writer_deletes(
    users: Users, owned: str
) -> None:
    with connect(users.url("migrates", owned)) as conn, conn.transaction():
        conn.execute("CREATE TABLE embedding_vectors_9000001 (row_index bigint)")
        roles.refresh(conn)  # as making an index does
    with connect(users.url("applies", owned)) as conn, conn.transaction():
        conn.execute("""
            INSERT INTO tensor_metadata (id, digest, dtype, shape, element_count, size_bytes,
                                         chunk_bytes, chunk_count)
            OVERRIDING SYSTEM VALUE
            VALUES (9000001, sha256('vectors'), 'F32', '{1,1}', 1, 4, 262144, 1)""")
    with connect(users.url("migrates", owned)) as conn:
        conn.execute("INSERT INTO embedding_indexes (tensor_id) VALUES (9000001)")
    with connect(users.url("plans", owned)) as conn:
        conn.execute("SELECT FROM embedding_vectors_9000001")
    with connect(users.url("applies", owned)) as conn:
        conn.execute("DELETE FROM tensor_metadata WHERE id = 9000001")
        found = conn.execute("SELECT to_regclass('embedding_vectors_9000001')").fetchone()
        assert found == (None,)
