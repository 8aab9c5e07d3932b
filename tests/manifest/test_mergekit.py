"""mergekit's documents as manifests: what they mean, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError
from arc_halo.manifest.mergekit import METHODS, convert
from arc_halo.manifest.mergekit_methods import BY_MEMBER
from arc_halo.manifest.recipe_files import read_recipe
from arc_halo.plugins import PluginManager

STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.fuse_weights is not None
}


def document(method: str, **fields: Any) -> dict[str, Any]:
    strategy = STRATEGIES[method]
    count = 1 if strategy.max_members == 1 else 2
    models = [{"model": f"m/{name}", "parameters": {"weight": 0.5}} for name in "ab"[:count]]
    needs_base = strategy.needs_base or method == "slerp"
    if method.startswith("della"):
        fields = {**fields, "parameters": {"density": 0.5, **fields.get("parameters", {})}}
    return {
        "merge_method": method,
        "models": models,
        **({"base_model": "m/base"} if needs_base else {}),
        **fields,
    }


def reactor(found: dict[str, Any]) -> dict[str, Any]:
    (only,) = convert(found, label="m.yml", reactor="out").document["reactors"].values()
    return only


def test_every_method_is_one_of_ours() -> None:
    assert METHODS.keys() <= STRATEGIES.keys()
    assert len(METHODS) == 20


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_result_is_a_recipe_that_can_be_run(tmp_path: Path, method: str) -> None:
    extra: dict[str, Any] = {"parameters": {"t": 0.5}} if "t" in METHODS[method].shared else {}
    given = document(method, **extra)
    if method == "slerp":
        given["models"] = given["models"][:1]
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(convert(given, label="m", reactor="out").document))
    recipe = read_recipe(file, environ={})
    assert recipe.spec.uses == method
    assert (recipe.spec.base is not None) == STRATEGIES[method].needs_base


def test_defaults_that_differ_are_written_out() -> None:
    assert reactor(document("ties"))["params"] == {"divide": "weights"}
    assert reactor(document("ties", parameters={"normalize": False}))["params"] == {
        "divide": "none"
    }
    assert reactor(document("dare_ties"))["params"] == {"divide": "none", "rescale": "l1"}
    assert reactor(document("dare_linear", parameters={"rescale": False}))["params"] == {
        "rescale": "none"
    }
    assert reactor(document("breadcrumbs", parameters={"density": 0.9}))["params"] == {
        "rescale": "none",
        "density": 0.9,
    }
    assert reactor(document("task_arithmetic", parameters={"lambda": 0.7}))["params"] == {
        "scale": 0.7
    }


def test_the_base_is_no_member_but_slerp_s_first() -> None:
    models = [{"model": "m/base"}, {"model": "m/a", "parameters": {"weight": 1, "density": 0.3}}]
    found = reactor(document("ties", models=models))
    assert found["base"] == "base"
    assert found["members"] == [{"model": "a", "weight": 1}]
    assert found["params"]["density"] == 0.3
    models = [{"model": "m/a"}, {"model": "m/base"}]
    found = reactor(document("slerp", models=models, parameters={"t": 0.2}))
    assert "base" not in found
    assert [member["model"] for member in found["members"]] == ["base", "a"]


def test_models_of_one_name_get_names_of_their_own() -> None:
    models = [{"model": path} for path in ("x/Model A", "y/model-a", "z/MODEL_A")]
    given = document("linear", models=models, parameters={"weight": 1})
    found = convert(given, label="m", reactor="out").document
    assert list(found["models"]) == ["model-a", "model-a-2", "model_a"]


REFUSED = {
    "modules": ({"modules": {}}, "modules: a merge for each module"),
    "models and slices": ({"slices": []}, "models, slices: one of them is needed"),
    "a token's own row": ({"tokenizer": {"source": "union", "tokens": {}}}, "tokenizer.tokens: "),
    "a tokenizer's misspelling": ({"tokenizer": {"sauce": "union"}}, "tokenizer.sauce: it is un"),
    "a tokenizer of another": (
        {"tokenizer_source": "m/other"},
        "tokenizer_source: m/other is no model of the merge",
    ),
    "a tokenizer of no model": ({"tokenizer": {"source": 1}}, "tokenizer.source: only the path"),
    "a tokenizer of one word": ({"tokenizer": "union"}, "tokenizer: it is no mapping"),
    "two tokenizers": (
        {"tokenizer_source": "base", "tokenizer": {}},
        "tokenizer, tokenizer_source: only one of them",
    ),
    "rows of no number": (
        {"tokenizer": {"pad_to_multiple_of": 0}},
        "tokenizer.pad_to_multiple_of: a whole number",
    ),
    "a chat template": ({"chat_template": "auto"}, "chat_template: chat templates"),
    "a dtype": ({"out_dtype": "int64"}, "out_dtype: 'int64' is none of float16"),
    "a misspelling": ({"parametres": {}}, "parametres: it is unknown"),
    "a gradient of words": (
        {"parameters": {"normalize": ["yes", "no"]}},
        "parameters.normalize: it is a gradient of neither numbers nor flags",
    ),
    "a flag in numbers": (
        {"parameters": {"normalize": [0, 1]}},
        "parameters.normalize: it is a gradient of what are no flags",
    ),
    "a density in flags": (
        {"parameters": {"density": [True, False]}},
        "parameters.density: it is a gradient of what are no numbers",
    ),
    "a weight in flags": (
        {"parameters": {"weight": [True, False]}, "models": [{"model": "m/a"}]},
        "parameters.weight of a: it is no number",
    ),
    "a filter without value": (
        {"parameters": {"density": [{"filter": "mlp"}]}},
        "parameters.density[0]: a `filter` and a `value` are needed",
    ),
    "filters and values": (
        {"parameters": {"density": [{"filter": "mlp", "value": 1}, 0.5]}},
        "parameters.density: filters and values stand in one list",
    ),
    "nothing": ({"parameters": {"density": None}}, "parameters.density: it is no value"),
    "a model twice": (
        {"models": [{"model": "m/a"}, {"model": "m/a"}]},
        "models[1].model: it stands there twice",
    ),
    "no weight": ({"models": [{"model": "m/a"}]}, "models[0].parameters.weight: one is needed"),
    "a weight of words": (
        {"parameters": {"weight": "much"}, "models": [{"model": "m/a"}]},
        "parameters.weight of a: it is no number",
    ),
    "weights of some tensors": (
        {"models": [{"model": "m/a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}]},
        "models[0].parameters.weight: one is needed for every tensor",
    ),
    "no base": ({"base_model": None}, "base_model: ties needs one"),
    "no t": ({"merge_method": "slerp"}, "parameters.t: one is needed for every tensor"),
    "a t of some tensors": (
        {"merge_method": "slerp", "parameters": {"t": [{"filter": "mlp", "value": 1}]}},
        "parameters.t: one is needed for every tensor",
    ),
    "della that drops nothing": (
        {"merge_method": "della", "parameters": {"density": 1}},
        "write merge_method: ties",
    ),
    "breadcrumbs that drop nothing here and there": (
        {"merge_method": "breadcrumbs", "parameters": {"density": [0.5, 1]}},
        "parameters.density: it is 1 for some tensors",
    ),
    "another's param": ({"parameters": {"t": 1}}, "parameters.t: ties has no such parameter"),
    "an adapter": ({"models": [{"model": "m/a+lora"}]}, "models[0].model: a LoRA adapter"),
    "a revision": ({"base_model": "m/a@main"}, "base_model: a revision is named"),
    "unlike scales": (
        {
            "merge_method": "passthrough",
            "models": [{"model": f"m/{name}", "parameters": {"scale": name}} for name in "ab"],
        },
        "parameters.scale: models have different ones",
    ),
    "one model of della that drops nothing": (
        {
            "merge_method": "della",
            "models": [{"model": "m/a", "parameters": {"density": 0.1}}, {"model": "m/b"}],
            "parameters": {"weight": 1},
        },
        "parameters.density: where it is 1, della drops nothing",
    ),
    "gammas and densities that go by filters": (
        {
            "merge_method": "breadcrumbs",
            "parameters": {
                "density": [{"filter": "mlp", "value": 0.5}],
                "gamma": [{"filter": "up", "value": 0.1}],
            },
        },
        "parameters.density: it is 1 for some tensors",
    ),
    "no models": ({"models": []}, "models: a list of models is needed"),
    "no method": ({"merge_method": "magic"}, "merge_method: 'magic' is none of"),
}


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "base"}, "base"),
        ({"tokenizer_source": "m/a"}, "a"),
        ({"tokenizer_source": "m/base"}, "base@1.0.0"),
        ({"tokenizer": {}}, "union"),
        (
            {"tokenizer": {"source": "m/a", "pad_to_multiple_of": 8}},
            {"of": "a", "pad_to_multiple_of": 8},
        ),
    ],
)
@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_tokenizers_are_those_beside_the_models(
    tmp_path: Path, method: str, change: dict[str, Any], written: Any
) -> None:
    above = {"parameters": {"t": 0.5} if method == "slerp" else {"weight": 1}}
    given = document(method, base_model="m/base", **above, **change)
    if method == "slerp":
        given["models"] = given["models"][:1]
    found = convert(given, label="m.yml", reactor="out").document
    assert found["reactors"]["out"]["tokenizer"] == written
    assert found["reactors"]["out"]["base"] == "base"
    assert {name: each["tokenizer"] for name, each in found["models"].items()} == {
        name: f"m/{name}/tokenizer.json" for name in found["models"]
    }
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(found))
    assert read_recipe(file, environ={}).spec.tokenizer is not None


def test_the_base_s_tokenizer_is_the_first_model_s_where_there_is_no_base() -> None:
    found = reactor(document("linear", tokenizer_source="base"))
    assert found["tokenizer"] == "a"
    assert "base" not in found


def test_without_a_word_of_tokenizers_models_have_none() -> None:
    given = document("linear", tokenizer_source=None, base_model="m/base")
    given["parameters"] = {"weight": 1}
    found = convert(given, label="m.yml", reactor="out").document
    assert not any("tokenizer" in each for each in found["models"].values())
    assert not {"tokenizer", "base"} & found["reactors"]["out"].keys()


SLICE = {"sources": [{"model": "m/a", "layer_range": [0, 2]}]}


def slices(*sources: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A passthrough, unless `fields` say otherwise, of slices with these sources."""
    listed = [{"sources": each} for each in sources]
    return {"merge_method": "passthrough", "slices": listed, **fields}


def source(model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    return {"model": f"m/{model}", "layer_range": [first, end], "parameters": parameters}


SCALED = [{"filter": ".mlp", "value": 2}]
NUMBERED = [{"filter": "layers.3.", "value": 2}]
REFUSED_SLICES = {
    "no slices": (slices(), "slices: a list of slices is needed"),
    "no range": (slices([{"model": "m/a"}]), "slices[0].sources[0].layer_range: [first, end]"),
    "no layers": (slices([source("a", 2, 2)]), "layer_range: [first, end] is needed, of one"),
    "unequal": (
        slices([source("a", 0, 2), source("b", 0, 1)]), "slices[0]: as many layers are needed",
    ),
    "one model": (
        slices([source("a", 0, 2), source("a", 2, 4)]), "sources[1].model: it stands there twice",
    ),
    "a base elsewhere": (
        slices([source("a", 0, 2, weight=1)], merge_method="ties", base_model="m/base"),
        "slices[0].sources: the base model is not among them",
    ),
    "another base": (
        slices(merge_method="ties", base_model="m/base")
        | {"slices": [{"sources": [source("a", 0, 2)], "base_model": "m/a"}]},
        "slices[0].base_model: slices have different ones",
    ),
    "a residual weight": (
        {"merge_method": "passthrough", "slices": [{**SLICE, "residual_weight": 1}]},
        "slices[0].residual_weight: it is unknown",
    ),
    "unlike params": (
        slices(
            [source("a", 0, 2, density=0.1, weight=1), source("b", 0, 2, weight=1)],
            merge_method="sce",
        ),
        "slices[0].sources[0].parameters.density: sce has no such parameter",
    ),
    "filters that differ, of more than layers": (
        slices([source("a", 0, 2, scale=SCALED)], [source("a", 1, 2)]),
        "parameters.scale: slices differ in it, and the filter '.mlp'",
    ),
    "a layer that moves": (
        slices([source("a", 2, 4, scale=NUMBERED)]),
        "slices[0].sources[0]: scale: the filter 'layers.3.' names a layer, and the slice moves it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED_SLICES)
def test_slices_that_cannot_be_expressed_are_refused_by_name(what: str) -> None:
    given, told = REFUSED_SLICES[what]
    with pytest.raises(InvalidInputError) as caught:
        convert(given, label="m.yml", reactor="out")
    assert told in caught.value.message


def test_a_filter_is_plain_text() -> None:
    weight = [{"filter": "a[0]*?", "value": 1}, {"filter": "", "value": 2}]
    models = [{"model": "m/a", "parameters": {"weight": weight}}]
    found = reactor(document("linear", models=models))
    assert found["tensors"] == [{"match": "*a[[]0][*][?]*", "weights": {"a": 1}}]
    assert found["members"] == [{"model": "a", "weight": 2}]


def test_the_first_filter_that_matches_becomes_the_last_rule() -> None:
    density = [{"filter": name, "value": v} for name, v in (("q", 0.1), ("mlp", 0.2), ("q", 0.9))]
    found = reactor(document("ties", parameters={"density": density}))
    assert [(rule["match"], rule["params"]["density"]) for rule in found["tensors"]] == [
        ("*mlp*", 0.2),
        ("*q*", 0.1),
    ]


def test_what_a_model_cannot_say_is_passed_over_with_a_note() -> None:
    models = [{"model": "m/a", "parameters": {"weight": 1, "lambda": 0.5}}]
    converted = convert(document("ties", models=models), label="m", reactor="out")
    assert "scale" not in converted.document["reactors"]["out"]["params"]
    assert any("models[0].parameters.lambda" in note for note in converted.notes)


def test_a_last_slice_of_more_models_is_noted() -> None:
    given = slices([source("a", 0, 2)], [source("a", 2, 3), source("b", 2, 3)])
    given |= {"merge_method": "linear", "parameters": {"weight": 1}}
    assert any(
        "as many as the first" in note for note in convert(given, label="m", reactor="o").notes
    )


def test_breadcrumbs_of_density_1_drop_nothing() -> None:
    assert reactor(document("breadcrumbs"))["params"] == {"rescale": "none", "gamma": 0}
    found = reactor(document("breadcrumbs_ties", parameters={"density": 1, "gamma": 0.2}))
    assert found["params"]["gamma"] == 0


def test_breadcrumbs_drop_nothing_where_the_density_is_1() -> None:
    density = [{"filter": "norm", "value": 1}, {"filter": "mlp", "value": 0.5}, {"value": 0.9}]
    found = reactor(document("breadcrumbs", parameters={"density": density, "gamma": 0.1}))
    assert found["params"] == {"rescale": "none", "density": 0.9, "gamma": 0.1}
    assert [(rule["match"], rule["params"]["gamma"]) for rule in found["tensors"]] == [
        ("*mlp*", 0.1),
        ("*norm*", 0),
    ]


def of_each(*parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"model": f"m/{name}", "parameters": {"weight": 1, **each}}
        for name, each in zip("abc", parameters, strict=False)
    ]


@pytest.mark.parametrize(
    ("method", "models", "rules"),
    [
        (
            "ties",
            of_each({"density": 0.3}, {"density": [1, 0.5]}),
            [{"match": "*", "params": {"density": {"a": 0.3, "b": [1, 0.5]}}}],
        ),
        (
            "dare_ties",
            of_each({"density": [{"filter": "mlp", "value": 0.3}]}, {}),
            [
                {"match": "*", "params": {"density": {"a": 0.7, "b": 0.7}}},
                {"match": "*mlp*", "params": {"density": {"a": 0.3}}},
            ],
        ),
        (
            "della_linear",
            of_each({"density": 0.5}, {"density": 0.6, "epsilon": 0.1}),
            [
                {"match": "*", "params": {"density": {"a": 0.5, "b": 0.6}, "epsilon": {"b": 0.1}}},
            ],
        ),
        (
            "breadcrumbs",
            of_each({"density": 0.5}, {"density": 1, "gamma": 0.3}),
            [{"match": "*", "params": {"density": {"a": 0.5, "b": 1}, "gamma": {"b": 0}}}],
        ),
    ],
)  # fmt: skip
def test_params_that_differ_by_model_become_rules(
    method: str, models: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> None:
    above = {"parameters": {"density": 0.7}} if method == "dare_ties" else {}
    given = {"merge_method": method, "base_model": "m/base", "models": models, **above}
    found = reactor(given)
    assert found["tensors"] == rules
    assert not found["params"].keys() & {"density", "epsilon", "gamma"}


def test_what_may_differ_by_model_is_what_the_strategies_say() -> None:
    for name, method in METHODS.items():
        may = set(STRATEGIES[name].member_params)
        assert may == set(method.own) & set(BY_MEMBER), name


def test_a_gradient_of_flags_is_one_of_words() -> None:
    found = reactor(document("ties", parameters={"normalize": [True, False]}))
    assert found["tensors"] == [{"match": "*", "params": {"divide": ["weights", "none"]}}]


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({"dtype": "bfloat16"}, {"out_dtype": "BF16"}),
        ({"dtype": "float32", "out_dtype": "float16"}, {"out_dtype": "F16"}),
        ({"dtype": "float64"}, {"out_dtype": "F64", "compute": "F64"}),
        ({}, {}),
    ],
)
def test_dtypes_are_those_of_the_result(fields: dict[str, Any], written: dict[str, Any]) -> None:
    found = reactor(document("linear", **fields))
    assert {key: found[key] for key in ("out_dtype", "compute") if key in found} == written


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(what: str) -> None:
    change, told = REFUSED[what]
    with pytest.raises(InvalidInputError) as caught:
        convert({**document("ties"), **change}, label="m.yml", reactor="out")
    assert told in caught.value.message
    assert caught.value.error_code == "AH023"


def test_all_that_is_refused_is_told_at_once() -> None:
    change = {"modules": {}, "tokenizer": "base", "parameters": {"density": [True], "t": 2}}
    with pytest.raises(InvalidInputError) as caught:
        convert({**document("ties"), **change}, label="m.yml", reactor="out")
    assert caught.value.message.count("\n") == 4


def test_the_command_prints_what_can_be_included(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yml"
    file.write_text(yaml.safe_dump(document("ties", dtype="bfloat16")))
    assert run(["fuse", "import-recipe", str(file), "--name", "story"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["reactors"]["story"]["strategy"] == "ties"
    assert "dtype" in printed.err
    (tmp_path / "story.yaml").write_text(printed.out)
    (tmp_path / "arc_halo.yaml").write_text("version: 1\nproject: p\ninclude: [story.yaml]\n")
    for name in ("a", "b", "base"):
        (tmp_path / "m" / name).mkdir(parents=True)
        (tmp_path / "m" / name / "config.json").write_text("{}")
    assert run(["validate", "--project", str(tmp_path)]) == 0
    assert run(["fuse", "import-recipe", str(file), "--name", "No Name"]) == 4


def test_models_that_are_declared_already_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yml"
    file.write_text(yaml.safe_dump(document("linear")))
    assert run(["fuse", "import-recipe", str(file), "--reactor-only"]) == 0
    assert yaml.safe_load(capsys.readouterr().out).keys() == {"reactors"}
