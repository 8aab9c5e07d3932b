"""The tensors of a merge, worked out before anything is read: rules, gradients, slices, dtypes."""

from __future__ import annotations

from typing import Any

import pytest

from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.compatibility import Described, Table
from arc_halo.fusion.planning import at, plan_tensors
from arc_halo.fusion.recipes import FusionInput, FusionRecipe, LayerSlice, TensorRule
from arc_halo.fusion.tensor_recipes import TensorRecipe
from arc_halo.plugins import PluginManager

STRATEGIES = PluginManager().strategies
LAYERS = 4


def model(name: str, *, layers: int = LAYERS, dtype: str = "BF16", **other: Any) -> Table:
    tensors = {"model.embed_tokens.weight": Described(dtype, [50, 8])}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.mlp.up.weight"] = Described(dtype, [16, 8])
        tensors[f"model.layers.{layer}.attn.q.weight"] = Described(dtype, [8, 8])
    tensors["model.norm.weight"] = Described(dtype, [8])
    return Table(name, tensors | other)


def recipe(strategy: str = "ties", count: int = 2, **fields: Any) -> FusionRecipe:
    provided = STRATEGIES[strategy]
    members = tuple(
        FusionInput(model=f"m{i}", root=bytes([i]) * 32, weight=0.5) for i in range(count)
    )
    base = FusionInput(model="base", root=bytes(32)) if provided.item.needs_base else None
    properties = provided.item.params_schema.get("properties", {})
    params = {name: each["default"] for name, each in properties.items()}
    return FusionRecipe(
        strategy=provided.item,
        strategy_version=provided.version,
        params=params,
        members=members,
        base=base,
        **fields,
    )


def planned(wanted: FusionRecipe, *tables: Table) -> dict[str, TensorRecipe]:
    members = list(tables) or [model(f"m{i}") for i in range(len(wanted.members))]
    base = model("base") if wanted.base else None
    return {each.name: each for each in plan_tensors(wanted, members, base)}


def test_a_rule_holds_for_the_names_it_matches_and_the_last_one_counts() -> None:
    found = planned(
        recipe(
            rules=(
                TensorRule(match=("*.layers.*",), params={"density": 0.5}, weights={0: 2.0}),
                TensorRule(match=("*.2.mlp.*", "*norm*"), params={"density": 0.25}),
            )
        )
    )
    densities = {name: each.params["density"] for name, each in found.items()}
    assert densities["model.layers.1.mlp.up.weight"] == 0.5
    assert densities["model.layers.2.mlp.up.weight"] == 0.25
    assert densities["model.layers.2.attn.q.weight"] == 0.5
    assert densities["model.norm.weight"] == 0.25
    assert densities["model.embed_tokens.weight"] == 1.0
    assert found["model.layers.2.mlp.up.weight"].weights == (2.0, 0.5)
    assert found["model.norm.weight"].weights == (0.5, 0.5)


def test_a_gradient_goes_through_the_layers_and_begins_with_what_has_none() -> None:
    rule = TensorRule(match=("*",), params={"scale": [0, 1, 4]}, weights={1: (1.0, 0.0)})
    found = planned(recipe(rules=(rule,)))
    scales = [found[f"model.layers.{i}.attn.q.weight"].params["scale"] for i in range(LAYERS)]
    assert scales == pytest.approx([0, 2 / 3, 2, 4])
    weights = [found[f"model.layers.{i}.attn.q.weight"].weights[1] for i in range(LAYERS)]
    assert weights == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert found["model.embed_tokens.weight"].params["scale"] == 0
    assert found["model.norm.weight"].weights == (0.5, 1.0)


@pytest.mark.parametrize(
    ("value", "place", "expected"),
    [
        (7, 0.3, 7),
        ([1, 2], 1.0, 2),
        ([1, 3, 2], 0.5, 3),
        ([1, 3], 0.25, 1.5),
        ([5], 0.7, 5),
        ([True, False], 0.99, True),
        ([True, False], 1.0, False),
        (["a", "b", "c"], 0.5, "b"),
        (["a", "b", "c"], 1.0, "c"),
    ],
)
def test_a_gradient_has_straight_lines_or_takes_turns(
    value: Any, place: float, expected: Any
) -> None:
    assert at(value, place) == expected


def test_a_rule_that_nothing_matches_is_a_mistake() -> None:
    rule = TensorRule(match=("*.mpl.*",))
    with pytest.raises(IncompatibleModelsError, match="no tensor has such a name"):
        planned(recipe(rules=(rule,)))


def test_slices_number_the_layers_anew() -> None:
    slices = (LayerSlice(layers={0: (0, 3)}), LayerSlice(layers={1: (1, 4)}))
    found = planned(recipe("passthrough", slices=slices))
    sources = {name: (s.model, s.tensor) for name, each in found.items() for s in each.members}
    assert len(found) == 2 + 2 * 6
    assert next(iter(found)) == "model.embed_tokens.weight"
    assert list(found)[-1] == "model.norm.weight"
    assert sources["model.embed_tokens.weight"] == ("m0", "model.embed_tokens.weight")
    assert sources["model.norm.weight"] == ("m1", "model.norm.weight")
    assert sources["model.layers.2.mlp.up.weight"] == ("m0", "model.layers.2.mlp.up.weight")
    assert sources["model.layers.3.mlp.up.weight"] == ("m1", "model.layers.1.mlp.up.weight")
    assert sources["model.layers.5.attn.q.weight"] == ("m1", "model.layers.3.attn.q.weight")


def test_a_slice_of_several_members_is_fused_with_the_base_s_layers() -> None:
    slices = (
        LayerSlice(layers={0: (0, 2), 1: (2, 4)}, base=1, params={"density": [0.2, 0.4]}),
        LayerSlice(layers={1: (3, 4)}, weights={1: 3.0}),
    )
    found = planned(recipe(slices=slices))
    second = found["model.layers.1.mlp.up.weight"]
    assert [source.tensor.split(".")[2] for source in second.sources] == ["1", "3", "2"]
    assert second.params["density"] == 0.4
    last = found["model.layers.2.mlp.up.weight"]
    assert [source.tensor.split(".")[2] for source in last.sources] == ["3", "3"]
    assert last.weights == (3.0,)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (LayerSlice(layers={0: (0, 5)}), "layers up to 5 of m0, which has 4"),
        (LayerSlice(layers={0: (0, 2), 1: (0, 3)}), "2 of m0, 3 of m1 layers"),
    ],
)
def test_slices_that_do_not_fit_are_refused(part: LayerSlice, told: str) -> None:
    with pytest.raises(IncompatibleModelsError, match=told):
        planned(recipe(slices=(part,)))


def test_what_is_written_may_be_of_another_dtype_than_what_is_read() -> None:
    tables = [model("m0", dtype="F16"), model("m1", dtype="F32")]
    with pytest.raises(IncompatibleModelsError, match="dtype F16 in m0, F32 in m1") as caught:
        planned(recipe("linear"), *tables)
    assert "out_dtype" in (caught.value.hint or "")
    found = planned(recipe("linear", out_dtype="BF16"), *tables)
    assert {each.dtype for each in found.values()} == {"BF16"}
    assert found["model.norm.weight"].size_bytes == 16


def test_what_is_not_of_floats_stays_as_it_is() -> None:
    ids = Described("I64", [9], b"1" * 32)
    tables = [model("m0", ids=ids), model("m1", ids=ids)]
    found = planned(recipe("linear", out_dtype="F32"), *tables)
    assert (found["ids"].strategy, found["ids"].dtype) == (None, "I64")
    other = Described("I64", [9], b"2" * 32)
    with pytest.raises(IncompatibleModelsError, match="ids: dtype I64 cannot be averaged"):
        planned(recipe("linear"), model("m0", ids=ids), model("m1", ids=other))


def test_vocabularies_that_differ_are_called_so() -> None:
    other = {"model.embed_tokens.weight": Described("BF16", [60, 8])}
    with pytest.raises(IncompatibleModelsError) as caught:
        planned(recipe("linear"), model("m0"), model("m1", **other))
    assert "vocabularies" in (caught.value.hint or "")


def test_a_key_changes_with_whatever_decides_the_bits_and_with_nothing_else() -> None:
    def key(wanted: FusionRecipe, name: str = "model.layers.1.mlp.up.weight") -> bytes:
        digests = {"mlp": b"\x01" * 32, "attn": b"\x02" * 32}
        tables = [
            Table(
                each.name,
                {n: Described(t.dtype, t.shape, digests.get(n.split(".")[-3], b"\x03" * 32))
                 for n, t in each.tensors.items()},
            )
            for each in (model("m0"), model("m1"), model("base"))
        ]  # fmt: skip
        base = tables[2] if wanted.base else None
        return next(t.key for t in plan_tensors(wanted, tables[:2], base) if t.name == name)

    usual = key(recipe())
    assert key(recipe(rules=(TensorRule(match=("*.2.*",), params={"density": 0.1}),))) == usual
    different = [
        recipe(rules=(TensorRule(match=("*.1.*",), params={"density": 0.1}),)),
        recipe(rules=(TensorRule(match=("*",), weights={0: 0.4}),)),
        recipe(compute="F64"),
        recipe(out_dtype="F32"),
        recipe("dare_ties"),
    ]
    keys = {key(each) for each in different} | {
        usual,
        key(recipe(), "model.layers.2.mlp.up.weight"),
    }
    assert len(keys) == len(different) + 2


def test_a_param_may_differ_by_member() -> None:
    some = {"density": {"1": [0.2, 0.8]}}
    rules = (
        TensorRule(match=("*",), params=some),
        TensorRule(match=("*.2.*",), params={"density": {"0": 0.5}}),
        TensorRule(match=("*norm*",), params={"density": 0.9}),
    )
    found = planned(recipe(rules=rules))
    densities = {name: each.params["density"] for name, each in found.items()}
    assert densities["model.layers.0.attn.q.weight"] == [1.0, 0.2]
    assert densities["model.layers.3.attn.q.weight"] == [1.0, 0.8]
    assert densities["model.layers.2.attn.q.weight"] == [0.5, pytest.approx(0.6)]
    assert densities["model.norm.weight"] == 0.9
