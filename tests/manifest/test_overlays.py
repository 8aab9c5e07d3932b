"""Overlays: what an environment changes, what is refused, and where every mistake is told."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from arc_halo.errors import InvalidInputError, ManifestError, Problem
from arc_halo.manifest.documents import Desired
from arc_halo.manifest.head import read_head
from arc_halo.manifest.include import SECTIONS
from arc_halo.manifest.load import load_project, load_text
from arc_halo.manifest.origins import final
from arc_halo.manifest.overlay_schema import overlay_schema
from arc_halo.manifest.overlays import PROJECT_FIELDS, merged
from arc_halo.manifest.reading import Manifest, read_manifest, schema_of
from arc_halo.manifest.recipe_files import read_recipe
from arc_halo.manifest.resolve import resolve
from arc_halo.plugins import PluginManager
from arc_halo.project import Project

BASE = """\
version: 1
project: p
include: ["parts/*.yaml"]
database: postgresql://dev/halo
models:
  poet:
    version: 1.2.0
    description: dev
    aliases: [latest, "${ALIAS:-main}"]
    tags: {team: a, tier: 1}
  coder@2.0.0:
    architecture: coder.json
  coder@2.1.0: {}
settings: {threads: 2, allow: {hosts: [a.example.org, b.example.org]}}
"""
PARTS = """\
strategies:
  even: {uses: linear, params: {normalize: true}}
reactors:
  story:
    type: merge
    strategy: even
    members: [{model: poet}, {model: coder@2.0.0}]
    produces: {model: story, version: 1.0.0}
"""

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path) -> Write:
    def write(overlay: str | None = None, **more: str) -> Path:
        files = {"arc_halo.yaml": BASE, "parts/merges.yaml": PARTS, "coder.json": "{}"}
        if overlay is not None:
            files["overlays/prod.yaml"] = textwrap.dedent(overlay)
        for name, text in {**files, **more}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def read(
    directory: Path, environment: str | None = "prod", env: Mapping[str, str] | None = None
) -> Manifest:
    return read_manifest(directory, env=env or {}, environment=environment)


def desired(directory: Path, environment: str | None = "prod", **env: str) -> Desired:
    manifest = read(directory, environment, env)
    return resolve(manifest.sources, manifest.plugins)


def problems(directory: Path, environment: str = "prod", **env: str) -> tuple[Problem, ...]:
    with pytest.raises(ManifestError) as caught:
        desired(directory, environment, **env)
    assert caught.value.exit_code == 4
    return caught.value.problems


def one(directory: Path, environment: str = "prod", **env: str) -> Problem:
    [problem] = problems(directory, environment, **env)
    return problem


def place(problem: Problem) -> tuple[str, str, int, int]:
    return problem.code, problem.file, problem.line, problem.column


# What is merged


def test_mappings_are_merged_lists_replaced_and_null_takes_away(project: Write) -> None:
    directory = project(
        """\
        models:
          poet: {description: prod, aliases: [production], tags: {tier: null, zone: eu}}
          coder@2.1.0: null
        strategies:
          even: {params: {normalize: false}}
        settings: {threads: 8, allow: {hosts: [c.example.org]}, prune: true}
        storage: {codec: zstd}
        """
    )
    head, parts = (source.data for source in read(directory).sources)
    assert head["models"]["poet"] == {
        "version": "1.2.0",
        "description": "prod",
        "aliases": ["production"],
        "tags": {"team": "a", "zone": "eu"},
    }
    assert list(head["models"]) == ["poet", "coder@2.0.0"]
    assert head["settings"] == {"threads": 8, "allow": {"hosts": ["c.example.org"]}, "prune": True}
    assert head["storage"] == {"codec": "zstd"}
    assert parts["strategies"]["even"] == {"uses": "linear", "params": {"normalize": False}}
    assert desired(directory).env == "prod"
    assert desired(directory, None).env is None


NESTED = st.recursive(
    st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), NESTED), NESTED, NESTED)
@settings(max_examples=50, deadline=None)
def test_a_patch_does_what_the_rfc_says(value: Any, first: Any, second: Any) -> None:
    def by_the_rfc(target: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        target = dict(target) if isinstance(target, dict) else {}
        for name, part in patch.items():
            if part is None:
                target.pop(name, None)
            else:
                target[name] = by_the_rfc(target.get(name), part)
        return target

    once = merged(value, first)
    assert once == by_the_rfc(value, first)
    if isinstance(first, dict):
        assert merged(once, first) == once
    assert merged(once, second) == by_the_rfc(by_the_rfc(value, first), second)


NAMES = st.sampled_from("abc")
TREES = st.recursive(
    st.integers(0, 10**6) | st.lists(st.integers(0, 10**6), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, TREES, min_size=1), st.dictionaries(NAMES, TREES), st.data())
@settings(max_examples=60, deadline=None)
def test_every_value_is_found_where_it_was_written(
    tmp_path_factory: Any, base: dict[str, Any], patch: dict[str, Any], draw: st.DataObject
) -> None:
    if (gone := sorted(base.keys() - patch.keys())) and draw.draw(st.booleans()):
        patch = {**patch, draw.draw(st.sampled_from(gone)): None}
    directory = tmp_path_factory.mktemp("merged")
    files = {"arc_halo.yaml": base, "overlays/prod.yaml": patch}
    (directory / "overlays").mkdir()
    for name, data in files.items():
        text = yaml.safe_dump({"settings": data}, default_flow_style=False)
        (directory / name).write_text(text)
    sources = load_project(directory, env={}, environment="prod")
    assert sources[0].data["settings"] == merged(base, patch)
    for pointer, origin in final(sources).origins.items():
        value = at(sources[0].data["settings"], pointer[1:])
        if isinstance(value, dict | list):
            continue
        assert at(files[origin.file], pointer[1:]) == value
        if at(patch, pointer[1:]) is not None:
            assert origin.file == "overlays/prod.yaml"
        line = (directory / origin.file).read_text().splitlines()[origin.line - 1]
        assert line.split()[-1] == str(value)


def at(value: Any, pointer: tuple[str | int, ...]) -> Any:
    """The scalar at a pointer, None where there is none."""
    for part in pointer:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return None
    return value


@pytest.mark.parametrize("key", ["poet", "poet@1.2.0"])
def test_a_model_is_found_by_either_form_of_its_name(project: Write, key: str) -> None:
    directory = project(f"models: {{{key}: {{description: prod}}}}")
    assert read(directory).head["models"]["poet"]["description"] == "prod"
    directory = project(
        "models: {poet: {description: prod}}",
        **{"arc_halo.yaml": BASE.replace("poet:\n    version: 1.2.0", "poet@1.2.0:")},
    )
    assert read(directory).head["models"]["poet@1.2.0"]["description"] == "prod"


def test_variables_of_an_overlay_are_expanded_and_strict(project: Write) -> None:
    directory = project('models:\n  poet:\n    description: "on ${HOST}"\n')
    found = read(directory, env={"HOST": "h"}).head["models"]["poet"]["description"]
    assert found == "on h"
    problem = one(directory)
    assert place(problem) == ("AH008", "overlays/prod.yaml", 3, 22)
    assert "HOST" in problem.message


def test_an_empty_overlay_changes_nothing_but_names_the_environment(project: Write) -> None:
    directory = project("# as in development\n")
    assert desired(directory).declarations == desired(directory, None).declarations
    assert desired(directory).env == "prod"


def test_a_merge_of_files_is_as_its_environment_has_it(project: Write) -> None:
    directory = project("strategies: {even: {params: {normalize: false}}}")
    for environment, expected in ((None, True), ("prod", False)):
        recipe = read_recipe(directory, environ={}, environment=environment)
        assert recipe.spec.params["normalize"] is expected


def test_overlays_are_never_included(project: Write) -> None:
    directory = project(
        "models: {poet: {description: prod}}",
        **{"arc_halo.yaml": BASE.replace("parts/*.yaml", "**/*.yaml")},
    )
    labels = [source.label for source in read(directory).sources]
    assert labels == ["arc_halo.yaml", "parts/merges.yaml"]
    project(**{"arc_halo.yaml": BASE.replace("parts/*", "overlays/*")})
    assert place(one(directory)) == ("AH011", "arc_halo.yaml", 3, 11)


# What is refused


REFUSED = [
    ("models:\n  poett: {}", "AH028", 2, 3, "did you mean 'poet'?"),
    ("models:\n  even: {}", "AH028", 2, 3, "there is strategies.even; did you mean that?"),
    ("models:\n  story@1.0.0: {}", "AH028", 2, 3, "change reactors.story.produces"),
    ("models: {coder: {}}", "AH022", 1, 10, "write the one you mean"),
    ("models: {poet@1.3.0: {}}", "AH028", 1, 10, "did you mean 'poet'?"),
    ("inference: {kv_cache: {budget: 1GiB}}", "AH028", 1, 13, "for all environments"),
    ("models:\n  poet:\n    run: null", "AH028", 3, 5, "remove the line"),
    ("models:\n  poet:\n    tags: {tiers: null}", "AH028", 3, 12, "did you mean 'tier'?"),
    ("models:\n  poet:\n    runner: {uses: x, params: null}", "AH028", 3, 23, "remove the line"),
    ("storage: null", "AH028", 1, 1, "remove the line"),
    ("models:\n  poet:\n", "AH004", 2, 3, "if that is meant, write `null`"),
    ("models: null", "AH004", 1, 9, "`NAME: null` takes one away"),
    ("reactors: [story]", "AH004", 1, 11, "`NAME: null` takes one away"),
    ("models: {poet: {}, poet@1.2.0: {}}", "AH013", 1, 20, "it is first changed on line 1"),
    ("modles: {}", "AH003", 1, 1, "did you mean 'models'?"),
    ("version: 1", "AH003", 1, 1, "the project file says it"),
    ("project: q", "AH003", 1, 1, "give each a database of its own"),
    ("include: []", "AH003", 1, 1, "include it in the project file"),
    ("plugins: [x.py]", "AH003", 1, 1, "plugins are code"),
    ("models: {poet: {}, poet: {}}", "AH002", 1, 20, "remove or rename"),
]


@pytest.mark.parametrize(("overlay", "code", "line", "column", "hint"), REFUSED)
def test_a_patch_that_makes_no_sense_is_refused_at_its_place(
    project: Write, overlay: str, code: str, line: int, column: int, hint: str
) -> None:
    problem = one(project(overlay))
    assert place(problem) == (code, "overlays/prod.yaml", line, column)
    assert hint in (problem.hint or "")


def test_all_problems_of_an_overlay_are_told_at_once(project: Write) -> None:
    directory = project("project: q\nmodels:\n  poett: {}\n  poet: {runner: null}\n")
    assert [problem.line for problem in problems(directory)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("name", "hint"), [("prodd", "did you mean 'prod'?"), ("x", "there are prod")]
)
def test_an_environment_that_is_not_there_is_refused_with_those_that_are(
    project: Write, name: str, hint: str
) -> None:
    directory = project("")
    problem = one(directory, name)
    assert (problem.code, problem.file) == ("AH011", f"overlays/{name}.yaml")
    assert problem.hint == hint
    with pytest.raises(ManifestError, match="there is no environment"):
        read_head(directory, {}, environment=name)


@pytest.mark.parametrize("name", ["../arc_halo", "Prod", "a/b", "a\n"])
def test_an_environment_has_a_name_and_no_path(project: Write, name: str) -> None:
    with pytest.raises(InvalidInputError, match="is not the name of an environment"):
        Project(project(""), env=name, environ={}).desired_without_database()


def test_an_overlay_may_not_lead_out_of_the_project(project: Write, tmp_path: Path) -> None:
    directory = project("") / "inner"
    (directory / "overlays").mkdir(parents=True)
    (directory / "arc_halo.yaml").write_text("version: 1\nproject: p\n")
    (directory / "overlays" / "prod.yaml").symlink_to(tmp_path / "overlays" / "prod.yaml")
    assert one(directory).code == "AH012"
    read_manifest(directory, env={}, environment="prod", allow_paths=[tmp_path])


# Where later problems are told


LATER = [
    # by the schema: a wrong value, an unknown field, within what was merged and what is new
    ("models:\n  poet:\n    tags: {tier: [1]}", "AH004", 3, 18),
    ("models:\n  poet:\n    descriptoin: x", "AH003", 3, 5),
    ("models:\n  poet:\n    weights: {digest: x, source: w.safetensors}", "AH006", 3, 23),
    ("settings:\n  memory: 1kB", "AH007", 2, 11),
    ("settings:\n  allow: {hosts: [ok.org, 'a b']}", "AH006", 2, 27),
    # what was taken away is missing where it was taken away
    ("strategies:\n  even:\n    uses: null", "AH005", 3, 5),
    ("reactors:\n  story:\n    produces: null", "AH024", 3, 5),
    # by resolution
    ("reactors:\n  story:\n    strategy: none", "AH032", 3, 15),
    ("reactors:\n  story:\n    members: [{model: poet}, {model: codder@2.0.0}]", "AH020", 3, 38),
    ("models:\n  coder@2.1.0:\n    version: 3.0.0", "AH006", 3, 14),
    ("models:\n  coder@2.0.0:\n    architecture: gone.json", "AH011", 3, 19),
    ("models:\n  poet@1.2.0:\n    ignore: [weights, typ]", "AH006", 3, 23),
]


@pytest.mark.parametrize(("overlay", "code", "line", "column"), LATER)
def test_a_problem_with_a_patched_value_is_told_at_the_overlay(
    project: Write, overlay: str, code: str, line: int, column: int
) -> None:
    problem = one(project(overlay))
    assert place(problem) == (code, "overlays/prod.yaml", line, column)
    assert problem.snippet == overlay.splitlines()[line - 1]


def test_a_problem_with_what_an_overlay_left_alone_is_told_at_the_file(project: Write) -> None:
    directory = project(
        "models:\n  poet: {description: x}\nreactors:\n  story: {tags: {a: 1}}\n",
        **{"parts/merges.yaml": PARTS.replace("strategy: even", "strategy: evenn")},
    )
    assert place(one(directory)) == ("AH032", "parts/merges.yaml", 6, 15)


def test_a_secret_in_an_overlay_is_not_repeated(project: Write) -> None:
    texts = (
        "database: postgresql://u:hunter2@h/d",
        "database: {url: postgresql://h/d, password: hunter2}",
        "database: ${URL}",
        "settings: {allow: {secrets: ['hunter2!']}}",
        "models:\n  poet: {runner: {uses: openai, params: {url: 'https://h', key: 'hunter2 x'}}}",
    )
    for text in texts:
        found = problems(project(text), URL="postgresql://u:hunter2@h/d")
        assert all(problem.file == "overlays/prod.yaml" for problem in found)
        assert "hunter2" not in repr(found)


# The database


def database(directory: Path, environment: str | None, **env: str) -> tuple[Any, str]:
    head = read_head(directory, env, environment=environment)
    return head.database(), head.database_file


def test_an_overlay_names_the_database_of_its_environment(project: Write) -> None:
    directory = project("database: {url: '${URL}', password: {env: PASSWORD}}\n")
    assert database(directory, None) == ("postgresql://dev/halo", "arc_halo.yaml")
    expected = {"url": "postgresql://prod/halo", "password": {"env": "PASSWORD"}}
    found = database(directory, "prod", URL="postgresql://prod/halo")
    assert found == (expected, "overlays/prod.yaml")
    with pytest.raises(InvalidInputError, match=r"overlays/prod.yaml:1:17: .* 'URL' has no"):
        database(directory, "prod")
    environ = {"URL": "postgresql://prod/halo", "ARC_HALO_ENV": "prod", "PASSWORD": "x"}
    target = Project(directory, environ=environ).target
    assert (target.url, target.origin) == (
        "postgresql://prod/halo?password=x",
        "overlays/prod.yaml",
    )


def test_what_is_wrong_with_the_database_is_told_at_its_line(project: Write) -> None:
    def found(text: str, **env: str) -> Problem:
        with pytest.raises(ManifestError) as caught:
            _ = Project(project(text), env="prod", environ=env).target
        (problem,) = caught.value.problems
        return problem

    text = "database:\n  url: postgresql://prod/${NAME}\n  password: {env: PW}\n"
    missing = found(text, NAME="halo")
    assert place(missing) == ("AH008", "overlays/prod.yaml", 3, 13)
    assert missing.message == "database.password: the environment variable PW is not set"
    assert place(found(text)) == ("AH008", "overlays/prod.yaml", 2, 8)
    assert place(found("database: [x]\n")) == ("AH004", "overlays/prod.yaml", 1, 11)
    literal = found("database: {url: 'host=h password=hunter2'}\n")
    assert place(literal) == ("AH090", "overlays/prod.yaml", 1, 11)
    assert "hunter2" not in repr(literal)


def test_an_overlay_that_says_nothing_of_the_database_leaves_it(project: Write) -> None:
    assert database(project("models: {}"), "prod") == ("postgresql://dev/halo", "arc_halo.yaml")
    assert database(project("database: null"), "prod") == (None, "overlays/prod.yaml")


def test_the_option_wins_over_the_variable_and_an_empty_one_is_no_environment(
    project: Write,
) -> None:
    directory = project("", **{"overlays/dev.yaml": ""})
    environ = {"ARC_HALO_ENV": "prod"}
    assert Project(directory, environ=environ).env == "prod"
    assert Project(directory, environ=environ, env="dev").env == "dev"
    assert Project(directory, environ=environ, env="").env is None
    assert Project(directory, environ={"ARC_HALO_ENV": ""}).env is None
    (directory / ".env").write_text("ARC_HALO_ENV=dev\n")
    assert Project(directory, environ={}).env == "dev"


# The digest, and what is behind it


def test_whatever_changes_the_desired_state_changes_the_digest(project: Write) -> None:
    directory = project("models: {poet: {description: prod}}")
    (directory / "overlays" / "stage.yaml").write_text("models: {poet: {description: prod}}")
    plain = desired(directory, None).manifest_digest
    seen = {plain, desired(directory).manifest_digest, desired(directory, "stage").manifest_digest}
    seen.add(desired(directory, None, ALIAS="x").manifest_digest)
    seen.add(desired(directory, None, ALIAS="y").manifest_digest)
    (directory / "coder.json").write_text(json.dumps({"num_hidden_layers": 2}))
    seen.add(desired(directory, None).manifest_digest)
    (directory / "overlays" / "prod.yaml").write_text("models: {poet: {description: prod }}")
    seen.add(desired(directory).manifest_digest)
    assert len(seen) == 7
    (directory / "coder.json").write_text("{}")
    assert desired(directory, None, UNUSED="1").manifest_digest == plain


def test_every_file_behind_a_manifest_is_known(project: Write) -> None:
    tokenizer = BASE.replace("description: dev", "tokenizer: tokenizer.json")
    text = tokenizer.replace("parts/*.yaml", 'parts/*.yaml", "more/*.yaml').replace(
        "database:", "plugins: [mine.py]\ndatabase:"
    )
    plugin = "from arc_halo import hookimpl\n@hookimpl\ndef arc_halo_before_apply(): ...\n"
    directory = project("", **{"arc_halo.yaml": text, "mine.py": plugin})
    found = desired(directory, ALIAS="x")
    assert {path.relative_to(directory).as_posix() for path in found.files} == {
        *("arc_halo.yaml", "overlays/prod.yaml", "parts", "parts/merges.yaml", "more"),
        *("mine.py", "coder.json", "tokenizer.json"),
    }
    assert found.variables.keys() == {"ALIAS"}
    assert desired(directory).variables == {"ALIAS": None}


# The schema for editors


@pytest.fixture(scope="module")
def overlays() -> Draft202012Validator:
    schema = overlay_schema(schema_of(PluginManager()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    ("overlay", "is_valid"),
    [
        ("models: {poet: {tags: {tier: null}, weights: {codec: planes}}, coder@2.0.0: null}", True),
        ("reactors: {story: {strategy: null, members: [{model: poet}]}}", True),
        ("strategies: {even: {params: {anything: 1}}}", True),
        ("inference: {kv_cache: {budget: 1GiB}}", True),
        ("training: {t: {retention: {keep_last: null}}}", True),
        ("settings: {allow: {hosts: [a.org]}, max_deletes: null}\nstorage: null", True),
        ("database: {password: {env: X}}", True),
        ("database: null", True),
        ("models: null", False),
        ("models: {poet: {typ: x}}", False),
        ("models: {poet: {aliases: [null]}}", False),
        ("reactors: {story: {members: [{role: primary}]}}", False),
        ("settings: {threads: many}", False),
        *[(f"{field}: x", False) for field in ("version", "project", "include", "plugins", "x")],
    ],
)
def test_the_schema_of_overlays_allows_patches_alone(
    overlays: Draft202012Validator, overlay: str, is_valid: bool
) -> None:
    data = load_text(overlay, path=Path("/o.yaml"), label="o.yaml").data
    assert overlays.is_valid(data) == is_valid


def test_a_manifest_has_no_field_that_overlays_do_not_know() -> None:
    fields = set(schema_of(PluginManager())["properties"])
    assert fields == {*SECTIONS, *PROJECT_FIELDS, "version", "project", "include", "plugins"}
