"""Merging against mergekit: CPU, memory, and how well results are rounded.

    python benchmarks/fusion.py [--size SIZE] [--only NAME] [--repetitions N] [--mergekit PROGRAM]

makes bfloat16 models of 200 million parameters (SIZE 440MB; 4GB has 2 billion, 40MB is quick) in a
temporary directory, and merges them from files to a file, each time in a fresh process with one
thread: `arc-halo fuse run`, and beside it `mergekit-yaml`, which is looked for on the PATH unless
PROGRAM is given. Work is the CPU of the command less that of merging tiny models, which is its
start-up. Memory is the most that is private to ours, less that of an interpreter with numpy. Linux
only.
Exits with 1 when a bar is missed, and without mergekit too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from fusion_database import database_run
from rows import Row, show

MEMORY_MIB = 64
"""The `--memory` that merges run with, and the bar for what they take."""

SAMPLE_SECONDS = 0.05
MEMBERS = ("base", "one", "two", "three")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a Llama is."""

    layers: int
    vocabulary: int
    width: int = 1024
    inner: int = 2816


SIZES = {
    "40MB": Size(layers=2, vocabulary=8000),
    "440MB": Size(layers=12, vocabulary=32_000),
    "4GB": Size(layers=12, vocabulary=32_000, width=3584, inner=9856),
}
TINY = Size(layers=1, vocabulary=64)


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


def tensors(size: Size) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a Llama."""
    width, inner = size.width, size.inner
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocabulary, width)}
    for layer in range(size.layers):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        shapes |= {f"{place}.mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {
            f"{place}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")
        }
    shapes["model.norm.weight"] = (width,)
    shapes["lm_head.weight"] = (size.vocabulary, width)
    return shapes


def make_models(directory: Path, size: Size) -> None:
    """A base, and three others with small changes of all its weights."""
    import ml_dtypes
    from safetensors.numpy import save_file

    for index, name in enumerate(MEMBERS):
        (directory / name).mkdir(parents=True)
        arrays = {}
        for number, (tensor, shape) in enumerate(tensors(size).items()):
            values = np.random.default_rng(number).standard_normal(shape, np.float32) * 0.02
            if index:
                change = np.random.default_rng([index, number])
                values += change.standard_normal(shape, np.float32) * 0.002
            arrays[tensor] = values.astype(ml_dtypes.bfloat16)
        save_file(arrays, directory / name / "model.safetensors", metadata={"format": "pt"})
        config = {
            **CONFIG,
            "num_hidden_layers": size.layers,
            "vocab_size": size.vocabulary,
            "hidden_size": size.width,
            "intermediate_size": size.inner,
        }
        (directory / name / "config.json").write_text(json.dumps(config))


@dataclass(frozen=True, slots=True)
class Run:
    """What a process took, start-up included."""

    cpu_seconds: float
    private_mib: float


def timed(command: Sequence[str], directory: Path) -> Run:
    """Run it with one thread; the CPU seconds of it and its children, and its most memory."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled once
    pid = os.posix_spawnp(
        command[0],
        list(command),
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, str(directory / "log"), os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    most = 0.0
    ended, status, used = os.wait4(pid, os.WNOHANG)
    while not ended:
        most = max(most, private_mib(pid))
        time.sleep(SAMPLE_SECONDS)
        ended, status, used = os.wait4(pid, os.WNOHANG)
    if status:
        raise SystemExit(f"{command[0]} failed: {(directory / 'log').read_text()[-2000:]}")
    return Run(used.ru_utime + used.ru_stime, most)


def private_mib(pid: int) -> float:
    """The memory that would be free without the process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def bare_mib(directory: Path) -> float:
    """Of an interpreter that has imported numpy and does nothing."""
    waiting = "import numpy, time; time.sleep(0.3)"
    return timed([sys.executable, "-c", waiting], directory).private_mib


def bare_seconds(directory: Path, members: Sequence[str]) -> float:
    """CPU seconds of a loop that averages two files and does nothing else, without its start."""
    files = [str(directory / "large" / name / "model.safetensors") for name in members]
    program = Path(__file__).with_name("fusion_bare.py")
    command = [sys.executable, str(program), *files, str(directory / "bare")]
    runs = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return median(runs)


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
            "--memory", f"{MEMORY_MIB}MiB", "--force"]  # fmt: skip


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
    size: Size, names: Sequence[str], repetitions: int, program: str | None
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root:
        directory = Path(root)
        # In processes of their own, whose memory goes with them.
        for name, each in (("large", size), ("tiny", TINY)):
            making = multiprocessing.get_context("spawn").Process(
                target=make_models, args=(directory / name, each)
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
    taken = max(run.private_mib for run in ours) - bare_mib(directory)
    yield Row(
        what=f"{case.name}: private memory above numpy's, MiB",
        figure=f"{taken:.0f}",
        bar=f"<= {MEMORY_MIB}",
        is_met=taken <= MEMORY_MIB,
    )
    if not program:
        figure = f"ours {median(our_work):.2f} s"
        yield Row(what=f"{case.name}: no mergekit to compare with", figure=figure, is_met=False)
        return
    their_work = [run.cpu_seconds - start for run, (_, start) in zip(theirs, starts, strict=True)]
    ratio = median(a / b for a, b in zip(our_work, their_work, strict=True))
    yield Row(
        what=f"{case.name}: work, ours / mergekit's",
        figure=f"{ratio:.2f}  ({median(our_work):.2f} / {median(their_work):.2f} s)",
        bar=f"<= {case.floor:g}",
        is_met=ratio <= case.floor,
    )
    if case.name == "linear":
        bare = bare_seconds(directory, case.members)
        yield Row(
            what="linear: the barest loop of NumPy / mergekit's work",
            figure=f"{bare / median(their_work):.2f}  ({bare:.2f} s)",
        )
        whole = median(a.cpu_seconds / b.cpu_seconds for a, b in zip(ours, theirs, strict=True))
        yield Row(
            what="linear: the whole command, ours / mergekit's",
            figure=f"{whole:.2f}",
            bar="<= 0.25",
            is_met=whole <= 0.25,
        )
        stored = database_run(directory, directory / "large", case.members)
        their_seconds = median(run.cpu_seconds for run in theirs)
        ratio = stored.ours / their_seconds
        yield Row(
            what="linear: database to database, server included, ours / mergekit's",
            figure=f"{ratio:.2f}  ({stored.ours:.2f} s)",
            bar="<= 0.5",
            is_met=ratio <= 0.5,
        )
        yield Row(
            what="linear: the same bodies read and written bare / mergekit's",
            figure=f"{stored.bare / their_seconds:.2f}  ({stored.bare:.2f} s)",
        )


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Merging against mergekit.")
    parser.add_argument("--size", choices=SIZES, default="440MB", help="of a model")
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--mergekit", metavar="PROGRAM", default=shutil.which("mergekit-yaml"))
    asked = parser.parse_args()
    size = SIZES[asked.size]
    return show(measure(size, asked.only or [], asked.repetitions, asked.mergekit))


if __name__ == "__main__":
    sys.exit(main())
