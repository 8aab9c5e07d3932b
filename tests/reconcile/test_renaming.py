"""Renames that were meant otherwise, and what refers to a row while it is renamed."""

from __future__ import annotations

import threading

import psycopg
import pytest

from arc_halo.errors import RefusedError


def fleet(**models):
    """Models by name; `a="b"` stands for one that is renamed from b."""
    return {
        "models": {
            f"{name}@1": {"type": "other", **({"renamed_from": old} if old else {})}
            for name, old in models.items()
        }
    }


def test_a_misspelt_old_name_does_not_cost_the_resource(workshop):
    workshop.apply(fleet(two=None, tiny=None))
    workshop.write(fleet(new="twoo", tiny=None))
    (conflict,) = workshop.plan(prune=True).conflicts
    assert (str(conflict.key), conflict.code) == ("model/new@1", "AH054")
    assert "twoo@1, which nobody manages, and model/two@1 would be deleted" in conflict.message
    assert conflict.hint.startswith("did you mean 'two@1'?")
    assert workshop.plan().conflicts == ()
    with pytest.raises(RefusedError, match="twoo"):
        workshop.apply(prune=True)


def test_an_old_name_that_means_nothing_any_more_stays_in_the_manifest(workshop):
    workshop.apply(fleet(bard=None, other=None))
    workshop.apply(fleet(poet="bard", other=None))
    # Another version, which never had the old name.
    manifest = fleet(other=None)
    manifest["models"]["poet@2"] = {"type": "other", "renamed_from": "bard"}
    workshop.write(manifest)
    assert workshop.plan(prune=True).conflicts == ()
    # One that was deleted by hand, beside another that leaves.
    workshop.sql("DELETE FROM models WHERE model_name = 'poet'")
    workshop.write(fleet(poet="bard"))
    assert workshop.plan(prune=True).conflicts == ()
    # The old name was deleted by hand, and left the manifest.
    workshop.apply(fleet(bard=None))
    workshop.sql("DELETE FROM models WHERE model_name = 'bard'")
    workshop.write(fleet(poet="bard"))
    assert workshop.plan(prune=True).conflicts == ()


@pytest.mark.parametrize("prune", [True, False])
def test_a_rollback_over_renames_is_no_mistake(workshop, prune):
    workshop.apply(fleet(a=None, b=None))
    workshop.apply(fleet(a=None, c="b"), prune=prune)
    workshop.apply(fleet(b="a", c=None), prune=prune)
    workshop.apply(fleet(d=None, c=None), prune=prune)
    with workshop.project() as project:
        plan = project.plan_rollback(1)
        assert plan.conflicts == ()
        project.apply(plan)
    assert not workshop.drift().is_found


def test_what_somebody_changes_while_a_row_is_renamed_has_drifted(workshop):
    workshop.apply({**fleet(b=None, c=None), **trainings("b")})
    with psycopg.connect(workshop.url) as other:
        other.execute("UPDATE models SET description = 'by hand' WHERE model_name = 'c'")
        other.execute("UPDATE training_definitions SET description = 'by hand'")
        other.execute("SELECT FROM models WHERE model_name = 'b' FOR UPDATE")
        workshop.write({**fleet(d="b", c=None), **trainings("d")})
        done = []
        renaming = threading.Thread(
            target=lambda: done.append(workshop.apply(targets=["model/d@1"]))
        )
        renaming.start()
        await_waiting(workshop)
        other.commit()
        renaming.join(timeout=30)
    assert done
    assert [str(each.key) for each in workshop.drift().resources] == ["model/c@1", "training/t"]


def trainings(model):
    return {"training": {"t": {"model": model}}}


def await_waiting(workshop):
    """Until a session waits for a row."""
    pause = threading.Event()
    for _ in range(200):
        if workshop.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            return
        pause.wait(0.05)
    raise AssertionError("nobody waits")
