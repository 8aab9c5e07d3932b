"""A part of a manifest: what `--target` and `--exclude` leave of it, closed over references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from arc_halo.errors import InvalidInputError
from arc_halo.manifest.documents import MODEL, REACTOR, Declaration, Desired, ModelSpec
from arc_halo.names import did_you_mean
from arc_halo.types import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Globs over addresses: `model/poet@1.0.0`, `model/*`, `reactor/story-?`.

    Without targets everything is meant, less what `excludes` match.
    """

    targets: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    def names(self, key: Key) -> bool:
        """Whether the globs speak for a resource by itself, whatever refers to it."""
        is_target = not self.targets or _matches(key, self.targets)
        return is_target and not _matches(key, self.excludes)


EVERYTHING = Selection()


def select(desired: Desired, selection: Selection, gone: Iterable[Key] = ()) -> Desired:
    """`desired` with what is selected: targets and all that they need, without what is excluded
    and all that needs it.

    `gone` are resources that are managed and no longer declared; a glob may mean them, too.
    Raises `InvalidInputError` for a glob that matches nothing, and where an excluded resource is
    needed by a target.
    """
    if selection == EVERYTHING:
        return desired
    declared = desired.declarations
    _check_globs(selection, [*declared, *gone])
    wanted = set(declared)
    if selection.targets:
        targets = [key for key in declared if _matches(key, selection.targets)]
        wanted = _closed(targets, _needs(declared))
        _check_needs(targets, declared, selection)
    left_out = [key for key in declared if _matches(key, selection.excludes)]
    wanted -= _closed(left_out, _needed_by(declared))
    kept = {key: each for key, each in declared.items() if key in wanted}
    return replace(desired, declarations=kept)


def _check_needs(
    targets: Iterable[Key], declared: Mapping[Key, Declaration], selection: Selection
) -> None:
    """A target that needs what is excluded must not go missing in silence."""
    needs = _needs(declared)
    for target in targets:
        if _matches(target, selection.excludes):
            continue
        for key in sorted(_closed([target], needs)):
            if _matches(key, selection.excludes):
                raise InvalidInputError(
                    f"{target} is a target, and needs {key}, which is excluded",
                    hint="take one of the two back",
                    code="AH020",
                )


def _check_globs(selection: Selection, known: list[Key]) -> None:
    for option, globs in (("--target", selection.targets), ("--exclude", selection.excludes)):
        for glob in globs:
            if not any(_matches(key, (glob,)) for key in known):
                guess = did_you_mean(glob, [str(key) for key in known]) or next(
                    (f"did you mean '{key}'?" for key in known if _is_without_kind(key, glob)), None
                )
                raise InvalidInputError(
                    f"{option} {glob}: no resource has such an address",
                    hint=guess or "write KIND/NAME, with * for any text: model/poet@1.0.0, model/*",
                    code="AH020",
                )


def _matches(key: Key, globs: Iterable[str]) -> bool:
    address = str(key)
    return any(fnmatchcase(address, glob) or _is_any_version(key, glob) for glob in globs)


def _is_without_kind(key: Key, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (key.name, key.name.partition("@")[0]))


def _is_any_version(key: Key, glob: str) -> bool:
    """Whether a glob names a model without its version."""
    name = key.name.partition("@")[0]
    return key.kind == MODEL and "@" not in glob and fnmatchcase(f"{MODEL}/{name}", glob)


def _needs(declared: Mapping[Key, Declaration]) -> dict[Key, list[Key]]:
    """What each resource refers to; a merged model and its reactor need one another."""
    found = {key: list(each.depends_on) for key, each in declared.items()}
    for key, each in declared.items():
        if isinstance(each.spec, ModelSpec) and each.spec.produced_by:
            reactor = Key(kind=REACTOR, name=each.spec.produced_by.removeprefix(f"{REACTOR}/"))
            found[key].append(reactor)
    return found


def _needed_by(declared: Mapping[Key, Declaration]) -> dict[Key, list[Key]]:
    found: dict[Key, list[Key]] = {key: [] for key in declared}
    for key, needs in _needs(declared).items():
        for needed in needs:
            if needed in found:
                found[needed].append(key)
    return found


def _closed(start: Iterable[Key], edges: Mapping[Key, list[Key]]) -> set[Key]:
    """`start` and all that can be reached from there."""
    found: set[Key] = set()
    waiting = list(start)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += edges.get(key, ())
    return found
