"""`arc-halo embeddings` on the demo: its outputs, its exit codes, and the same from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psycopg
import pytest

import arc_halo
from arc_halo.cli.main import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template_of_demo(tmp_path_factory, create_database, template):
    """The demo project applied once, and a database to copy."""
    directory = tmp_path_factory.mktemp("demo")
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    url = create_database(template)
    assert run(["apply", "--project", str(directory), "--database-url", url, "--quiet"]) == 0
    return directory, url


@pytest.fixture
def demo(template_of_demo, create_database, monkeypatch):
    directory, template = template_of_demo
    url = create_database(template)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", url)
    return url


@pytest.fixture
def has_pgvector(demo):
    with psycopg.connect(demo) as conn:
        query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
        return conn.execute(query).fetchone() == (1,)


@pytest.fixture
def halo(embeddings, demo):
    with arc_halo.connect(demo, project=Path.cwd()) as opened:
        yield opened


@pytest.fixture
def embeddings(demo, capsys):
    """Runs `arc-halo embeddings …`; its exit code and what it said."""

    def call(*arguments):
        capsys.readouterr()
        code = run(["embeddings", *map(str, arguments), "--quiet"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


def found_json(embeddings, *arguments):
    code, text = embeddings(*arguments, "--output", "json")
    assert code == 0, text
    return json.loads(text)


def test_neighbours_are_listed_the_nearest_first(embeddings):
    code, text = embeddings("nearest", "scripture", 97, "-k", 3)
    assert code == 0
    header, *rows = text.splitlines()
    assert header.split() == ["token", "cosine"]
    scores = [float(row.split()[1]) for row in rows]
    assert len(rows) == 3
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_text_json_markdown_and_python_say_the_same(embeddings, halo, metric):
    arguments = ("nearest", "scripture", 97, "--metric", metric)
    facts = found_json(embeddings, *arguments)
    assert facts["model"] == "scripture@1.0.0"
    assert facts["tensor"] == "model.embed_tokens.weight"
    assert (facts["rows"], facts["dimension"], facts["dtype"]) == (256, 256, "BF16")
    assert (facts["kind"], facts["metric"], facts["method"]) == ("token", metric, "exact")
    rows = [(str(each["token_id"]), f"{each['score']:.6g}") for each in facts["neighbours"]]
    assert [tuple(line.split()) for line in embeddings(*arguments)[1].splitlines()[1:]] == rows
    markdown = embeddings(*arguments, "--output", "markdown")[1].splitlines()[2:]
    assert [tuple(line.strip("| ").split(" | ")) for line in markdown] == rows
    neighbours = halo.embeddings.nearest("scripture", 97, metric=metric)
    assert [(each.token_id, each.score) for each in neighbours] == [
        (each["token_id"], each["score"]) for each in facts["neighbours"]
    ]


def test_an_index_is_made_used_and_dropped(embeddings, has_pgvector):
    code, text = embeddings("index", "scripture")
    if not has_pgvector:
        assert code == 1
        assert "no pgvector" in text
        return
    assert (code, text) == (0, "Indexed 256 rows of the token embedding of scripture@1.0.0.\n")
    assert found_json(embeddings, "nearest", "scripture", 97)["method"] == "hnsw"
    assert found_json(embeddings, "nearest", "scripture", 97, "--exact")["method"] == "exact"
    assert found_json(embeddings, "index", "scripture")["is_new"] is False
    assert embeddings("index", "scripture")[1].startswith("Nothing to do: 256 rows")
    listed = found_json(embeddings, "ls", "scripture")["embeddings"]
    assert [each["indexed_rows"] for each in listed] == [256]
    assert embeddings("drop-index", "scripture")[1].startswith("Dropped the index")
    assert found_json(embeddings, "drop-index", "scripture")["dropped"] is False
    assert found_json(embeddings, "nearest", "scripture", 97)["method"] == "exact"


def test_python_indexes_and_drops_too(halo, has_pgvector):
    if has_pgvector:
        assert halo.embeddings.index("scripture") == 256
        (listed,) = halo.embeddings.list("scripture")
        assert listed.indexed_rows == 256
        assert halo.embeddings.drop_index("scripture") is True
    assert halo.embeddings.drop_index("scripture") is False
    tokens = halo.tensors.read("scripture", "model.embed_tokens.weight")
    assert halo.embeddings.nearest("scripture", tokens[97], k=1)[0].token_id == 97


def test_ls_lists_every_matrix(embeddings):
    code, text = embeddings("ls")
    assert code == 0
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert "scripture@1.0.0" in names
    assert len(names) == len(found_json(embeddings, "ls")["embeddings"]) >= 3
    assert embeddings("ls", "--output", "markdown")[1].startswith("| model | kind | rows |")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nearest", "nobody", "1"), 1, "there is no model 'nobody'"),
        (("ls", "nobody"), 1, "there is no model 'nobody'"),
        (("nearest", "scripture", "256"), 4, "hint: its ids are 0 to 255"),
        (("nearest", "scripture", "one"), 64, "'one' is not a valid integer"),
        (("nearest", "scripture", "1", "-k", "0"), 64, "not in the range x>=1"),
        (("nearest", "scripture", "1", "--kind", "word"), 64, "'word' is not one of"),
        (("nearest", "scripture", "1", "--metric", "dot"), 64, "'dot' is not one of"),
        (("nearest", "scripture", "1", "--kind", "position"), 1, "no position embedding"),
        (("index", "scripture", "--kind", "segment"), 1, "no segment embedding"),
    ],
)
def test_what_cannot_be_asked_says_why(embeddings, arguments, code, said):
    found, text = embeddings(*arguments)
    assert (found, said in text) == (code, True), text
