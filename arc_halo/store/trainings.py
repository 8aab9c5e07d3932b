"""SQL of declared trainings: what their sessions begin with, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, LiveRow, as_uuid
from arc_halo.types import JsonObject

SPECS = """
SELECT training.id, training.name,
       jsonb_build_object(
           'model', model.model_name || '@' || model.version,
           'total_epochs', training.total_epochs,
           'total_steps', training.total_steps,
           'config', training.config,
           'dataset', training.dataset,
           'group', training.group_name,
           'notes', training.notes,
           'metrics', CASE WHEN training.best_metric IS NOT NULL THEN
               jsonb_build_object('best', training.best_metric, 'mode', training.best_mode) END,
           'retention', CASE WHEN num_nonnulls(training.keep_last, training.keep_best,
                                               training.keep_every) > 0 THEN
               jsonb_build_object('keep_last', training.keep_last,
                                  'keep_best', training.keep_best,
                                  'keep_every', training.keep_every) END,
           'logging', training.logging,
           'gradient_checkpointing', training.gradient_checkpointing,
           'description', training.description,
           'tags', training.tags) AS spec
FROM training_definitions AS training JOIN models AS model ON model.id = training.model_id
WHERE training.name = ANY(%(names)s)
"""

LIVE = f"""
SELECT live.name, live.id, md5(live.spec::text) AS digest FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

LIVE_SPECS = f"""
SELECT live.name, live.spec FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

UPSERT = """
INSERT INTO training_definitions (name, model_id, total_epochs, total_steps, config, dataset,
                                  group_name, notes, best_metric, best_mode, keep_last, keep_best,
                                  keep_every, logging, gradient_checkpointing, description, tags)
SELECT item.name, model.id, item.total_epochs, item.total_steps, item.config, item.dataset,
       item."group", item.notes, item.metrics ->> 'best', item.metrics ->> 'mode',
       (item.retention ->> 'keep_last')::int, (item.retention ->> 'keep_best')::int,
       (item.retention ->> 'keep_every')::bigint, item.logging,
       nullif(item.gradient_checkpointing, 'null'), item.description, item.tags
FROM jsonb_to_recordset(%(items)s) AS item (
    name text, model text, total_epochs int, total_steps bigint, config jsonb, dataset jsonb,
    "group" text, notes text, metrics jsonb, retention jsonb, logging jsonb,
    gradient_checkpointing jsonb, description text, tags jsonb)
JOIN models AS model
  ON model.model_name = split_part(item.model, '@', 1)
 AND model.version = split_part(item.model, '@', 2)
ON CONFLICT (name) DO UPDATE
SET model_id = excluded.model_id, total_epochs = excluded.total_epochs,
    total_steps = excluded.total_steps, config = excluded.config, dataset = excluded.dataset,
    group_name = excluded.group_name, notes = excluded.notes,
    best_metric = excluded.best_metric, best_mode = excluded.best_mode,
    keep_last = excluded.keep_last, keep_best = excluded.keep_best,
    keep_every = excluded.keep_every, logging = excluded.logging,
    gradient_checkpointing = excluded.gradient_checkpointing,
    description = excluded.description, tags = excluded.tags
RETURNING name, id
"""

RENAME = """
UPDATE training_definitions SET name = %(new)s WHERE name = %(old)s
"""

DELETE = """
DELETE FROM training_definitions WHERE name = ANY(%(names)s)
"""

FIND = """
SELECT training.id, training.name, training.model_id, model.model_name, model.version,
       model.architecture_config AS architecture, training.total_epochs, training.total_steps,
       training.config, training.dataset, training.group_name, training.notes, training.tags,
       training.best_metric, training.best_mode, training.keep_last, training.keep_best,
       training.keep_every, training.logging, training.gradient_checkpointing
FROM training_definitions AS training JOIN models AS model ON model.id = training.model_id
WHERE training.name = %(name)s
"""

SESSION_COUNT = """
SELECT count(*) FROM training_sessions WHERE training_name = %(name)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestMetric:
    """The metric that says what checkpoint is the best."""

    scope: str
    key: str
    mode: Literal["min", "max"]

    @property
    def name(self) -> str:
        """As checkpoints have it: `eval/loss`, and `loss` alone for the scope `train`."""
        return self.key if self.scope == "train" else f"{self.scope}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints are kept; one that any of these names is."""

    keep_last: int | None = None
    keep_best: int | None = None
    keep_every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """How a session sends what it logs."""

    flush_seconds: float
    heartbeat_seconds: float
    spool_bytes: int
    system_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheckpointing:
    """Which layers are computed again: `all`, `none`, `{"every": 2}` or a list.

    The rest says what their memory is estimated for; without `sequence_length` that is the most
    that the model's config allows. `modules` is None for the family's usual list of layers.
    """

    layers: str | list[int] | JsonObject
    modules: str | None
    batch_size: int
    sequence_length: int | None
    dtype: str
    attention: Literal["eager", "sdpa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A declared training. All checkpoints are kept where `retention` is None.

    `architecture` is the config of its model.
    """

    id: UUID
    name: str
    model_id: UUID
    model_name: str
    model_version: str
    architecture: JsonObject
    total_epochs: int | None
    total_steps: int | None
    config: JsonObject
    dataset: JsonObject
    group: str | None
    notes: str | None
    tags: JsonObject
    best_metric: BestMetric | None
    retention: Retention | None
    logging: Logging
    gradient_checkpointing: GradientCheckpointing | None

    @property
    def model(self) -> str:
        """`name@version` of its model."""
        return f"{self.model_name}@{self.model_version}"


def live(conn: Connection, names: Iterable[str]) -> dict[str, LiveRow]:
    with conn.cursor(row_factory=class_row(LiveRow)) as cursor:
        return {row.name: row for row in cursor.execute(LIVE, {"names": list(names)})}


def live_specs(conn: Connection, names: Iterable[str]) -> dict[str, JsonObject]:
    rows = conn.execute(LIVE_SPECS, {"names": list(names)}).fetchall()
    return {str(name): spec for name, spec in rows if isinstance(spec, dict)}


def upsert(conn: Connection, items: Sequence[JsonObject]) -> dict[str, UUID]:
    rows = conn.execute(UPSERT, {"items": Jsonb(items)}).fetchall()
    return {str(name): as_uuid(id_) for name, id_ in rows}


def rename(conn: Connection, old: str, new: str) -> None:
    """Give it another name. Sessions keep the one that they began with."""
    conn.execute(RENAME, {"old": old, "new": new})


def delete(conn: Connection, names: Iterable[str]) -> None:
    """Delete trainings; their sessions stay."""
    conn.execute(DELETE, {"names": list(names)})


def find(conn: Connection, name: str) -> Training | None:
    """The training of that name, or None."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(FIND, {"name": name}).fetchone()
    return None if row is None else _training(row)


def session_count(conn: Connection, name: str) -> int:
    """How many sessions began with the training of that name."""
    row = conn.execute(SESSION_COUNT, {"name": name}).fetchone()
    assert row is not None
    return int(str(row[0]))


def _training(row: dict[str, Any]) -> Training:
    recomputing = row["gradient_checkpointing"]
    kept = {name: row[name] for name in ("keep_last", "keep_best", "keep_every")}
    return Training(
        id=row["id"],
        name=row["name"],
        model_id=row["model_id"],
        model_name=row["model_name"],
        model_version=row["version"],
        architecture=row["architecture"],
        total_epochs=row["total_epochs"],
        total_steps=row["total_steps"],
        config=row["config"],
        dataset=row["dataset"],
        group=row["group_name"],
        notes=row["notes"],
        tags=row["tags"],
        best_metric=_best_metric(row["best_metric"], row["best_mode"]),
        retention=Retention(**kept) if any(kept.values()) else None,
        logging=Logging(**row["logging"]),
        gradient_checkpointing=GradientCheckpointing(**recomputing) if recomputing else None,
    )


def _best_metric(metric: str | None, mode: Literal["min", "max"]) -> BestMetric | None:
    if metric is None:
        return None
    scope, _, key = metric.partition("/")
    return BestMetric(scope=scope, key=key, mode=mode)
