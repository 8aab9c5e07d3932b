"""Vectors at run time: they come and go with their tensor, and no extension is required."""

from __future__ import annotations

import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from psycopg import sql as psql

from arc_halo.errors import ArcHaloError, DatabaseError
from arc_halo.store import embeddings, migrate
from arc_halo.store.catalogue import read_catalogue
from arc_halo.store.connection import Connection, connect

VECTORS = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (-1.0, 0.0)]


@pytest.fixture
def own(database: str) -> Iterator[Connection]:
    with connect(database) as conn:
        yield conn


def has_pgvector(conn: Connection) -> bool:
    found = conn.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
    return found.fetchone() == (1,)


def extension(conn: Connection) -> embeddings.Extension | None:
    """pgvector; on a server without it, None, after a look at what it says."""
    if has_pgvector(conn):
        return embeddings.ensure_extension(conn)
    with pytest.raises(DatabaseError, match="no pgvector") as refused:
        embeddings.ensure_extension(conn)
    assert "is exact" in str(refused.value.hint)
    return None


def new_tensor(conn: Connection, number: int = 1) -> int:
    row = conn.execute(
        "INSERT INTO tensor_metadata (digest, dtype, shape, element_count, size_bytes,"
        " chunk_bytes, chunk_count) VALUES (%s, 'F32', '{4,2}', 8, 32, 262144, 1) RETURNING id",
        [bytes([number]) * 32],
    ).fetchone()
    assert row is not None
    return int(row[0])


def packed(vectors: Sequence[tuple[float, ...]]) -> tuple[int, bytes]:
    rows = [
        struct.pack(f">hiqihh{len(v)}e", 2, 8, i, 4 + 2 * len(v), len(v), 0, *v)
        for i, v in enumerate(vectors)
    ]
    return len(vectors), b"".join(rows)


def create(conn: Connection, found: embeddings.Extension, tensor: int) -> bool:
    with conn.transaction():
        return embeddings.create_index(
            conn, found, tensor_id=tensor, dimension=2, rows=[packed(VECTORS)]
        )


def search(
    conn: Connection, tensor: int, vector: tuple[float, ...], without: int | None = None
) -> list[int] | None:
    return embeddings.search(
        conn,
        tensor_id=tensor,
        dimension=2,
        vector=vector,
        limit=3,
        ef_search=10,
        without=without,
    )


def tables(conn: Connection) -> list[str]:
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relname LIKE 'embedding\\_vectors%' AND relkind = 'r'"
    )
    return [name for (name,) in rows]


def test_rows_are_found_by_their_angle_and_one_can_be_left_out(own: Connection) -> None:
    if found := extension(own):
        tensor = new_tensor(own)
        assert create(own, found, tensor)
        assert embeddings.indexed_rows(own, tensor) == 4
        assert search(own, tensor, (1, 0.1)) == [0, 2, 1]
        assert search(own, tensor, (1, 0.1), without=0) == [2, 1, 3]


def test_a_search_walks_the_index(own: Connection) -> None:
    if found := extension(own):
        tensor = new_tensor(own)
        create(own, found, tensor)
        statement = embeddings._SEARCH.format(**embeddings._names(found, tensor, 2))
        with own.transaction():
            own.execute(embeddings.TUNE_SEARCH, {"ef_search": "10"})
            plan = own.execute(
                psql.SQL("EXPLAIN ") + statement, {"vector": "[1,0]", "without": 1, "limit": 3}
            ).fetchall()
        assert f"Index Scan using embedding_vectors_{tensor}_idx" in str(plan)


def test_nothing_stays_set_after_a_search(own: Connection) -> None:
    if found := extension(own):
        tensor = new_tensor(own)
        create(own, found, tensor)
        shown = "SELECT current_setting('enable_seqscan'), current_setting('hnsw.ef_search', true)"
        search(own, tensor, (1, 0))
        assert own.execute(shown).fetchone() == ("on", "40")


def test_an_index_is_dropped_with_its_tensor(own: Connection) -> None:
    if found := extension(own):
        first, second = new_tensor(own, 1), new_tensor(own, 2)
        create(own, found, first)
        create(own, found, second)
        own.execute("DELETE FROM tensor_metadata WHERE id = %s", [first])
        assert tables(own) == [f"embedding_vectors_{second}"]
        assert search(own, first, (1, 0)) is None
        assert embeddings.drop_index(own, second)
        assert not embeddings.drop_index(own, second)
        assert tables(own) == []


def test_a_rollback_takes_the_vectors_along(own: Connection) -> None:
    before = read_catalogue(own)
    if found := extension(own):
        create(own, found, new_tensor(own))
        assert tables(own) != []
    migrate.down(own, to="2")
    assert tables(own) == []
    migrate.down(own, to="0")
    migrate.up(own)
    assert read_catalogue(own) == before


def test_an_index_that_fails_leaves_nothing(own: Connection) -> None:
    def rows() -> Iterator[tuple[int, bytes]]:
        yield packed(VECTORS)
        raise ValueError("the matrix cannot be read")

    if found := extension(own):
        tensor = new_tensor(own)
        with pytest.raises(ValueError, match="cannot be read"), own.transaction():
            embeddings.create_index(own, found, tensor_id=tensor, dimension=2, rows=rows())
        assert tables(own) == []
        assert create(own, found, tensor)


def test_of_two_programs_that_index_a_tensor_one_waits_and_has_nothing_to_do(
    own: Connection, database: str
) -> None:
    made: list[bool] = []
    if found := extension(own):
        tensor = new_tensor(own)

        def second() -> None:
            with connect(database) as conn:
                made.append(create(conn, found, tensor))

        thread = threading.Thread(target=second)
        with own.transaction():
            assert create(own, found, tensor)
            thread.start()
            wait_for_a_lock(database)
        thread.join()
        assert made == [False]
        assert search(own, tensor, (1, 0.1)) == [0, 2, 1]


def wait_for_a_lock(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        query = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        while not conn.execute(query).fetchall():
            conn.execute("SELECT pg_sleep(0.01)")


def test_vectors_that_went_with_the_extension_are_made_anew(own: Connection) -> None:
    if found := extension(own):
        tensor = new_tensor(own)
        create(own, found, tensor)
        embeddings.drop_broken_index(own, tensor)  # it is whole
        assert search(own, tensor, (1, 0.1)) == [0, 2, 1]
        own.execute("DROP EXTENSION vector CASCADE")
        assert search(own, tensor, (1, 0)) is None
        found = embeddings.ensure_extension(own)
        assert search(own, tensor, (1, 0)) is None
        embeddings.drop_broken_index(own, tensor)
        assert create(own, found, tensor)
        assert search(own, tensor, (1, 0.1)) == [0, 2, 1]


def test_the_extension_may_be_in_another_schema(own: Connection) -> None:
    if has_pgvector(own):
        own.execute('CREATE SCHEMA "Odd schema"')
        own.execute('CREATE EXTENSION vector SCHEMA "Odd schema"')
        tensor = new_tensor(own)
        assert create(own, embeddings.ensure_extension(own), tensor)
        assert search(own, tensor, (1, 0.1)) == [0, 2, 1]


@pytest.fixture
def as_nobody(own: Connection) -> Iterator[Callable[[], Connection]]:
    """Turns the connection's role into one that may do nothing."""
    role = psql.Identifier(f"nobody_{uuid.uuid4().hex[:8]}")
    own.execute(psql.SQL("CREATE ROLE {}").format(role))

    def turn() -> Connection:
        own.execute(psql.SQL("SET ROLE {}").format(role))
        return own

    yield turn
    own.execute("RESET ROLE")
    own.execute(psql.SQL("DROP ROLE {}").format(role))


def test_who_may_not_create_the_extension_is_told_what_to_do(
    as_nobody: Callable[[], Connection],
) -> None:
    with pytest.raises(DatabaseError, match="pgvector") as refused:
        embeddings.ensure_extension(as_nobody())
    assert "pgvector" in str(refused.value.hint) or "CREATE EXTENSION" in str(refused.value.hint)
    assert "is exact" in str(refused.value.hint)


def test_who_may_not_create_it_uses_the_one_that_is_there(
    own: Connection, as_nobody: Callable[[], Connection]
) -> None:
    if found := extension(own):
        assert embeddings.ensure_extension(as_nobody()) == found


def test_an_extension_without_half_vectors_is_refused(own: Connection) -> None:
    if extension(own) is not None:
        own.execute("ALTER TYPE halfvec RENAME TO quarter")
        with pytest.raises(ArcHaloError, match=r"0\.7\.0") as refused:
            embeddings.ensure_extension(own)
        assert "ALTER EXTENSION vector UPDATE" in str(refused.value.hint)


def test_a_table_that_is_in_the_way_is_not_dropped(own: Connection) -> None:
    if found := extension(own):
        tensor = new_tensor(own)
        table = psql.Identifier(f"embedding_vectors_{tensor}")
        own.execute(psql.SQL("CREATE TABLE {} (theirs int)").format(table))
        with pytest.raises(psycopg.errors.DuplicateTable):
            create(own, found, tensor)
        assert tables(own) == [f"embedding_vectors_{tensor}"]
