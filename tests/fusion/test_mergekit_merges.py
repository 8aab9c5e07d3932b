"""mergekit's documents, merged by us: against what they mean, and against mergekit itself.

The second wants mergekit 0.1.5 in an environment of its own, and says where by
`ARC_HALO_MERGEKIT=…/mergekit-yaml`; it is run with `-m campaign`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from arc_halo.cli.main import run
from tests.fusion.tokenizers import EMBEDDING, OUTPUT, VOCABULARIES, aligned, union, write_models

Tensors = dict[str, NDArray[Any]]
Document = dict[str, Any]

MODELS = ("base", "a", "b")
LAYERS, WIDTH, INNER, VOCABULARY = 4, 32, 40, 48
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        found |= {f"{place}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{place}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{place}.mlp.down_proj.weight"] = (WIDTH, INNER)
        found[f"{place}.input_layernorm.weight"] = (WIDTH,)
        found[f"{place}.post_attention_layernorm.weight"] = (WIDTH,)
    found["model.norm.weight"] = (WIDTH,)
    found["lm_head.weight"] = (VOCABULARY, WIDTH)
    return found


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensors]:
    """A base and two of its kin, in directories of the one that the test is in."""
    made: dict[str, Tensors] = {}
    for index, name in enumerate(MODELS):
        made[name] = {}
        for number, (tensor, shape) in enumerate(shapes().items()):
            values = np.random.default_rng(number).standard_normal(shape)
            if index:
                values += 0.3 * np.random.default_rng([index, number]).standard_normal(shape)
            made[name][tensor] = values.astype(np.float32)
        (tmp_path / name).mkdir()
        save_file(made[name], tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return made


CASES: dict[str, str] = {
    "linear of gradients and filters": """
        merge_method: linear
        models:
          - model: a
            parameters:
              weight:
                - {filter: self_attn, value: [0, 1, 0.2]}
                - {filter: q_proj, value: 9}
                - {filter: mlp, value: 0.7}
                - {value: [0.1, 0.9]}
          - model: b
            parameters: {weight: 1}
        dtype: float32
        """,
    "filters fall through to what is above": """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: [{filter: mlp, value: 3}]}}
          - {model: b, parameters: {weight: {filter: down_proj, value: [1, 2]}}}
        parameters:
          weight: [{filter: norm, value: 0.5}, {filter: "*", value: 0.25}, {filter: mlp, value: 9}]
          normalize: [{filter: lm_head, value: false}]
        """,
    "a base that linear takes as one of the models": """
        merge_method: linear
        base_model: base
        models:
          - {model: a, parameters: {weight: 1}}
          - {model: b, parameters: {weight: 2}}
        parameters: {weight: 0.5}
        """,
    "slerp of gradients": """
        merge_method: slerp
        base_model: a
        slices:
          - sources:
              - {model: b, layer_range: [0, 4]}
              - {model: a, layer_range: [0, 4]}
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - {value: 0.5}
        dtype: float32
        """,
    "slerp of slices that overlap": """
        merge_method: slerp
        base_model: a
        slices:
          - sources:
              - {model: a, layer_range: [0, 2]}
              - {model: b, layer_range: [0, 2]}
            parameters: {t: [{filter: mlp, value: 1}, {filter: norm, value: [0.2, 0.6]}]}
          - sources:
              - {model: a, layer_range: [1, 4]}
              - {model: b, layer_range: [0, 3]}
        parameters: {t: [0.4, 0.8]}
        """,
    "slerp of a numbered layer": """
        merge_method: slerp
        base_model: a
        slices:
          - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
          - sources: [{model: a, layer_range: [1, 4]}, {model: b, layer_range: [1, 4]}]
        parameters: {t: [{filter: layers.2., value: 0.75}, {value: 0.25}]}
        """,
    "a frankenmerge": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources: [{model: b, layer_range: [1, 4]}]
        dtype: float32
        """,
    "layers that add nothing yet": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources:
              - model: a
                layer_range: [1, 2]
                parameters:
                  scale:
                    - {filter: o_proj, value: 0}
                    - {filter: down_proj, value: 0}
                    - {value: 1}
          - sources: [{model: a, layer_range: [2, 4]}]
        """,
    "scales of slices": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
            parameters: {scale: [{filter: embed, value: 4}, {value: 2}]}
          - sources:
              - model: b
                layer_range: [1, 4]
                parameters:
                  scale:
                    - {filter: norm, value: [0.5, 1.5]}
                    - {filter: lm_head, value: 3}
                    - {filter: embed, value: 5}
          - sources: [{model: a, layer_range: [3, 4], parameters: {scale: [1, 2]}}]
        parameters: {scale: 0.5}
        """,
    "the nearest parameters of slices": """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
              - {model: b, layer_range: [0, 2]}
            parameters: {weight: 2, normalize: false}
          - sources:
              - {model: a, layer_range: [2, 4]}
              - {model: b, layer_range: [2, 4], parameters: {weight: [1, 0]}}
        parameters: {weight: 3}
        """,
    "task arithmetic on other layers of the base": """
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 0.5}}
              - {model: base, layer_range: [2, 4]}
              - {model: b, layer_range: [1, 3], parameters: {weight: -0.5}}
          - sources:
              - {model: base, layer_range: [1, 4]}
              - {model: a, layer_range: [1, 4], parameters: {weight: 0.25}}
              - {model: b, layer_range: [0, 3], parameters: {weight: 0.75}}
        parameters: {lambda: [{filter: self_attn, value: [0, 1]}], normalize: false}
        """,
    "slices of one model and of two": """
        merge_method: linear
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
        parameters: {weight: [1, 2]}
        """,
    "ties in slices": """
        merge_method: ties
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 3]}
              - {model: a, layer_range: [0, 3], parameters: {weight: 0.6}}
              - {model: b, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
            parameters: {density: 0.3}
          - sources:
              - {model: base, layer_range: [3, 4]}
              - {model: a, layer_range: [3, 4], parameters: {weight: 1}}
              - {model: b, layer_range: [3, 4], parameters: {weight: 0.5}}
            parameters: {normalize: false}
        parameters: {density: 0.6, lambda: 0.9}
        dtype: float32
        """,
    "ties with filters": """
        merge_method: ties
        base_model: base
        models:
          - {model: base}
          - {model: a, parameters: {weight: [{filter: mlp, value: [0.1, 0.9]}, {value: 0.5}]}}
          - {model: b, parameters: {weight: 0.5}}
        parameters:
          density: [{filter: mlp, value: [0.9, 0.2]}, {filter: norm, value: 1}, {value: 0.4}]
          normalize: [{filter: lm_head, value: false}]
        """,
    "ties with densities of each model's own": """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.5, density: 0.3}}
          - model: b
            parameters:
              weight: 0.7
              density:
                - {filter: mlp, value: [0.9, 0.2]}
                - {filter: norm, value: 1}
                - {value: [0.2, 0.8, 0.4]}
        parameters: {normalize: true}
        dtype: float32
        """,
    "ties with a density that one model has of its own, and that falls through": """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.5, density: [{filter: self_attn, value: 0.3}]}}
          - {model: b, parameters: {weight: 0.7}}
        parameters: {density: [{filter: q_proj, value: 0.1}, {filter: mlp, value: [0.4, 0.8]}]}
        """,
    "ties in slices with densities of each model's own": """
        merge_method: ties
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 2]}
              - {model: a, layer_range: [0, 2], parameters: {density: 0.2}}
              - {model: b, layer_range: [0, 2], parameters: {density: [0.9, 0.3]}}
          - sources:
              - {model: base, layer_range: [1, 4]}
              - model: a
                layer_range: [1, 4]
                parameters: {density: [{filter: up_proj, value: 0.9}, {value: 0.4}]}
              - {model: b, layer_range: [1, 4]}
            parameters: {density: 0.7}
        parameters: {weight: 0.6}
        """,
    "flags that take turns": """
        merge_method: ties
        base_model: base
        models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.25}}]
        parameters: {density: 0.5, normalize: [true, false, true]}
        """,
    "breadcrumbs with densities and gammas of each model's own": """
        merge_method: breadcrumbs
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.5, density: [0.3, 0.8], gamma: 0.1}}
          - {model: b, parameters: {weight: 0.25, density: [{filter: mlp, value: 0.5}]}}
        """,
    "breadcrumbs that drop nothing": """
        merge_method: breadcrumbs
        base_model: base
        models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.25}}]
        parameters: {gamma: 0.2}
        """,
}


def document(case: str) -> Document:
    return yaml.safe_load(CASES[case])


def absolute(written: Any) -> Any:
    """A document whose models mergekit takes for directories, and not for names of the hub."""
    if isinstance(written, list):
        return [absolute(each) for each in written]
    if not isinstance(written, dict):
        return written
    return {
        key: str(Path(value).resolve()) if key in ("model", "base_model") else absolute(value)
        for key, value in written.items()
    }


def fused(named: list[str]) -> Tensors:
    files = [part for name in named for part in ("--from-files", f"{name}={name}")]
    assert run(["fuse", "run", "ours.yaml", *files, "--to-dir", "ours", "--force"]) == 0
    return load_file("ours/model.safetensors")


def ours(written: Document, capsys: pytest.CaptureFixture[str]) -> Tensors:
    """What comes out of a document, imported and run."""
    Path("theirs.yml").write_text(yaml.safe_dump(written))
    capsys.readouterr()
    assert run(["fuse", "import-recipe", "theirs.yml"]) == 0
    text = capsys.readouterr().out
    Path("ours.yaml").write_text(text)
    return fused(list(yaml.safe_load(text)["models"]))


# What the documents mean, tensor by tensor.


def meant(written: Document, models: dict[str, Tensors]) -> Tensors:
    """The result in float64, from what is known of mergekit 0.1.5."""
    found: Tensors = {}
    slices = written.get("slices") or [{"sources": with_base(written)}]
    start = 0
    for index, part in enumerate(slices):
        spans = [source.get("layer_range", [0, LAYERS]) for source in part["sources"]]
        count = spans[0][1] - spans[0][0]
        for name in shapes():
            words = name.split(".")
            if words[1] == "layers":
                for step in range(count):
                    if int(words[2]) == 0:
                        inner = ".".join(words[3:])
                        names = [f"model.layers.{first + step}.{inner}" for first, _ in spans]
                        out = f"model.layers.{start + step}.{inner}"
                        t = step / (count - 1) if count > 1 else 1.0
                        found[out] = one(written, part, models, names, out, t)
            elif index == (0 if "embed" in name else len(slices) - 1):
                found[name] = one(written, part, models, [name] * len(spans), name, 0.0)
        start += count
    return found


def with_base(written: Document) -> list[Document]:
    listed = written["models"]
    base = written.get("base_model")
    if base is None or any(each["model"] == base for each in listed):
        return listed
    return [*listed, {"model": base}]


def one(
    written: Document,
    part: Document,
    models: dict[str, Tensors],
    names: list[str],
    out: str,
    t: float,
) -> NDArray[np.float64]:
    method, base = written["merge_method"], written.get("base_model")
    sources = part["sources"]
    inputs = [models[s["model"]][n].astype(float) for s, n in zip(sources, names, strict=True)]
    above = [part.get("parameters", {}), written.get("parameters", {})]

    def shared(name: str, default: Any = None) -> Any:
        return setting(above, name, out, t, default)

    def own(index: int, name: str, default: Any = None) -> Any:
        near = sources[index].get("parameters", {})
        return setting([near, *above], name, names[index], t, default)

    every = range(len(sources))
    if method == "passthrough":
        return inputs[0] * own(0, "scale", 1.0)
    if method == "linear":
        weights = [own(index, "weight") for index in every]
        total = sum(w * x for w, x in zip(weights, inputs, strict=True))
        return total / sum(weights) if shared("normalize", True) else total
    first = next(index for index in every if sources[index]["model"] == base)
    others = [index for index in every if index != first]
    if method == "slerp":
        return slerp(inputs[first], inputs[others[0]], shared("t"))
    changes = [inputs[index] - inputs[first] for index in others]
    weights = [own(index, "weight") for index in others]
    scale = shared("lambda", 1.0)
    if method == "ties":
        densities = [own(index, "density", 1.0) for index in others]
        return inputs[first] + scale * ties(
            changes, weights, densities, divided=shared("normalize", True)
        )
    if method == "breadcrumbs":
        gammas = [own(index, "gamma", 0.01) for index in others]
        densities = [own(index, "density", 1.0) for index in others]
        changes = list(map(crumbs, changes, densities, gammas))
    total = sum(w * d for w, d in zip(weights, changes, strict=True))
    return inputs[first] + scale * total / (sum(weights) if shared("normalize", False) else 1)


def setting(places: list[Document], name: str, tensor: str, t: float, default: Any) -> Any:
    for place in places:
        value = place.get(name)
        if isinstance(value, dict):
            value = [value]
        is_filtered = isinstance(value, list) and isinstance(value[0], dict)
        for each in value if is_filtered else [{"value": value}]:
            if each["value"] is None or each.get("filter", "*") not in ("*", *parts(tensor)):
                continue
            if isinstance(each["value"], list):
                if isinstance(each["value"][0], bool):
                    return each["value"][int(t * (len(each["value"]) - 1))]
                return np.interp(t, np.linspace(0, 1, len(each["value"])), each["value"])
            return each["value"]
    return default


def parts(text: str) -> set[str]:
    return {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}


def slerp(x: NDArray[Any], y: NDArray[Any], t: float) -> NDArray[Any]:
    cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    if abs(cosine) > 0.9995:
        return (1 - t) * x + t * y
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def ties(
    changes: list[NDArray[Any]], weights: list[float], densities: list[float], *, divided: bool
) -> NDArray[Any]:
    kept = []
    for change, weight, density in zip(changes, weights, densities, strict=True):
        count = max(1, int(density * change.size))
        least = np.sort(np.abs(change.astype(np.float32)), axis=None)[-count]
        kept.append(weight * np.where(np.abs(change.astype(np.float32)) >= least, change, 0))
    sign = np.where(sum(kept) >= 0, 1, -1)
    agree = [np.sign(each) == sign for each in kept]
    total = sum(np.where(yes, each, 0) for yes, each in zip(agree, kept, strict=True))
    if not divided:
        return total
    share = sum(np.where(yes, weight, 0) for yes, weight in zip(agree, weights, strict=True))
    return total / np.where(share == 0, 1, share)


def crumbs(change: NDArray[Any], density: float, gamma: float) -> NDArray[Any]:
    if density >= 1:
        return change
    order = np.argsort(-np.abs(change.astype(np.float32)), axis=None, kind="stable")
    top = int(gamma * change.size)
    kept = np.zeros(change.size, bool)
    kept[order[top : top + int(density * change.size)]] = True
    return np.where(kept.reshape(change.shape), change, 0)


@pytest.mark.parametrize("case", CASES)
def test_what_a_document_means_is_what_comes_out(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    expected = meant(document(case), models)
    found = ours(document(case), capsys)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_dtype_of_a_document_is_that_of_the_result(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    written = document("a frankenmerge")
    for fields, dtype in (
        ({"dtype": "bfloat16"}, ml_dtypes.bfloat16),
        ({"dtype": "float32", "out_dtype": "float16"}, np.float16),
        ({"dtype": "float64"}, np.float64),
    ):
        expected = meant(written, models)
        for name, values in ours({**written, **fields}, capsys).items():
            assert np.array_equal(values, expected[name].astype(dtype)), name


ALL = union(*VOCABULARIES.values())
TOKENIZERS: dict[str, tuple[Document, dict[str, int], int]] = {
    "union": ({"tokenizer_source": "union"}, ALL, len(ALL)),
    "base": ({"tokenizer_source": "base"}, VOCABULARIES["base"], 9),
    "a model's": ({"tokenizer_source": "poet"}, VOCABULARIES["poet"], 10),
    "padded": ({"tokenizer": {"source": "union", "pad_to_multiple_of": 16}}, ALL, 16),
}


@pytest.mark.parametrize("source", TOKENIZERS)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_rows_are_those_of_the_tokens_that_a_document_wants(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    source: str,
) -> None:
    change, vocabulary, rows = TOKENIZERS[source]
    monkeypatch.chdir(tmp_path)
    models = write_models(tmp_path)
    weights = {"base": 0.25, "poet": 0.5, "coder": 0.75}
    listed = [{"model": name, "parameters": {"weight": w}} for name, w in weights.items()]
    found = ours({"merge_method": method, "base_model": "base", "models": listed, **change}, capsys)
    for tensor in (EMBEDDING, OUTPUT):
        sources = {name: aligned(name, tensor, models, vocabulary, rows) for name in weights}
        if method == "linear":
            expected = sum(w * sources[name] for name, w in weights.items()) / 1.5
        else:
            base = sources["base"]
            changes = [weights[name] * (sources[name] - base) for name in ("poet", "coder")]
            expected = base + sum(changes)
        np.testing.assert_allclose(found[tensor], expected, rtol=1e-6, atol=1e-6, err_msg=tensor)
    assert json.loads(Path("ours/config.json").read_text())["vocab_size"] == rows
    assert Path("ours/tokenizer.json").exists()


@pytest.mark.campaign
@pytest.mark.parametrize("case", CASES)
def test_mergekit_makes_the_same_of_its_document(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    program = os.environ.get("ARC_HALO_MERGEKIT")
    if not program:
        pytest.skip("ARC_HALO_MERGEKIT names no mergekit-yaml")
    written = absolute({**document(case), "dtype": "float32"})
    found = ours(written, capsys)
    command = [program, "theirs.yml", "theirs", "--quiet", "--no-copy-tokenizer"]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    theirs: Tensors = {}
    for file in Path("theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    assert found.keys() == theirs.keys()
    for name in differing(written):
        del theirs[name]
    worst = max(distance(found[name], values) for name, values in theirs.items())
    assert worst <= 8, f"{worst:.1f} ulp"


def differing(written: Document) -> tuple[str, ...]:
    """What mergekit fuses of fewer models than the last slice has: as many as the first has."""
    counts = [len(part["sources"]) for part in written.get("slices", ())]
    return ("model.norm.weight", "lm_head.weight") if counts and counts[-1] > counts[0] else ()


def distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """How far they are from one another, in units of the last place of what went in."""
    unit = np.finfo(np.float32).eps * np.maximum(1, np.abs(other.astype(float)))
    return float((np.abs(one.astype(float) - other) / unit).max())
