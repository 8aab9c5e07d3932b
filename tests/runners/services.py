"""A real service with OpenAI's interface: starlette on uvicorn, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

SECRET = "sk-very-secret-0123456789"


@dataclass
class Service:
    """What it was asked, and what it does; `script` has the next answers, one a request."""

    url: str = ""
    script: list[Callable[[], Response]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay: float = 0.0
    logprobs: list[float] | None = None
    at_once: int = 0
    most_at_once: int = 0

    async def handle(self, request: Request) -> Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            body = json.loads(await request.body())
            self.times.append(time.monotonic())
            self.seen.append(
                {"path": request.url.path, "headers": dict(request.headers), "body": body}
            )
            await asyncio.sleep(self.delay)
            if self.script:
                return self.script.pop(0)()
            return JSONResponse(self.said(request, body))
        finally:
            self.at_once -= 1

    def said(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if request.url.path.endswith("/chat/completions"):
            text = f"re: {body['messages'][-1]['content']}"
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
            if self.logprobs and body.get("logprobs"):
                found = [{"token": "x", "logprob": each} for each in self.logprobs]
                choice["logprobs"] = {"content": found}
        else:
            choice = {"text": f"re: {body['prompt']}"}
            if self.logprobs and body.get("logprobs"):
                choice["logprobs"] = {"token_logprobs": self.logprobs}
        return {"choices": [{"index": 0, "finish_reason": "length", **choice}], "usage": usage}


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a port of its own; its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
