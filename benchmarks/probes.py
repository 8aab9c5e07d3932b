"""What `reconcile.py` measures inside a process: each probe runs in a fresh one of its own.

    python benchmarks/probes.py PROBE DIR

prints one JSON object. Times are CPU seconds, user and system together.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch


def csafe(directory: Path) -> dict[str, float]:
    """PyYAML's CSafeLoader on the files that the manifest is made of.

    As it comes, and once more with the garbage collector off, which is how we load.
    """
    as_it_comes = _csafe_seconds(directory)
    gc.disable()
    return {"as_it_comes": as_it_comes, "uncollected": _csafe_seconds(directory)}


def validation(directory: Path) -> dict[str, float]:
    """Our loading and validation, with the composing and compiling of the schema."""
    from arc_halo.manifest.load import load_project
    from arc_halo.manifest.reading import schema_of
    from arc_halo.manifest.schema import validate
    from arc_halo.plugins import PluginManager

    plugins = PluginManager.load({"outputs.py": directory / "plugins" / "outputs.py"})
    started = time.process_time()
    sources = load_project(directory, env=os.environ)
    loaded = time.process_time()
    problems = validate(sources, schema_of(plugins))
    validated = time.process_time()
    if problems:
        raise SystemExit(f"the corpus is not valid: {problems[0]}")
    return {"load": loaded - started, "validate": validated - loaded}


def statements(directory: Path) -> dict[str, Any]:
    """The SQL statements of a plan, BEGIN and COMMIT not counted, and what the plan came to."""
    from arc_halo.project import Project

    with Project(directory) as project, recorded_statements() as texts:
        plan = project.plan()
    return {
        "statements": texts,
        "resources": plan.unchanged_count,
        "has_changes": plan.has_changes,
    }


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """Note every statement that goes through a cursor; one of `executemany` counts each time."""
    import psycopg

    texts: list[str] = []
    execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany

    def noting(cursor: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        texts.append(str(query).strip())
        return execute(cursor, query, *args, **kwargs)

    def noting_many(cursor: Any, query: Any, rows: Iterable[Any], **kwargs: Any) -> Any:
        listed = list(rows)
        texts.extend([str(query).strip()] * len(listed))
        return executemany(cursor, query, listed, **kwargs)

    with patch.multiple(psycopg.Cursor, execute=noting, executemany=noting_many):
        yield texts


def _csafe_seconds(directory: Path) -> float:
    import yaml

    files = [directory / "arc_halo.yaml", *sorted((directory / "fleet").glob("*.yaml"))]
    started = time.process_time()
    kept = [yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader) for file in files]
    seconds = time.process_time() - started
    assert len(kept) == len(files)
    return seconds


PROBES = {probe.__name__: probe for probe in (csafe, validation, statements)}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](Path(sys.argv[2]))))
