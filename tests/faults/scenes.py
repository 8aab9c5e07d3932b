"""One database that something happens to, and what an import leaves in it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from arc_halo.errors import ArcHaloError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.plugins import PluginManager
from arc_halo.store import builds
from arc_halo.store.connection import pool
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, source_facts
from arc_halo.weights.building import Built
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import WeightStore
from tests.faults.contents import LARGE_BYTES, read_contents, shake, write_contents
from tests.faults.servers import PASSWORD, Server, wait_for

(SAFETENSORS,) = arc_halo_weight_formats()
GATE = 77
Facts = dict[str, list[tuple[Any, ...]]]


class Scene:
    """One database that something happens to, and the file that is imported into it."""

    def __init__(self, server: Server, database: str, file: Path) -> None:
        self.server = server
        self.database = database
        self.file = file
        self.root = source_facts(file, SAFETENSORS, DigestCache(None)).root

    @property
    def url(self) -> str:
        return self.server.url(self.database)

    @contextmanager
    def store(self, url: str | None = None, **settings: Any) -> Iterator[WeightStore]:
        codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
        with pool(url or self.url, 8) as opened:
            usual = {"pool": opened, "codecs": codecs, "codec": "raw"}
            yield WeightStore(**{**usual, **settings})

    def bring_in(self, store: WeightStore, **options: Any) -> Built:
        file, root = options.pop("file", self.file), options.pop("root", self.root)
        return import_weights(store, file, SAFETENSORS, root, label="m", **options)

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            return conn.execute(statement, parameters).fetchall()

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(statement)

    def rows(self, store: WeightStore) -> dict[str, builds.NamedTensor]:
        with store.pool.connection() as conn:
            found = builds.set_tensors(conn, self.set_id(store))
        return {row.name: row for row in found}

    def set_id(self, store: WeightStore) -> int:
        with store.pool.connection() as conn:
            return builds.sets_by_root(conn, [self.root])[self.root].id

    def facts(self) -> Facts:
        """All that the tables of weights hold, less what differs from run to run."""
        return {name: self.query(statement) for name, statement in FACTS.items()}

    def check_finished(self, undisturbed: Facts) -> None:
        """Import once more: then all is there, once, to the last bit."""
        with self.store() as store:
            built = self.bring_in(store)
            assert built.root == self.root
            assert self.facts() == undisturbed
            self.check_reads(store)

    def check_reads(self, store: WeightStore) -> None:
        """Every tensor of the file comes back to the last bit."""
        rows = self.rows(store)
        contents = read_contents(self.file)
        assert list(rows) == list(contents)
        for name, (dtype, shape, raw) in contents.items():
            array = read_array(store, rows[name], name)
            assert (rows[name].dtype, array.shape) == (dtype, shape)
            assert array.tobytes() == raw

    def large(self, directory: Path) -> Scene:
        """The same database with a file of one tensor that no socket's buffer holds."""
        file = directory / "large.safetensors"
        write_contents(file, {"one": ("U8", (LARGE_BYTES,), shake("large", LARGE_BYTES))})
        return Scene(self.server, self.database, file)

    def tail(self) -> bytes:
        """The raw bytes of the file's last tensor."""
        return [raw for _, _, raw in read_contents(self.file).values()][-1]

    def running(self, work: Callable[[], Any]) -> Future[Any]:
        """`work` in a thread of its own."""
        executor = ThreadPoolExecutor(1)
        future = executor.submit(work)
        executor.shutdown(wait=False)
        return future


FACTS = {
    "chunks": """SELECT digest, raw_bytes, stored_bytes, codec, base_digest, sha256(body)
                 FROM chunk_bodies ORDER BY digest""",
    "tensors": """SELECT digest, dtype, shape, size_bytes, chunk_bytes, chunk_count
                  FROM tensor_metadata ORDER BY digest""",
    "data": """SELECT t.digest, d.chunk_index, d.chunk_digest
               FROM tensor_data AS d JOIN tensor_metadata AS t ON t.id = d.tensor_id
               ORDER BY 1, 2""",
    "sets": """SELECT root, tensor_count, parameter_count, size_bytes
               FROM weight_sets ORDER BY root""",
    "members": """SELECT s.root, m.ordinal, m.tensor_name, t.digest
                  FROM weight_set_tensors AS m JOIN weight_sets AS s ON s.id = m.weight_set_id
                  JOIN tensor_metadata AS t ON t.id = m.tensor_id ORDER BY 1, 2""",
    "builds": "SELECT recipe_key, status FROM weight_builds ORDER BY recipe_key",
}

WAITING = """
SELECT pid FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND wait_event = 'advisory' AND datname = current_database()
"""


class Gate:
    """Stops a server process in the midst of a statement, or of its commit.

    Where a row for which `when` holds is inserted in `table`, or a weight set gets its root, the
    process waits until the gate is opened or the process is killed.
    """

    def __init__(self, scene: Scene, table: str, when: str = "true", *, commit: bool = False):
        self._scene = scene
        self._table = table
        kind = "CONSTRAINT TRIGGER" if commit else "TRIGGER"
        event = "UPDATE OF root" if table == "weight_sets" else "INSERT"
        deferred = "DEFERRABLE INITIALLY DEFERRED" if commit else ""
        scene.execute(
            f"""CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$;
                CREATE {kind} gate AFTER {event} ON {table} {deferred}
                FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION gate()"""
        )
        self._holder = psycopg.connect(scene.url, autocommit=True)
        self._holder.execute(f"SELECT pg_advisory_lock({GATE})")

    def is_reached(self) -> bool:
        return self._holder.execute(WAITING).fetchone() is not None

    def wait(self) -> int:
        """The pid of the process that has come to the gate."""
        (pid,) = wait_for(lambda: self._holder.execute(WAITING).fetchone())
        return int(pid)

    def open(self) -> None:
        self._holder.close()

    def remove(self) -> None:
        self._holder.close()
        self._scene.execute("DROP FUNCTION IF EXISTS gate() CASCADE")


def check_error(error: BaseException, kind: type[ArcHaloError]) -> None:
    """One of our errors, of that kind, that says what to do and no secret."""
    assert isinstance(error, kind), error
    assert error.message
    assert "\n" not in error.message
    assert error.hint
    assert PASSWORD not in "".join(traceback.format_exception(error))
