"""What runners may use: files of the project, and the hosts and secrets that it lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from arc_halo.config import redact
from arc_halo.errors import MemberError
from arc_halo.manifest.paths import PathRefusedError, contained

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """`settings.allow` of the local project, and its directory."""

    directory: Path
    allow_paths: Sequence[Path]
    hosts: Sequence[str]
    secrets: Sequence[str]
    environ: Mapping[str, str]

    def find_file(self, label: str) -> Path:
        """The file of that name in the project. Raises `MemberError` for one outside of it."""
        try:
            path = contained(self.directory, label, self.allow_paths)
        except PathRefusedError as exc:
            raise MemberError(str(exc), hint=exc.hint, code="AH012") from exc
        if not path.is_file():
            raise MemberError(f"{label}: there is no such file", code="AH011")
        return path

    def secret(self, name: str) -> str:
        """The value of an environment variable. Raises `MemberError` if it is not allowed."""
        if name not in self.secrets:
            raise MemberError(
                f"the secret {name} is not allowed here",
                hint=f"list it in the project file: `settings: {{allow: {{secrets: [{name}]}}}}`",
            )
        if name not in self.environ:
            raise MemberError(
                f"the secret {name} is not there", hint=f"set the environment variable {name}"
            )
        return self.environ[name]

    def cover(self, text: str) -> str:
        """`text` with `***` for the value of every secret that is allowed, and for passwords."""
        forms = {form for name in self.secrets for form in _forms(self.environ.get(name, ""))}
        # One secret may begin as another does: what is left of the longer one would still be told.
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        return redact(text)

    def check_url(self, url: str) -> None:
        """Raise `MemberError` for an address whose host is not allowed."""
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise MemberError(f"{redact(url)}: this is no http address", code="AH006")
        allowed = {each.lower() for each in self.hosts}
        if parts.hostname not in allowed and f"{parts.hostname}:{port}" not in allowed:
            raise MemberError(
                f"the host {parts.hostname} is not allowed here",
                hint="list it in the project file: "
                f"`settings: {{allow: {{hosts: [{parts.hostname}]}}}}`",
            )


def _forms(value: str) -> Iterator[str]:
    """How a secret stands in a text: as it is, as Python and JSON quote it, in an address."""
    if bare := value.strip():
        yield from (bare, repr(bare)[1:-1], json.dumps(bare)[1:-1], quote(bare), quote(bare, ""))
