"""How sessions of training are told to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.cli.telling import short

if TYPE_CHECKING:
    from arc_halo.store.training_reading import SessionRow


def label(session: SessionRow) -> str:
    """What a session is called: by its name, or the beginning of its id."""
    return session.name or short(session.id)


def labels(sessions: list[SessionRow]) -> list[str]:
    """The same of several: with the beginning of the id where two have one name."""
    names = [label(each) for each in sessions]
    return [
        f"{name} {short(each.id)}" if names.count(name) > 1 and each.name else name
        for name, each in zip(names, sessions, strict=True)
    ]


def progress(session: SessionRow) -> str:
    return "-" if session.progress is None else f"{session.progress:.0%}"


def of(current: float, total: int | None) -> str:
    """`1200 of 5000`, `3.5`."""
    return f"{current:g}" if total is None else f"{current:g} of {total}"
