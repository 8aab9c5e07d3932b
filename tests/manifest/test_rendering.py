"""Rendering: the manifest in one piece reads as the manifest it was made of, with its origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.cli.main import run
from arc_halo.manifest.load import Source, load_project, load_text
from arc_halo.manifest.origins import FIELDS, Final, Origin, final
from arc_halo.manifest.reading import schema_of
from arc_halo.manifest.rendering import as_yaml
from arc_halo.plugins import PluginManager

ORIGIN = Origin(file="a.yaml", line=1)
ODD = (
    *("no", "null", "~", "1_000", "010", "12:30:45", "2024-01-01", "<<", "a: b", "a #b", "- a"),
    *("${A}", "$${A}", "$$${", "1e3", ".5", "True", "a\tb", "\x85", "\u2028", "\ufeff", " a", ""),
    *("\n", "a\r\nb", "é", "\U0001f600"),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(ODD)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


def leaves(value: Any, pointer: tuple[str | int, ...] = ()) -> dict[Any, Origin]:
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {p: o for part, inner in parts for p, o in leaves(inner, (*pointer, part)).items()}
    return {pointer: Origin(file="a.yaml", line=len(pointer))}


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_written_reads_as_what_it_was(tmp_path_factory: Any, data: dict[str, Any]) -> None:
    text = as_yaml(Final(data=data, origins=leaves(data)))
    file = tmp_path_factory.getbasetemp() / "rendered" / "arc_halo.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, newline="")
    [source] = load_project(file, env={"A": "expanded"})
    assert source.data == data
    assert json.dumps(source.data) == json.dumps(data)
    assert text == as_yaml(Final(data=data, origins=leaves(data)))


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_text_is_a_text_to_readers_of_yaml_1_1_too(text: str) -> None:
    written = as_yaml(Final(data={"k": text}, origins={("k",): ORIGIN}))
    assert yaml.safe_load(written) == {"k": text.replace("${", "$${")}


FILES = {
    "arc_halo.yaml": """\
version: 1
project: p
include: [parts/*.yaml]
database: {url: "postgresql://${HOST:-localhost}/d", password: {env: HALO_PASSWORD}}
models:
  poet:
    version: "1.0"
    description: "${TEAM} in ${REGION:-eu}: $${TEAM}"
    tags: {team: a, zone: b}
    architecture: {sizes: [1, 2], names: [a,
      b], none: {}}
settings: {threads: 2, allow: {secrets: [OPENAI_API_KEY]}}
""",
    "parts/a.yaml": "version: 1\nmodels:\n  coder@2:\n    weights: absent.safetensors\n",
    "parts/b.yaml": """\
models: {}
reactors:
  story:
    type: merge
    strategy: linear
    members: [{model: poet}, {model: coder}]
    produces: {model: story, version: 1.0.0}
""",
    "overlays/prod.yaml": """\
models:
  poet@1.0:
    description: on ${HOST:-nothing}
    tags: {team: null, stage: prod}
reactors:
  story: {members: [{model: poet, weight: 0.5}, {model: coder@2}]}
settings: {threads: 8}
""",
}
RENDERED = """\
version: 1  # arc_halo.yaml:1
project: p  # arc_halo.yaml:2
database:
  url: "postgresql://db/d"  # arc_halo.yaml:4, variable HOST
  password:
    env: HALO_PASSWORD  # arc_halo.yaml:4
settings:
  threads: 8  # overlays/prod.yaml:7
  allow:
    secrets: [OPENAI_API_KEY]  # arc_halo.yaml:12
models:
  poet:
    version: "1.0"  # arc_halo.yaml:7
    description: on db  # overlays/prod.yaml:3, variable HOST
    tags:
      zone: b  # arc_halo.yaml:9
      stage: prod  # overlays/prod.yaml:4
    architecture:
      sizes: [1, 2]  # arc_halo.yaml:10
      names:
        - a  # arc_halo.yaml:10
        - b  # arc_halo.yaml:11
      none: {}  # arc_halo.yaml:11
  coder@2:
    weights: absent.safetensors  # parts/a.yaml:4
reactors:
  story:
    type: merge  # parts/b.yaml:4
    strategy: linear  # parts/b.yaml:5
    members:
      - model: poet  # overlays/prod.yaml:6
        weight: 0.5  # overlays/prod.yaml:6
      - model: coder@2  # overlays/prod.yaml:6
    produces:
      model: story  # parts/b.yaml:7
      version: "1.0.0"  # parts/b.yaml:7
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("TEAM", "poetry")
    monkeypatch.setenv("HOST", "db")
    monkeypatch.setenv("HALO_PASSWORD", "hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.delenv("ARC_HALO_ENV", raising=False)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def facts(capsys: pytest.CaptureFixture[str], project: Path, *arguments: str) -> Any:
    return json.loads(told(capsys, *arguments, "--project", str(project), "--output", "json"))


def test_render_tells_where_each_value_comes_from(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(capsys, "render", "--project", str(project), "--env", "prod")
    assert shown == RENDERED
    assert told(capsys, "render", "--project", str(project), "--env", "prod") == shown


def test_what_render_prints_is_valid_and_means_the_same(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for environment in ("", "prod"):
        shown = told(capsys, "render", "--project", str(project), "--env", environment)
        before = facts(capsys, project, "render", "--env", environment)
        monkeypatch.setenv("TEAM", "others")
        (project / "arc_halo.yaml").write_text(shown)
        assert facts(capsys, project, "validate")["valid"]
        after = facts(capsys, project, "render")
        assert after["manifest"] == before["manifest"]
        assert after["environment"] is None
        assert {origin["file"] for origin in after["origins"].values()} == {"arc_halo.yaml"}
        assert not any(origin["variables"] for origin in after["origins"].values())
        assert "hunter2" not in shown + repr(before)
        (project / "arc_halo.yaml").write_text(FILES["arc_halo.yaml"])
        monkeypatch.setenv("TEAM", "poetry")


def test_origins_are_told_by_json_pointer(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, project, "render", "--env", "")
    assert found["manifest"]["models"]["poet"]["description"] == "poetry in eu: ${TEAM}"
    assert found["origins"]["/models/poet/description"] == {
        "file": "arc_halo.yaml",
        "line": 8,
        "variables": ["TEAM"],
        "defaults": ["REGION"],
    }
    assert found["origins"]["/models/coder@2/weights"]["file"] == "parts/a.yaml"
    assert found["environment"] is None
    assert facts(capsys, project, "validate", "--env", "prod")["environment"] == "prod"


def test_what_is_not_valid_is_not_rendered(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "overlays" / "prod.yaml").write_text("models:\n  poet: {typ: x}\n")
    shown = told(capsys, "render", "--project", str(project), "--env", "prod", code=4)
    assert "overlays/prod.yaml:2:10: error[AH003]" in shown
    shown = told(capsys, "render", "--project", str(project), "--env", "dev", code=4)
    assert "there is no environment 'dev'" in shown
    assert "there are prod" in shown


def test_a_secret_in_a_variable_is_not_rendered(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in ("postgresql://u:hunter2@h/d", "sk-hunter2hunter2", "password=hunter2"):
        monkeypatch.setenv("TEAM", secret)
        shown = told(capsys, "render", "--project", str(project), code=4)
        assert "arc_halo.yaml:8:18: error[AH006]" in shown
        assert "hunter2" not in shown


def test_render_knows_every_field_of_a_manifest() -> None:
    assert {*FIELDS, "include"} == set(schema_of(PluginManager())["properties"])


def test_values_that_an_alias_repeats_have_their_origin(tmp_path: Path) -> None:
    text = "models:\n  a@1: {tags: &t {x: '${A}'}}\n  b@1:\n    tags: *t\n"
    (tmp_path / "arc_halo.yaml").write_text(text)
    sources: list[Source] = load_project(tmp_path, env={"A": "1"})
    origin = final(sources).origins["models", "b@1", "tags", "x"]
    assert (origin.line, origin.variables) == (2, ("A",))
    unexpanded = load_text(text, path=tmp_path, label="x")
    assert final([unexpanded]).origins["models", "b@1", "tags", "x"].defaults == ()
