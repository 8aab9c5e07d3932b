"""Merging against mergekit: CPU, memory, and how well results are rounded.

    python benchmarks/fusion.py [--quick] [--only NAME] [--repetitions N] [--mergekit PROGRAM]

makes bfloat16 models of 200 million parameters in a temporary directory, and merges them from
files to a file, each time in a fresh process with one thread: `arc-halo fuse run`, and beside it
`mergekit-yaml`, which is looked for on the PATH unless PROGRAM is given. Work is the CPU of the
command less that of merging tiny models, which is its start-up. Linux only.
Exits with 1 when a bar is missed, and without mergekit too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rows import Row, show

LAYERS, WIDTH, INNER, VOCABULARY = 12, 1024, 2816, 32_000
"""About 200 million parameters in 111 tensors."""

MEMBERS = ("base", "one", "two", "three")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A merge as both programs write it, and the most that ours may take of the other's work."""

    name: str
    members: Sequence[str]
    has_base: bool
    params: dict[str, object]
    theirs: dict[str, object]
    member_params: dict[str, object]
    floor: float
    goal: float


CASES = [
    Case(name="linear", members=("one", "two"), has_base=False, params={}, theirs={},
         member_params={}, floor=0.4, goal=0.3),
    Case(name="task_arithmetic", members=MEMBERS[1:], has_base=True, params={}, theirs={},
         member_params={}, floor=0.9, goal=0.6),
    Case(name="model_stock", members=MEMBERS[1:], has_base=True, params={}, theirs={},
         member_params={}, floor=0.7, goal=0.5),
    Case(name="ties", members=MEMBERS[1:], has_base=True, params={"density": 0.5}, theirs={},
         member_params={"density": 0.5}, floor=0.3, goal=0.15),
    Case(name="dare_ties", members=MEMBERS[1:], has_base=True, params={"density": 0.5},
         theirs={}, member_params={"density": 0.5}, floor=0.5, goal=0.3),
    Case(name="della", members=MEMBERS[1:], has_base=True,
         params={"density": 0.5, "epsilon": 0.15}, theirs={},
         member_params={"density": 0.5, "epsilon": 0.15}, floor=0.3, goal=0.13),
    Case(name="breadcrumbs", members=MEMBERS[1:], has_base=True,
         params={"density": 0.5, "gamma": 0.01}, theirs={},
         member_params={"density": 0.5, "gamma": 0.01}, floor=0.3, goal=0.18),
]  # fmt: skip


def tensors(layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(layers):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
        shapes |= {f"{place}.mlp.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj.weight"] = (WIDTH, INNER)
        shapes |= {
            f"{place}.{n}.weight": (WIDTH,) for n in ("input_layernorm", "post_attention_layernorm")
        }
    shapes["model.norm.weight"] = (WIDTH,)
    shapes["lm_head.weight"] = (vocabulary, WIDTH)
    return shapes


def make_models(directory: Path, layers: int, vocabulary: int) -> None:
    """A base, and three others with small changes of all its weights."""
    import ml_dtypes
    from safetensors.numpy import save_file

    for index, name in enumerate(MEMBERS):
        (directory / name).mkdir(parents=True)
        arrays = {}
        for number, (tensor, shape) in enumerate(tensors(layers, vocabulary).items()):
            values = np.random.default_rng(number).standard_normal(shape, np.float32) * 0.02
            if index:
                change = np.random.default_rng([index, number])
                values += change.standard_normal(shape, np.float32) * 0.002
            arrays[tensor] = values.astype(ml_dtypes.bfloat16)
        save_file(arrays, directory / name / "model.safetensors", metadata={"format": "pt"})
        config = {**CONFIG, "num_hidden_layers": layers, "vocab_size": vocabulary}
        (directory / name / "config.json").write_text(json.dumps(config))


@dataclass(frozen=True, slots=True)
class Run:
    """What a process took, start-up included."""

    cpu_seconds: float
    peak_mib: float


def timed(command: Sequence[str], directory: Path) -> Run:
    """Run it with one thread; the CPU seconds of it and its children, and its peak memory."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pid = os.posix_spawnp(
        command[0],
        list(command),
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, str(directory / "log"), os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed: {(directory / 'log').read_text()[-2000:]}")
    return Run(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def our_command(case: Case, models: Path, out: Path) -> list[str]:
    recipe = out.with_suffix(".yaml")
    reactor = {
        "type": "merge",
        "strategy": case.name,
        "params": case.params,
        "members": [{"model": name, "weight": 1.0} for name in case.members],
        "produces": {"model": "out", "version": "1"},
        **({"base": "base"} if case.has_base else {}),
    }
    recipe.write_text(json.dumps({"reactors": {"r": reactor}}))
    names = [*case.members, *(["base"] if case.has_base else [])]
    files = [part for name in names for part in ("--from-files", f"{name}={models / name}")]
    program = shutil.which("arc-halo") or "arc-halo"
    return [program, "fuse", "run", str(recipe), *files, "--to-dir", str(out), "--quiet",
            "--memory", "64MiB", "--force"]  # fmt: skip


def their_command(program: str, case: Case, models: Path, out: Path) -> list[str]:
    recipe = out.with_suffix(".yml")
    document: dict[str, object] = {
        "merge_method": case.name,
        "models": [
            {"model": str(models / n), "parameters": {"weight": 1.0, **case.member_params}}
            for n in case.members
        ],
        "dtype": "bfloat16",
        "parameters": case.theirs,
    }
    if case.name == "model_stock":
        document["models"] = [{"model": str(models / n)} for n in case.members]
    if case.has_base:
        document["base_model"] = str(models / "base")
    recipe.write_text(json.dumps(document))
    return [program, str(recipe), str(out), "--quiet", "--no-copy-tokenizer", "--random-seed", "42"]


def measure(
    quick: bool, names: Sequence[str], repetitions: int, program: str | None
) -> Iterator[Row]:
    layers, vocabulary = (2, 8000) if quick else (LAYERS, VOCABULARY)
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root:
        directory = Path(root)
        # In processes of their own: a child's peak memory begins with its parent's.
        for name, size in (("large", (layers, vocabulary)), ("tiny", (1, 64))):
            making = multiprocessing.get_context("spawn").Process(
                target=make_models, args=(directory / name, *size)
            )
            making.start()
            making.join()
        for case in (case for case in CASES if not names or case.name in names):
            yield from _compare(case, directory, repetitions, program)


def _compare(case: Case, directory: Path, repetitions: int, program: str | None) -> Iterator[Row]:
    ours: list[Run] = []
    theirs: list[Run] = []
    starts: list[tuple[float, float]] = []
    for _ in range(repetitions):
        tiny = timed(our_command(case, directory / "tiny", directory / "o"), directory)
        ours.append(timed(our_command(case, directory / "large", directory / "o"), directory))
        start = 0.0
        if program:
            start = timed(
                their_command(program, case, directory / "tiny", directory / "t"), directory
            ).cpu_seconds
            theirs.append(
                timed(their_command(program, case, directory / "large", directory / "t"), directory)
            )
        starts.append((tiny.cpu_seconds, start))
    our_work = [run.cpu_seconds - start for run, (start, _) in zip(ours, starts, strict=True)]
    memory = f"{max(run.peak_mib for run in ours):.0f} MiB peak"
    if not program:
        figure = f"ours {median(our_work):.2f} s, {memory}"
        yield Row(what=f"{case.name}: no mergekit to compare with", figure=figure, is_met=False)
        return
    their_work = [run.cpu_seconds - start for run, (_, start) in zip(theirs, starts, strict=True)]
    ratio = median(a / b for a, b in zip(our_work, their_work, strict=True))
    yield Row(
        what=f"{case.name}: work, ours / mergekit's",
        figure=f"{ratio:.2f}  ({median(our_work):.2f} / {median(their_work):.2f} s), {memory}",
        bar=f"<= {case.floor:g}",
        is_met=ratio <= case.floor,
    )
    if case.name == "linear":
        whole = median(a.cpu_seconds / b.cpu_seconds for a, b in zip(ours, theirs, strict=True))
        yield Row(
            what="linear: the whole command, ours / mergekit's",
            figure=f"{whole:.2f}",
            bar="<= 0.25",
            is_met=whole <= 0.25,
        )


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Merging against mergekit.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the parameters")
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--mergekit", metavar="PROGRAM", default=shutil.which("mergekit-yaml"))
    asked = parser.parse_args()
    return show(measure(asked.quick, asked.only or [], asked.repetitions, asked.mergekit))


if __name__ == "__main__":
    sys.exit(main())
