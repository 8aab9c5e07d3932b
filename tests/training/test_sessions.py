"""Sessions of training: begun, logged to, lost, taken up again, forked and ended."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest

import arc_halo
from arc_halo.errors import (
    DatabaseError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
    TrainingError,
)
from arc_halo.training.logging import LogSettings, PointLog
from arc_halo.training.spool import Spool
from arc_halo.training.system import reader

Halo = arc_halo.Halo
CreateDatabase = Callable[[str | None], str]
Ask = Callable[..., list[tuple[Any, ...]]]
POINTS = """
SELECT metric_key, scope, step, epoch, value FROM training_series
JOIN training_metrics ON series_id = id ORDER BY 1, 2, 3
"""


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


def status(ask: Ask) -> list[tuple[Any, ...]]:
    return ask("SELECT session_name, status, current_step FROM v_training_progress ORDER BY 1")


def test_what_is_logged_is_in_the_database(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", config={"lr": 0.1}, name="first") as run:
        run.log({"loss": 2.5, "norm": np.float32(0.5)}, step=0, epoch=0.25)
        run.log({"loss": math.nan}, step=1)
        run.log({"loss": math.inf}, step=0, scope="eval")
        assert run.flush()
        assert status(ask) == [("first", "running", 0)]
    assert str(ask(POINTS)) == str(
        [
            ("loss", "eval", 0, None, math.inf),
            ("loss", "train", 0, 0.25, 2.5),
            ("loss", "train", 1, None, math.nan),
            ("norm", "train", 0, 0.25, 0.5),
        ]
    )
    assert status(ask) == [("first", "completed", 0)]
    assert ask("SELECT model_name, model_version, config, pid FROM training_sessions") == [
        ("story", "1.0.0", {"lr": 0.1}, os.getpid())
    ]


def test_steps_count_themselves(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="counted") as run:
        for loss in (3, 2, 1):
            run.log({"loss": loss})
        run.log({"loss": 0.5}, step=10)
        run.log({"loss": 0.25})
    assert [row[2] for row in ask(POINTS)] == [0, 1, 2, 10, 11]


def test_a_step_that_is_logged_again_is_replaced(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0") as run:
        for step in range(5):
            run.log({"loss": step}, step=step)
        run.flush()
        run.log({"loss": 30}, step=3, epoch=1.5)
        run.log({"loss": 31}, step=3, epoch=1.5)
        run.log({"loss": 50}, step=5)
    assert [row[2:] for row in ask(POINTS)] == [
        (0, None, 0), (1, None, 1), (2, None, 2), (3, 1.5, 31), (4, None, 4), (5, None, 50),
    ]  # fmt: skip


def test_copied_and_merged_points_have_their_times_alike(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0") as run:
        run.log({"copied": 1}, step=3)
        run.log({"merged": 1}, step=3)
        run.flush()
        run.log({"copied": 2}, step=4)
        run.log({"merged": 2}, step=3)
    rows = ask(
        "SELECT recorded_at, clock_timestamp() - recorded_at < interval '1 minute'"
        " FROM training_metrics ORDER BY recorded_at DESC LIMIT 2"
    )
    assert [recent for _, recent in rows] == [True, True]
    assert abs((rows[0][0] - rows[1][0]).total_seconds()) < 1


class Unreadable:
    """As tensors are whose device is gone."""

    def __index__(self) -> int:
        raise RuntimeError("no such device")

    __float__ = __repr__ = __index__  # type: ignore[assignment]


def test_nothing_that_is_logged_raises(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.training.session("story@1.0.0") as run:
        for _ in range(3):
            run.log({"loss": "high", "": 1, "nul\0": 2, "ok": True, "many": np.zeros(2)}, step=0)
        run.log({"loss": 1}, step=-1)
        run.log({"loss": 1}, step=2.5)  # type: ignore[arg-type]
        run.log({"loss": 1}, step=Unreadable())  # type: ignore[arg-type]
        run.log({"loss": Unreadable()}, step=2)
        run.log({"loss": 1}, step=2**63)
        run.log(None, step=1)  # type: ignore[arg-type]
        run.log({"loss": 1}, step=1, scope="")
        run.log({"loss": 1}, step=1, scope="nul\0")
        run.log({"loss": 1}, step=1, epoch="first")  # type: ignore[arg-type]
        run.log({"loss": 1}, step=1, epoch=-1)
        run.log({"loss": 1}, step=2, epoch=math.inf)
        run.log({"loss": 1}, step=np.int32(7))  # type: ignore[arg-type]
    for _ in range(3):
        run.log({"loss": 1}, step=8)
    assert [row[:4] for row in ask(POINTS)] == [
        ("loss", "train", 1, None), ("loss", "train", 2, None), ("loss", "train", 7, None),
        ("ok", "train", 0, None),
    ]  # fmt: skip
    told = [record.getMessage() for record in caplog.records]
    assert sum("loss: not recorded" in message for message in told) == 1
    assert sum("no whole number" in message for message in told) == 1
    assert sum("after the end of the session" in message for message in told) == 1


def test_steps_may_be_whole_floats(halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with halo.training.session("story@1.0.0") as run:
        for step in (1, 2.0, np.float32(3), np.float64(4), np.int8(5), np.array(6.0)):
            run.log({"loss": 1}, step=step)  # type: ignore[arg-type]
        for step in ("7", True, 7.5, math.nan, math.inf):
            run.log({"loss": 1}, step=step)  # type: ignore[arg-type]
    assert [row[2] for row in ask(POINTS)] == [1, 2, 3, 4, 5, 6]
    assert "their step, '7', is no whole number from 0" in caplog.text


@pytest.mark.parametrize("letters", [0x61, 0x4E00, 0x20000])
def test_no_name_keeps_others_from_being_written(halo: Halo, ask: Ask, letters: int) -> None:
    numbers = random.Random(7)
    names = [
        "".join(chr(letters + numbers.randrange(26)) for _ in range(length))
        for length in (290, 400, 5000)
    ]
    with halo.training.session("story@1.0.0") as run:
        for name in names:
            run.log({name: 1}, step=1, scope=name)
        run.log({"loss": 1}, step=2)
        assert run.flush()
    found = {row[0] for row in ask(POINTS)}
    assert {names[0], "loss"} <= found <= {*names[:2], "loss"}


def test_a_session_that_fails_says_why(halo: Halo, ask: Ask) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        halo.training.session("story@1.0.0", name="doomed") as run,
    ):
        run.log({"loss": 1 / 0})
    assert ask("SELECT status, error FROM training_sessions") == [
        ("failed", "ZeroDivisionError: division by zero")
    ]


def test_passwords_in_what_ended_a_session_are_covered(halo: Halo, ask: Ask) -> None:
    with pytest.raises(OSError, match="hunter2"), halo.training.session("story@1.0.0"):
        raise OSError("no way to postgresql://me:hunter2@there/db")
    halo.training.session("story@1.0.0").finish("failed", "postgresql://me:hunter2@there/db")
    for (error,) in ask("SELECT error FROM training_sessions"):
        assert "hunter2" not in error
        assert "there/db" in error


def test_passwords_in_what_a_session_is_given_are_covered(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    there = "postgresql://me:hunter2@there/db"
    settings = {"lr": 0.1, "data": {"at": [there]}}
    given: dict[str, Any] = {"config": settings, "dataset": settings, "tags": {"at": there}}
    halo.training.session("story@1.0.0", **given, notes=there).pause()
    with halo.training.session("story@1.0.0", **given, resume="must") as run:
        run.configure({"more": there})
    assert "another config" not in caplog.text
    assert settings["data"] == {"at": [there]}
    ((row,),) = ask("SELECT to_jsonb(s)::text FROM training_sessions AS s")
    assert "hunter2" not in row
    assert row.count("postgresql://me:***@there/db") == 5


def test_whatever_an_error_says_the_session_has_failed(halo: Halo, ask: Ask) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for error in (OSError("no file caf\udce9.txt"), OSError("nul\0"), Speechless()):
        with pytest.raises(type(error)) as caught, halo.training.session("story@1.0.0"):
            raise error
        assert caught.value is error
    assert ask("SELECT status, error FROM training_sessions ORDER BY started_at") == [
        ("failed", "OSError: no file caf?.txt"),
        ("failed", "OSError: nul\ufffd"),
        ("failed", "Speechless"),
    ]


def test_what_is_no_end_ends_no_session(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="mine") as run:
        for word in ("done", "running"):
            with pytest.raises(InvalidInputError, match="no end of a session"):
                run.finish(word)
        run.log({"loss": 1}, step=1)
    assert status(ask) == [("mine", "completed", 1)]


def test_an_end_that_is_none_holds_no_sync_up(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    ask("ALTER TABLE training_metrics ADD CONSTRAINT small CHECK (value < 10)")
    runs = sorted((halo.training.session("story@1.0.0") for _ in range(3)), key=lambda run: run.id)
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    for run, value in zip(runs, (2, 20, 2), strict=True):
        run.log({"loss": value}, step=2)
        run.finish()
    ask("ALTER TABLE hidden RENAME TO training_metrics")
    end = runs[0]._spool.directory / "end.json"
    end.write_text(end.read_text().replace("completed", "success"))
    ask("UPDATE training_sessions SET heartbeat_at = now() - interval '2 minutes'")
    with pytest.raises(DatabaseError, match="small"):
        halo.training.sync()
    assert "how that session ended is not known" in caplog.text
    assert f"what waits in {runs[1]._spool.directory} could not be written" in caplog.text
    assert ask("SELECT count(*) FROM training_metrics") == [(2,)]
    ask("ALTER TABLE training_metrics DROP CONSTRAINT small")
    assert halo.training.sync() == {runs[0].id: 0, runs[1].id: 1}


def test_with_neither_database_nor_disk_the_error_is_still_the_program_s(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    (halo.project.directory / ".arc-halo").write_text("not a directory")
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        halo.training.session("story@1.0.0") as run,
    ):
        ask("ALTER TABLE training_metrics RENAME TO hidden")
        run.log({"loss": 1}, step=1)
        run.log({"loss": 1 / 0}, step=2)
    assert run.dropped == 1
    assert "the end of a session cannot be spooled" in caplog.text


def test_an_end_that_was_interrupted_is_made_up_for(halo: Halo, ask: Ask) -> None:
    ask("BEGIN; LOCK training_metrics IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(KeyboardInterrupt), halo:  # noqa: PT012
        run = halo.training.session("story@1.0.0", name="hasty")
        run.log({"loss": 1}, step=1)
        wait = run._log._idle.wait_for

        def interrupted(*given: Any) -> bool:
            run._log._idle.wait_for = wait  # type: ignore[method-assign]
            raise KeyboardInterrupt

        run._log._idle.wait_for = interrupted  # type: ignore[method-assign]
        try:
            run.finish()
        finally:
            ask("COMMIT")
    assert status(ask) == [("hasty", "paused", 1)]


def test_an_interrupted_session_is_paused(halo: Halo, ask: Ask) -> None:
    with pytest.raises(KeyboardInterrupt), halo.training.session("story@1.0.0", name="mine"):
        raise KeyboardInterrupt
    assert status(ask) == [("mine", "paused", 0)]


def test_a_paused_session_goes_on(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="long", config={"lr": 1}) as run:
        run.log({"loss": 3}, step=41)
        run.pause()
    with halo.training.session("story@1.0.0", name="long", resume="allow") as again:
        assert again.is_resumed
        assert (again.id, again.step, again.config) == (run.id, 41, {"lr": 1})
        again.log({"loss": 2})
    assert [row[2] for row in ask(POINTS)] == [41, 42]
    assert status(ask) == [("long", "completed", 42)]


def test_a_session_that_has_logged_nothing_goes_on_with_its_first_step(
    halo: Halo, ask: Ask
) -> None:
    run = halo.training.session("story@1.0.0", name="slow")
    assert run.next_step == 0
    run.pause()
    run = halo.training.session("story@1.0.0", name="slow", resume="must")
    assert run.next_step == 0
    run.log({"loss": 1})
    assert run.next_step == 1
    run.pause()
    with halo.training.session("story@1.0.0", name="slow", resume="must") as run:
        assert run.next_step == 1
        run.log({"loss": 2})
    assert [row[2] for row in ask(POINTS)] == [0, 1]
    with halo.training.session("story@1.0.0", fork_from="slow", at_step=0) as fork:
        assert fork.next_step == 1


def test_a_session_of_another_model_is_not_gone_on_with(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0", name="mine")
    run.pause()
    with pytest.raises(InvalidInputError, match=r"of story@1\.0\.0, not of story@2\.0\.0"):
        halo.training.session("story@2.0.0", id=run.id, resume="must")
    assert status(ask) == [("mine", "paused", 0)]


def test_a_completed_session_is_not_gone_on_with(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="done"):
        pass
    with pytest.raises(RefusedError, match="done is completed"):
        halo.training.session("story@1.0.0", name="done", resume="must")
    with halo.training.session("story@1.0.0", name="done", resume="allow") as run:
        assert not run.is_resumed
    assert len(status(ask)) == 2


def test_a_session_at_work_is_left_to_its_program(halo: Halo) -> None:
    with halo.training.session("story@1.0.0", name="busy"):
        for resume in ("allow", "must"):
            with pytest.raises(RefusedError, match="at work on"):
                halo.training.session("story@1.0.0", name="busy", resume=resume)


def test_what_there_is_not_is_not_resumed(halo: Halo) -> None:
    with pytest.raises(NotFoundError, match="no session named 'gone'"):
        halo.training.session("story@1.0.0", name="gone", resume="must")
    with pytest.raises(NotFoundError, match="no training session"):
        halo.training.session("story@1.0.0", id=uuid4(), resume="must")
    with pytest.raises(InvalidInputError, match="makes no sense"):
        halo.training.session("story@1.0.0", resume="maybe")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no model 'story'"):
        halo.training.session("story")


def test_a_config_that_changed_is_told(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    first = {"optimizer": {"lr": 0.1, "name": "adam"}, "seed": 1}
    halo.training.session("story@1.0.0", config=first).pause()
    second = {"optimizer": {"lr": 0.2, "name": "adam"}, "seed": 1.0, "new": None}
    halo.training.session("story@1.0.0", config=second, resume="must").pause()
    assert "with another config: new, optimizer.lr" in caplog.text
    assert ask("SELECT config FROM training_sessions") == [(second,)]


def test_a_config_grows_with_what_is_known_later(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", config={"lr": 1, "seed": 7}, total_steps=9) as run:
        run.configure({"lr": 2, "layers": [1]}, total_epochs=3)
        assert run.config == {"lr": 2, "seed": 7, "layers": [1]}
        assert ask("SELECT config, total_epochs, total_steps FROM training_sessions") == [
            (run.config, 3, 9)
        ]
        ask("UPDATE training_sessions SET lease = gen_random_uuid()")
        with pytest.raises(TrainingError, match="no longer this program's"):
            run.configure({"lr": 3})


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("bad"), "failed"), (KeyboardInterrupt(), "paused")]
)
def test_what_ends_the_program_ends_its_sessions(
    database: str, tmp_path: Path, ask: Ask, error: BaseException, expected: str
) -> None:
    def program() -> None:
        with arc_halo.connect(database, project=tmp_path) as opened:
            opened.training.session("story@1.0.0", name="left")
            raise error

    with pytest.raises(type(error)):
        program()
    assert status(ask) == [("left", expected, 0)]


def test_a_fork_knows_where_it_comes_from(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="trunk", config={"lr": 1}) as trunk:
        trunk.log({"loss": 1}, step=100)
    with halo.training.session("story@1.0.0", fork_from="trunk", at_step=60) as fork:
        assert fork.config == {"lr": 1}
        fork.log({"loss": 0.5})
    assert ask("SELECT parent_id, forked_at_step, current_step FROM training_sessions"
               " WHERE id = %s", fork.id) == [(trunk.id, 60, 61)]  # fmt: skip
    with halo.training.session("story@1.0.0", fork_from=str(trunk.id)[:8], at_step=9) as other:
        assert other.step == 9
    with pytest.raises(RefusedError, match="no step 101"):
        halo.training.session("story@1.0.0", fork_from=trunk.id, at_step=101)
    with pytest.raises(InvalidInputError, match="a fork needs both"):
        halo.training.session("story@1.0.0", at_step=1)


def test_who_lost_the_session_writes_no_more(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    stale = halo.training.session("story@1.0.0", name="one")
    stale.log({"loss": 1}, step=1)
    assert stale.flush()
    ask("UPDATE training_sessions SET heartbeat_at = now() - interval '2 minutes'")
    assert ask("SELECT status FROM v_training_progress") == [("crashed",)]
    with halo.training.session("story@1.0.0", name="one", resume="must") as run:
        stale.log({"loss": 99}, step=2)
        assert not stale.flush()
        stale.finish("failed")
        run.log({"loss": 2}, step=2)
    assert [row[2:] for row in ask(POINTS)] == [(1, None, 1), (2, None, 2)]
    assert status(ask) == [("one", "completed", 2)]
    assert "no longer this program's" in caplog.text
    assert stale.dropped == 1


def test_a_session_that_was_deleted_is_told_once(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.training.session("story@1.0.0") as run:
        run.log({"loss": 1}, step=1)
        run.flush()
        ask("ALTER TABLE training_metrics RENAME TO hidden")
        run.log({"loss": 2}, step=2)
        run.flush()
        ask("ALTER TABLE hidden RENAME TO training_metrics")
        ask("DELETE FROM training_sessions")
        for step in (3, 4):
            run.log({"loss": 2}, step=step)
            assert not run.flush()
    assert caplog.text.count("no longer this program's") == 1


LOST = """
import os, sys, arc_halo
with arc_halo.connect(sys.argv[1], project=sys.argv[2]) as halo:
    run = halo.training.session("story@1.0.0", name="lost")
    run.log({"loss": 1}, step=5)
    run.flush()
    os.kill(os.getpid(), 9)
"""


def test_a_session_whose_process_is_gone_is_taken_up_at_once(
    halo: Halo, ask: Ask, database: str, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", LOST, database, str(tmp_path)], check=False)
    assert done.returncode == -9
    with halo.training.session("story@1.0.0", name="lost", resume="must") as run:
        assert (run.is_resumed, run.step) == (True, 5)


FORGOTTEN = """
import sys, arc_halo
halo = arc_halo.connect(sys.argv[1], project=sys.argv[2])
run = halo.training.session("story@1.0.0", name="forgotten")
run.log({"loss": 1}, step=5)
if len(sys.argv) > 3:
    raise ValueError(sys.argv[3])
"""


@pytest.mark.parametrize(("given", "expected"), [([], "completed"), (["bad"], "failed")])
def test_a_session_ends_with_its_program(
    ask: Ask, database: str, tmp_path: Path, given: list[str], expected: str
) -> None:
    command = [sys.executable, "-c", FORGOTTEN, database, str(tmp_path), *given]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    assert status(ask) == [("forgotten", expected, 5)]
    assert len(ask(POINTS)) == 1


def test_points_wait_on_disk_while_they_cannot_be_written(
    halo: Halo, ask: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.training.session("story@1.0.0", name="patient") as run:
        run.log({"loss": 1}, step=1)
        assert run.flush()
        ask("ALTER TABLE training_metrics RENAME TO hidden")
        for step in (2, 3):
            run.log({"loss": step}, step=step)
            assert not run.flush()
        spool = tmp_path / ".arc-halo" / "training" / str(run.id)
        assert len(list(spool.glob("*.points"))) == 2
        ask("ALTER TABLE hidden RENAME TO training_metrics")
        run.log({"loss": 4}, step=4)
        assert run.flush()
    assert [row[2:] for row in ask(POINTS)] == [(n, None, n) for n in (1, 2, 3, 4)]
    assert not spool.exists()
    assert "points wait on the local disk" in caplog.text
    assert run.dropped == 0


def test_what_a_session_left_on_disk_is_synced_later(halo: Halo, ask: Ask, tmp_path: Path) -> None:
    run = halo.training.session("story@1.0.0", name="away")
    run.log({"loss": 1}, step=1)
    assert run.flush()
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    run.log({"loss": 2}, step=2)
    run.finish()
    assert status(ask) == [("away", "running", 1)]
    ask("ALTER TABLE hidden RENAME TO training_metrics")
    assert halo.training.sync() == {run.id: 1}
    assert [row[2] for row in ask(POINTS)] == [1, 2]
    assert status(ask) == [("away", "completed", 2)]
    assert halo.training.sync() == {}


def test_another_database_takes_nothing_of_what_waits(
    halo: Halo,
    ask: Ask,
    create_database: CreateDatabase,
    template: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = halo.training.session("story@1.0.0", name="away")
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    run.log({"loss": 2}, step=2)
    run.finish()
    with arc_halo.connect(create_database(template), project=halo.project.directory) as other:
        assert other.training.sync() == {}
    assert f"no session {run.id}" in caplog.text
    ask("ALTER TABLE hidden RENAME TO training_metrics")
    assert halo.training.sync() == {run.id: 1}


def test_what_cannot_be_synced_holds_nothing_else_up(halo: Halo, ask: Ask) -> None:
    runs = sorted((halo.training.session("story@1.0.0") for _ in range(3)), key=lambda run: run.id)
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    for run in runs:
        run.log({"loss": 2}, step=2)
        run.finish()
    ask("ALTER TABLE hidden RENAME TO training_metrics")
    first = runs[0]._spool.files()[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(TrainingError, match="are damaged"):
        halo.training.sync()
    assert ask("SELECT count(*) FROM training_metrics") == [(2,)]
    assert halo.training.sync() == {runs[0].id: 0}
    assert {row[1] for row in status(ask)} == {"completed"}


@pytest.mark.parametrize(
    "setting",
    [
        math.nan,
        [math.inf],
        Path("data"),
        np.float32(1),
        {"deep": {1, 2}},
        "nul\0",
        "\udc80",
        {"\0": 1},
    ],
)
def test_a_setting_that_cannot_be_kept_is_named(halo: Halo, ask: Ask, setting: Any) -> None:
    settings = {"lr": 0.1, "odd": setting}
    for given in ({"config": settings}, {"dataset": settings}, {"tags": settings}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(given))}.odd"):
            halo.training.session("story@1.0.0", **given)  # type: ignore[arg-type]
    with halo.training.session("story@1.0.0", config={"lr": np.float64(0.1)}) as run:
        with pytest.raises(InvalidInputError, match=r"config\.odd"):
            run.configure(settings)
        run.configure({"layers": (1, None, True)})
    assert ask("SELECT config FROM training_sessions") == [
        ({"lr": 0.1, "layers": [1, None, True]},)
    ]


@pytest.mark.parametrize("text", ["nul\0", "\ud800", 5])
def test_a_text_that_cannot_be_kept_is_named(halo: Halo, text: Any) -> None:
    for name in ("name", "group", "notes"):
        with pytest.raises(InvalidInputError, match=name):
            halo.training.session("story@1.0.0", **{name: text})
    with pytest.raises(InvalidInputError, match="config"):
        halo.training.session("story@1.0.0", config=[text])  # type: ignore[arg-type]


def test_what_makes_no_session_is_told(halo: Halo, ask: Ask) -> None:
    for name, value in (
        ("total_steps", -4),
        ("total_steps", "7"),
        ("total_epochs", 2**31),
        ("name", "n" * 201),
        ("group", "g" * 129),
        ("tags", "a"),
        ("tags", [1]),
    ):
        with pytest.raises(InvalidInputError, match=name):
            halo.training.session("story@1.0.0", **{name: value})  # type: ignore[arg-type]
    assert ask("SELECT count(*) FROM training_sessions") == [(0,)]


def test_tags_may_be_a_list(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", tags=["long", "late"]):
        assert ask("SELECT tags FROM training_sessions") == [({"long": True, "late": True},)]


def test_an_id_is_one_that_there_is(halo: Halo) -> None:
    with halo.training.session("story@1.0.0") as run:
        run.pause()
    with pytest.raises(RefusedError, match="already"):
        halo.training.session("story@1.0.0", id=run.id)
    with pytest.raises(InvalidInputError, match="no UUID") as caught:
        halo.training.session("story@1.0.0", id="mine", resume="allow")
    assert "`name=`" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="to go on with"):
        halo.training.session("story@1.0.0", id=uuid4(), resume="allow")
    with pytest.raises(InvalidInputError, match="cannot be given an id"):
        halo.training.session("story@1.0.0", id=uuid4())
    halo.training.session("story@1.0.0", id=str(run.id), resume="allow").finish()


def test_what_the_database_refuses_is_our_error(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="odd") as run:
        with pytest.raises(DatabaseError, match="out of range"):
            run.configure(total_steps=2**70)
        ask("ALTER TABLE training_sessions RENAME TO hidden")
        with pytest.raises(DatabaseError):
            run.configure({"lr": 1})
        ask("ALTER TABLE hidden RENAME TO training_sessions")


def test_late_points_replace_nothing_recorded_since(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0", name="late")
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    run.log({"loss": 1, "other": 1}, step=7)
    run.pause()
    ask("ALTER TABLE hidden RENAME TO training_metrics")
    spool = next((halo.project.directory / ".arc-halo" / "training").iterdir())
    elsewhere = spool.rename(halo.project.directory / "elsewhere")
    ask("UPDATE training_sessions SET heartbeat_at = now() - interval '2 minutes'")
    with halo.training.session("story@1.0.0", name="late", resume="must") as again:
        again.log({"loss": 2}, step=7)
    elsewhere.rename(spool)
    halo.training.sync()
    assert [(row[0], row[4]) for row in ask(POINTS)] == [("loss", 2), ("other", 1)]
    assert status(ask) == [("late", "completed", 7)]


def test_a_full_queue_goes_to_the_disk(
    halo: Halo, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    run = halo.training.session("story@1.0.0", name="fast")
    ask("BEGIN; LOCK training_metrics IN ACCESS EXCLUSIVE MODE")
    spool = Spool(halo.project.directory / "spool", limit_bytes=10**9)
    log = PointLog(run._delivery, spool, LogSettings(flush_seconds=0.01, queue_points=100))
    count = 0
    # Whoever finds the queue taken from leaves it to the next: a thread may be stopped just then.
    while count < 5000 or len(log._queue) > 200:
        log.put({"loss": count}, count, None, "train")
        count += 1
    assert spool.files()
    ask("COMMIT")
    assert log.close()
    assert [row[2] for row in ask(POINTS)] == list(range(count))
    run.finish()


def test_a_signal_s_handler_may_log_however_full_the_queue_is(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0")
    run._log._settings = LogSettings(flush_seconds=0.05, queue_points=300)
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        signal.setitimer(signal.ITIMER_REAL, 0)
        run.log({"handled": handled}, step=handled)
        handled += 1
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        for step in range(60_000):
            run.log({"loss": step}, step=step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    run.finish()
    counted = "SELECT count(*) FROM training_metrics JOIN training_series ON id = series_id"
    assert ask(f"{counted} WHERE metric_key = 'loss'") == [(60_000,)]
    assert ask(f"{counted} WHERE metric_key = 'handled'") == [(handled,)]


def test_what_is_written_is_on_disk_before_what_came_after_it(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0", name="hurried", flush_seconds=0.01)
    ask("BEGIN; LOCK training_metrics IN ACCESS EXCLUSIVE MODE")
    log = run._log
    log._settings = LogSettings(flush_seconds=0.01, queue_points=100)
    run.log({"loss": 0}, step=0)
    while not log._in_flight or log._queue:
        time.sleep(0.001)
    for step in range(1, 100):
        run.log({"loss": step}, step=step)
    assert not run._spool.files()
    run.log({"loss": 100}, step=100)
    steps = [batch.points.steps.tolist() for _, batch in run._spool.batches()]
    assert steps == [[0], list(range(1, 101))]
    ask("COMMIT")
    assert run.flush()
    assert [row[2] for row in ask(POINTS)] == list(range(101))
    run.finish()


def test_a_server_that_does_not_answer_is_given_up(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0", name="stuck")
    run._delivery._line.patience_seconds = 0.2
    run.log({"loss": 1}, step=1)
    assert run.flush()
    ((pid,),) = ask("SELECT pid FROM pg_stat_activity WHERE application_name = %s"
                    " AND datname = current_database()", "arc-halo training")  # fmt: skip
    os.kill(pid, signal.SIGSTOP)
    try:
        run.log({"loss": 2}, step=2)
        assert not run.flush()
        assert len(run._spool.files()) == 1
        assert run.flush()
        run.finish()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [row[2] for row in ask(POINTS)] == [1, 2]
    assert status(ask) == [("stuck", "completed", 2)]


def test_a_lock_that_is_waited_for_does_not_hold_up_the_end(halo: Halo, ask: Ask) -> None:
    run = halo.training.session("story@1.0.0", name="locked")
    run._delivery._line.patience_seconds = 0.2
    ask("BEGIN; LOCK training_metrics IN ACCESS EXCLUSIVE MODE")
    run.log({"loss": 1}, step=1)
    run.finish()
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM"
    assert ask(f"{waiting} pg_database WHERE datname = current_database())") == [(0,)]
    ask("COMMIT")
    assert halo.training.sync() == {run.id: 1}
    assert status(ask) == [("locked", "completed", 1)]


def test_after_the_end_nothing_waits_to_be_written(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0") as run:
        run.log({"loss": 1}, step=1)
    assert run.flush()
    away = halo.training.session("story@1.0.0")
    ask("ALTER TABLE training_metrics RENAME TO hidden")
    away.log({"loss": 1}, step=1)
    away.finish()
    assert not away.flush()


def test_a_forked_process_waits_for_nothing(halo: Halo) -> None:
    with halo.training.session("story@1.0.0") as run:
        run.log({"loss": 1}, step=1)
        if (child := os.fork()) == 0:
            signal.alarm(20)
            os._exit(run.flush())
        assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_ends_no_session(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="parent") as run:
        if (child := os.fork()) == 0:
            try:
                run.finish()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        run.flush()
        assert status(ask) == [("parent", "running", 0)]


def test_a_forked_process_logs_nothing(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="parent") as run:
        run.log({"loss": 1}, step=1)
        run.flush()
        if (child := os.fork()) == 0:
            logging.disable()
            run.log({"loss": 2}, step=2)
            os._exit(0)
        os.waitpid(child, 0)
    assert [row[2] for row in ask(POINTS)] == [1]


def test_the_machine_is_measured_by_the_second(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="watched", system_seconds=1) as run:
        run.log({"loss": 1}, step=5)
        assert run.flush()
        while not run._log._queue:
            time.sleep(0.01)
        run.pause()
    with halo.training.session(
        "story@1.0.0", name="watched", resume="must", system_seconds=1
    ) as run:
        assert run.step == 5
        time.sleep(1.5)
    found = {row[0]: row[1:] for row in ask(POINTS)}
    assert set(found) == {
        "loss", "cpu_percent", "memory_percent", "memory_available_bytes", "process_cpu_percent",
        "process_memory_bytes", "process_threads", "disk_free_bytes",
    }  # fmt: skip
    assert found["process_memory_bytes"][3] > 2**20
    assert found["process_threads"][3] >= 3
    seconds = [row[2] for row in ask(POINTS) if row[0] == "cpu_percent"]
    assert len(seconds) == len(set(seconds)) >= 2
    assert status(ask) == [("watched", "completed", 5)]


def test_the_machine_is_measured_where_the_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert reader()()["process_memory_bytes"] > 2**20


def test_where_no_thread_can_be_started_any_more_a_session_ends_still(
    halo: Halo, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = halo.training.session("story@1.0.0", name="last")

    def refused(timer: threading.Timer) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Timer, "start", refused)
    run.log({"loss": 1}, step=1)
    run.end_with_program()
    assert status(ask) == [("last", "completed", 1)]


def test_a_clock_that_was_set_back_keeps_no_session_from_its_end(halo: Halo, ask: Ask) -> None:
    with halo.training.session("story@1.0.0", name="early"):
        ask("UPDATE training_sessions SET started_at = now() + interval '1 day'")
    assert status(ask) == [("early", "completed", 0)]


def test_settings_that_make_no_sense_are_refused(halo: Halo) -> None:
    for settings in ({"flush_seconds": 0}, {"flush_seconds": 61}, {"system_seconds": 0.5}):
        with pytest.raises(InvalidInputError, match=next(iter(settings))):
            halo.training.session("story@1.0.0", **settings)  # type: ignore[arg-type]


def test_the_model_is_known_by_its_row(halo: Halo, ask: Ask) -> None:
    made = halo.models.create_model(
        model_name="story", model_type="transformer", architecture_config={}
    )
    with halo.training.session("story"):
        pass
    assert ask("SELECT model_id, model_version FROM training_sessions") == [(made, "1.0.0")]
