"""Sessions of inference: begun, recorded in, cut off, and ended."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

import arc_halo
from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.inference import sessions
from arc_halo.inference.delivering import Delivery
from arc_halo.inference.sessions import InferenceSession

Halo = arc_halo.Halo
Ask = Callable[..., list[tuple[Any, ...]]]

COUNTS = """
SELECT request_count, failed_count, lost_count, prompt_tokens, cached_tokens, generated_tokens
FROM inference_sessions
"""
KEPT = "SELECT count(*) FROM inference_metrics"


CYCLE: dict[str, Any] = {}
CYCLE["again"] = [CYCLE]


def shown(given: object) -> str:
    """A parameter in the name of its test, the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(given))


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def ask(database: str) -> Iterator[Ask]:
    with psycopg.connect(database, autocommit=True) as conn:

        def ask(text: str, *given: Any) -> list[tuple[Any, ...]]:
            cursor = conn.execute(text, given or None)
            return cursor.fetchall() if cursor.description else []

        yield ask


def status(ask: Ask) -> str:
    ((found,),) = ask("SELECT status FROM v_inference_sessions")
    return found


def test_what_requests_took_is_in_the_database(halo: Halo, ask: Ask) -> None:
    with halo.inference.session(
        "story@1.0.0", config={"temperature": 0.7, "top_k": 50}, tenant="acme"
    ) as session:
        session.record(
            latency_ms=250,
            first_token_ms=50,
            prompt_tokens=100,
            cached_tokens=64,
            generated_tokens=20,
            memory_bytes=2**40,
        )
        session.record(latency_ms=10, succeeded=False)
        assert session.flush()
        assert status(ask) == "active"
    assert ask(
        "SELECT latency_ms, first_token_ms, tokens_per_second, prompt_tokens, cached_tokens,"
        " generated_tokens, memory_bytes, succeeded FROM inference_metrics ORDER BY id LIMIT 1"
    ) == [(250, 50, 80, 100, 64, 20, 2**40, True)]
    assert ask(COUNTS) == [(2, 1, 0, 100, 64, 20)]
    assert status(ask) == "completed"
    assert ask(
        "SELECT model_name, model_version, tenant, config, root, pid FROM inference_sessions"
    ) == [("story", "1.0.0", "acme", {"temperature": 0.7, "top_k": 50}, None, os.getpid())]


def test_a_request_is_timed_from_its_beginning_to_its_end(halo: Halo, ask: Ask) -> None:
    with halo.inference.session("story@1.0.0") as session:
        with session.request(prompt_tokens=8) as request:
            request.first_token()
            request.first_token()
            request.done(generated_tokens=5, cached_tokens=4)
        with pytest.raises(KeyError), session.request():
            raise KeyError("prompt")
        session.request(prompt_tokens=1).done(succeeded=False)
    rows = ask(
        "SELECT first_token_ms BETWEEN 0 AND latency_ms, prompt_tokens, cached_tokens,"
        " generated_tokens, tokens_per_second > 0, succeeded, memory_bytes > 1000000,"
        " clock_timestamp() - recorded_at < interval '1 minute' FROM inference_metrics ORDER BY id"
    )
    assert rows == [
        (True, 8, 4, 5, True, True, True, True),
        (None, None, None, None, None, False, True, True),
        (None, 1, None, None, None, False, True, True),
    ]


def test_a_registered_model_says_which_weights_answer(halo: Halo, ask: Ask) -> None:
    ((model,),) = ask(
        "INSERT INTO models (model_name, version, model_type, architecture_config)"
        " VALUES ('story', '2.0.0', 'transformer', '{}') RETURNING id"
    )
    halo.inference.session("story").finish()
    halo.inference.session(model, root=b"r" * 32).finish()
    assert ask("SELECT model_version, model_id, root FROM inference_sessions ORDER BY 3") == [
        ("2.0.0", model, b"r" * 32),
        ("2.0.0", model, None),
    ]


def test_the_latency_is_told_in_percentiles(halo: Halo) -> None:
    with halo.inference.session("story@1.0.0") as session:
        for i in range(101):
            session.record(
                latency_ms=100 + i,
                first_token_ms=i,
                prompt_tokens=10,
                cached_tokens=i % 2 * 10,
                tokens_per_second=5,
            )
        session.record(latency_ms=10_000, succeeded=False)
    found = halo.inference.latency(str(session.id)[:8])
    assert (found.requests, found.failed) == (102, 1)
    assert (found.latency_p50_ms, found.latency_p95_ms, found.latency_p99_ms) == (150, 195, 199)
    assert (found.first_token_p50_ms, found.first_token_p95_ms) == (50, 95)
    assert found.tokens_per_second == 5
    assert found.cached_share == pytest.approx(50 / 101)


def test_trends_are_by_model_and_hour(halo: Halo, ask: Ask) -> None:
    for model, latency in (("a@1", 10), ("a@1", 30), ("b@1", 5)):
        with halo.inference.session(model) as session:
            session.record(latency_ms=latency, generated_tokens=3)
    ask("UPDATE inference_metrics SET recorded_at = '2000-01-01 10:30'")
    assert ask(
        "SELECT model_name, hour = '2000-01-01 10:00', sessions, requests, latency_p50_ms,"
        " generated_tokens FROM v_inference_trends ORDER BY 1"
    ) == [("a", True, 2, 2, 20, 6), ("b", True, 1, 1, 5, 3)]


NONSENSE = [
    {"latency_ms": math.nan},
    {"latency_ms": -1},
    {"latency_ms": "soon"},
    {"latency_ms": object()},
    {"latency_ms": None},
]


@pytest.mark.parametrize("given", NONSENSE, ids=shown)
def test_a_request_without_a_latency_is_not_recorded(
    halo: Halo, ask: Ask, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with halo.inference.session("story@1.0.0") as session:
        session.record(**given)
        session.record(latency_ms=1)
    assert ask(KEPT) == [(1,)]
    assert "latency" in caplog.text


def test_what_makes_no_sense_is_left_out_and_the_request_is_kept(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    anything: Any = object()
    with halo.inference.session("story@1.0.0") as session:
        for _ in range(3):
            session.record(
                latency_ms=0,
                first_token_ms=5,
                tokens_per_second=math.inf,
                prompt_tokens=3,
                cached_tokens=4,
                generated_tokens=2**31,
                memory_bytes=anything,
            )
    assert ask(
        "SELECT DISTINCT first_token_ms, tokens_per_second, prompt_tokens, cached_tokens,"
        " generated_tokens FROM inference_metrics"
    ) == [(None, None, 3, None, None)]
    assert len(caplog.messages) == len(set(caplog.messages)) == 5


class _CutOff(Delivery):
    """Loses the connection where the answer to a commit would come."""

    is_cut = True

    def deliver(self, batch: Any) -> None:
        super().deliver(batch)
        if self.is_cut:
            self.is_cut = False
            raise OSError("the line was cut after the commit")


def test_a_batch_that_is_tried_again_counts_once(halo: Halo, ask: Ask) -> None:
    session = halo.inference.session("story@1.0.0")
    session._delivery = _CutOff(session._delivery._line._connect, session.id)
    session._log._delivery = session._delivery
    session.record(latency_ms=1, prompt_tokens=7)
    assert not session.flush()
    session.record(latency_ms=2, prompt_tokens=1)
    assert session.flush()
    session.finish()
    assert ask(COUNTS) == [(2, 0, 0, 8, 0, 0)]
    assert ask(KEPT) == [(2,)]


def test_a_first_try_that_still_runs_is_waited_for(halo: Halo, ask: Ask, database: str) -> None:
    session = halo.inference.session("story@1.0.0")
    session._delivery._line.patience_seconds = 0.3
    with psycopg.connect(database) as first:  # as the server has it after the line was cut
        first.execute("UPDATE inference_sessions SET batch_count = 1, request_count = 1")
        session.record(latency_ms=1)
        assert not session.flush()
        session._delivery._line.patience_seconds = 30
        first.commit()
    assert session.flush()
    session.finish()
    assert ask("SELECT request_count, batch_count FROM inference_sessions") == [(1, 1)]
    assert ask(KEPT) == [(0,)]


def away(ask: Ask) -> None:
    ask("ALTER TABLE inference_metrics RENAME TO hidden")


def back(ask: Ask) -> None:
    ask("ALTER TABLE hidden RENAME TO inference_metrics")


def test_requests_wait_while_the_database_is_away(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.inference.session("story@1.0.0") as session:
        away(ask)
        session.record(latency_ms=1)
        assert not session.flush()
        session.record(latency_ms=2)
        assert not session.flush()
        back(ask)
        assert session.flush()
    assert ask("SELECT latency_ms FROM inference_metrics ORDER BY id") == [(1,), (2,)]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "requests wait in memory",
        "the database answers again",
    ]


def test_of_too_many_that_wait_the_oldest_are_lost_but_counted(halo: Halo, ask: Ask) -> None:
    with halo.inference.session("story@1.0.0", queue_requests=3) as session:
        away(ask)
        session.record(latency_ms=0, prompt_tokens=1)
        assert not session.flush()
        session._log._retry_at = math.inf
        for i in range(1, 9):
            session.record(latency_ms=i, prompt_tokens=1, succeeded=i != 2)
        assert session.dropped == 5
        back(ask)
        assert session.flush()
    assert ask("SELECT latency_ms FROM inference_metrics ORDER BY id") == [(0,), (6,), (7,), (8,)]
    assert ask(COUNTS) == [(9, 1, 5, 9, 0, 0)]


def test_the_end_does_not_raise_where_the_database_is_away(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "END_SECONDS", 0.3)
    with halo.inference.session("story@1.0.0") as session:
        away(ask)
        session.record(latency_ms=1)
    assert session.dropped == 1
    assert status(ask) == "active"
    assert len(caplog.messages) == 2
    assert caplog.messages[1].endswith("is not recorded, nor what 1 request took")
    assert not session.flush()


def test_a_server_that_hangs_does_not_keep_a_session_from_its_end(
    halo: Halo,
    ask: Ask,
    database: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "END_SECONDS", 0.3)
    session = halo.inference.session("story@1.0.0")
    with psycopg.connect(database) as other:
        other.execute("LOCK inference_metrics IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            session.record(latency_ms=1)
        session.finish()
        assert session.dropped == 3
        assert not session.flush()
        session._log._thread.join()
    assert ask(COUNTS) == [(0, 0, 0, 0, 0, 0)]
    assert [each.message for each in caplog.records if each.name == "arc_halo.inference"] == [
        f"the end of the inference session {session.id} is not recorded, nor what 3 requests took"
    ]


def test_a_line_that_is_opened_too_late_is_not_written_to(
    halo: Halo, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "END_SECONDS", 0.3)
    session = halo.inference.session("story@1.0.0")
    is_late = threading.Event()
    connect = session._delivery._line._connect

    def slow() -> Any:
        is_late.wait()
        return connect()

    session._delivery._line._connect = slow
    session.record(latency_ms=1)
    session.finish()
    is_late.set()
    session._log._thread.join()
    assert session.dropped == 1
    assert ask(KEPT) == [(0,)]


def test_what_was_lost_is_told_once(halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with halo.inference.session("story@1.0.0", queue_requests=2) as session:
        away(ask)
        for _ in range(5):
            session.record(latency_ms=1)
        back(ask)
    assert status(ask) == "completed"
    assert caplog.messages[-1] == (
        f"of the inference session {session.id} it is lost what 3 requests took"
    )


def test_a_deleted_session_is_written_to_no_more(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.inference.session("story@1.0.0") as session:
        ask("DELETE FROM inference_sessions")
        session.record(latency_ms=1)
        assert not session.flush()
        session.record(latency_ms=1)
        assert session.dropped == 2
    assert ask(KEPT) == [(0,)]
    assert "was deleted" in caplog.text


def test_a_session_that_is_idle_gives_signs_of_life(halo: Halo, ask: Ask) -> None:
    with halo.inference.session(
        "story@1.0.0", flush_seconds=0.01, heartbeat_seconds=0.01
    ) as session:
        ask("UPDATE inference_sessions SET heartbeat_at = '2000-01-01', started_at = '2000-01-01'")
        assert status(ask) == "crashed" or session.flush()
        while status(ask) == "crashed":
            pass
    assert status(ask) == "completed"


def test_a_killed_program_leaves_a_session_that_counts_as_crashed(
    halo: Halo, ask: Ask, database: str, tmp_path: Path
) -> None:
    script = (
        "import arc_halo, os, signal\n"
        f"with arc_halo.connect({database!r}, project={str(tmp_path)!r}) as halo:\n"
        "    session = halo.inference.session('story@1.0.0')\n"
        "    session.record(latency_ms=1)\n"
        "    assert session.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert status(ask) == "active"
    ask("UPDATE inference_sessions SET heartbeat_at = heartbeat_at - interval '61 seconds'")
    assert [each.status for each in halo.inference.list()] == ["crashed"]
    assert halo.inference.list(status="active") == []
    assert ask(KEPT) == [(1,)]


def test_a_program_that_ends_ends_its_sessions(database: str, tmp_path: Path, ask: Ask) -> None:
    script = (
        "import arc_halo\n"
        f"halo = arc_halo.connect({database!r}, project={str(tmp_path)!r})\n"
        "session = halo.inference.session('story@1.0.0')\n"
        "session.record(latency_ms=1)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert status(ask) == "completed"
    assert ask(KEPT) == [(1,)]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", script + "raise KeyError('x')"], check=True)
    assert ask("SELECT status, error FROM inference_sessions ORDER BY started_at DESC LIMIT 1") == [
        ("failed", "KeyError: 'x'")
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("postgresql://u:secret@h/d"), ("failed", "ValueError: postgresql://u:***@h/d")),
        (KeyboardInterrupt(), ("completed", None)),
        (SystemExit(0), ("completed", None)),
        (SystemExit(3), ("failed", "SystemExit: 3")),
    ],
    ids=shown,
)
def test_what_ends_a_session_is_told(
    halo: Halo, ask: Ask, error: BaseException, expected: tuple[str, str | None]
) -> None:
    with pytest.raises(type(error)), halo.inference.session("story@1.0.0"):
        raise error
    assert ask("SELECT status, error FROM inference_sessions") == [expected]


def test_after_the_end_nothing_is_recorded(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.inference.session("story@1.0.0") as session:
        pass
    session.record(latency_ms=1)
    session.finish("failed")
    assert session.flush()
    assert "after the end" in caplog.text
    assert ask(KEPT) == [(0,)]
    assert status(ask) == "completed"


def test_requests_of_many_threads_are_all_counted(halo: Halo, ask: Ask) -> None:
    def work(session: InferenceSession) -> None:
        for _ in range(500):
            session.record(latency_ms=1, generated_tokens=1)

    with halo.inference.session("story@1.0.0", flush_seconds=0.001) as session:
        threads = [threading.Thread(target=work, args=(session,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ask(COUNTS) == [(2000, 0, 0, 0, 0, 2000)]
    assert ask(KEPT) == [(2000,)]


def test_a_forked_process_records_nothing_and_waits_for_nothing(halo: Halo, ask: Ask) -> None:
    with halo.inference.session("story@1.0.0") as session:
        session.record(latency_ms=1)
        if (child := os.fork()) == 0:
            signal.alarm(20)
            session.record(latency_ms=1)
            session.finish()
            os._exit(session.flush())
        assert os.waitpid(child, 0)[1] == 0
    assert ask(KEPT) == [(1,)]


def test_sessions_are_found_by_the_beginning_of_their_ids(halo: Halo, ask: Ask) -> None:
    for end in ("1", "2"):
        ask(
            "INSERT INTO inference_sessions (id, model_name, model_version, tenant)"
            " VALUES (%s, 'story', '1', %s)",
            f"0f6e2a{end}0-0000-4000-8000-000000000000",
            end,
        )
    assert halo.inference.get("0F6E2A1").tenant == "1"
    with pytest.raises(InvalidInputError, match="begins several ids"):
        halo.inference.get("0f6e2a")
    for unknown in ("0f6e", "story", uuid4()):
        with pytest.raises(NotFoundError):
            halo.inference.get(unknown)
    assert [each.model for each in halo.inference.list(model="story@1", tenant="2")] == ["story@1"]
    assert halo.inference.list(model="story@2") == []


@pytest.mark.parametrize(
    "given",
    [
        {"config": {"at": object()}},
        {"config": {"top_p": math.nan}},
        {"config": "greedy"},
        {"config": CYCLE},
        {"tenant": "a\0"},
        {"tenant": None},
        {"root": b"short"},
        {"root": "story"},
        {"flush_seconds": 0},
        {"flush_seconds": "1s"},
        {"heartbeat_seconds": 61},
        {"heartbeat_seconds": math.nan},
        {"queue_requests": 0},
        {"queue_requests": 1.5},
        {"queue_requests": None},
    ],
    ids=shown,
)
def test_a_session_refuses_what_makes_no_sense(halo: Halo, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        halo.inference.session("story@1.0.0", **given)
    assert refused.value.hint


@pytest.mark.parametrize(
    "given",
    [
        {"limit": -1},
        {"limit": "10"},
        {"limit": 2**70},
        {"model": 1},
        {"model": "\ud800"},
        {"tenant": b"acme"},
        {"status": "running"},
        {"status": ["active"]},
    ],
    ids=shown,
)
def test_a_list_refuses_what_makes_no_sense(halo: Halo, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        halo.inference.list(**given)
    assert refused.value.hint


@pytest.mark.parametrize("given", [None, "", 7, b"0f6e2a", object(), "x"], ids=shown)
def test_what_is_no_id_names_no_session(halo: Halo, given: Any) -> None:
    for ask in (halo.inference.get, halo.inference.latency, halo.inference.delete):
        with pytest.raises(NotFoundError) as unknown:
            ask(given)
        assert unknown.value.hint


def test_a_session_is_named_by_what_the_api_gave(halo: Halo) -> None:
    with halo.inference.session("story@1.0.0") as session:
        session.record(latency_ms=1)
        assert session.flush()
        (row,) = halo.inference.list()
        for given in (session, row, session.id, str(session.id)):
            assert halo.inference.get(given).id == session.id
            assert halo.inference.latency(given).requests == 1
    assert halo.inference.get(row).status == "completed"
    assert [each.id for each in halo.inference.delete(row, session).sessions] == [row.id]
    with pytest.raises(NotFoundError, match=f"no inference session '{row.id}'"):
        halo.inference.get(row)
    with pytest.raises(NotFoundError, match="session of the type list"):
        halo.inference.get([row])  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", ["soon", math.nan, math.inf, -1, True], ids=shown)
def test_a_flush_refuses_what_is_no_time(halo: Halo, timeout: Any) -> None:
    with halo.inference.session("story@1.0.0") as session:
        with pytest.raises(InvalidInputError, match="timeout"):
            session.flush(timeout)
        assert session.flush(100)


@pytest.mark.parametrize("given", [("crashed",), (None,), ("failed", KeyError("x"))], ids=shown)
def test_an_end_that_makes_no_sense_is_none(halo: Halo, ask: Ask, given: Any) -> None:
    session = halo.inference.session("story@1.0.0")
    with pytest.raises(InvalidInputError) as refused:
        session.finish(*given)
    assert refused.value.hint
    assert status(ask) == "active"
    session.finish()
    assert status(ask) == "completed"


def test_a_model_that_is_not_registered_needs_a_version(halo: Halo) -> None:
    with pytest.raises(NotFoundError, match="no model 'story'"):
        halo.inference.session("story")


def test_warnings_are_of_our_logger(halo: Halo, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "arc_halo.inference"),
        halo.inference.session("a@1") as s,
    ):
        s.record(latency_ms=-1)
    assert {record.name for record in caplog.records} == {"arc_halo.inference"}
