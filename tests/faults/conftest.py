"""A cluster made once and copied for whatever kills it; what an undisturbed import leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from arc_halo.store import migrate
from arc_halo.store.connection import connect
from tests.faults.contents import contents_of, write_contents
from tests.faults.scenes import Facts, Gate, Scene
from tests.faults.servers import Server, kept, new_directory


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_contents(tmp_path_factory.mktemp("model") / "m.safetensors", contents_of(range(6)))


@pytest.fixture(scope="session")
def cluster(model: Path) -> Iterator[tuple[Server, Facts]]:
    """A stopped server with a migrated database, to copy; what an undisturbed import leaves."""
    with kept(new_directory()) as server:
        server.run(
            server.programs / "initdb", "--no-sync", "--auth=trust", "--username=postgres",
            "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "-c", "max_wal_size=64MB",
            "-D", server.data,
        )  # fmt: skip
        server.start()
        with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
            conn.execute("CREATE DATABASE migrated TEMPLATE template0")
        with connect(server.url("migrated")) as conn:
            migrate.up(conn)
        scene = Scene(server, server.create_database(), model)
        with scene.store() as store:
            scene.bring_in(store)
        facts = scene.facts()
        with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {scene.database}")
        server.stop("fast")
        yield server, facts


@pytest.fixture(scope="session")
def undisturbed(
    cluster: tuple[Server, Facts],
) -> Facts:
    return cluster[1]


@contextmanager
def copied(template: Server) -> Iterator[Server]:
    with kept(new_directory()) as server:
        server.run("cp", "-a", template.data, server.data)
        yield server


@pytest.fixture(scope="module")
def server(cluster: tuple[Server, object]) -> Iterator[Server]:
    """A running server that the tests of a module share; each in a database of its own."""
    with copied(cluster[0]) as copy:
        copy.start(tcp=True)
        yield copy


@pytest.fixture
def own_server(cluster: tuple[Server, object]) -> Iterator[Server]:
    """A server of the test's own, not started."""
    with copied(cluster[0]) as copy:
        yield copy


@pytest.fixture
def scene(server: Server, model: Path) -> Scene:
    server.wait()
    return Scene(server, server.create_database(), model)


@pytest.fixture
def gate(scene: Scene) -> Iterator[Callable[..., Gate]]:
    made: list[Gate] = []

    def make(table: str, when: str = "true", *, commit: bool = False) -> Gate:
        made.append(Gate(scene, table, when, commit=commit))
        return made[-1]

    yield make
    for each in made:
        each.open()
