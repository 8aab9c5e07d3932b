"""Which series a metric goes to, by its name."""

from __future__ import annotations

from arc_halo.integrations._metrics import Scopes

PREFIXES = {"train_": "train", "val_": "eval", "eval_": "eval"}


def test_the_beginning_of_a_name_is_its_scope() -> None:
    assert Scopes(PREFIXES).divide({"lr": 1, "val_loss": 2, "train_loss": 3}) == {
        "train": {"lr": 1, "loss": 3},
        "eval": {"loss": 2},
    }


def test_no_two_names_share_a_series() -> None:
    scopes = Scopes(PREFIXES)
    assert scopes.series_of("loss") == ("loss", "train")
    assert scopes.series_of("train_loss") == ("train_loss", "train")
    assert scopes.series_of("val_loss") == ("loss", "eval")
    assert scopes.series_of("eval_loss") == ("eval_loss", "eval")
    assert scopes.series_of("val_loss") == ("loss", "eval")


def test_a_name_that_is_only_a_beginning_stays() -> None:
    assert Scopes(PREFIXES).series_of("val_") == ("val_", "train")
