"""One recipe, however it is stored, cut, spread and hashed: the same bits of exact strategies."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo.plugins import PluginManager
from arc_halo.project import Project

NAMES = ("base", "one", "two", "three")
MEMBERS = {"one": 0.7, "two": 0.4, "three": 0.9}
ORDERS = (("one", "two", "three"), ("three", "two", "one"), ("two", "three", "one"))
EXACT = sorted(
    name
    for name, provided in PluginManager().strategies.items()
    if provided.item.numerics == "exact"
    and provided.item.fuse_weights is not None
    and provided.item.max_members is None
)
SYMMETRIC = [name for name in EXACT if PluginManager().strategies[name].item.is_symmetric]
PARAMS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "dare_linear": {"density": 0.4, "seed": 5},
    "dare_ties": {"density": 0.4, "rescale": "l1"},
    "della": {"density": 0.5, "rescale": "l1"},
    "della_linear": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.6},
    "sce": {"select_topk": 0.3},
}
SHAPES = {"a.w": (700, 130), "a.b": (33,), "layers.0.w": (270, 270), "layers.1.w": (1, 70_001)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bits")
    numbers = np.random.default_rng(9)
    base = {name: numbers.normal(size=shape) for name, shape in SHAPES.items()}
    for name in NAMES:
        found = {n: np.float32(v + numbers.normal(0, 0.2, v.shape)) for n, v in base.items()}
        (made / name).mkdir()
        save_file(found, made / name / "model.safetensors")
        # In two files and another order too.
        names = list(found)[::-1]
        (made / f"{name}-shards").mkdir()
        halves = (names[:2], names[2:])
        for number, half in enumerate(halves):
            save_file(
                {n: found[n] for n in half}, made / f"{name}-shards" / f"{number}.safetensors"
            )
        index = {n: f"{number}.safetensors" for number, half in enumerate(halves) for n in half}
        (made / f"{name}-shards" / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    return made


def manifest(
    strategy: str,
    *,
    shards: bool = False,
    chunk_bytes: int = 262144,
    threads: int = 2,
    order: Sequence[str] = ORDERS[0],
) -> dict[str, Any]:
    needs_base = PluginManager().strategy(strategy).item.needs_base
    ending = "-shards" if shards else ""
    return {
        "version": 1,
        "project": "bits",
        "storage": {"chunk_bytes": chunk_bytes},
        "settings": {"threads": threads, "memory": "8MiB"},
        "models": {f"{n}@1": {"type": "other", "weights": f"{n}{ending}"} for n in NAMES},
        "reactors": {
            "blend": {
                "type": "merge",
                "strategy": strategy,
                "params": PARAMS.get(strategy, {}),
                **({"base": "base"} if needs_base else {}),
                "members": [{"model": name, "weight": MEMBERS[name]} for name in order],
                "produces": {"model": "blend", "version": "1"},
            }
        },
    }


def in_database(
    directory: Path, url: str, strategy: str, executor: str = "threads", **settings: Any
) -> str:
    """The root that an apply comes to."""
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest(strategy, **settings)))
    with Project(directory, database_url=url, executor=executor) as project:
        project.apply(project.plan())
        with project.connection() as conn:
            row = conn.execute(
                """SELECT encode(root, 'hex') FROM weight_sets
                   JOIN models ON weight_set_id = weight_sets.id WHERE model_name = 'blend'"""
            ).fetchone()
    assert row is not None
    return str(row[0])


def in_files(
    directory: Path,
    out: Path,
    strategy: str,
    seed: str = "0",
    order: Sequence[str] = ORDERS[0],
    **environ: str,
) -> str:
    """A digest of the merged file's tensors, made by another program with that hash seed."""
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest(strategy, order=order)))
    files = [part for n in NAMES for part in ("--from-files", f"{n}={directory / n}")]
    if not PluginManager().strategy(strategy).item.needs_base:
        files = files[2:]
    command = [sys.executable, "-m", "arc_halo", "fuse", "run", str(directory), *files]
    subprocess.run(
        [*command, "--to-dir", str(out), "--memory", "2MiB", "--quiet"],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed, **environ},
    )
    found = load_file(out / "model.safetensors")
    return hashlib.sha256(b"".join(found[n].tobytes() for n in sorted(found))).hexdigest()


@pytest.mark.parametrize("strategy", ["ties", "dare_ties", "model_stock"])
def test_chunks_threads_and_shards_do_not_show(
    directory: Path,
    create_database: Callable[[str | None], str],
    template: str,
    strategy: str,
) -> None:
    ways: list[dict[str, Any]] = [
        {"chunk_bytes": 16384, "threads": 1},
        {"chunk_bytes": 1048576, "threads": 8},
        {"shards": True},
    ]
    check(directory, lambda: create_database(template), strategy, ways)


@pytest.mark.campaign
@pytest.mark.parametrize("strategy", EXACT)
def test_nothing_shows_that_decides_nothing(
    directory: Path,
    create_database: Callable[[str | None], str],
    template: str,
    strategy: str,
) -> None:
    ways: list[dict[str, Any]] = [
        *({"chunk_bytes": size} for size in (16384, 65536, 524288, 1048576)),
        *({"threads": count} for count in range(1, 9)),
        *({"threads": count, "executor": "processes"} for count in range(1, 5)),
        {"shards": True},
    ]
    check(directory, lambda: create_database(template), strategy, ways)


def check(
    directory: Path, database: Callable[[], str], strategy: str, ways: list[dict[str, Any]]
) -> None:
    assert len({in_database(directory, database(), strategy, **way) for way in ways}) == 1


@pytest.mark.parametrize("strategy", ["ties", "dare_ties"])
def test_hash_seeds_do_not_show(directory: Path, tmp_path: Path, strategy: str) -> None:
    seeds = {in_files(directory, tmp_path / seed, strategy, seed) for seed in ("0", "1")}
    assert len(seeds) == 1


@pytest.mark.campaign
@pytest.mark.parametrize("strategy", EXACT)
def test_five_hash_seeds_do_not_show(directory: Path, tmp_path: Path, strategy: str) -> None:
    seeds = {in_files(directory, tmp_path / str(s), strategy, str(s)) for s in range(5)}
    assert len(seeds) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        "linear",
        "dare_ties",
        pytest.param("task_arithmetic", marks=pytest.mark.campaign),
        pytest.param("model_stock", marks=pytest.mark.campaign),
    ],
)
def test_the_order_of_members_does_not_show_where_the_rule_commutes(
    directory: Path, tmp_path: Path, strategy: str
) -> None:
    check_orders(directory, tmp_path, strategy)


@pytest.mark.campaign
@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_no_order_of_members_shows(directory: Path, tmp_path: Path, strategy: str) -> None:
    check_orders(directory, tmp_path, strategy)


def check_orders(directory: Path, out: Path, strategy: str) -> None:
    found = {in_files(directory, out / "-".join(order), strategy, order=order) for order in ORDERS}
    assert len(found) == 1


def test_members_in_another_order_are_not_computed_again(
    directory: Path, create_database: Callable[[str | None], str], template: str
) -> None:
    url = create_database(template)
    first = in_database(directory, url, "linear")
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest("linear", order=ORDERS[1])))
    with Project(directory, database_url=url) as project:
        (change,) = [c for c in project.plan().changes if c.key.name == "blend@1"]
        assert change.build.estimate.computed == 0
    assert in_database(directory, url, "linear", order=ORDERS[1]) == first


@pytest.mark.parametrize(
    "strategy",
    [
        "tsv_m",
        pytest.param("iso_c", marks=pytest.mark.campaign),
        pytest.param("wudi", marks=pytest.mark.campaign),
    ],
)
def test_the_cores_do_not_show_where_blas_is_used(
    directory: Path, tmp_path: Path, strategy: str
) -> None:
    found = {
        in_files(directory, tmp_path / count, strategy, OPENBLAS_NUM_THREADS=count)
        for count in ("1", "2", "4")
    }
    assert len(found) == 1
