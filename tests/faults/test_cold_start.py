"""A server that goes to sleep between two uses and wakes when it is asked, as Neon's do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from arc_halo import Project
from arc_halo.reconcile.progress import Advance, Silent
from tests.faults.contents import contents_of, write_contents
from tests.faults.servers import Server

MANIFEST = """
version: 1
project: sleepy
models:
  base: {version: 1.0.0, type: other, weights: base.safetensors}
"""


@pytest.fixture
def project(own_server: Server, tmp_path: Path) -> Iterator[Project]:
    own_server.start()
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)
    write_contents(tmp_path / "base.safetensors", contents_of(range(1)))
    url = own_server.url(own_server.create_database())
    with Project(tmp_path, database_url=url, environ={}) as opened:
        yield opened


@contextmanager
def asleep(server: Server) -> Iterator[None]:
    """The server is gone, with every connection, when the `with` begins, and then comes back."""
    server.stop("fast")
    waking = threading.Thread(target=server.start)
    waking.start()
    yield
    waking.join()


def test_connections_that_rested_while_the_server_slept_are_replaced(
    own_server: Server, project: Project
) -> None:
    project.plan()
    with asleep(own_server):
        assert project.plan().changes


def test_an_apply_whose_server_slept_since_the_plan_is_carried_out(
    own_server: Server, project: Project
) -> None:
    plan = project.plan()
    with asleep(own_server):
        assert project.apply(plan).revision == 1


def test_an_apply_whose_server_slept_between_its_build_and_its_commit_is_carried_out(
    own_server: Server, project: Project
) -> None:
    class Sleepy(Silent):
        """Sends the server to sleep when something is built."""

        @contextmanager
        def task(self, label: str, size_bytes: int) -> Iterator[Advance]:
            with super().task(label, size_bytes) as advance:
                yield advance
            naps.enter_context(asleep(own_server))

    with ExitStack() as naps:
        assert project.apply(project.plan(), progress=Sleepy()).revision == 1
    assert not project.plan().changes
    assert own_server.log().count("database system is ready") == 2
