"""Places for bodies: a directory, and a bucket behind a server that speaks the S3 protocol."""

from __future__ import annotations

import os
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from moto.server import ThreadedMotoServer

KEY_ID = "AKIAHALOHALOHALO"
SECRET = "s3cr3t/that+nobody/may+see"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An S3 server on loopback, asked without any client library."""

    url: str

    def put(self, path: str, body: bytes = b"") -> None:
        self._ask("PUT", f"/{quote(path)}", body)

    def get(self, path: str) -> bytes:
        return self._ask("GET", f"/{quote(path)}")

    def remove_bucket(self, url: str) -> None:
        """Remove the empty bucket of an `s3:` URL."""
        self._ask("DELETE", f"/{url.split('/')[2]}")

    def check_keys(self, *, after: str) -> None:
        """Refuse unknown keys after so many requests; `inf` for never."""
        self._ask("POST", "/moto-api/reset-auth", after.encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        # Moto wants a signed request for private objects, and does not look at the signature.
        signed = f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request"
        headers = {"Content-Type": "text/plain", "Authorization": signed}
        request = urllib.request.Request(self.url + path, method=method, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The URL of an empty store, and its objects as others see them."""

    url: str
    write: Callable[[str, bytes], object]
    read: Callable[[str], bytes]
    root: Path | None = None


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Server(url=f"http://{host}:{port}")
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `s3` takes, and nothing of the user's."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def bucket(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    name = f"halo-{uuid.uuid4().hex}"
    s3.put(name)
    return Place(
        url=f"s3://{name}/some/prefix",
        write=lambda key, body: s3.put(f"{name}/some/prefix/{key}", body),
        read=lambda key: s3.get(f"{name}/some/prefix/{key}"),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Place:
    root = tmp_path / "bödies of ours"
    root.mkdir()

    def write(key: str, body: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    return Place(
        url=root.as_uri(), write=write, read=lambda key: (root / key).read_bytes(), root=root
    )


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """Makes the endpoint a server that gives every request the same answer."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, text: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
