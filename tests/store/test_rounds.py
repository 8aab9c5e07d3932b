"""A thread that works in rounds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from arc_halo.errors import DatabaseError
from arc_halo.store.rounds import MAX_PAUSE_SECONDS, Rounds


class Tries(Rounds):
    """Counts its rounds, which fail while the database is away."""

    def __init__(self) -> None:
        super().__init__("tries", 0.001, "things wait", logging.getLogger("arc_halo.tries"))
        self.rounds = 0
        self.is_away = False
        self._thread.start()

    def _round(self) -> None:
        self.rounds += 1
        if self.is_away:
            self._failed(DatabaseError("it is away"))
        else:
            self._succeeded()

    def close(self) -> None:
        self._stop(10)


@pytest.fixture
def tries() -> Iterator[Tries]:
    made = Tries()
    yield made
    made.close()


def test_rounds_come_by_themselves_until_the_end(tries: Tries) -> None:
    while tries.rounds < 3:
        time.sleep(0.001)
    tries.close()
    rounds = tries.rounds
    assert tries.flush()
    assert tries.rounds == rounds


def test_of_an_outage_its_beginning_and_its_end_are_told_once(
    tries: Tries, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        tries.is_away = True
        assert not tries.flush()
        assert not tries.flush()
        tries.is_away = False
        assert tries.flush()
        assert tries.flush()
    assert caplog.messages == ["things wait: it is away", "the database answers again"] * 2


def test_an_outage_may_last_for_months(tries: Tries) -> None:
    tries.is_away = True
    tries._failures, tries._away_since = 10**6, time.monotonic() - 10**7
    assert not tries.flush()
    assert tries._retry_at <= time.monotonic() + MAX_PAUSE_SECONDS
    tries.is_away = False
    assert tries.flush()


def test_who_gives_it_time_waits_for_the_end_of_an_outage(tries: Tries) -> None:
    tries.is_away = True
    threading.Timer(0.3, lambda: setattr(tries, "is_away", False)).start()
    assert not tries.flush()
    assert tries.flush(60)


def test_who_gives_it_time_waits_no_longer_than_that(tries: Tries) -> None:
    tries.is_away = True
    assert not tries.flush(0.3)
    assert not tries.flush(0)


def test_many_tries_in_a_short_outage_make_no_long_pause(tries: Tries) -> None:
    tries.is_away = True
    for _ in range(100):
        assert not tries.flush()
    assert tries._retry_at - time.monotonic() < time.monotonic() - tries._away_since + 1
