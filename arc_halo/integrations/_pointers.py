"""Small files that stand where a trainer expects its checkpoints, and say which ones are meant."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from arc_halo.errors import CheckpointError
from arc_halo.training.checkpoints.retention import CheckpointType

FORMAT = 1
MAX_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A checkpoint by its session, step and type: saved again, with another id, it is that one."""

    session: UUID
    step: int
    type: CheckpointType
    id: UUID = field(compare=False)


def write(path: Path, pointer: Pointer) -> None:
    """Write the file, whole or not at all."""
    told = {
        "arc_halo_checkpoint": FORMAT,
        "session": str(pointer.session),
        "step": pointer.step,
        "type": pointer.type,
        "id": str(pointer.id),
        "load_with": "arc_halo.integrations.lightning.load(PATH)",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    made.write_text(json.dumps(told) + "\n", encoding="utf-8")
    made.replace(path)


def read(path: Path) -> Pointer:
    """What a file points to. Raises `CheckpointError` for one that is another's."""
    found = _found(path)
    if found is None:
        raise CheckpointError(
            f"{path} points to no checkpoint of Arc-Halo",
            hint="a file that another CheckpointIO saved is loaded by that",
        )
    return found


def find(path: Path) -> Pointer | None:
    """What a file points to; None where there is none, or another's."""
    return _found(path) if path.is_file() else None


def is_only(path: Path, pointer: Pointer, others: Iterable[Path] = ()) -> bool:
    """Whether no other file, of those beside it and of `others`, points to the same checkpoint.

    A link to the file is no other.
    """
    near = {each.resolve() for each in (*path.parent.iterdir(), *others)} - {path.resolve()}
    return all(find(other) != pointer for other in near)


def _found(path: Path) -> Pointer | None:
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        told = json.loads(path.read_bytes())
        if told["arc_halo_checkpoint"] != FORMAT:
            return None
        return Pointer(
            session=UUID(told["session"]),
            step=int(told["step"]),
            type=told["type"],
            id=UUID(told["id"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
