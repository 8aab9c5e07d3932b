"""Checkpoints: what one of unchanged tensors adds, and what others take."""

from __future__ import annotations

from collections.abc import Iterator

from rows import Row
from training_site import Grounds, bar


def unchanged(on: Grounds, mebibytes: int) -> Iterator[Row]:
    """A checkpoint of a model, two more of the same tensors, and one after a small step."""
    said = on.probe("checkpoint", mebibytes=mebibytes).said
    added = said["unchanged_bodies"]
    what = f"new chunk bodies, {mebibytes} MiB of unchanged tensors"
    yield bar(what, f"{added}  (of {said['bodies']})", added, 0, "<=")
    yield Row(
        what=f"seconds a checkpoint of {mebibytes} MiB",
        figure=f"first {said['first']:.2f}, unchanged {said['unchanged']:.2f}, "
        f"after a small step {said['changed']:.2f}; async_ returns after {said['async']:.2f}",
    )
    yield Row(
        what="bytes stored after a small step / raw",
        figure=f"{said['changed_bytes'] / said['raw_bytes']:.2f}",
    )
