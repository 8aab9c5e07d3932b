"""`arc_halo.sum`: the digests of a directory's migration files, and one over all of them.

Two branches that each add a migration both change its first line. So Git, which would merge the
files themselves without a word, reports a conflict, and somebody looks at what comes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from arc_halo.store.migration_text import read_text, wrong

SUM_FILE = "arc_halo.sum"


def sum_text(digests: Mapping[str, bytes]) -> str:
    """The contents for files of these names and digests."""
    lines = [f"{name} sha256:{digests[name].hex()}\n" for name in sorted(digests)]
    total = hashlib.sha256("".join(lines).encode()).hexdigest()
    return "".join([f"{SUM_FILE} sha256:{total}\n", *lines])


def check_sum(directory: Path, digests: Mapping[str, bytes]) -> None:
    """Raise `SchemaMismatchError` (AH042), naming what differs, unless the file says the same."""
    path = directory / SUM_FILE
    if not path.is_file():
        raise _differs(f"{path} is missing")
    said = read_text(path)
    if said == sum_text(digests):
        return
    pairs = (line.partition(" ") for line in said.splitlines())
    recorded = {name: value for name, _, value in pairs}
    for name in sorted(digests):
        if name not in recorded:
            raise _differs(f"{directory / name} is not in {SUM_FILE}")
        if recorded[name] != f"sha256:{digests[name].hex()}":
            raise _differs(f"{directory / name} is not what {SUM_FILE} says")
    for number, name in enumerate(recorded, start=1):
        if name != SUM_FILE and name not in digests:
            raise _differs(f"{path}:{number}:1: {name} is not there")
    raise _differs(f"{path}:1:1: the line does not fit the others")


def _differs(message: str) -> Exception:
    return wrong(
        message,
        hint="install Arc-Halo again; or, when the change is meant, renew the sum: "
        "`arc-halo migrate sum --write`",
    )
