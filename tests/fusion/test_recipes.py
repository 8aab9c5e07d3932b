"""Recipes of a project, applied and applied again: what is computed anew, and to which bits."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.errors import FusionError, IncompatibleModelsError, ManifestError
from arc_halo.store import builds
from arc_halo.weights.collecting import collect, simulate

NAMES = ("base", "poet", "coder")
LAYERS = 3
CONFIG = {"model_type": "llama", "num_hidden_layers": LAYERS, "torch_dtype": "float32"}


def tensors(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": numbers.normal(size=(40, 16))}
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.mlp.up.weight"] = numbers.normal(size=(600, 300))
        found[f"model.layers.{layer}.attn.q.weight"] = numbers.normal(size=(16, 16))
    found["model.norm.weight"] = numbers.normal(size=16)
    return {name: values.astype(np.float32) for name, values in found.items()}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        save_file(tensors(seed), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, **fields: Any) -> None:
    reactor = {
        "type": "merge",
        "strategy": "ties",
        "params": {"density": 0.5},
        "base": "base",
        "members": [{"model": "poet", "weight": 0.6}, {"model": "coder", "weight": 0.3}],
        "produces": {"model": "blend", "version": "1"},
        **fields,
    }
    reactor = {key: value for key, value in reactor.items() if value is not None}
    models = {
        f"{name}@1": {"architecture": f"{name}/config.json", "weights": name} for name in NAMES
    }
    manifest = {
        "version": 1,
        "project": "shop",
        "models": models,
        "reactors": {"blend": reactor},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def apply(directory: Path, database: str) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """The tensors that were computed now, and all of the result."""
    with connect(database, project=directory) as halo:
        before = computed(database)
        halo.project.apply(halo.project.plan())
        return sorted(computed(database) - before), halo.tensors.load("blend")


def computed(database: str) -> set[str]:
    query = """SELECT encode(tensor_key, 'hex'), recipe ->> 'name' FROM fused_tensors
               WHERE tensor_digest IS NOT NULL"""
    with psycopg.connect(database) as conn:
        try:
            return {f"{name} {key}" for key, name in conn.execute(query)}
        except psycopg.errors.UndefinedTable:
            return set()


def names(found: list[str]) -> list[str]:
    return [each.partition(" ")[0] for each in found]


def test_a_recipe_changed_in_one_layer_computes_that_layer_again(
    directory: Path, database: str
) -> None:
    write(directory)
    first, before = apply(directory, database)
    assert names(first) == sorted(tensors(0))
    write(directory, tensors=[{"match": "*.layers.1.*", "params": {"density": 0.2}}])
    again, after = apply(directory, database)
    assert names(again) == ["model.layers.1.attn.q.weight", "model.layers.1.mlp.up.weight"]
    changed = {name for name in after if after[name].tobytes() != before[name].tobytes()}
    assert changed == set(names(again))
    write(directory)
    assert apply(directory, database)[0] == []
    write(directory, tensors=[{"match": "*.layers.1.*", "weights": {"poet": 0.6}}])
    assert apply(directory, database)[0] == []


def test_an_input_changed_in_one_tensor_computes_that_tensor_again(
    directory: Path, database: str
) -> None:
    write(directory)
    apply(directory, database)
    changed = tensors(1)
    changed["model.norm.weight"] += 1
    save_file(changed, directory / "poet" / "model.safetensors")
    again, _ = apply(directory, database)
    assert names(again) == ["model.norm.weight"]


RECIPES: dict[str, dict[str, Any]] = {
    "by member": {
        "strategy": "breadcrumbs_ties",
        "tensors": [
            {"match": "*", "params": {"density": {"poet": 0.3, "coder": [1, 0.5]}}},
            {"match": "*.1.*", "params": {"gamma": {"coder": 0.2}}},
        ],
    },
    "rules": {
        "tensors": [
            {"match": "*.mlp.*", "params": {"density": [0.1, 0.9]}},
            {"match": ["*norm*", "*embed*"], "weights": {"poet": 0, "coder": 1}},
        ]
    },
    "gradients": {
        "strategy": "slerp",
        "params": None,
        "base": None,
        "tensors": [{"match": "*", "params": {"t": [0, 0.5, 1]}}],
    },
    "slices": {
        "strategy": "passthrough",
        "params": None,
        "base": None,
        "slices": [{"layers": {"poet": [0, 3]}}, {"layers": {"coder": [1, 3]}}],
    },
    "slices of two": {
        "slices": [
            {"layers": {"poet": [0, 2], "coder": [1, 3]}, "params": {"density": 0.3}},
            {"layers": {"coder": [2, 3]}, "base": 0, "weights": {"coder": 1}},
        ]
    },
    "dtypes": {"strategy": "linear", "params": None, "compute": "F64", "out_dtype": "BF16"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_files_and_database_come_to_the_same_bits(
    directory: Path, database: str, name: str
) -> None:
    write(directory, **RECIPES[name])
    _, expected = apply(directory, database)
    files = [part for each in NAMES for part in ("--from-files", f"{each}={each}")]
    files = files[2:] if RECIPES[name].get("base", "base") is None else files
    assert run(["fuse", "run", ".", *files, "--to-dir", "out"]) == 0
    found = load_file(directory / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert values.tobytes() == found[tensor].tobytes(), tensor
    with connect(database, project=directory) as halo:
        architecture = halo.models.get("blend").architecture
    assert json.loads((directory / "out" / "config.json").read_text()) == architecture
    layers = {each.split(".")[2] for each in found if ".layers." in each}
    assert architecture["num_hidden_layers"] == len(layers)


def test_the_dtype_that_is_written_is_what_the_architecture_says(
    directory: Path, database: str
) -> None:
    write(directory, **RECIPES["dtypes"])
    _, found = apply(directory, database)
    assert {values.dtype.name for values in found.values()} == {"bfloat16"}
    with connect(database, project=directory) as halo:
        assert halo.models.get("blend").architecture["torch_dtype"] == "bfloat16"


def test_gradients_are_what_they_say(directory: Path, database: str) -> None:
    rule = {"match": "*", "weights": {"poet": [1, 0], "coder": [0, 1]}}
    write(directory, strategy="linear", params=None, tensors=[rule])
    _, found = apply(directory, database)
    poet, coder = tensors(1), tensors(2)
    for name, share in (("0.mlp.up", 0.0), ("1.attn.q", 0.5), ("2.mlp.up", 1.0)):
        tensor = f"model.layers.{name}.weight"
        expected = (1 - share) * poet[tensor].astype(float) + share * coder[tensor]
        assert np.array_equal(found[tensor], expected.astype(np.float32)), name
    assert np.array_equal(found["model.norm.weight"], poet["model.norm.weight"])


MISTAKES = {
    "tensors.0.params.density": (
        {"tensors": [{"match": "*", "params": {"density": [0.5, 2]}}]}, "AH007", "at most 1",
    ),
    "unknown param": (
        {"tensors": [{"match": "*", "params": {"densty": 1}}]}, "AH003", "did you mean 'density'",
    ),
    "param of no member": (
        {"tensors": [{"match": "*", "params": {"density": {"base": 0.5}}}]}, "AH020", "",
    ),
    "param out of range": (
        {"tensors": [{"match": "*", "params": {"density": {"poet": 2}}}]}, "AH007", "at most 1",
    ),
    "param by no model": (
        {"tensors": [{"match": "*", "params": {"scale": {"poet": 2}}}]}, "AH004", "a number",
    ),
    "gradient that is no rule": ({"params": {"density": [0, 1]}}, "AH004", "go into a rule"),
    "no member": ({"tensors": [{"match": "*", "weights": {"base": 1}}]}, "AH020", ""),
    "empty slice": ({"slices": [{"layers": {"poet": [2, 2]}}]}, "AH007", "the end is not taken"),
    "unequal slice": ({"slices": [{"layers": {"poet": [0, 2], "coder": [0, 1]}}]}, "AH023", ""),
    "dtype": ({"out_dtype": "I8"}, "AH006", "allowed are"),
    "dtype of another name": ({"out_dtype": "bfloat16"}, "AH006", "write BF16"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_have_a_place_a_code_and_a_hint(directory: Path, mistake: str) -> None:
    fields, code, hint = MISTAKES[mistake]
    write(directory, **fields)
    with connect(project=directory) as halo, pytest.raises(ManifestError) as caught:
        halo.project.desired_without_database()
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.line > 1
    assert hint in (problem.hint or "")


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def verified(database: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    capsys.readouterr()
    shared = ["--database-url", database, "--output", "json"]
    code = run(["fuse", "verify", "blend", *options, *shared])
    return code, output(capsys)


@pytest.mark.parametrize("strategy", ["ties", "slerp", "dare_ties"])
def test_a_merge_computed_again_is_the_same(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    params = {"ties": {"density": 0.5}, "dare_ties": {"density": 0.3}}.get(strategy)
    write(directory, strategy=strategy, params=params)
    apply(directory, database)
    code, found = verified(database, capsys)
    assert (code, found["is_sound"]) == (0, True)
    assert [each["verdict"] for each in found["tensors"]] == ["same"] * len(tensors(0))
    code, found = verified(database, capsys, "--tensor", "model.norm.weight")
    assert [each["name"] for each in found["tensors"]] == ["model.norm.weight"]


def test_a_lineage_that_comes_to_something_else_is_told(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    apply(directory, database)
    with psycopg.connect(database) as conn:
        conn.execute(
            """UPDATE fused_tensors SET recipe = jsonb_set(recipe, '{weights}', '[0.1, 0.9]')
               WHERE recipe ->> 'name' = 'model.layers.1.mlp.up.weight'"""
        )
    code, found = verified(database, capsys)
    assert (code, found["is_sound"]) == (1, False)
    verdicts = {each["name"]: each for each in found["tensors"] if each["verdict"] != "same"}
    assert verdicts.keys() == {"model.layers.1.mlp.up.weight"}
    (wrong,) = verdicts.values()
    assert wrong["verdict"] == "different"
    assert wrong["computed"] != wrong["digest"]
    assert wrong["distance"] > 0.01


def test_what_cannot_be_computed_again_says_why(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    apply(directory, database)
    with psycopg.connect(database) as conn:
        conn.execute("""UPDATE fused_tensors
                        SET recipe = jsonb_set(recipe, '{strategy_version}', '"99"')""")
    code, found = verified(database, capsys, "--tensor", "model.norm.weight")
    assert code == 1
    assert "version 99" in found["tensors"][0]["reason"]
    capsys.readouterr()
    assert run(["fuse", "verify", "poet", "--database-url", database]) == 1
    assert "not fused here" in capsys.readouterr().err


def test_the_lineage_of_a_tensor_goes_up_and_down(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory, tensors=[{"match": "*.1.*", "params": {"density": 0.25}}])
    manifest = yaml.safe_load((directory / "arc_halo.yaml").read_text())
    manifest["reactors"]["again"] = {
        "type": "merge",
        "strategy": "linear",
        "members": [{"model": "blend"}, {"model": "poet"}],
        "produces": {"model": "twice", "version": "1"},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    apply(directory, database)
    name = "model.layers.1.mlp.up.weight"
    shared = ["--database-url", database, "--output", "json"]
    assert run(["lineage", "twice", "--tensor", name, *shared]) == 0
    (made,) = output(capsys)["made_by"]
    assert made["strategy"] == "linear"
    blend, poet = made["inputs"]
    assert (poet["model"], poet["tensor"], poet["weight"]) == ("poet@1", name, 1.0)
    assert "made_by" not in poet
    (behind,) = blend["made_by"]
    assert behind["params"]["density"] == 0.25
    assert [each["model"] for each in behind["inputs"]] == ["coder@1", "poet@1", "base@1"]
    facts = behind["facts"]
    assert 0 < facts["density"] < 0.5
    assert 0 < facts["sign_conflict"] < 0.6
    assert run(["lineage", "poet", "--tensor", name, *shared]) == 0
    found = output(capsys)
    assert found["made_by"] == []
    assert {each["model"] for each in found["made_of_it"]} == {"blend@1", "twice@1"}
    assert run(["lineage", "twice", *shared]) == 0
    (merge,) = output(capsys)["made_by"]
    assert merge["inputs"][0]["made_by"][0]["strategy"] == "ties"
    assert run(["lineage", "poet", *shared]) == 0
    assert {each["model"] for each in output(capsys)["made_of_it"]} == {"blend@1", "twice@1"}


def test_what_was_seen_of_a_tensor_is_what_a_look_at_it_shows(
    directory: Path, database: str
) -> None:
    write(directory, strategy="task_arithmetic", params={"scale": 1.0})
    apply(directory, database)
    base, poet, coder = (tensors(seed)["model.layers.0.attn.q.weight"] for seed in range(3))
    one, two = (poet - base).ravel().astype(float), (coder - base).ravel().astype(float)
    with psycopg.connect(database) as conn:
        row = conn.execute(
            """SELECT mean_cosine, sign_conflict, change_norm, density FROM v_fused_tensors
               WHERE tensor_name = 'model.layers.0.attn.q.weight'"""
        ).fetchone()
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    change = 0.6 * one + 0.3 * two
    expected = (cosine, np.mean(one * two < 0), np.sqrt(np.mean(change**2)), 1.0)
    assert row == pytest.approx(expected, rel=1e-5)


def test_views_say_what_each_tensor_was_made_of(directory: Path, database: str) -> None:
    write(directory, tensors=[{"match": "*norm*", "weights": {"poet": 0.25}}])
    apply(directory, database)
    with psycopg.connect(database) as conn:
        rows = conn.execute(
            """SELECT input_model, input_tensor, is_base, weight FROM v_tensor_lineage
               WHERE tensor_name = 'model.norm.weight' ORDER BY ordinal"""
        ).fetchall()
    assert rows == [
        ("coder@1", "model.norm.weight", False, 0.3),
        ("poet@1", "model.norm.weight", False, 0.25),
        ("base@1", "model.norm.weight", True, None),
    ]


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_largest_of_the_whole_model_are_kept(
    directory: Path, database: str, dtype: str
) -> None:
    params = {"density": 0.2, "scope": "global"}
    write(directory, params=params, compute=dtype)
    first, found = apply(directory, database)
    assert len(first) == len(tensors(0))
    wide = np.dtype({"F32": "f4", "F64": "f8"}[dtype])
    base, poet, coder = ({n: v.astype(wide) for n, v in tensors(s).items()} for s in range(3))
    kept = {}
    for name, member in (("poet", poet), ("coder", coder)):
        changes = {n: member[n] - base[n] for n in sorted(base)}
        whole = np.concatenate([np.abs(each).ravel() for each in changes.values()])
        last = np.sort(whole)[::-1][int(0.2 * whole.size) - 1]
        kept[name] = {n: np.where(np.abs(each) >= last, each, 0) for n, each in changes.items()}
    for name, values in found.items():
        one, two = 0.6 * kept["poet"][name].astype(float), 0.3 * kept["coder"][name].astype(float)
        sign = np.where(one + two >= 0, 1, -1)
        agree = [np.sign(each) == sign for each in (one, two)]
        divisor = agree[0] * 0.6 + agree[1] * 0.3
        merged = (one * agree[0] + two * agree[1]) / np.where(divisor == 0, 1, divisor)
        assert np.allclose(values, base[name] + merged, rtol=1e-5, atol=1e-6), name
    assert run(["fuse", "verify", "blend", "--database-url", database]) == 0
    changed = tensors(1)
    changed["model.norm.weight"] *= 100
    save_file(changed, directory / "poet" / "model.safetensors")
    assert len(apply(directory, database)[0]) == len(first)


def test_equal_elements_at_the_end_count_by_name_and_place(directory: Path, database: str) -> None:
    """All are equal, and a quarter is kept."""
    base = {n: np.zeros_like(v) for n, v in tensors(0).items()}
    save_file(base, directory / "base" / "model.safetensors")
    for name, step in (("poet", 1.0), ("coder", -1.0)):
        found = {n: np.full_like(v, step) for n, v in base.items()}
        save_file(found, directory / name / "model.safetensors")
    write(directory, params={"density": 0.25, "scope": "global"})
    _, merged = apply(directory, database)
    order = np.concatenate([merged[name].ravel() for name in sorted(merged)])
    expected = np.zeros(order.size, np.float32)
    expected[: int(0.25 * order.size)] = 1
    assert np.array_equal(order, expected)


def test_a_global_scope_needs_every_member_everywhere(directory: Path, database: str) -> None:
    parts = [{"layers": {"poet": [0, 1], "coder": [0, 1]}}, {"layers": {"poet": [1, 3]}}]
    write(directory, params={"density": 0.5, "scope": "global"}, slices=parts)
    with pytest.raises(FusionError, match="others of"):
        apply(directory, database)


@pytest.mark.parametrize("way", ["database", "files"])
def test_everything_that_is_not_finite_is_listed_up_to_ten(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    broken = tensors(1)
    names = ["model.layers.0.attn.q.weight", "model.layers.2.mlp.up.weight"]
    for name in names:
        broken[name][3, 5] = np.inf
    save_file(broken, directory / "poet" / "model.safetensors")
    write(directory)
    if way == "database":
        code = run(["apply", "--database-url", database])
    else:
        files = [part for each in NAMES for part in ("--from-files", f"{each}={each}")]
        code = run(["fuse", "run", ".", *files, "--to-dir", "out"])
    said = capsys.readouterr().err
    assert code == 4
    assert "AH072" in said
    assert all(repr(name) in said for name in names)
    assert "model.norm.weight" not in said


def test_the_order_in_which_a_slice_names_members_does_not_matter(
    directory: Path, database: str
) -> None:
    fields: dict[str, Any] = {"strategy": "slerp", "params": {"t": 0.3}, "base": None}
    write(directory, **fields, slices=[{"layers": {"poet": [0, 2], "coder": [1, 3]}}])
    _, before = apply(directory, database)
    write(directory, **fields, slices=[{"layers": {"coder": [1, 3], "poet": [0, 2]}}])
    again, after = apply(directory, database)
    assert again == []
    assert {n: v.tobytes() for n, v in before.items()} == {n: v.tobytes() for n, v in after.items()}
    files = [part for n in NAMES[1:] for part in ("--from-files", f"{n}={n}")]
    assert run(["fuse", "run", ".", *files, "--to-dir", "out"]) == 0
    found = load_file(directory / "out" / "model.safetensors")
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in after.items()}


def estimated(directory: Path, database: str) -> Any:
    with connect(database, project=directory) as halo:
        change = next(c for c in halo.project.plan().changes if c.key.name == "blend@1")
        return change.build.estimate


def test_a_plan_says_what_a_merge_will_cost(directory: Path, database: str) -> None:
    count, total = len(tensors(0)), sum(values.nbytes for values in tensors(0).values())
    write(directory)
    found = estimated(directory, database)
    assert (found.tensors, found.computed, found.reused_bytes) == (count, count, 0)
    assert (found.read_bytes, found.written_bytes) == (3 * total, total)
    assert not found.is_measured
    apply(directory, database)
    write(directory, tensors=[{"match": "*.1.mlp.*", "params": {"density": 0.2}}])
    found = estimated(directory, database)
    size = 600 * 300 * 4
    assert (found.tensors, found.computed, found.is_measured) == (count, 1, True)
    assert found.named == ("model.layers.1.mlp.up.weight",)
    assert (found.written_bytes, found.reused_bytes) == (size, total - size)
    assert 0 < found.cpu_seconds < 10
    assert apply(directory, database)[0][0].startswith("model.layers.1.mlp")
    with connect(database, project=directory) as halo:
        assert not halo.project.plan().has_changes


def test_a_plan_shows_the_cost_to_people_and_programs(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    capsys.readouterr()
    assert run(["plan", "--database-url", database]) == 0
    assert "8 tensors to compute: 6.5 MB to read, 2.2 MB to write" in capsys.readouterr().out
    assert run(["plan", "--database-url", database, "--output", "json"]) == 0
    changes = output(capsys)["resource_changes"]
    (build,) = [c["build"] for c in changes if c["name"] == "blend@1"]
    assert build["estimate"]["computed"] == 8
    assert run(["plan", "--database-url", database, "--output", "markdown"]) == 0
    assert "8 tensors to compute" in capsys.readouterr().out


def test_what_no_merge_has_any_more_is_forgotten(directory: Path, database: str) -> None:
    write(directory)
    apply(directory, database)
    write(directory, params={"density": 0.25})
    apply(directory, database)
    with connect(database, project=directory) as halo:
        weights = halo.project.weights
        before = simulate(weights, grace=timedelta(0), retain_revisions=1)
        done = collect(weights, grace=timedelta(0), retain_revisions=1)
        assert before.fused_tensors == done.fused_tensors == len(tensors(0))
        assert collect(weights, grace=timedelta(0), retain_revisions=1).fused_tensors == 0
        assert run(["fuse", "verify", "blend", "--database-url", database]) == 0
    write(directory)
    again, _ = apply(directory, database)
    assert len(again) == len(tensors(0))


def test_a_lineage_ends_where_equal_tensors_are_fused_to_themselves(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    same = tensors(1)["model.norm.weight"]
    for seed, name in enumerate(NAMES):
        found = {**tensors(seed), "model.norm.weight": same}
        save_file(found, directory / name / "model.safetensors")
    write(directory, strategy="linear", params=None)
    apply(directory, database)
    shared = ["--database-url", database, "--output", "json"]
    capsys.readouterr()
    assert run(["lineage", "blend", "--tensor", "model.norm.weight", *shared]) == 0
    (made,) = output(capsys)["made_by"]
    assert [each["model"] for each in made["inputs"]] == ["coder@1", "poet@1"]


def test_whole_numbers_are_the_same_however_they_are_written(
    directory: Path, database: str
) -> None:
    write(directory, strategy="task_arithmetic", params={"scale": 1})
    apply(directory, database)
    write(directory, strategy="task_arithmetic", params={"scale": 1.0})
    with connect(database, project=directory) as halo:
        assert not halo.project.plan().has_changes
    rule = [{"match": "*", "params": {"scale": 1}}]
    write(directory, strategy="task_arithmetic", params={"scale": 0.5}, tensors=rule)
    assert apply(directory, database)[0] == []


def test_a_gradient_of_whole_numbers_is_rounded(directory: Path, database: str) -> None:
    rule = [{"match": "*", "params": {"max_iter": [2, 5]}}]
    write(directory, strategy="karcher", params=None, tensors=rule)
    apply(directory, database)
    with psycopg.connect(database) as conn:
        rows = conn.execute("""SELECT recipe ->> 'name', recipe #> '{params,max_iter}'
                               FROM fused_tensors""").fetchall()
    steps = {name.split(".")[2]: count for name, count in rows if ".layers." in name}
    assert steps == {"0": 2, "1": 4, "2": 5}


def test_a_model_is_named_once_in_a_rule(directory: Path) -> None:
    rule = {"match": "*", "weights": {"poet": 0.1, "poet@1": 0.9}}
    write(directory, tensors=[rule])
    with connect(project=directory) as halo, pytest.raises(ManifestError) as caught:
        halo.project.desired_without_database()
    assert [problem.code for problem in caught.value.problems] == ["AH013"]


def test_slices_leave_no_tensor_out_in_silence(directory: Path, database: str) -> None:
    more = {**tensors(2), "model.layers.1.attn.q.bias": np.ones(16, np.float32)}
    save_file(more, directory / "coder" / "model.safetensors")
    for parts, told in (
        ([{"layers": {"poet": [0, 3], "coder": [0, 3]}}], "attn.q.bias: not in poet@1"),
        ([{"layers": {"coder": [0, 3]}}], "layer 0 would have no attn.q.bias"),
    ):
        fields: dict[str, Any] = {"strategy": "linear", "params": None, "base": None}
        write(directory, **fields, slices=parts)
        with (
            connect(database, project=directory) as halo,
            pytest.raises(IncompatibleModelsError, match=told),
        ):
            halo.project.plan()


def test_what_looks_at_all_tensors_takes_one_set_of_params(directory: Path, database: str) -> None:
    params = {"density": 0.5, "scope": "global"}
    write(directory, params=params, tensors=[{"match": "*.1.*", "params": {"density": 0.2}}])
    with pytest.raises(FusionError, match="not the same for all"):
        apply(directory, database)
    write(directory, tensors=[{"match": "*", "params": {"scope": "global"}}])
    _, found = apply(directory, database)
    write(directory, params={"density": 0.5, "scope": "global"})
    _, same = apply(directory, database)
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in same.items()}


def test_merges_of_merges_are_planned_once_each(directory: Path, database: str) -> None:
    """Sixteen levels of two merges each of both of the level before: 2^16 paths."""
    write(directory)
    manifest = yaml.safe_load((directory / "arc_halo.yaml").read_text())
    manifest["reactors"] = {
        f"r{level}-{side}": {
            "type": "merge",
            "strategy": "linear",
            "params": {"normalize": side == 0},
            "members": [{"model": f"m{level - 1}-{s}" if level else NAMES[s]} for s in (0, 1)],
            "produces": {"model": f"m{level}-{side}", "version": "1"},
        }
        for level in range(16)
        for side in (0, 1)
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    with connect(database, project=directory) as halo:
        plan = halo.project.plan()
    fused = [change for change in plan.changes if change.key.name.startswith("m")]
    assert len(fused) == 32


def test_inputs_of_a_merge_are_safe_from_collection(directory: Path, database: str) -> None:
    """Imported long ago, and no model has them yet: the merge says that it wants them."""
    write(directory)
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        with halo.project.connection() as conn:
            conn.execute("UPDATE weight_builds SET heartbeat_at = now() - interval '3 days'")
            roots = [bytes(row[0]) for row in conn.execute("SELECT root FROM weight_sets")]
            builds.want(conn, roots)
            row = conn.execute(
                "SELECT count(*) FROM weight_builds WHERE heartbeat_at > now() - interval '1 day'"
            ).fetchone()
    assert row == (len(roots),)


def test_a_plan_shows_what_changed_in_a_rule(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [{"match": "*", "params": {"density": d}} for d in (0.5, 0.4)]
    write(directory, tensors=rules)
    apply(directory, database)
    rules[1]["params"] = {"density": 0.45}
    write(directory, tensors=rules)
    assert run(["plan", "--database-url", database]) == 0
    assert "tensors[1].params.density: 0.4 -> 0.45" in capsys.readouterr().out


def test_what_does_not_fit_says_in_which_reactor(directory: Path, database: str) -> None:
    write(directory, tensors=[{"match": "*.mpl.*", "params": {"density": 0.5}}])
    told = r"arc_halo.yaml:\d+: reactors.blend: a rule is for '\*.mpl.\*'"
    with (
        connect(database, project=directory) as halo,
        pytest.raises(IncompatibleModelsError, match=told),
    ):
        halo.project.plan()


def test_an_apply_says_how_much_it_computed(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    apply(directory, database)
    write(directory, tensors=[{"match": "*.1.mlp.*", "params": {"density": 0.2}}])
    assert run(["apply", "--database-url", database]) == 0
    assert "fused 1 of 8 tensors" in capsys.readouterr().out


def test_equal_tensors_of_other_models_are_no_ancestors(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory, strategy="linear", params=None)
    manifest = yaml.safe_load((directory / "arc_halo.yaml").read_text())
    manifest["reactors"]["same"] = {
        "type": "merge",
        "strategy": "passthrough",
        "members": [{"model": "poet"}],
        "produces": {"model": "same", "version": "1"},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    apply(directory, database)
    shared = ["--database-url", database, "--output", "json"]
    assert run(["lineage", "blend", "--tensor", "model.norm.weight", *shared]) == 0
    (made,) = output(capsys)["made_by"]
    assert all("made_by" not in each for each in made["inputs"])
    assert run(["lineage", "same", "--tensor", "model.norm.weight", *shared]) == 0
    (made,) = output(capsys)["made_by"]
    assert [each["model"] for each in made["inputs"]] == ["poet@1"]
