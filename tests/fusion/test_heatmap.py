"""Tensors of any model by layer and kind of module, and the picture of it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from arc_halo.fusion.conflicts import Inspection, TensorConflict
from arc_halo.fusion.heatmap import ALL, Scale, heatmap_of, panels, shortened
from arc_halo.fusion.heatmap_svg import draw

LLAMA = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
)


def conflict(name: str, cosine: float | None = 0.5, elements: int = 10) -> TensorConflict:
    return TensorConflict(
        name=name,
        elements=elements,
        sampled=elements,
        members=("a", "b"),
        cosines=(cosine,),
        sign_conflicts=(None if cosine is None else (1 - cosine) / 2,),
        relative_norms=None,
    )


def test_layers_stand_in_order_between_what_comes_before_and_after_them() -> None:
    found = heatmap_of([conflict(name) for name in LLAMA])
    assert found.rows == ("embed_tokens", "0", "1", "norm", "lm_head", ALL)
    assert found.columns == (ALL, "attn.q", "attn.k", "mlp.gate", "mlp.down", "input_norm")


def test_a_cell_is_the_mean_of_its_tensors_by_their_elements() -> None:
    name = "h.{}.attn.{}".format
    found = heatmap_of(
        [
            conflict(name(0, "q.weight"), 0.5, 30),
            conflict(name(0, "q.bias"), -0.5, 10),
            conflict(name(0, "k.weight"), None, 10),
            conflict(name(1, "q.weight"), 1.0, 40),
        ]
    )

    def value(row: str, column: str) -> float | None:
        return found.value(row, column, lambda each: each.mean_cosine)

    assert value("0", "attn.q") == value("0", ALL) == pytest.approx(0.25)
    assert value(ALL, "attn.q") == pytest.approx((15 - 5 + 40) / 80)
    assert value("0", "attn.k") is None
    assert value("1", "attn.k") is None


def test_stacks_of_layers_are_told_apart() -> None:
    names = ("encoder.block.0.fc.weight", "decoder.block.0.fc.weight", "shared.weight")
    assert heatmap_of([conflict(name) for name in names]).rows == (
        "encoder.block.0", "decoder.block.0", "shared", ALL
    )  # fmt: skip


def test_a_model_without_layers_has_one_column() -> None:
    found = heatmap_of([conflict("w"), conflict("b")])
    assert (found.rows, found.columns) == (("w", "b", ALL), (ALL,))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("self_attn.q_proj.weight", "attn.q"),
        ("block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.experts.w1"),
        ("attention.output.LayerNorm.bias", "attn.output.norm"),
        ("weight", "weight"),
        ("model.norm.weight", "norm"),
        ("12", "12"),
    ],
)
def test_kinds_of_modules_are_read_off_any_name(name: str, kind: str) -> None:
    assert shortened(name) == kind


def test_shades_go_from_agreeing_to_opposed_whichever_way_a_figure_rises() -> None:
    cosine = Scale(middle=0, reach=0.5, rising=False)
    conflicts = Scale(middle=0.5, reach=0.5, rising=True)
    assert [cosine.shade(value) for value in (1, 0.5, 0, -0.25)] == [-1, -1, 0, 0.5]
    assert [conflicts.step(value) for value in (0, 0.5, 1)] == [0, 4, 8]


def test_small_differences_look_small() -> None:
    cosine, conflicts = panels([conflict("w", 0.001), conflict("v", -0.002)])
    assert (cosine.scale.reach, conflicts.scale.reach) == (0.2, 0.1)
    cosine, _ = panels([conflict("w", 0.51), conflict("v", None)])
    assert cosine.scale.reach == 0.6


@pytest.mark.parametrize("layers", [1, 40])
def test_the_picture_is_xml_with_two_panels_and_a_cell_for_every_figure(layers: int) -> None:
    names = [f"model.layers.{i}.<&>.weight" for i in range(layers)]
    found = Inspection(tensors=tuple(conflict(name) for name in names), read_bytes=1, size_bytes=1)
    root = ElementTree.fromstring(draw(found, "a, <b>", "base"))
    space = {"s": "http://www.w3.org/2000/svg"}
    classes = [each.get("class", "").split()[0] for each in root.iterfind(".//s:*", space)
               if each.get("class")]  # fmt: skip
    assert classes.count("cell") == 2 * 2 * (layers + 1)
    assert classes.count("panel") == 2
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for each in root.iterfind(".//s:rect[@x]", space):
        assert float(each.attrib["x"]) + float(each.attrib["width"]) <= width
        assert float(each.attrib["y"]) + float(each.attrib["height"]) <= height
