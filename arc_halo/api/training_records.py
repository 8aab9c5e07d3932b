"""A session that `halo.training.get` found, to be read: its series, summaries and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from arc_halo.api.training_checkpoints import RecordedCheckpoints
from arc_halo.project import Project
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.store.training_reading import SessionRow
    from arc_halo.training.reading import Envelope, Series, SeriesKey, Summary


class RecordedSession:
    """What a session recorded. A fork has its parent's history too, up to the step it is from.

    `about` is the session as it stood when it was looked up; points are read when asked for.
    """

    def __init__(self, project: Project, about: SessionRow) -> None:
        self._project = project
        self.about = about

    @property
    def id(self) -> UUID:
        return self.about.id

    @property
    def name(self) -> str | None:
        return self.about.name

    @property
    def config(self) -> JsonObject:
        return self.about.config

    @property
    def checkpoints(self) -> RecordedCheckpoints:
        """Its checkpoints: to be listed, read and restored."""
        return RecordedCheckpoints(self._project, self.id)

    def __repr__(self) -> str:
        return f"<training session {self.name or self.id} of {self.about.model}>"

    def list_series(self, *, metric: str = "*", scope: str | None = None) -> list[SeriesKey]:
        """The series that have points, by scope and key; `metric` is `loss`, `grad*`, `eval/*`."""
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return reading.list_series(conn, self.id, metric=metric, scope=scope)

    def series(
        self, key: str, scope: str | None = None, *, first: int = 0, last: int | None = None
    ) -> Series:
        """The points of a series with steps from `first` to `last`, as arrays.

        The scope is `train` unless it is said: as `scope`, or in the key, as `eval/loss`.
        Raises `NotFoundError`.
        """
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return reading.series(conn, self.id, key, scope=scope, first=first, last=last)

    def envelope(
        self,
        key: str,
        scope: str | None = None,
        *,
        buckets: int = 1000,
        first: int = 0,
        last: int | None = None,
    ) -> Envelope:
        """A series in at most so many buckets, each with its extremes, computed by the database.

        Raises `NotFoundError`.
        """
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return reading.envelope(
                conn, self.id, key, scope=scope, buckets=buckets, first=first, last=last
            )

    def summaries(self, *, metric: str = "*", scope: str | None = None) -> list[Summary]:
        """Each series in a few numbers: how many points, the last value, extremes, the mean."""
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return reading.summaries(conn, self.id, metric=metric, scope=scope)

    def annotate(self, *, tags: JsonObject | None = None, notes: str | None = None) -> None:
        """Add tags to those it has, and replace its notes where some are given.

        `about` has them then. Raises `InvalidInputError` for what JSON does not hold, and
        `NotFoundError` where the session is gone.
        """
        from arc_halo.plain import check_plain, check_texts, covered
        from arc_halo.store import training_sessions
        from arc_halo.training import reading

        check_plain(tags=tags)
        check_texts(notes=notes)
        with self._project.connection() as conn:
            training_sessions.annotate(conn, self.id, covered(tags or {}), covered(notes))
            self.about = reading.session(conn, self.id)

    def forks(self) -> list[SessionRow]:
        """The sessions that went on from this one, the oldest first."""
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return reading.forks(conn, self.id)
