"""Plugins as another commit has them.

A pull request may bring code, and its plan runs beside credentials: there the plugins are those
that the branch it goes to lists, as that branch has them. What the checkout has is only told.
"""

from __future__ import annotations

import atexit
import posixpath
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError, Problem
from arc_halo.manifest.load import Source, load_text, problem
from arc_halo.manifest.variables import expand
from arc_halo.plugins import PluginManager

SYMLINK = "120000"


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlugins:
    """Plugin files of a commit, by label, and a remark on each that the checkout has otherwise."""

    files: Mapping[str, Path]
    remarks: Mapping[str, str]


def plugins_at(
    ref: str, directory: Path, *, listed: Sequence[object], env: Mapping[str, str]
) -> BasePlugins:
    """The plugins that the project in `directory` has at `ref`; `listed` are those of the checkout.

    Raises `InvalidInputError` where Git does not know, or has not, what it takes.
    """
    commit = _Commit(ref, directory)
    files: dict[str, Path] = {}
    remarks: dict[str, str] = {}
    for label in _labels(commit, env):
        content = commit.plugin(label)
        path = _folder() / commit.sha / commit.path(label)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[label] = path
        if label not in listed:
            remarks[label] = f"{label} is loaded all the same: {ref} lists it"
        elif not _holds(directory / label, content):
            remarks[label] = f"{label} was changed, and is loaded as {ref} has it"
    for new in listed:
        if isinstance(new, str) and new not in files:
            remarks[new] = f"{new} is new, and not loaded: {ref} does not list it"
    return BasePlugins(files=files, remarks=remarks)


def explained(problems: Sequence[Problem], head: Source, plugins: PluginManager) -> list[Problem]:
    """Problems of a manifest; that plugins were taken from elsewhere may be why there are any."""
    return [*problems, *_left_out(head, plugins)] if problems else []


def _left_out(head: Source, plugins: PluginManager) -> Iterator[Problem]:
    listed = head.data.get("plugins")
    for label, remark in plugins.remarks.items():
        is_listed = isinstance(listed, list) and label in listed
        place = ("plugins", listed.index(label)) if isinstance(listed, list) and is_listed else ()
        hint = "merge the plugin first, then what uses it"
        yield problem(head, place, "AH033", remark, hint=hint)


def _labels(commit: _Commit, env: Mapping[str, str]) -> list[str]:
    """What `plugins:` of the project file lists there; nothing, where there is no such file."""
    text = commit.blob(PROJECT_FILE)
    if text is None:
        return []
    label = f"{commit.ref}:{PROJECT_FILE}"
    listed = load_text(text, path=commit.directory / PROJECT_FILE, label=label).data.get("plugins")
    if not isinstance(listed, list):
        return []
    return list(dict.fromkeys(expand(each, env)[0] for each in listed if isinstance(each, str)))


class _Commit:
    """What Git has of the project's directory at a commit; no filter and no link is followed."""

    def __init__(self, ref: str, directory: Path) -> None:
        self.ref = ref
        self.directory = directory
        self._prefix = self._git("rev-parse", "--show-prefix").decode().strip()
        named = self._git("rev-parse", "--verify", "--end-of-options", ref + "^{commit}")
        self.sha = named.decode().strip()

    def plugin(self, label: str) -> bytes:
        content = self.blob(label)
        if content is None:
            raise self._error(f"there is no plugin file {label}")
        return content

    def path(self, label: str) -> str:
        """What a label means in the repository."""
        path = posixpath.normpath(posixpath.join(self._prefix, label))
        if label.startswith("/") or path.startswith("../"):
            raise self._error(f"{label!r} leads out of the repository", code="AH012")
        return path

    def blob(self, label: str) -> bytes | None:
        """The bytes of a file, None if there is no such file."""
        found = self._git("ls-tree", "-z", "--full-tree", self.sha, "--", self.path(label)).decode()
        if not found:
            return None
        mode, kind, name = found.partition("\t")[0].split()
        if mode == SYMLINK:
            raise self._error(f"{label} is a link; name the file itself", code="AH012")
        return self._git("cat-file", "blob", name) if kind == "blob" else None

    def _error(self, message: str, code: str = "AH011") -> InvalidInputError:
        hint = "`--plugins-from` takes the plugins that the project has at that commit"
        return InvalidInputError(f"{self.ref}: {message}", hint=hint, code=code)

    def _git(self, *arguments: str) -> bytes:
        command = ["git", "--literal-pathspecs", "-C", str(self.directory), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as exc:
            raise self._error(f"git cannot be asked: {exc}") from exc
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise InvalidInputError(
                f"{self.ref}: {said[-1] if said else 'git failed'}",
                hint="`--plugins-from` names a commit that this clone has: `fetch-depth: 0` in CI",
                code="AH011",
            )
        return done.stdout


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file of the checkout is just this; it may be anything, so no more is read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False


@cache
def _folder() -> Path:
    """Where the files are while this process lives: workers read them too."""
    folder = Path(tempfile.mkdtemp(prefix="arc-halo-plugins-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
