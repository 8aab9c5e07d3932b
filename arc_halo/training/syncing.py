"""What sessions left on the local disk, written when the database is back."""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import UUID

from arc_halo.errors import ArcHaloError
from arc_halo.store import training_sessions
from arc_halo.training.delivering import Delivery
from arc_halo.training.places import Place
from arc_halo.training.programs import is_alive, this_program
from arc_halo.training.spool import Spool

logger = logging.getLogger("arc_halo.training")


def sync(place: Place) -> dict[UUID, int]:
    """Write what sessions of this machine left in their spools; how many points of each.

    Those of running sessions are left to them. So are those that the database does not know: it
    may be another database. Raises `DatabaseError`, `TrainingError`, when all else is written.
    """
    written: dict[UUID, int] = {}
    trouble: ArcHaloError | None = None
    for directory in sorted(place.spool_directory.glob("*-*-*-*-*")):
        try:
            session_id = UUID(directory.name)
        except ValueError:
            continue
        try:
            count = _sync_one(place, directory, session_id)
        except ArcHaloError as exc:
            logger.warning("what waits in %s could not be written: %s", directory, exc.message)
            trouble = trouble or exc
        else:
            if count is not None:
                written[session_id] = count
    if trouble is not None:
        raise trouble
    return written


def _sync_one(place: Place, directory: Path, session_id: UUID) -> int | None:
    """How many points of a session were written; None where it is left alone."""
    with place.connection() as conn:
        record = training_sessions.find(conn, session_id)
    if record is None:
        logger.warning(
            "this database has no session %s: what waits in %s is left there. "
            "Remove the directory if the session was deleted",
            session_id,
            directory,
        )
        return None
    spool = Spool(directory, limit_bytes=0)
    ended = spool.end()
    is_over = ended is not None and ended[0] == record.lease
    if not is_over and is_alive(record, this_program()):
        return None
    count = 0
    for path, batch in spool.batches():
        delivery = Delivery(place.connect, record.id, record.lease)
        try:
            delivery.deliver_leftover(batch)
        finally:
            delivery.close()
        count += len(batch)
        spool.drop(path)
    if ended is not None:
        lease, status, error = ended
        with place.connection() as conn:
            training_sessions.end(conn, record.id, lease, status, error)
    spool.drop_end()
    spool.drop_torn()
    spool.close()
    return count
