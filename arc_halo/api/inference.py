"""`halo.inference`: models at work, and what their requests took."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakSet

from arc_halo.api._finding import find_model
from arc_halo.errors import NotFoundError
from arc_halo.names import parse_reference
from arc_halo.project import Project
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.inference.sessions import InferenceSession
    from arc_halo.store.inference_metrics import Latency
    from arc_halo.store.inference_sessions import SessionRow


class Inference:
    """Models at work. What is recorded here belongs to no manifest."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._sessions: WeakSet[InferenceSession] = WeakSet()

    def close(self, error: BaseException | None = None) -> None:
        """End the sessions that nobody has ended; with an `error` as failed."""
        for session in list(self._sessions):
            if error is None:
                session.end_with_program()
            else:
                session.__exit__(type(error), error, error.__traceback__)

    def session(
        self,
        model: str | UUID,
        *,
        config: JsonObject | None = None,
        tenant: str = "",
        root: bytes | None = None,
        flush_seconds: float = 1.0,
        heartbeat_seconds: float = 10.0,
        queue_requests: int = 100_000,
    ) -> InferenceSession:
        """Begin a session of a model that answers requests, for use in a `with`.

        `model` is `name@version`, registered or not, or a reference to one that is. `root` is that
        of the weights that answer, where they are not the registered ones. What is recorded is
        written every `flush_seconds`; while the database is away `queue_requests` of them may wait.
        Raises `NotFoundError`, `InvalidInputError`, `DatabaseError`.
        """
        from arc_halo.inference.recording import record_settings
        from arc_halo.inference.sessions import begin
        from arc_halo.plain import check_plain, check_texts, covered
        from arc_halo.store.connection import connect

        settings = record_settings(
            flush_seconds=flush_seconds,
            heartbeat_seconds=heartbeat_seconds,
            queue_requests=queue_requests,
        )
        check_plain(config=config)
        check_texts(tenant=tenant)
        with self._project.connection() as conn:
            name, version, registered = _named(conn, model)
        url = self._project.url
        session = begin(
            lambda: connect(url, application_name="arc-halo inference", timeout_seconds=0),
            model=(name, version),
            root=registered if root is None else root,
            tenant=tenant,
            config=covered(config or {}),
            settings=settings,
        )
        self._sessions.add(session)
        return session

    def list(
        self,
        *,
        model: str | None = None,
        tenant: str | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[SessionRow]:
        """Sessions as they stand, the newest first. `model` is a name or name@version.

        Raises `InvalidInputError` for no status.
        """
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.sessions(conn, model=model, tenant=tenant, status=status, limit=limit)

    def get(self, session: str | UUID) -> SessionRow:
        """A session as it stands, by its id or the beginning of that. Raises `NotFoundError`."""
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.session(conn, session)

    def latency(self, session: str | UUID) -> Latency:
        """What the requests of a session took, in percentiles. Raises `NotFoundError`."""
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.latency(conn, reading.session(conn, session).id)


def _named(conn: Connection, model: str | UUID) -> tuple[str, str, bytes | None]:
    """Name, version and root of a model. One that is written out need not be registered."""
    reference = parse_reference(model) if isinstance(model, str) else None
    try:
        found = find_model(conn, model)
    except NotFoundError as exc:
        if reference is not None and reference.version is not None:
            return reference.name, reference.version, None
        raise NotFoundError(
            f"there is no model {str(model)!r}",
            hint="one that is not registered has a version: write name@1.0.0",
        ) from exc
    return found.name, found.version, found.root
