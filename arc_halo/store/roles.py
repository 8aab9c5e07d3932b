"""Three roles for a database: one that reads, one that applies, one that migrates.

They are groups that cannot log in. A cluster has them once and each database grants its own
things to them, so two databases share the names and nothing else. `arc_halo_admin` owns what
migrations make, for only an owner may change a table: it is handed over, and the other two get
their rights, each time migrations have run. Default privileges would not do: they belong to whoever
creates a table, and any member may migrate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, LiteralString

from psycopg import errors, sql
from psycopg.rows import class_row, scalar_row

from arc_halo.errors import DatabaseError, NotFoundError
from arc_halo.store.connection import Connection, translate
from arc_halo.store.migration_files import migrations_directory, read_files
from arc_halo.store.migration_scripts import created_names

READER, WRITER, ADMIN = "arc_halo_reader", "arc_halo_writer", "arc_halo_admin"
ROLES = (READER, WRITER, ADMIN)

Membership = tuple[str, str]
"""A role of ours and a role of the server that belongs to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the server and the database have of the roles; pairs are joined by a blank.

    In charge is a superuser, who may make roles, and who owns the database or the schema.
    """

    schema: str
    database: str
    user_name: str
    is_admin: bool
    is_in_charge: bool
    roles: list[str]
    memberships: list[str]
    schema_rights: list[str]
    may_connect: bool
    anybody_creates: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A table, view or function of ours: its owner, and what the reader and the writer may."""

    kind: Literal["TABLE", "VIEW", "FUNCTION"]
    name: str
    owner: str
    reader: list[str]
    writer: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wider:
    """A user who was let into a role, and has the rights of a higher one besides."""

    user: str
    role: str
    also: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The statements that it took, or would take, and where anybody may create tables.

    `user_name` is who is connected, and `wider` are those who may do more than one role of theirs.
    """

    statements: tuple[str, ...]
    open_schema: str | None
    user_name: str
    is_in_charge: bool
    wider: tuple[Wider, ...]


def set_up(conn: Connection, *, members: Sequence[Membership] = (), dry_run: bool = False) -> Setup:
    """Make the roles, let `members` in and give them their rights, in one transaction.

    What is as it should be is left alone; `dry_run` only says what it would take. Raises
    `NotFoundError` for a member that is no role, `DatabaseError` where this role may not.
    """
    with translate(), conn.transaction():
        standing = _standing(conn)
        _check_members(conn, [member for _, member in members])
        things = _things(conn, created_names(read_files(migrations_directory())))
        wanted = [
            *role_statements(standing, members, hands_over=_hands_over(standing, things)),
            *thing_statements(standing.schema, things),
        ]
        if not dry_run:
            _run(conn, wanted)
        return Setup(
            statements=tuple(statement.as_string(conn) for statement in wanted),
            open_schema=standing.schema if standing.anybody_creates else None,
            user_name=standing.user_name,
            is_in_charge=standing.is_admin or _hands_over(standing, things),
            wider=_wider(conn, members),
        )


def refresh(conn: Connection, names: Collection[str] = ()) -> None:
    """Hand over what is new in the caller's transaction, where the roles are set up in the
    database: of what migrations create, `names`, and of what is made besides."""
    standing = _standing(conn)
    if f"{ADMIN} CREATE" in standing.schema_rights:
        for statement in thing_statements(standing.schema, _things(conn, names)):
            conn.execute(statement)


def role_statements(
    standing: Standing, members: Sequence[Membership] = (), *, hands_over: bool
) -> list[sql.Composed]:
    """What makes the roles, each with all the rights of the one before it, and lets them in."""
    joined = [(READER, WRITER), (WRITER, ADMIN), *members]
    if hands_over and not standing.is_admin:
        # Who hands tables over has to belong to whom they are handed to. Nobody else is let in: an
        # administrator may run what was printed for a reader.
        joined.append((ADMIN, standing.user_name))
    place = [(READER, "USAGE"), (ADMIN, "USAGE"), (ADMIN, "CREATE")]
    statements = [
        sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role))
        for role in ROLES
        if role not in standing.roles
    ]
    statements += [
        sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(member))
        for role, member in dict.fromkeys(joined)
        if f"{role} {member}" not in standing.memberships
    ]
    statements += [
        sql.SQL("GRANT {} ON SCHEMA {} TO {}").format(
            _words(right), sql.Identifier(standing.schema), sql.Identifier(role)
        )
        for role, right in place
        if f"{role} {right}" not in standing.schema_rights
    ]
    if not standing.may_connect:
        database, reader = sql.Identifier(standing.database), sql.Identifier(READER)
        statements.append(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, reader))
    return statements


def thing_statements(schema: str, things: Sequence[Thing]) -> list[sql.Composed]:
    """What hands things over to the admin and gives the others their rights, exactly these."""
    statements = [
        sql.SQL("ALTER {} {} OWNER TO {}").format(
            sql.SQL(each.kind), sql.Identifier(schema, each.name), sql.Identifier(ADMIN)
        )
        for each in things
        if each.owner != ADMIN
    ]
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    for each in things:
        for role, has, wanted in (
            (READER, set(each.reader), _reads(each)),
            (WRITER, set(each.writer), _writes(each)),
        ):
            for verb, rights in (("REVOKE", has - wanted), ("GRANT", wanted - has)):
                if rights:
                    on = "FUNCTION" if each.kind == "FUNCTION" else "TABLE"
                    key = (verb, ", ".join(sorted(rights)), on, role)
                    changes.setdefault(key, []).append(each.name)
    statements += [
        _CHANGES[verb].format(
            rights=_words(rights),
            kind=_words(on),
            names=sql.SQL(", ").join(sql.Identifier(schema, name) for name in names),
            role=sql.Identifier(role),
        )
        for (verb, rights, on, role), names in changes.items()
    ]
    return statements


STANDING = """
SELECT n.nspname::text AS schema, current_database()::text AS database,
       current_user::text AS user_name,
       coalesce(pg_has_role(to_regrole('arc_halo_admin')::oid, 'USAGE'),
                (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)) AS is_admin,
       (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
           OR pg_has_role(n.nspowner, 'USAGE')
           OR (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database
               WHERE datname = current_database()) AS is_in_charge,
       ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%(roles)s)) AS roles,
       ARRAY(SELECT role.rolname || ' ' || member.rolname FROM pg_auth_members AS joined
             JOIN pg_roles AS role ON role.oid = joined.roleid
             JOIN pg_roles AS member ON member.oid = joined.member
             WHERE role.rolname = ANY(%(roles)s)
               AND pg_has_role(member.oid, role.oid, 'USAGE')) AS memberships,
       ARRAY(SELECT role.rolname || ' ' || given.privilege_type FROM aclexplode(n.nspacl) AS given
             JOIN pg_roles AS role ON role.oid = given.grantee
             WHERE role.rolname = ANY(%(roles)s)) AS schema_rights,
       has_database_privilege('public', current_database(), 'CONNECT') OR coalesce(
           has_database_privilege(to_regrole('arc_halo_reader')::oid, current_database(),
                                  'CONNECT'), false) AS may_connect,
       has_schema_privilege('public', n.oid, 'CREATE') AS anybody_creates
FROM pg_namespace AS n WHERE n.nspname = current_schema()
"""

# Ours is what migrations name, the partitions of that, what the runner of migrations keeps, and the
# tables of vectors, which are made at run time.
THINGS = r"""
WITH relation AS (
    SELECT c.oid, c.relname, c.relkind, c.relowner, c.relacl FROM pg_class AS c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v')
),
parent AS (
    SELECT i.inhrelid AS oid, r.relname
    FROM pg_inherits AS i JOIN relation AS r ON r.oid = i.inhparent
)
SELECT CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind, relname::text AS name,
       pg_get_userbyid(relowner)::text AS owner,
       ARRAY(SELECT privilege_type FROM aclexplode(relacl)
             WHERE grantee = to_regrole('arc_halo_reader')) AS reader,
       ARRAY(SELECT privilege_type FROM aclexplode(relacl)
             WHERE grantee = to_regrole('arc_halo_writer')) AS writer
FROM relation
WHERE relname = ANY(%(names)s)
   OR oid IN (SELECT parent.oid FROM parent WHERE parent.relname = ANY(%(names)s))
   OR relname ~ '^(_yoyo_(log|migration|version)|yoyo_lock|arc_halo_\w+|embedding_vectors_\d+)$'
UNION ALL
SELECT 'FUNCTION', proname::text, pg_get_userbyid(proowner)::text,
       ARRAY(SELECT privilege_type FROM aclexplode(proacl)
             WHERE grantee = to_regrole('arc_halo_reader')),
       ARRAY(SELECT privilege_type FROM aclexplode(proacl)
             WHERE grantee = to_regrole('arc_halo_writer'))
FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY(%(names)s)
ORDER BY kind, name
"""

KNOWN_ROLES = """
SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%(names)s)
"""

# Whoever makes a role is given it WITH ADMIN OPTION, unasked.
WIDER = """
WITH ours AS (SELECT oid, rolname::text AS name, array_position(%(roles)s, rolname::text) AS height
              FROM pg_roles WHERE rolname = ANY(%(roles)s)),
joined AS (
    SELECT roleid AS role, member FROM pg_auth_members WHERE NOT admin_option
    UNION
    SELECT ours.oid, pg_roles.oid
    FROM unnest(%(asked_roles)s::text[], %(asked_members)s::text[]) AS asked (role, member)
    JOIN ours ON ours.name = asked.role JOIN pg_roles ON pg_roles.rolname = asked.member
)
SELECT DISTINCT ON (member.rolname, low.height)
       member.rolname::text AS user, low.name AS role, high.name AS also
FROM joined
JOIN ours AS low ON low.oid = joined.role
JOIN pg_roles AS member ON member.oid = joined.member
JOIN ours AS high ON high.height > low.height AND pg_has_role(member.oid, high.oid, 'USAGE')
WHERE NOT member.rolsuper AND member.rolname <> ALL(%(roles)s)
ORDER BY member.rolname, low.height, high.height DESC
"""

_CHANGES = {
    "GRANT": sql.SQL("GRANT {rights} ON {kind} {names} TO {role}"),
    "REVOKE": sql.SQL("REVOKE {rights} ON {kind} {names} FROM {role}"),
}

# What says of the schema what was made there. A vectors' table is dropped with its tensor even so:
# a cascade runs with the rights of the owner.
_IS_MADE = re.compile(r"_yoyo_|yoyo_lock|arc_halo_|embedding_(vectors_|indexes)")
_IS_EMPTIED = re.compile(r"kv_cache(_bodies)?(_pinned|_g\d+)?")
_WRITE = frozenset({"INSERT", "UPDATE", "DELETE"})
_WRITER_BY_NAME = {
    # Nobody who applies can rewrite what was applied.
    "revisions": frozenset({"INSERT"}),
    "revision_changes": frozenset({"INSERT"}),
    "projects": frozenset({"INSERT", "UPDATE"}),
    "model_alias_history": frozenset({"INSERT", "UPDATE"}),
    "model_weight_history": frozenset({"INSERT", "UPDATE"}),
}


def _reads(thing: Thing) -> frozenset[str]:
    return frozenset({"EXECUTE" if thing.kind == "FUNCTION" else "SELECT"})


def _writes(thing: Thing) -> frozenset[str]:
    """What the writer has beyond the reader."""
    if thing.kind != "TABLE" or _IS_MADE.match(thing.name):
        return frozenset()
    rights = _WRITER_BY_NAME.get(thing.name, _WRITE)
    return rights | {"TRUNCATE"} if _IS_EMPTIED.fullmatch(thing.name) else rights


def _standing(conn: Connection) -> Standing:
    with conn.cursor(row_factory=class_row(Standing)) as cursor:
        found = cursor.execute(STANDING, {"roles": list(ROLES)}).fetchone()
    if found is None:
        raise DatabaseError(
            "there is no schema to create anything in",
            hint="create the schema `public`, or set the search_path of this role",
        )
    return found


def _things(conn: Connection, names: Collection[str]) -> list[Thing]:
    with conn.cursor(row_factory=class_row(Thing)) as cursor:
        return cursor.execute(THINGS, {"names": list(names)}).fetchall()


def _hands_over(standing: Standing, things: Sequence[Thing]) -> bool:
    """Whether the tables are this user's to hand over. One table would not do: in a schema where
    anybody may create tables, anybody makes one with a name of ours."""
    owners = {each.owner for each in things}
    return standing.is_in_charge or owners == {standing.user_name}


def _wider(conn: Connection, members: Sequence[Membership]) -> tuple[Wider, ...]:
    params = {
        "roles": list(ROLES),
        "asked_roles": [role for role, _ in members],
        "asked_members": [member for _, member in members],
    }
    with conn.cursor(row_factory=class_row(Wider)) as cursor:
        return tuple(cursor.execute(WIDER, params))


def _check_members(conn: Connection, names: Sequence[str]) -> None:
    with conn.cursor(row_factory=scalar_row) as cursor:
        known = set(cursor.execute(KNOWN_ROLES, {"names": list(names)}))
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"the server has no role {name!r}",
                hint=f"create it first: CREATE ROLE {name} LOGIN PASSWORD '…'",
            )


def _words(words: str) -> sql.SQL:
    """SQL's own words, such as the names of rights that PostgreSQL gives."""
    literal: LiteralString = words  # pyright: ignore[reportAssignmentType]  # no user's text
    return sql.SQL(literal)


def _run(conn: Connection, statements: Sequence[sql.Composed]) -> None:
    try:
        for statement in statements:
            conn.execute(statement)
    except errors.InsufficientPrivilege as exc:
        raise DatabaseError(
            f"{exc.diag.message_primary} (SQLSTATE {exc.sqlstate})",
            hint="have an administrator, or the owner of the database with CREATEROLE, run "
            "`arc-halo db roles` with the same options and an address of their own",
        ) from exc
