"""`arc-halo attention …` on a capture: what it prints, draws and deletes, its exit codes."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from arc_halo.cli.main import run
from arc_halo.inference.patterns import pack
from arc_halo.store import attention as store_of
from arc_halo.store.attention import NewCapture, NewPattern
from arc_halo.store.connection import connect

TEXTS = ["The", " halo", "\n<&>"]
SVG = "{http://www.w3.org/2000/svg}"
ROWS = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.125, 0.375]]


def add_capture(database, rows, texts=None, *, label=None, heads=2):
    """A capture of one layer, whose heads are the same; its id."""
    packed = pack(np.array(rows, np.float32), "F16")
    patterns = [
        NewPattern(
            layer_index=0,
            head_index=head,
            query_count=packed.shape.query_count,
            key_count=packed.shape.key_count,
            is_causal=packed.shape.is_causal,
            dtype="F16",
            entropy=packed.entropy.tolist(),
            sink_mass=packed.sink_mass.tolist(),
            peak=packed.peak.tolist(),
            packed=packed.packed,
        )
        for head in range(heads)
    ]
    new = NewCapture(
        weights_root=b"m" * 32,
        input_digest=bytes(32),
        sequence_index=0,
        token_count=len(rows),
        token_ids=list(range(len(rows))),
        token_texts=texts,
        size_bytes=heads * len(packed.packed),
        label=label,
    )
    with connect(database) as conn, conn.transaction():
        return store_of.insert(conn, new, patterns, None)


@pytest.fixture
def capture(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    monkeypatch.setenv("COLUMNS", "80")
    return add_capture(database, ROWS, TEXTS, label="story")


@pytest.fixture
def attention(capture, capsys):
    """Runs `arc-halo attention …`; its exit code and what it said."""

    def call(*arguments):
        capsys.readouterr()
        code = run(["attention", *map(str, arguments), "--quiet"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


def found_json(attention, *arguments):
    code, text = attention(*arguments, "--output", "json")
    assert code == 0, text
    return json.loads(text)


def test_captures_are_listed_with_what_they_are_of(attention, capture):
    code, text = attention("ls")
    assert code == 0
    assert f"{str(capture)[:8]}  story  {'6d' * 6}  " in text
    assert text.rstrip().endswith("24 B  The halo\\x0a<&>")
    (found,) = found_json(attention, "ls")["captures"]
    assert (found["id"], found["head_count"], found["token_texts"]) == (str(capture), 2, TEXTS)
    assert found_json(attention, "ls", "--label", "other") == {"captures": []}
    assert len(found_json(attention, "ls", "--model", "6d6d6d")["captures"]) == 1
    assert found_json(attention, "ls", "--model", "story") == {"captures": []}
    assert attention("ls", "--output", "markdown")[1].startswith("| id | label |")


def test_the_heads_of_a_capture_are_shown_in_figures(attention, capture):
    code, text = attention("show", "story")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == f"story {str(capture)[:8]}, 3 tokens"
    assert lines[3].split() == ["0", "0", "3", "3", "0.512", "0.583", "0.750"]
    found = found_json(attention, "show", str(capture)[:8])
    assert [each["head_index"] for each in found["heads"]] == [0, 1]


def test_a_head_is_drawn_with_its_tokens(attention):
    code, text = attention("show", "story", "--layer", 0, "--head", 1, "--no-color")
    assert code == 0
    assert text.splitlines()[3:] == [
        "  The   0 ██",
        "␣halo   1 ▒▒▓▓",
        " ⏎<&>   2 ▒▒░░▒▒",
        "          0",
        "          ·· to ██: 0 to 1",
    ]
    found = found_json(attention, "show", "story", "--layer", 0, "--head", 1)
    assert found["rows"] == [[1.0], [0.25, 0.75], [0.5, 0.125, 0.375]]
    assert found["sink_mass"] == [1.0, 0.25, 0.5]
    markdown = attention("show", "story", "--layer", 0, "--head", 1, "--output", "markdown")[1]
    assert "```text\n  The   0 ██" in markdown


def test_on_a_terminal_cells_have_colours(attention, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, text = attention("show", "story", "--layer", 0, "--head", 0)
    assert "\x1b[" in text
    assert "48;5;" in text
    assert "██" not in text
    _, text = attention("show", "story", "--layer", 0, "--minus", "story")
    assert "48;5;254m" in text
    assert "blue to red: 0 to 0" in text


def test_one_query_is_shown_with_the_keys_that_get_most(attention):
    place = ("--layer", 0, "--head", 0, "--query")
    code, text = attention("show", "story", *place, -1, "--top", 2)
    assert code == 0
    assert [line.split() for line in text.splitlines()[4:]] == [
        ["0", "The", "0.5000"],
        ["2", "⏎<&>", "0.3750"],
    ]
    found = found_json(attention, "show", "story", *place, 1)
    assert (found["query"], found["row"]) == (1, [0.25, 0.75])
    assert attention("show", "story", *place, 3)[0] == 4


def test_a_head_is_drawn_as_svg_and_png(attention, tmp_path):
    svg, png = tmp_path / "head.svg", tmp_path / "head.png"
    place = ("show", "story", "--layer", 0, "--head", 0, "--svg", svg, "--png", png)
    assert attention(*place)[0] == 0
    drawn = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    titles = [each.text for each in drawn.iter(f"{SVG}title")]
    assert titles[1:3] == ["␣halo → The: 0.2500", "␣halo → ␣halo: 0.7500"]
    assert len(titles) == 6
    assert png.read_bytes().startswith(b"\x89PNG")
    first = svg.read_bytes(), png.read_bytes()
    code, text = attention(*place)
    assert (code, "--force" in text) == (5, True)
    assert attention(*place, "--force")[0] == 0
    assert (svg.read_bytes(), png.read_bytes()) == first


def test_all_heads_of_a_layer_are_drawn_beside_one_another(attention, capture, tmp_path):
    code, text = attention("show", "story", "--layer", 0, "--no-color")
    assert code == 0
    assert text.splitlines() == [
        f"story {str(capture)[:8]}, 3 tokens, layer 0",
        "mean entropy 0.512 nats, sink 0.583, peak 0.750",
        "",
        "head 0  head 1",
        "██      ██",
        "▒▒▓▓    ▒▒▓▓",
        "▒▒░░▒▒  ▒▒░░▒▒",
        "",
        "·· to ██: 0 to 1",
    ]
    found = found_json(attention, "show", "story", "--layer", 0)
    assert [each["head"] for each in found["heads"]] == [0, 1]
    assert found["heads"][1]["rows"] == [[1.0], [0.25, 0.75], [0.5, 0.125, 0.375]]
    svg, png = tmp_path / "layer.svg", tmp_path / "layer.png"
    assert attention("show", "story", "--layer", 0, "--svg", svg, "--png", png)[0] == 0
    drawn = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    assert [each.text for each in drawn.iter(f"{SVG}text")][2:4] == ["head 0", "head 1"]
    assert len(list(drawn.iter(f"{SVG}title"))) == 12
    assert png.read_bytes().startswith(b"\x89PNG")


def test_heads_go_on_below_where_the_terminal_ends(attention, database):
    add_capture(database, np.eye(200), label="many", heads=5)
    _, text = attention("show", "many", "--layer", 0, "--no-color")
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines if "head" in line] == ["head 0", "head 3"]
    assert max(map(len, lines)) <= 80
    assert "17 tokens a cell" in lines[-1]


def test_a_capture_is_compared_with_another(attention, capture, database, tmp_path):
    rows = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.125, 0.375]]
    other = add_capture(database, rows, label="tuned")
    place = ("show", "tuned", "--minus", "story", "--layer", 0, "--head", 0)
    code, text = attention(*place, "--no-color")
    assert code == 0
    assert text.splitlines() == [
        f"tuned {str(other)[:8]} minus story {str(capture)[:8]}, 3 tokens, layer 0, head 0",
        "mean part of a query's attention that is elsewhere 0.083",
        "",
        "0   0",
        "1   1 ++--",
        "2   2",
        "      0",
        "      -- to ++: -0.25 to 0.25",
    ]
    found = found_json(attention, *place)
    assert (found["capture"], found["minus"]) == (str(other), str(capture))
    assert found["rows"] == [[0.0], [0.25, -0.25], [0.0, 0.0, 0.0]]
    assert found["moved"] == pytest.approx(0.25 / 3)
    svg, png = tmp_path / "both.svg", tmp_path / "both.png"
    assert attention(*place[:-2], "--svg", svg, "--png", png)[0] == 0
    drawn = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    kinds = [each.get("class") for each in drawn.iter(f"{SVG}rect")][1:7]
    assert kinds == ["s3", "s6", "s0", "s3", "s3", "s3"]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_what_has_another_shape_or_no_picture_is_not_compared(attention, database):
    add_capture(database, [[1.0]], label="short")
    place = ("show", "story", "--layer", 0, "--minus", "short")
    code, text = attention(*place)
    assert (code, "3 queries and 3 keys cannot be compared with 1 and 1" in text) == (4, True)
    assert attention(*place, "--head", 0, "--query", 0)[0] == 64


def test_what_is_long_is_drawn_as_wide_as_the_terminal(attention, database, tmp_path):
    count = 300
    rows = np.tri(count) / np.arange(1, count + 1)[:, None]
    rows[250, 3] = 1.0
    add_capture(database, rows, label="long", heads=1)
    svg = tmp_path / "long.svg"
    assert attention("show", "long", "--layer", 0, "--head", 0, "--svg", svg)[0] == 0
    assert svg.stat().st_size < 2**20
    _, text = attention("show", "long", "--layer", 0, "--head", 0, "--no-color")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "tokens a cell" in lines[-1]
    (spike,) = [line for line in lines if line.lstrip().startswith("250-")]
    assert spike.split(" ", 1)[1].startswith("██")


def test_what_is_not_there_or_not_named_is_told(attention):
    assert attention("show", "nobody")[0] == 1
    assert attention("show", "story", "--layer", 5, "--head", 0)[0] == 1
    assert attention("show", "story", "--layer", 5)[0] == 1
    assert attention("show", "story", "--layer", 0, "--minus", "nobody")[0] == 1
    for more in (("--head", 0), ("--svg", "x.svg"), ("--minus", "story"), ("--query", 0)):
        assert attention("show", "story", *more)[0] == 64
    assert attention("show", "story", "--layer", 0, "--query", 0)[0] == 64


def test_captures_are_deleted_all_or_none(attention, capture, database):
    other = add_capture(database, ROWS)
    assert attention("rm", capture, "nobody")[0] == 1
    assert attention("rm", "story", "--dry-run") == (
        0, f"would delete {capture} story: 2 heads, 24 B\n",
    )  # fmt: skip
    assert len(found_json(attention, "ls")["captures"]) == 2
    assert found_json(attention, "rm", "story", other, capture) == {
        "captures": [str(capture), str(other)], "size_bytes": 48, "is_done": True,
    }  # fmt: skip
    assert found_json(attention, "ls")["captures"] == []
    assert attention("ls")[1].startswith("No attention")
    assert attention("rm")[0] == 64


def test_a_label_of_several_is_deleted_only_where_all_are_meant(attention, capture, database):
    other = add_capture(database, ROWS, label="story")
    code, text = attention("rm", "story")
    assert code == 4
    assert all(str(id) in text for id in (capture, other))
    assert "--label" in text
    assert found_json(attention, "rm", "--label", "story", "--dry-run")["is_done"] is False
    assert found_json(attention, "show", "story")["id"] == str(other)
    found = found_json(attention, "rm", "--label", "story", other)
    assert sorted(found["captures"]) == sorted(map(str, (capture, other)))
    assert attention("rm", "--label", "story")[0] == 1


def test_a_label_that_begins_an_id_is_not_guessed(attention, capture, database):
    label = capture.hex[:8]
    other = add_capture(database, ROWS, label=label)
    for command in ("show", "rm"):
        code, text = attention(command, label)
        assert code == 4
        assert all(str(id) in text for id in (capture, other))
    assert found_json(attention, "show", capture.hex[:9])["id"] == str(capture)
    assert found_json(attention, "rm", other)["captures"] == [str(other)]
    assert found_json(attention, "show", label)["id"] == str(capture)


def test_what_would_say_nothing_is_refused(attention):
    head = ("show", "story", "--layer", 0, "--head", 0)
    assert attention("show", "story", "--top", 3)[0] == 64
    assert attention(*head, "--top", 3)[0] == 64
    for option, file in (("--png", "a.jpg"), ("--svg", "a.png"), ("--png", "a")):
        code, text = attention(*head, option, file)
        assert (code, f"write a.{option[2:]}" in text) == (4, True)
