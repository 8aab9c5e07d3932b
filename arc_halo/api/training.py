"""`halo.training`: sessions of training, their metrics and their checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakSet

from arc_halo.api._finding import GivenModel, as_uuid, find_model
from arc_halo.api.training_records import RecordedSession
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.names import parse_reference
from arc_halo.project import Project
from arc_halo.reconcile.git import git_state
from arc_halo.store import training_sessions, trainings
from arc_halo.store.rows import Connection
from arc_halo.store.training_sessions import Program, SessionRecord
from arc_halo.store.trainings import Training as DeclaredTraining
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.store.training_reading import SessionRow
    from arc_halo.training.checkpoints.retention import Mode
    from arc_halo.training.comparing import Comparison
    from arc_halo.training.deleting import Deletion
    from arc_halo.training.opening import Resume
    from arc_halo.training.places import Place
    from arc_halo.training.sessions import TrainingSession

STATUSES = ("running", "paused", "completed", "failed", "crashed")


class Training:
    """Sessions of training. What is recorded here belongs to no manifest."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._sessions: WeakSet[TrainingSession] = WeakSet()

    def close(self, error: BaseException | None = None) -> None:
        """End the sessions that nobody has ended, while there is a database to write to.

        An `error` is what they are ended by: they failed with it, or are paused by Ctrl-C.
        """
        for session in list(self._sessions):
            if error is None:
                session.end_with_program()
            else:
                session.__exit__(type(error), error, error.__traceback__)

    def session(
        self,
        model: GivenModel | None = None,
        *,
        training: str | None = None,
        config: JsonObject | None = None,
        resume: Resume = "never",
        name: str | None = None,
        id: str | UUID | None = None,
        fork_from: str | UUID | None = None,
        at_step: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        dataset: JsonObject | None = None,
        group: str | None = None,
        tags: JsonObject | Sequence[str] | None = None,
        notes: str | None = None,
        retention: Mapping[str, int] | None = None,
        best_metric: str | None = None,
        best_mode: Mode | None = None,
        flush_seconds: float | None = None,
        heartbeat_seconds: float | None = None,
        spool_bytes: int | None = None,
        system_seconds: float | None = None,
    ) -> TrainingSession:
        """Begin a session of training a model, or go on with one, for use in a `with`.

        `model` is `name@version`, registered or not yet, or a reference to one that is. With
        `training`, the name of one that a manifest declares, it is that one's model, and what is
        not given here is what is declared there; `config` and `tags` key by key. With
        `resume` "allow" the newest session of that model (and `name`, or with that `id`) is gone
        on with, unless it is completed; "must" raises `NotFoundError` where there is none.
        `fork_from` begins one that has the steps of another up to `at_step`. `retention`
        (`keep_last`, `keep_best`, `keep_every`) says which checkpoints stay, `best_metric` and
        `best_mode` which is the best. With `system_seconds` the machine is measured as well, in
        the scope `system`. Raises `RefusedError` where a program is at work on the session.
        """
        from arc_halo.plain import check_plain, check_texts, covered
        from arc_halo.training.configs import (
            MAX_GROUP,
            MAX_NAME,
            as_tags,
            check_lengths,
            check_totals,
        )
        from arc_halo.training.defaults import (
            Given,
            check_model,
            given_config,
            keeping,
            log_settings,
            new_session,
        )
        from arc_halo.training.opening import begin, check_resume
        from arc_halo.training.opening import resume as take_up

        check_resume(resume)
        labels: JsonObject | None = as_tags(tags)
        check_plain(config=config, dataset=dataset, tags=labels)
        check_texts(name=name, group=group, notes=notes)
        check_lengths(name=(name, MAX_NAME), group=(group, MAX_GROUP))
        check_totals(total_epochs=total_epochs, total_steps=total_steps)
        config, dataset, labels, notes = map(covered, (config, dataset, labels, notes))
        with self._project.connection() as conn:
            declared = None if training is None else _declared(conn, training)
            full_name = _full_name(conn, model, declared)
            known = _resumable(conn, resume, full_name, name, id, training)
            parent = None if fork_from is None else _find(conn, fork_from)
            origin = known or parent
            if declared is None and origin is not None and origin.training_name is not None:
                # The parent of a fork may be of another model, and its training gone by now.
                found = trainings.find(conn, origin.training_name)
                declared = found if found and found.model == full_name else None
        check_model(full_name, declared)
        settings = log_settings(
            declared,
            flush_seconds=flush_seconds,
            heartbeat_seconds=heartbeat_seconds,
            spool_bytes=spool_bytes,
            system_seconds=system_seconds,
        )
        kept = keeping(declared, retention, best_metric, best_mode)
        if known is not None:
            return self._opened(
                take_up(
                    self._place,
                    known,
                    {} if config is None else given_config(config, declared),
                    settings=settings,
                    program=self._program,
                    keeping=kept,
                    training=declared,
                )
            )
        given = Given(
            name=name,
            total_epochs=total_epochs,
            total_steps=total_steps,
            config=config,
            dataset=dataset,
            group=group,
            tags=labels,
            notes=notes,
        )
        new = new_session(
            full_name,
            given,
            declared,
            project=self._project.manifest.project if self._project.has_manifest else None,
            parent=parent,
            forked_at_step=_fork_step(parent, at_step),
        )
        return self._opened(
            begin(
                self._place,
                new,
                settings=settings,
                program=self._program,
                keeping=kept,
                training=declared,
            )
        )

    def sync(self) -> dict[UUID, int]:
        """Write what sessions of this project left on the local disk while the database was away;
        how many points of each session."""
        from arc_halo.training.syncing import sync

        return sync(self._place)

    def list(
        self,
        *,
        model: str | None = None,
        group: str | None = None,
        tag: str | None = None,
        status: str | None = None,
        name: str | None = None,
        limit: int | None = None,
    ) -> list[SessionRow]:
        """Sessions as they stand, the newest first. `model` is a name or name@version, `tag` a key
        or key=value, `name` a pattern with * and ?. Raises `InvalidInputError` for no status."""
        from arc_halo.training import reading

        if status is not None and status not in STATUSES:
            raise InvalidInputError(
                f"status={status!r} is no status of a session",
                hint=f"write {', '.join(STATUSES)}",
                code="AH006",
            )
        with self._project.connection() as conn:
            return reading.sessions(
                conn, model=model, group=group, tag=tag, status=status, name=name, limit=limit
            )

    def get(self, session: str | UUID) -> RecordedSession:
        """What a session recorded, to be read.

        It is named by its id, by the beginning of that (6 digits or more), or by its name, of
        several the newest. Raises `NotFoundError`.
        """
        from arc_halo.training import reading

        with self._project.connection() as conn:
            return RecordedSession(self._project, reading.session(conn, session))

    def delete(self, *sessions: str | UUID, force: bool = False) -> Deletion:
        """Delete sessions, named as for `get`, with their points and checkpoints; all or none.

        What they had is told. Forks of them stay, with their own points alone. Raises
        `NotFoundError`, and `RefusedError` where a program is at work on one, and without `force`
        where checkpoints are pinned or forks would lose history.
        """
        from arc_halo.training import deleting, reading
        from arc_halo.training.programs import this_program

        with self._project.connection() as conn:
            ids = list(dict.fromkeys(reading.session(conn, each).id for each in sessions))
            found = deleting.delete(conn, ids, this_program(), force=force)
        for each in ids:  # What waits there for the database has no session any more.
            shutil.rmtree(self._place.spool_directory / str(each), ignore_errors=True)
        return found

    def compare(
        self, *sessions: str | UUID, metric: str = "*", scope: str | None = None
    ) -> Comparison:
        """Sessions beside one another: their configs, and each metric in a few numbers.

        `metric` is a pattern with * and ?. Raises `NotFoundError`.
        """
        from arc_halo.training import comparing

        with self._project.connection() as conn:
            return comparing.compare(conn, sessions, metric=metric, scope=scope)

    def _opened(self, session: TrainingSession) -> TrainingSession:
        self._sessions.add(session)
        return session

    @property
    def _place(self) -> Place:
        from arc_halo.store.connection import connect
        from arc_halo.training.places import Place

        url = self._project.url
        return Place(
            connect=lambda: connect(url, application_name="arc-halo training", timeout_seconds=0),
            spool_directory=self._project.directory / ".arc-halo" / "training",
            weights=lambda: self._project.weights,
        )

    @property
    def _program(self) -> Program:
        from arc_halo.training.programs import this_program

        found = git_state(self._project.directory)
        if found is None:
            return this_program()
        return this_program(git_commit=found.commit, git_dirty=found.is_dirty)


def _declared(conn: Connection, training: str) -> DeclaredTraining:
    found = trainings.find(conn, training)
    if found is None:
        raise NotFoundError(
            f"there is no training {training!r}",
            hint="declare it under `training:` and apply, or see `arc-halo get training`",
        )
    return found


def _full_name(
    conn: Connection, model: GivenModel | None, declared: DeclaredTraining | None
) -> str:
    """`name@version` of a model. One that is written out need not be registered yet."""
    if model is None:
        if declared is None:
            raise InvalidInputError(
                "a session is of a model, or of a training that names one",
                hint='write session("story@1.0.0"), or session(training="tuning")',
            )
        return declared.model
    if isinstance(model, str):
        reference = parse_reference(model)
        if reference is not None and reference.version is not None:
            return f"{reference.name}@{reference.version}"
        if reference is not None and reference.alias is None:
            return _registered(conn, model)
    return find_model(conn, model).full_name


def _registered(conn: Connection, name: str) -> str:
    try:
        return find_model(conn, name).full_name
    except NotFoundError as exc:
        raise NotFoundError(
            f"there is no model {name!r}",
            hint=f"one that is not registered yet has a version: write {name}@1.0.0",
        ) from exc


def _resumable(
    conn: Connection,
    resume: Resume,
    model: str,
    name: str | None,
    id: str | UUID | None,
    training: str | None,
) -> SessionRecord | None:
    """The session to go on with; None where one is to be begun."""
    if id is not None:
        given = _with_id(conn, id, resume)
        if given.model != model:
            raise InvalidInputError(
                f"the session {given.name or given.id} is of {given.model}, not of {model}",
                hint=f'write session("{given.model}", id=...)',
            )
        return given
    if resume == "never":
        return None
    found = training_sessions.newest(conn, name=name, model=model, training_name=training)
    if found is not None and (resume == "must" or found.status != "completed"):
        return found
    if resume == "must":
        named = f" named {name!r}" if name else ""
        raise NotFoundError(
            f"there is no session{named} of {model} to go on with",
            hint="write resume='allow' to begin one where there is none",
        )
    return None


def _with_id(conn: Connection, id: str | UUID, resume: Resume) -> SessionRecord:
    """The session of an id, which is there to be gone on with."""
    hint = "ids are given by the database: call a session what you like with `name=`"
    session_id = id if isinstance(id, UUID) else as_uuid(id)
    if session_id is None:
        raise InvalidInputError(f"id={id!r:.80} is no UUID", hint=hint)
    found = training_sessions.find(conn, session_id)
    if found is None and resume == "never":
        raise InvalidInputError("a new session cannot be given an id", hint=hint)
    if found is None:
        raise NotFoundError(f"there is no training session {session_id} to go on with", hint=hint)
    if resume == "never":
        raise RefusedError(
            f"there is a session {session_id} already",
            hint="write resume='allow' to go on with it, or leave `id` out to begin another",
            code="AH076",
        )
    return found


def _find(conn: Connection, session: str | UUID) -> SessionRecord:
    """A session, named as for `get`."""
    from arc_halo.training.naming import find_session

    found = training_sessions.find(conn, find_session(conn, session).id)
    if found is None:
        raise NotFoundError(f"there is no training session {str(session)!r} any more")
    return found


def _fork_step(parent: SessionRecord | None, at_step: int | None) -> int | None:
    if parent is None and at_step is None:
        return None
    if parent is None or at_step is None:
        raise InvalidInputError(
            "a fork needs both: the session, and the step it goes on from",
            hint="write fork_from=SESSION, at_step=STEP",
        )
    if not hasattr(at_step, "__index__") or not 0 <= at_step <= parent.current_step:
        raise RefusedError(
            f"the session {parent.name or parent.id} has no step {at_step}: it came to "
            f"{parent.current_step}",
            code="AH076",
        )
    return at_step
