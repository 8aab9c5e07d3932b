"""Inference sessions that are deleted: by name, or by age."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

import arc_halo
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError

Halo = arc_halo.Halo
Ask = Callable[..., list[tuple[Any, ...]]]

KEPT = "SELECT session_id, count(*) FROM inference_metrics GROUP BY 1"
OLDER = timedelta(days=30)


def recorded(halo: Halo, model: str = "story@1.0.0", requests: int = 3, **given: Any) -> UUID:
    """A session that is over."""
    with halo.inference.session(model, **given) as session:
        for _ in range(requests):
            session.record(latency_ms=1)
    return session.id


def age(sql: Ask, session: UUID, days: int) -> None:
    sql(
        "UPDATE inference_sessions SET started_at = started_at - %s, finished_at = finished_at - %s"
        " WHERE id = %s",
        timedelta(days=days),
        timedelta(days=days),
        session,
    )


def captured(sql: Ask, session: UUID) -> None:
    sql(
        "INSERT INTO attention_captures (session_id, input_digest, sequence_index, token_count,"
        " size_bytes) VALUES (%s, sha256(''), 0, 1, 0)",
        session,
    )


def test_a_session_goes_with_all_that_it_recorded(halo: Halo, sql: Ask) -> None:
    gone, other = recorded(halo), recorded(halo)
    captured(sql, gone)
    done = halo.inference.delete(str(gone)[:8], gone)
    assert ([each.id for each in done.sessions], done.requests, done.captures) == ([gone], 3, 1)
    assert [each.id for each in halo.inference.list()] == [other]
    assert sql(KEPT) == [(other, 3)]
    assert sql("SELECT count(*) FROM attention_captures") == [(0,)]


def test_all_go_or_none(halo: Halo) -> None:
    kept = recorded(halo)
    with pytest.raises(NotFoundError):
        halo.inference.delete(kept, uuid4())
    assert [each.id for each in halo.inference.list()] == [kept]


def test_a_session_at_work_is_not_deleted(halo: Halo, sql: Ask) -> None:
    over = recorded(halo)
    with halo.inference.session("story@1.0.0") as session:
        with pytest.raises(RefusedError, match="at work"):
            halo.inference.delete(over, session.id)
        assert halo.inference.get(over).status == "completed"
    assert len(halo.inference.delete(session.id).sessions) == 1


def test_one_that_crashed_is_deleted(halo: Halo, sql: Ask) -> None:
    session = halo.inference.session("story@1.0.0")
    sql("UPDATE inference_sessions SET heartbeat_at = heartbeat_at - interval '61 seconds'")
    assert [each.status for each in halo.inference.delete(session.id).sessions] == ["crashed"]
    session.finish()


def test_sessions_that_were_over_long_ago_are_pruned(halo: Halo, sql: Ask) -> None:
    old, new = recorded(halo), recorded(halo)
    age(sql, old, 31)
    age(sql, new, 29)
    would = halo.inference.prune(OLDER, dry_run=True)
    assert len(halo.inference.list()) == 2
    done = halo.inference.prune(OLDER)
    assert would == done
    assert ([each.id for each in done.sessions], done.requests) == ([old], 3)
    assert [each.id for each in halo.inference.list()] == [new]
    assert sql(KEPT) == [(new, 3)]
    assert halo.inference.prune(OLDER).sessions == []


def test_a_session_at_work_keeps_its_counts_and_loses_its_old_requests(
    halo: Halo, sql: Ask
) -> None:
    with halo.inference.session("story@1.0.0") as session:
        for _ in range(3):
            session.record(latency_ms=1)
        assert session.flush()
        age(sql, session.id, 40)
        sql(
            "UPDATE inference_metrics SET recorded_at = recorded_at - interval '31 days'"
            " WHERE id <> (SELECT max(id) FROM inference_metrics)"
        )
        assert halo.inference.prune(OLDER, dry_run=True).trimmed == 2
        done = halo.inference.prune(OLDER)
        assert (done.sessions, done.requests, done.trimmed) == ([], 0, 2)
        session.record(latency_ms=1)
    assert sql(KEPT) == [(session.id, 2)]
    assert halo.inference.get(session.id).request_count == 4


def test_one_that_crashed_is_as_old_as_its_last_sign(halo: Halo, sql: Ask) -> None:
    session = halo.inference.session("story@1.0.0")
    sql("UPDATE inference_sessions SET started_at = '2000-01-01', heartbeat_at = '2000-01-02'")
    assert [each.id for each in halo.inference.prune(OLDER).sessions] == [session.id]
    session.finish()


def test_a_model_or_a_tenant_is_pruned(halo: Halo) -> None:
    first = recorded(halo, "story@1.0.0", tenant="acme")
    second = recorded(halo, "story@2.0.0", tenant="acme")
    third = recorded(halo, "poet@1.0.0", tenant="beta")
    now = timedelta(0)

    def would(**given: Any) -> set[UUID]:
        return {each.id for each in halo.inference.prune(now, dry_run=True, **given).sessions}

    assert would(model="story") == would(tenant="acme") == {first, second}
    assert would(model="story@2.0.0", tenant="acme") == {second}
    assert would(model="poet", tenant="acme") == set()
    assert would() == {first, second, third}


@pytest.mark.parametrize("given", [timedelta(days=-1), timedelta(days=10**6), 30, "30d", None])
def test_what_is_no_age_is_refused(halo: Halo, given: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        halo.inference.prune(given)
    assert refused.value.hint
