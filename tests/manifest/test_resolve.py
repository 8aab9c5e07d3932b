"""Names become references: what is declared, what is meant, and every way in which it can fail."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.documents import Desired, ReactorSpec, RegisteredModel
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import alias_references, resolve
from arc_halo.types import Key

PLUGIN = """
from arc_halo import FusionStrategy, hookimpl

@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(name="vote", summary="outputs", combine_outputs=lambda outputs: outputs)
    yield FusionStrategy(
        name="delta", summary="weights", needs_base=True, min_members=2, max_members=3,
        fuse_weights=lambda tensors, context: tensors[0],
    )
"""

Registered = Mapping[tuple[str, str], RegisteredModel] | None


def desired(
    directory: Path,
    text: str,
    files: Mapping[str, str] | None = None,
    *,
    registered: Registered = None,
    allow_paths: tuple[Path, ...] = (),
) -> Desired:
    """What the project file with this text declares, after `version:` and `project:`."""
    head = "version: 1\nproject: p\n"
    (directory / "arc_halo.yaml").write_text(head + textwrap.dedent(text))
    for name, content in (files or {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(textwrap.dedent(content))
    manifest = read_manifest(directory, env={}, allow_paths=allow_paths)
    return resolve(
        manifest.sources, manifest.plugins, allow_paths=allow_paths, registered=registered or {}
    )


def problems(*args: Any, **kwargs: Any) -> tuple[Problem, ...]:
    with pytest.raises(ManifestError) as caught:
        desired(*args, **kwargs)
    assert caught.value.exit_code == 4
    return caught.value.problems


def places(found: tuple[Problem, ...]) -> list[tuple[str, int, int]]:
    return [(problem.code, problem.line, problem.column) for problem in found]


def reactor(found: Desired, name: str) -> ReactorSpec:
    spec = found.declarations[Key(kind="reactor", name=name)].spec
    assert isinstance(spec, ReactorSpec)
    return spec


# What is meant


def test_references_become_full_names_and_defaults_are_filled_in(tmp_path: Path) -> None:
    found = desired(
        tmp_path,
        """
        models:
          a: {version: 1.0.0, aliases: [live]}
          b@2: {}
          b@3: {}
        strategies:
          plain: {uses: linear}
        reactors:
          mix:
            type: merge
            strategy: plain
            base: a
            members: [{model: "a:live"}, {model: b@3, weight: 2, role: primary, priority: 4}]
            interactions: [{from: b@3, to: a, kind: validates}]
            produces: {model: m, version: "1"}
        """,
    )
    spec = reactor(found, "mix").as_json()
    assert spec["base"] == "a@1.0.0"
    assert (spec["strategy"], spec["uses"], spec["params"]) == (
        "plain", "linear", {"normalize": True},
    )  # fmt: skip
    assert spec["members"] == [
        {
            "model": "a@1.0.0",
            "role": "secondary",
            "weight": 1.0,
            "priority": None,
            "adapters": [],
            "cost": 1.0,
            "domains": [],
        },
        {
            "model": "b@3",
            "role": "primary",
            "weight": 2.0,
            "priority": 4,
            "adapters": [],
            "cost": 1.0,
            "domains": [],
        },
    ]
    assert spec["interactions"] == [
        {"from": "b@3", "to": "a@1.0.0", "kind": "validates", "weight": 1.0}
    ]
    assert spec["produces"] == "m@1"


def test_what_others_need_comes_first(tmp_path: Path) -> None:
    found = desired(
        tmp_path,
        """
        models: {a@1: {}, b@1: {}}
        strategies: {s: {uses: linear}}
        reactors:
          second: {type: merge, strategy: s, members: [{model: one}],
                   produces: {model: k, version: "1"}}
          first: {type: merge, strategy: linear, members: [{model: a}],
                  produces: {model: one, version: "1"}}
        """,
    )
    assert [str(key) for key in found.declarations] == [
        "strategy/s", "model/a@1", "model/b@1", "model/one@1", "model/k@1",
        "reactor/first", "reactor/second",
    ]  # fmt: skip


def test_a_produced_model_is_like_its_base(tmp_path: Path) -> None:
    found = desired(
        tmp_path,
        """
        models:
          a@1: {type: moe, architecture: {n: 1}}
          b@1: {type: ssm, architecture: config.json}
        reactors:
          r: {type: merge, strategy: linear, base: b, members: [{model: a}],
              produces: {model: m, version: "1"}}
          s: {type: merge, strategy: linear, members: [{model: a}, {model: m}],
              produces: {model: n, version: "1"}}
        """,
        {"config.json": '{"n": 2}'},
    )
    specs = {key.name: declaration.spec for key, declaration in found.declarations.items()}
    assert [(specs[n].type, specs[n].architecture) for n in ("m@1", "n@1")] == [  # type: ignore[union-attr]
        ("ssm", {"n": 2}),
        ("moe", {"n": 1}),
    ]


def test_an_alias_that_only_the_database_knows_is_pinned_to_its_version(tmp_path: Path) -> None:
    known = RegisteredModel(
        name="old", version="7", type="moe", architecture={"n": 1}, root=bytes(32)
    )
    text = """
        reactors:
          r: {type: merge, strategy: linear, members: [{model: "old:live"}],
              produces: {model: m, version: "1"}}
        """
    found = desired(tmp_path, text, registered={("old", "live"): known})
    assert reactor(found, "r").members[0].model == "old@7"
    assert found.registered == {"old@7": known}
    assert found.declarations[Key(kind="model", name="m@1")].spec.type == "moe"  # type: ignore[union-attr]
    manifest = read_manifest(tmp_path, env={})
    assert alias_references(manifest.sources) == {("old", "live")}
    (problem,) = problems(tmp_path, text)
    assert (problem.code, problem.line, problem.column) == ("AH022", 5, 56)


def test_equal_manifests_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    one = desired(tmp_path, "models: {a@1: {}}\n")
    assert desired(tmp_path, "models: {a@1: {}}\n").manifest_digest == one.manifest_digest
    assert desired(tmp_path, "models: {a@1: { }}\n").manifest_digest != one.manifest_digest
    loaded = desired(tmp_path, "plugins: [p.py]\n", {"p.py": PLUGIN})
    again = desired(tmp_path, "plugins: [p.py]\n", {"p.py": PLUGIN + "\n"})
    assert loaded.manifest_digest != again.manifest_digest


# What is wrong


def test_all_problems_are_told_at_once_in_order(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        include: [more.yaml]
        models:
          poet@1: {}
          poet@2: {weights: ../out.safetensors}
          coder@1:
            aliases: [live]
            version: "2"
        reactors:
          mix:
            type: merge
            strategy: liner
            members:
              - {model: poet}
              - {model: codr}
        """,
        {
            "more.yaml": """\
            models:
              poet@1: {architecture: /etc/passwd}
            """
        },
    )
    assert [(p.file, p.code, p.line, p.column) for p in found] == [
        ("arc_halo.yaml", "AH012", 7, 21),
        ("arc_halo.yaml", "AH006", 10, 14),
        ("arc_halo.yaml", "AH024", 12, 3),
        ("arc_halo.yaml", "AH032", 14, 15),
        ("arc_halo.yaml", "AH022", 16, 17),
        ("arc_halo.yaml", "AH020", 17, 17),
        ("more.yaml", "AH013", 2, 3),
    ]
    by_code = {problem.code: problem for problem in found}
    assert by_code["AH032"].hint == "did you mean 'linear'?"
    assert by_code["AH013"].hint == "it is first declared at arc_halo.yaml:6"
    assert "version 1 or 2" in by_code["AH022"].message


@pytest.mark.parametrize(
    ("written", "meant"),
    [("poett", "poet"), ("poet@1.0", "poet@1.0.0"), ("peot@1.0.0", "poet@1.0.0"), ("zzz", None)],
)
def test_an_unknown_model_is_guessed(tmp_path: Path, written: str, meant: str | None) -> None:
    (problem,) = problems(
        tmp_path,
        f"""
        models: {{poet@1.0.0: {{}}}}
        reactors:
          r:
            type: merge
            strategy: linear
            members: [{{model: {written}}}]
            produces: {{model: m, version: "1"}}
        """,
    )
    assert (problem.code, problem.line, problem.column) == ("AH020", 9, 23)
    assert problem.length == len(written)
    assert problem.hint == (f"did you mean '{meant}'?" if meant else None)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{model: a}, {model: b}", "{model: a}, {model: c}"),
        ("{model: b}, {model: a}", "{model: a}, {model: c}"),
        ("{model: b}", "{model: c}"),
        ("{model: a}], base: b, tags: {}, ignore: [tags", "{model: a}, {model: c}"),
    ],
)
def test_a_cycle_is_told_with_its_path(tmp_path: Path, first: str, second: str) -> None:
    (problem,) = problems(
        tmp_path,
        f"""
        models: {{a@1: {{}}}}
        reactors:
          one: {{type: merge, strategy: linear, produces: {{model: c, version: v}},
                members: [{first}]}}
          two: {{type: merge, strategy: linear, produces: {{model: b, version: v}},
                members: [{second}]}}
        """,
    )
    assert problem.code == "AH021"
    assert problem.line in (6, 8)
    path = problem.message.removeprefix("dependency cycle: ").split(" -> ")
    assert path[0] == path[-1]
    assert set(path) == {"model/b@v", "model/c@v"}


def test_a_model_made_of_itself_is_a_cycle(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path,
        """
        reactors:
          r:
            type: merge
            strategy: linear
            members: [{model: m}]
            produces: {model: m, version: "1"}
        """,
    )
    assert (problem.code, problem.line) == ("AH021", 9)
    assert "model/m@1 -> model/m@1" in problem.message


def test_every_cycle_is_told(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        models: {a@1: {}}
        reactors:
          r: {type: merge, strategy: linear, members: [{model: m}],
               produces: {version: v, model: m}}
          s: {type: merge, strategy: linear, members: [{model: n}],
               produces: {version: v, model: n}}
        """,
    )
    assert [(p.code, p.line) for p in found] == [("AH021", 7), ("AH021", 9)]


def test_a_name_may_be_declared_once_in_all_files(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        include: [more.yaml]
        models:
          a@1: {aliases: [live]}
        strategies:
          s: {uses: linear}
        reactors:
          r: {type: merge, strategy: s, members: [{model: a@1}], produces: {model: m, version: "1"}}
          q: {type: merge, strategy: s, members: [{model: a@1}], produces: {model: a, version: "1"}}
        """,
        {
            "more.yaml": """\
            models:
              a: {version: "1"}
              m@1: {}
              a@2: {aliases: [live]}
            strategies:
              s: {uses: slerp}
              linear: {uses: linear}
            reactors:
              r: {type: merge, strategy: s, members: [{model: m}],
                   produces: {version: v, model: x}}
            """
        },
    )
    assert [(p.file, p.code, p.line, p.column) for p in found] == [
        ("arc_halo.yaml", "AH013", 10, 58),
        ("arc_halo.yaml", "AH013", 11, 58),
        ("more.yaml", "AH013", 2, 3),
        ("more.yaml", "AH013", 4, 19),
        ("more.yaml", "AH013", 6, 3),
        ("more.yaml", "AH013", 7, 3),
        ("more.yaml", "AH013", 9, 3),
    ]


def test_a_member_and_an_interaction_may_stand_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        models: {a@1: {aliases: [live]}, b@1: {}}
        reactors:
          r:
            type: merge
            strategy: linear
            members: [{model: a}, {model: b}, {model: "a:live"}]
            interactions:
              - {from: a, to: b, kind: augments}
              - {from: a, to: b, kind: validates}
              - {from: a@1, to: b, kind: augments}
            produces: {model: m, version: "1"}
        """,
    )
    assert places(found)[0] == ("AH013", 9, 47)
    assert [(p.code, p.line) for p in found] == [("AH013", 9), ("AH013", 13)]


def test_an_interaction_is_between_two_members(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        models: {a@1: {}, b@1: {}, c@1: {}}
        reactors:
          r:
            type: merge
            strategy: linear
            members: [{model: a}, {model: b}]
            interactions:
              - {from: a, to: c, kind: augments}
              - {from: a, to: a@1, kind: augments}
              - {from: d, to: a, kind: augments}
            produces: {model: m, version: "1"}
        """,
    )
    assert places(found) == [("AH020", 11, 23), ("AH023", 12, 23), ("AH020", 13, 16)]


@pytest.mark.parametrize(
    ("fields", "said", "place"),
    [
        ("type: merge, strategy: vote, members: [{model: a}]", "does not fuse weights", "vote"),
        ("type: cascade, strategy: linear, members: [{model: a}]", "not fuse outputs", "linear"),
        (
            "type: merge, strategy: slerp, members: [{model: a}]",
            "takes exactly 2 members, not 1",
            "[{model: a}]",
        ),
        (
            "type: merge, strategy: delta, base: a, members: [{model: a}]",
            "takes 2 to 3 members, not 1",
            "[{model: a}]",
        ),
        (
            "type: merge, strategy: delta, members: [{model: a}, {model: b}]",
            "needs a base model",
            "r: {",
        ),
    ],
)
def test_a_reactor_has_to_fit_its_strategy(
    tmp_path: Path, fields: str, said: str, place: str
) -> None:
    produces = ', produces: {model: m, version: "1"}' if "merge" in fields else ""
    line = f"  r: {{{fields}{produces}}}"
    text = f"plugins: [p.py]\nmodels: {{a@1: {{}}, b@1: {{}}}}\nreactors:\n{line}\n"
    (problem,) = problems(tmp_path, text, {"p.py": PLUGIN})
    assert (problem.code, problem.line, problem.column) == ("AH023", 6, line.index(place) + 1)
    assert said in problem.message


def test_only_a_merge_produces_a_model_and_it_must(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        plugins: [p.py]
        models: {a@1: {}}
        reactors:
          r: {type: merge, strategy: linear, members: [{model: a}]}
          s: {type: cascade, strategy: vote, members: [{model: a}],
               produces: {version: v, model: m}}
        """,
        {"p.py": PLUGIN},
    )
    assert places(found) == [("AH024", 7, 3), ("AH024", 9, 18)]


def test_params_of_a_declared_strategy_are_checked_with_those_of_the_reactor(
    tmp_path: Path,
) -> None:
    (problem,) = problems(
        tmp_path,
        """
        models: {a@1: {}}
        strategies: {s: {uses: linear}}
        reactors:
          r:
            type: merge
            strategy: s
            params: {normalize: maybe}
            members: [{model: a}]
            produces: {model: m, version: "1"}
        """,
    )
    assert (problem.line, problem.column) == (10, 25)


@pytest.mark.parametrize("inside", [True, False])
def test_paths_stay_in_the_project(tmp_path: Path, inside: bool) -> None:
    outside = tmp_path / "outside"
    project = tmp_path / "project"
    for directory in (outside, project):
        directory.mkdir()
        for name in ("config.json", "w.safetensors", "p.py"):
            (directory / name).write_text("{}")
    (project / "link.json").symlink_to((project if inside else outside) / "config.json")
    (project / "dir").symlink_to(project if inside else outside)
    text = """
        models:
          a@1: {architecture: link.json}
          b@1: {weights: dir/w.safetensors}
          c@1: {weights: {source: dir/../w.safetensors}}
        """
    if inside:
        assert len(desired(project, text.replace("dir/../w", "./w")).declarations) == 3
    else:
        assert places(problems(project, text)) == [
            ("AH012", 5, 23), ("AH012", 6, 18), ("AH012", 7, 27),
        ]  # fmt: skip
        assert len(desired(project, text, allow_paths=(tmp_path,)).declarations) == 3


@pytest.mark.parametrize(
    "path", ["../w.safetensors", "/etc/hostname", "a/../../w.safetensors", "~/../../w", "//etc/x"]
)
def test_a_path_that_leaves_the_project_is_refused(tmp_path: Path, path: str) -> None:
    text = f"""
        models:
          a@1: {{architecture: "{path}"}}
          b@1: {{weights: "{path}"}}
        """
    assert places(problems(tmp_path, text)) == [("AH012", 5, 23), ("AH012", 6, 18)]


def test_a_plugin_file_outside_of_the_project_is_never_run(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("raise SystemExit('it ran')")
    project = tmp_path / "project"
    project.mkdir()
    (project / "link.py").symlink_to(outside)
    found = problems(project, "plugins: [../outside.py, link.py, absent.py]\n")
    assert places(found) == [("AH012", 3, 11), ("AH012", 3, 26), ("AH011", 3, 35)]


def test_one_problem_is_told_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        models: {a@1: {architecture: ../x.json}}
        reactors:
          r: {type: merge, strategy: linear, members: [{model: a}],
               produces: {version: v, model: m}}
        """,
    )
    assert places(found) == [("AH012", 4, 30)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "AH011"),
        ("[1]", "AH004"),
        ('{"a": NaN}', "AH011"),
        ('{"a": 1e999}', "AH011"),
        ('{"a": "\\ud800"}', "AH011"),
        ('{"a": "\\u0000"}', "AH011"),
        ('{"\\u0000": 1}', "AH011"),
        ("[" * 100_000, "AH011"),
        ('{"a":' * 2_000 + "1" + "}" * 2_000, "AH011"),
    ],
    ids=lambda value: value[:12],
)
def test_an_architecture_that_cannot_be_stored_is_refused_with_its_line(
    tmp_path: Path, content: str, code: str
) -> None:
    files = {"config.json": content}
    (problem,) = problems(tmp_path, "models: {a@1: {architecture: config.json}}\n", files)
    assert (problem.code, problem.line, problem.column) == (code, 3, 30)
    assert "config.json" in problem.message


def test_an_absent_architecture_is_told_beside_other_problems(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        models:
          a@1: {architecture: absent.json}
          b@1: {architecture: broken.yaml}
          c@1: {weights: model.unknown}
          d@1: {weights: {source: model, format: nothing}}
        """,
        {"broken.yaml": "a: 1\na: 2\n"},
    )
    assert [(p.file, p.code, p.line) for p in found] == [
        ("arc_halo.yaml", "AH011", 5),
        ("arc_halo.yaml", "AH032", 7),
        ("arc_halo.yaml", "AH032", 8),
        ("broken.yaml", "AH002", 2),
    ]


def test_an_architecture_may_be_yaml(tmp_path: Path) -> None:
    found = desired(
        tmp_path, "models: {a@1: {architecture: c.yaml}}\n", {"c.yaml": "n: 1\nname: no\n"}
    )
    (declaration,) = found.declarations.values()
    assert declaration.spec.architecture == {"n": 1, "name": "no"}  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "models: {}\n", "models:\n", "reactors: {}\n"])
def test_a_manifest_may_declare_nothing(tmp_path: Path, text: str) -> None:
    if text == "models:\n":
        assert [p.code for p in problems(tmp_path, text)] == ["AH004"]
    else:
        assert desired(tmp_path, text).declarations == {}
