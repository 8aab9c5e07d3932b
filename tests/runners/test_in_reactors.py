"""The runners inside a reactor of a database: what is recorded, and what never is."""

from __future__ import annotations

import json
import os

import pytest
from starlette.responses import JSONResponse

from arc_halo.errors import ReactorError
from arc_halo.project import Project
from tests.runners.services import SECRET


@pytest.fixture
def opened(tmp_path, database, service):
    """Applies a project with the reactor `poets` of two models of the service, and opens it."""

    def opened(*, on_failure="fail", hosts=("127.0.0.1",), secrets=("THE_KEY",)):
        params = {"url": service.url, "model": "poet", "key": {"env": "THE_KEY"}, "retries": 0}
        runner = {"uses": "openai", "params": {**params, "concurrency": 1}}
        models = {
            f"{name}@1": {"type": "other", "architecture": {}, "runner": runner} for name in "ab"
        }
        document = {
            "version": 1,
            "project": "poets",
            "plugins": ["first.py"],
            "settings": {"allow": {"hosts": list(hosts), "secrets": list(secrets)}},
            "models": models,
            "reactors": {
                "poets": {
                    "type": "ensemble",
                    "strategy": "first",
                    "members": [{"model": "a"}, {"model": "b"}],
                    "run": {"on_failure": on_failure},
                }
            },
        }
        (tmp_path / "arc_halo.yaml").write_text(json.dumps(document))
        (tmp_path / "first.py").write_text(
            "from arc_halo import FusionStrategy, hookimpl\n"
            "@hookimpl\n"
            "def arc_halo_fusion_strategies():\n"
            "    yield FusionStrategy(name='first', summary='first', combine_outputs=first)\n"
            "def first(outputs, context):\n"
            "    return outputs[0]\n"
        )
        environ = {**os.environ, "THE_KEY": SECRET}
        project = Project(tmp_path, database_url=database, environ=environ)
        project.apply(project.plan())
        projects.append(project)
        return project

    projects = []
    yield opened
    for project in projects:
        project.close()


def everything(project):
    """All that the database holds, as text."""
    with project.connection() as conn:
        tables = conn.execute(
            b"SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        return "\n".join(
            str(row[0])
            for (table,) in tables
            for row in conn.execute(f'SELECT t::text FROM "{table}" AS t'.encode())
        )


def test_a_reactor_answers_through_the_service(opened, service):
    project = opened()
    with project.open_reactor("poets") as reactor:
        answer = reactor.run(["hello"])
    assert answer.outputs.texts == ("re: hello",)
    assert len(service.seen) == 2
    assert "re: hello" in everything(project)
    assert SECRET not in everything(project)


def test_a_key_that_the_service_echoes_comes_into_no_record(opened, service):
    def echo():
        return JSONResponse({"error": {"message": f"no such key: Bearer {SECRET}"}}, 401)

    service.script = [echo, echo]
    project = opened()
    with project.open_reactor("poets") as reactor, pytest.raises(ReactorError) as told:
        reactor.run(["hello"])
    assert "no such key: Bearer ***" in told.value.message
    found = everything(project)
    assert "no such key: Bearer ***" in found
    assert SECRET not in found


def test_a_member_that_is_skipped_is_told_without_its_key(opened, service):
    service.script = [lambda: JSONResponse({"error": SECRET}, 400)]
    project = opened(on_failure="skip")
    with project.open_reactor("poets") as reactor:
        answer = reactor.run(["hello"])
    assert [why.partition(": ")[2] for why in answer.left_out.values()] == ["HTTP 400: ***"]
    assert SECRET not in everything(project)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [({"hosts": []}, "the host 127.0.0.1 is not"), ({"secrets": []}, "the secret THE_KEY is not")],
    ids=["host", "secret"],
)
def test_what_the_project_does_not_allow_is_refused_before_anything_is_sent(
    opened, service, allowed, message
):
    project = opened(**allowed)
    with pytest.raises(ReactorError, match=message), project.open_reactor("poets"):
        pass
    assert service.seen == []
