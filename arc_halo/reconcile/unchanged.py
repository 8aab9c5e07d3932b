"""What had nothing to do last time: recognised without reading the manifest again.

A plan without changes leaves a note in `.arc-halo/`: the state of every file behind it, the
variables, the packages, where the database stood. While all of that is the same, which one query
tells of the database, there is nothing to do still. A cache: where anything is unclear,
everything is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arc_halo._version import __version__
from arc_halo.reconcile.changes import Orphan, Plan
from arc_halo.store.migration_files import migrations_directory
from arc_halo.store.rows import Connection
from arc_halo.store.standing import Standing, standing
from arc_halo.types import JsonObject, Key

if TYPE_CHECKING:
    from arc_halo.manifest.documents import Desired

FORMAT = 1
SETTLED_SECONDS = 2
"""A file that changed so shortly before it was read may change again without a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a plan depends on besides files and rows; `database` is an address without password."""

    environ: Mapping[str, str]
    env: str | None
    prune: bool | None
    database: str
    allow_paths: Sequence[Path] = ()

    def as_json(self) -> JsonObject:
        return {
            "tool_version": __version__,
            "env": self.env,
            "prune": self.prune,
            "database": self.database,
            "allow_paths": [str(path) for path in self.allow_paths],
            "interpreter": sys.version,
            "packages": _packages(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """A plan without changes, and where the database stood then."""

    plan: Plan
    standing: Standing


class Memory:
    """The note of the last plan without changes, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, circumstances: Circumstances) -> Remembered | None:
        """The plan of last time, if everything but the database is as it was."""
        try:
            data = json.loads(self._path.read_bytes())
            if data["format"] != FORMAT or data["circumstances"] != circumstances.as_json():
                return None
            if data["variables"] != _variables(data["variables"], circumstances.environ):
                return None
            if data["files"] != _states(data["files"]):
                return None
            return Remembered(plan=_plan(data["plan"]), standing=Standing(**data["standing"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def keep(
        self,
        plan: Plan,
        standing: Standing | None,
        desired: Desired,
        weight_files: Iterable[Path],
        circumstances: Circumstances,
        *,
        began: float,
    ) -> None:
        """Note a plan without changes; forget what was noted where that would be no safe guide.

        `began` is when reading began, in seconds since the epoch; `standing` is from before the
        database was compared.
        """
        ours = (migrations_directory(), *migrations_directory().iterdir())
        names = map(str, (*desired.files, *weight_files, *ours))
        files = _states(dict.fromkeys(names))
        limit = (began - SETTLED_SECONDS) * 1e9
        is_settled = all(state is None or max(state[1:3]) < limit for state in files.values())
        if not is_settled or desired.registered or standing is None:
            self._path.unlink(missing_ok=True)
            return
        self._write(
            {
                "format": FORMAT,
                "circumstances": circumstances.as_json(),
                "variables": {
                    name: value.hex() if value else None
                    for name, value in desired.variables.items()
                },
                "files": files,
                "plan": _plan_json(plan),
                "standing": asdict(standing),
            }
        )

    def _write(self, data: JsonObject) -> None:
        """Atomically; where that cannot be done, go without."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".unchanged-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file)
            Path(name).replace(self._path)
        except OSError:
            return


def is_unchanged(conn: Connection, remembered: Remembered) -> bool:
    """Whether the database is where it was, the schema too, and no row drifted."""
    return standing(conn, remembered.plan.project) == remembered.standing


def _packages() -> dict[str, list[int] | None]:
    """The directories that packages are in: what is installed or removed changes its directory."""
    return _states(dict.fromkeys(path for path in sys.path if path.endswith("-packages")))


def _variables(names: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        value = environ.get(name)
        digest = hashlib.sha256(value.encode(errors="replace")) if value is not None else None
        found[name] = digest.hexdigest() if digest else None
    return found


def _states(paths: Mapping[str, object]) -> dict[str, list[int] | None]:
    """Size, times of change in nanoseconds and inode of each file; None for one that is not."""
    found: dict[str, list[int] | None] = {}
    for name in paths:
        try:
            stat = Path(name).stat()
            found[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        except OSError:
            found[name] = None
    return found


def _plan_json(plan: Plan) -> JsonObject:
    return {
        "project": plan.project,
        "base_revision": plan.base_revision,
        "manifest_digest": plan.manifest_digest.hex(),
        "environment": plan.environment,
        "prune": plan.prune,
        "notes": list(plan.notes),
        "unchanged_count": plan.unchanged_count,
        "managed_count": plan.managed_count,
        "declared_count": plan.declared_count,
        "orphans": [[o.key.kind, o.key.name, o.protected, o.deletion] for o in plan.orphans],
    }


def _plan(data: JsonObject) -> Plan:
    return Plan(
        project=str(data["project"]),
        base_revision=int(data["base_revision"]),
        manifest_digest=bytes.fromhex(data["manifest_digest"]),
        environment=data["environment"],
        prune=bool(data["prune"]),
        notes=tuple(data["notes"]),
        unchanged_count=int(data["unchanged_count"]),
        managed_count=int(data["managed_count"]),
        declared_count=int(data["declared_count"]),
        orphans=tuple(
            Orphan(key=Key(kind=kind, name=name), protected=protected, deletion=deletion)
            for kind, name, protected, deletion in data["orphans"]
        ),
    )
