"""Markdown: sections in the order of what matters, cut where it must be short."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.cli.cutting import Cut
from arc_halo.cli.main import run
from arc_halo.errors import ArcHaloError
from arc_halo.reconcile.changes import Change, Conflict, FieldChange, Losses, Orphan, Plan
from arc_halo.reconcile.markdown import plan_markdown
from arc_halo.reconcile.markdown_page import Page, Row, Section, code, page_text, prose
from arc_halo.reconcile.report import field_text, plan_summary
from arc_halo.types import Key

LIMIT = 60_000


def change(action, name, kind="model", **more):
    return Change(action=action, key=Key(kind=kind, name=name), **more)


def plan(changes=(), **more):
    return Plan(
        project="work",
        base_revision=1,
        manifest_digest=b"x",
        changes=tuple(changes),
        environment="prod",
        **more,
    )


def of_everything(*, creates=1):
    weight = FieldChange(path="members[poet].weight", before=0.4, after=0.6)
    return plan(
        [
            *(change("create", f"new-{i:05}@1") for i in range(creates)),
            change("delete", "old@1", losses=Losses(size_bytes=24_576, rows={"aliases": 1})),
            change("replace", "other@1", fields=(weight,)),
            change("update", "story", "reactor", fields=(weight,)),
            change("update", "by-hand@1", is_drift=True, fields=(weight,)),
            change("rename", "b@1", old_key=Key(kind="model", name="a@1")),
        ],
        conflicts=(
            Conflict(key=Key(kind="model", name="p@1"), code="AH052", message="p is protected"),
        ),
        orphans=(Orphan(key=Key(kind="model", name="left@1"), protected=True, deletion="delete"),),
        notes=("the file is not here",),
        migrations=("0001.projects",),
    )


def titles(text):
    return re.findall(r"^#### ([A-Za-z ]+)", text, re.MULTILINE)


def test_sections_come_in_the_order_of_what_matters():
    text = plan_markdown(of_everything())
    assert titles(text) == [
        "Blocked", "Migrations", "Deletions", "Replacements", "Updates", "Creations", "Renames",
        "Changed outside of apply", "No longer declared", "Notes",
    ]  # fmt: skip
    assert "#### Deletions: 1, with 24.6 kB of weights" in text
    assert "- `- model/old@1`\n  - 24.6 kB, 1 alias go too" in text
    assert field_text("reactor", FieldChange(path="members[a@1]", before=None, after={})) == (
        "members[a@1]: added"
    )
    assert field_text("model", FieldChange(path="cost", before=1.0, after=2)) == "cost: 1 -> 2"
    assert "- `~ reactor/story`\n  - `members[poet].weight: 0.4 -> 0.6`" in text
    assert "- `> model/b@1` was model/a@1" in text


def test_a_page_begins_with_its_marker_and_has_its_summary_first_and_last():
    made = of_everything()
    lines = plan_markdown(made).splitlines()
    assert lines[0] == "<!-- arc-halo:work:prod -->"
    assert lines[3] == f"**{plan_summary(made)}**"
    assert lines[-1] == plan_summary(made)


def test_many_creations_are_folded_away_and_all_there():
    text = plan_markdown(of_everything(creates=500))
    assert "<details><summary>500 lines</summary>" in text
    assert text.count("`+ model/new-") == 500


def test_ten_thousand_changes_fit_into_a_comment_with_every_deletion():
    losses = Losses(size_bytes=10**9, rows={"aliases": 2, "weight_sets": 3})
    fields = tuple(FieldChange(path=f"tags.t{i}", before="x" * 90, after=i) for i in range(12))
    made = plan(
        [
            *(change("create", f"new-{i:05}@1.0.0") for i in range(8_000)),
            *(change("update", f"changed-{i:05}@1.0.0", fields=fields) for i in range(1_500)),
            *(change("delete", f"gone-{i:05}@1.0.0", losses=losses) for i in range(500)),
        ]
    )
    assert len(made.changes) == 10_000
    text = plan_markdown(made, max_bytes=LIMIT, whole="All of it is with the run.")
    assert LIMIT * 0.9 < len(text.encode()) <= LIMIT
    assert text.count("`- model/gone-") == 500
    assert "#### Creations: 8,000" in text
    assert "- … and 8,000 more" in text
    shown = text.count("`~ model/changed-")
    assert f"- … and {1_500 - shown:,} more" in text
    assert 0 < shown < 1_500
    left = 1_500 - shown + 8_000
    assert f"_Cut to 60,000 bytes: {left:,} of 10,000 lines are left out._ All of it is" in text
    assert text.splitlines()[-1] == plan_summary(made)


def test_deletions_are_all_named_when_there_is_no_room_for_what_goes_with_them():
    losses = Losses(size_bytes=10**9, rows={"aliases": 2, "weight_sets": 3})
    gone = [change("delete", f"gone-{i:05}@1.0.0", losses=losses) for i in range(1_800)]
    text = plan_markdown(plan([*gone, change("create", "new@1")]), max_bytes=LIMIT)
    assert len(text.encode()) <= LIMIT
    assert text.count("`- model/gone-") == 1_800
    assert "without details" in text


def test_what_blocks_a_plan_is_kept_before_the_deletions():
    conflicts = [
        Conflict(key=Key(kind="model", name=f"p-{i:03}@1"), code="AH052", message="is protected")
        for i in range(60)
    ]
    gone = [change("delete", f"gone-{i:05}@1.0.0") for i in range(200)]
    text = plan_markdown(plan(gone, conflicts=tuple(conflicts)), max_bytes=5_000)
    assert len(text.encode()) <= 5_000
    assert text.count("(AH052)") == 60
    assert "… and 1" in text


@given(
    counts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=6),
    width=st.integers(1, 400),
    max_bytes=st.integers(2_000, 20_000),
)
def test_a_cut_page_is_never_longer_than_it_may_be(counts, width, max_bytes):
    listed = [
        Section(
            title=f"Part {rank}",
            rows=[Row(line="- " + "é" * width, details=("  - d" * more,) * more)] * count,
            rank=rank,
        )
        for rank, (count, more) in enumerate(counts)
    ]
    page = Page(title="A page", summary="Nothing.", sections=listed, whole="There.")
    text = page_text(page, max_bytes)
    assert len(text.encode()) <= max_bytes
    for (count, _), part in zip(counts, text.split("#### ")[1:], strict=True):
        more = re.search(r"… and (\d+) more", part)
        assert part.count("- é") + (int(more[1]) if more else 0) == count


def test_what_names_and_values_say_cannot_leave_their_line():
    evil = "`</details>\n<!-- arc-halo:work:prod -->\n# all is well `` @everyone"
    assert code(evil) == "``` " + evil.replace("\n", " ") + " ```"
    told = prose("see @octo, model/a@1 <img src=x>\n# [all](http://x)")
    assert told == "see @<!-- -->octo, model/a@1 &lt;img src=x> # \\[all](http://x)"
    field = FieldChange(path="description", before=None, after=evil)
    text = plan_markdown(plan([change("update", "a@1", fields=(field,))]))
    assert text.count("\n<!--") == 0
    assert not re.search(r"^# ", text, re.MULTILINE)


def test_what_cuts_markdown_is_refused_for_anything_else(tmp_path, monkeypatch, capsys):
    (tmp_path / "arc_halo.yaml").write_text("version: 1\nproject: work\n")
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "--max-bytes", "5000"]) == 64
    assert run(["drift", "--output", "json", "--whole", "all.md"]) == 64
    assert "add `--output markdown`" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error_with_a_hint(tmp_path):
    cut = Cut(file=tmp_path / "absent" / "all.md")
    with pytest.raises(ArcHaloError, match=r"all\.md: cannot be written: No such file") as caught:
        cut.markdown(lambda **_: "page")
    assert caught.value.error_code == "AH015"
    assert "check the directory" in str(caught.value.hint)
