"""Objects of a bucket, through obstore. Endpoint and secrets come from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit

from arc_halo.config import redact
from arc_halo.errors import BodyStoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PAGE = 1000
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

# A dead endpoint is told within some ten seconds, a silent one within twenty.
CONNECT_TIMEOUT = timedelta(seconds=4)
SILENCE_TIMEOUT = timedelta(seconds=20)
REQUEST_TIMEOUT = timedelta(seconds=60)
RETRY_TIMEOUT = timedelta(seconds=10)
RETRIES = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The objects below the prefix of `url`."""

    url: str
    _store: ObjectStore

    @classmethod
    def open(cls, url: str) -> Bucket:
        try:
            from obstore.store import from_url
        except ImportError as exc:
            raise BodyStoreError(
                f"{url}: buckets need the package obstore, which is not installed",
                hint="pip install 'arc-halo[object]'",
            ) from exc
        _check_environment(url)
        store = _asked(
            url, lambda: from_url(url, client_options=_client(), retry_config=_patience())
        )
        return cls(url=url, _store=store)

    def write(self, key: str, body: memoryview) -> None:
        import obstore

        # In one request: parts of an upload that was cut off would stay, unseen and paid for.
        _asked(self.url, lambda: obstore.put(self._store, key, body, use_multipart=False))

    def create(self, key: str, body: memoryview) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def create() -> None:
            with suppress(AlreadyExistsError):
                obstore.put(self._store, key, body, use_multipart=False, mode="create")

        _asked(self.url, create)

    def read(self, key: str) -> memoryview | None:
        import obstore

        def read() -> memoryview | None:
            try:
                return memoryview(obstore.get(self._store, key).bytes())
            except FileNotFoundError as exc:
                if _is_the_object_missing(exc):
                    return None
                raise

        return _asked(self.url, read)

    def pages(self, folder: str, *, before: datetime) -> Iterator[Sequence[str]]:
        import obstore

        stream = _asked(self.url, lambda: obstore.list(self._store, folder, chunk_size=PAGE))
        while page := _asked(self.url, lambda: next(stream, None)):
            yield [item["path"] for item in page if item["last_modified"] <= before]

    def remove(self, keys: Sequence[str]) -> None:
        import obstore

        def remove() -> None:
            try:
                obstore.delete(self._store, keys)
            except FileNotFoundError:
                # Not S3, which takes them all: the others stop at one that is not there.
                for key in keys:
                    remove_one(key)

        def remove_one(key: str) -> None:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError as exc:
                if not _is_the_object_missing(exc):
                    raise

        _asked(self.url, remove)


def _check_environment(url: str) -> None:
    """Refuse what obstore would take now, and panic about with the first request."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if (value := os.environ.get(name)) and not _is_endpoint(value):
            raise BodyStoreError(
                f"{url}: the value of {name} is not the address of a server",
                hint="write it as https://s3.example.org; secrets have variables of their own",
            )
    for name in _SENT:
        if not re.fullmatch("[ -~]*", os.environ.get(name, "")):
            raise BodyStoreError(
                f"{url}: the value of {name} holds a line break, or what is not ASCII",
                hint="set it again; a file that it was read from may end in a line break",
            )


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and _HOST.fullmatch(parts.hostname or "") is not None
        and "@" not in parts.netloc
        and not (parts.query or parts.fragment)
        and port != 0
    )


_SENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")


def _client() -> ClientConfig:
    """Timeouts; and plain HTTP where the environment allows it, which obstore would forget."""
    allowed = (os.environ.get(f"{cloud}_ALLOW_HTTP", "") for cloud in ("AWS", "GOOGLE", "AZURE"))
    return {
        "allow_http": any(value.lower() in ("1", "true", "on", "yes", "y") for value in allowed),
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": SILENCE_TIMEOUT,
        "timeout": REQUEST_TIMEOUT,
    }


def _patience() -> RetryConfig:
    return {
        "max_retries": RETRIES,
        "retry_timeout": RETRY_TIMEOUT,
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }


def _is_the_object_missing(exc: FileNotFoundError) -> bool:
    """Whether a store says so: not a missing bucket, nor some web server that knows no page."""
    return re.search(r"<Code>(?:NoSuchKey|BlobNotFound)</Code>", str(exc)) is not None


def _asked(url: str, call: Callable[[], T]) -> T:
    """What `call` returns; what it raises is told as a `BodyStoreError` without any secret."""
    from obstore.exceptions import BaseError

    try:
        return call()
    except (BaseError, OSError, ValueError) as exc:
        cause = exc
    whole = f"{cause} {cause!r}"
    reason = _hidden(_reason(str(cause)))
    # Outside of the handler, so that a cause which holds a secret is left behind entirely.
    raise BodyStoreError(f"{url}: {reason}", hint=_hint(url, whole)) from (
        cause if _hidden(whole) == whole else None
    )


def _reason(text: str) -> str:
    """The store's own words, or else obstore's first sentence."""
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if code:
        return f"{code[1]}: {message[1]}" if message else code[1]
    first = " ".join(text.partition("Debug source:")[0].split())
    return first if len(first) <= 300 else f"{first[:300]}…"


def _hint(url: str, text: str) -> str:
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return "make the bucket first, or correct `storage.bodies.url`"
    if "invalid path" in text:
        return "remove that object: its name is none of ours, and listing stops at it"
    if _DENIED.search(text):
        names = CREDENTIALS[url.partition(":")[0]]
        return f"look at {names}, and at what they may do in that bucket"
    if "builder error" in text:
        return "is the endpoint's address right? One with http: needs AWS_ALLOW_HTTP=true"
    return "look at the bucket, its endpoint (AWS_ENDPOINT_URL) and the network; then run it again"


_DENIED = re.compile(
    r"40[13] |PermissionDenied|Unauthenticated|169\.254\."
    r"|[Aa]ccount must|Access Key|service account"
)
_CLOUD = re.compile(r"(?:AWS|AZURE|GOOGLE)_\w*(?:KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SAS)\w*")


def _hidden(text: str) -> str:
    """`text` without any secret of the environment."""
    for name, value in os.environ.items():
        if len(value) >= 4 and _CLOUD.fullmatch(name):
            for form in (value, quote(value, safe="")):
                text = text.replace(form, "***")
    return redact(text)
