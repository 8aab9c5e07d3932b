"""Work in the background: its result, its error, and whether it is done."""

from __future__ import annotations

import threading

import pytest

from arc_halo.training.checkpoints.background import Pending


def test_a_result_is_waited_for_and_can_be_had_again():
    go_on = threading.Event()
    pending = Pending(lambda: go_on.wait(30) and "done")
    assert not pending.is_done
    with pytest.raises(TimeoutError):
        pending.result(0)
    go_on.set()
    assert (pending.result(), pending.result(), pending.is_done) == ("done", "done", True)
    pending.raise_untold()


def test_an_error_is_told_by_whoever_asks_first():
    pending = Pending(lambda: 1 / 0)
    assert pending.wait()
    with pytest.raises(ZeroDivisionError):
        pending.raise_untold()
    pending.raise_untold()
    with pytest.raises(ZeroDivisionError):
        pending.result()
