"""Who may ask, how much at once, and what becomes of it when the server is to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import openai
import pytest

from arc_halo.errors import InvalidInputError, NotFoundError, UsageError
from arc_halo.serving import running
from arc_halo.serving.app import Limits
from arc_halo.store import keys
from tests.serving.projects import SECRET

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from reactors_http import ask_at_once

HELLO = [{"role": "user", "content": "hello"}]


def refused(site, key):
    with pytest.raises(openai.AuthenticationError) as told:
        site.client(api_key=key).chat.completions.create(model="echo", messages=HELLO)
    assert told.value.status_code == 401
    assert told.value.code == "invalid_api_key"
    assert told.value.response.headers["www-authenticate"] == "Bearer"
    return told.value.response.text


def test_a_wrong_key_is_refused(site):
    for key in ("ah-wrong", site.key[:-1], f"{site.key}x", "schl\u00fcssel"[:4]):
        assert key not in refused(site, key)
    assert site.rows("SELECT count(*) FROM fusion_operations") == [(0,)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/echo", "/metrics"])
def test_nothing_but_health_is_told_without_a_key(site, path):
    assert httpx.get(f"{site.url}{path}").status_code == 401
    for header in ("Basic x", "Bearer", site.key):
        response = httpx.get(f"{site.url}{path}", headers={"Authorization": header})
        assert response.status_code == 401


def test_a_revoked_key_is_refused_at_once(site):
    key, made = site.make_key("soon gone")
    site.client(api_key=key).models.list()
    with site.project.connection() as conn:
        assert keys.revoke(conn, str(made.id)) is not None
        assert keys.revoke(conn, "soon gone") is None
    refused(site, key)


def test_a_key_whose_time_is_over_is_refused(site):
    key, _ = site.make_key("old", expires=timedelta(seconds=-1))
    refused(site, key)


def test_a_key_is_nowhere_in_the_database(site):
    site.client().completions.create(model="echo", prompt="x")
    tables = site.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        for row in site.rows(f'SELECT t::text FROM "{table}" AS t'):
            assert site.key not in row[0]
            assert site.key.removeprefix("ah-") not in row[0]
            assert SECRET not in row[0]


def test_when_a_key_was_used_is_noted(site):
    site.client().models.list()
    ((used,),) = site.rows("SELECT last_used_at FROM api_keys")
    site.client().models.list()
    assert site.rows("SELECT last_used_at FROM api_keys") == [(used,)]


def test_the_tenant_is_the_keys_and_no_input(site):
    key, _ = site.make_key("other", tenant="globex")
    body = {"model": "echo", "prompt": "x", "tenant": "somebody", "user": "somebody"}
    site.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    rows = site.rows("SELECT tenant, input FROM fusion_operations")
    assert rows == [("globex", ["x"])]


def test_without_keys_only_this_machine_may_ask(make_site):
    site = make_site(has_keys=False)
    body = {"model": "echo", "messages": HELLO}
    url = f"{site.url}/v1/chat/completions"
    assert httpx.post(url, json=body).status_code == 200
    assert httpx.post(url, json=body, headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "::"])
def test_others_cannot_be_let_in_without_keys(applied, host):
    with pytest.raises(UsageError, match="without keys others could ask"):
        running.serve(
            applied, names=(), host=host, port=0, limits=Limits(), has_keys=False,
            note=print, ready=print,
        )  # fmt: skip


def test_an_address_that_is_taken_is_told(site):
    port = int(site.url.rpartition(":")[2])
    with pytest.raises(InvalidInputError, match="cannot listen at"):
        running.listen("127.0.0.1", port)


def test_a_reactor_that_there_is_not_is_told(applied):
    with (
        pytest.raises(NotFoundError, match="no reactor 'dice'"),
        running.opened(applied, ("dice",), print),
    ):
        pass


def test_a_body_that_is_too_large_is_refused(site):
    messages = [{"role": "user", "content": "x" * 2**20}]
    with pytest.raises(openai.APIStatusError) as told:
        site.client().chat.completions.create(model="echo", messages=messages)
    assert told.value.status_code == 413


def test_a_body_that_does_not_say_how_large_it_is_is_refused_too(site):
    parts = (b"x" * 2**16 for _ in range(17))
    response = site.post(content=parts, headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_body_that_never_comes_is_given_up(make_site):
    site = make_site(limits=Limits(body_seconds=0.2))

    def parts():
        yield b"{"
        time.sleep(1)
        yield b"}"

    response = site.post(content=parts(), headers={"Content-Type": "application/json"})
    assert response.status_code == 408


def test_beyond_the_queue_they_are_told_to_come_again(make_site):
    site = make_site(limits=Limits(concurrency=2, queue=1))
    body = {"model": "slow", "prompt": "0.5"}

    def ask(_):
        return site.post("/v1/completions", json=body)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    statuses = sorted(each.status_code for each in found)
    assert statuses == [200] * 3 + [503] * 5
    for each in found:
        if each.status_code == 503:
            assert each.headers["retry-after"] == "1"
            assert each.json()["error"]["type"] == "server_error"


def test_no_more_runs_at_once_than_allowed(make_site):
    site = make_site(limits=Limits(concurrency=2))
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        body = {"model": "slow", "prompt": "0.2"}
        list(pool.map(lambda _: site.post("/v1/completions", json=body), range(6)))
    assert time.monotonic() - started >= 0.6


@pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=pytest.mark.campaign)], ids=["100", "1000"]
)
def test_of_many_requests_at_once_none_is_lost(site, count):
    found = ask_at_once(site.url, site.key, "many", count)
    assert [each.status for each in found] == [200] * count
    assert {each.text for each in found} == {"heads"}
    rows = site.rows("SELECT id::text, status, input FROM fusion_operations")
    assert {row[0] for row in rows} == {each.operation for each in found}
    assert {row[1] for row in rows} == {"completed"}
    assert sorted(row[2][0]["input"] for row in rows) == sorted(str(n) for n in range(count))
    asked = dict(site.rows("SELECT status, count(*) FROM fusion_operation_inputs GROUP BY status"))
    assert asked["answered"] + asked["failed"] == 20 * count
    assert 0.02 < asked["failed"] / (20 * count) < 0.09
    assert asked["failed"] == sum(each.left_out for each in found)
    assert site.notes == []


# Its end


@pytest.fixture
def program(applied):
    """Starts `arc-halo serve` as a process of its own; killed at the end."""
    started = []

    def start(*options):
        environ = {
            **os.environ,
            "SERVING_TEST_KEY": SECRET,
            "ARC_HALO_DATABASE_URL": applied.url,
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "arc_halo", "serve", "--port", "0", *options],
            cwd=applied.directory, env=environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url), process.communicate()[1]
        return process, url

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_answers_what_it_was_asked(program, number):
    process, url = program("--no-keys", "--reactor", "slow")
    found = []

    def ask():
        body = {"model": "slow", "prompt": "1.5"}
        found.append(httpx.post(f"{url}/completions", json=body, timeout=20))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    process.send_signal(number)
    time.sleep(0.4)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
    for thread in threads:
        thread.join()
    assert [each.json()["choices"][0]["text"] for each in found] == ["slept 1.5"] * 3
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "every request was answered"


def test_told_twice_it_answers_nobody_and_still_writes_down_what_runs(program, applied):
    process, url = program("--no-keys", "--reactor", "slow")
    found = []

    def ask():
        body = {"model": "slow", "prompt": "1.5"}
        found.append(httpx.post(f"{url}/completions", json=body, timeout=20))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.7)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    thread.join()
    _, err = process.communicate(timeout=20)
    assert [each.status_code for each in found] == [503]
    assert process.returncode == 130, err
    assert "Traceback" not in err
    with applied.connection() as conn:
        rows = conn.execute(b"SELECT status, output FROM fusion_operations").fetchall()
    assert rows == [("completed", {"texts": ["slept 1.5"]})]
