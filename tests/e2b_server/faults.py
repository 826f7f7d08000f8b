"""Let calls fail as in a cloud: refused, cut off in the middle, or with their sandbox gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import re
from collections import Counter

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.e2b_server.cloud import Cloud
from tests.e2b_server.simulated_sandbox import SimulatedSandbox

KINDS = ("429", "502", "lost answer", "dropped stream", "sandbox gone")
"""The faults. For "lost answer" the call is carried out first; "dropped stream" breaks a stream midway.

"sandbox gone" ends a sandbox at a call or soon after: while a node runs in it nobody calls it.
"""
SOON = 0.3
"""Seconds within which a delayed fault occurs."""
LATE = 0.75
"""Share of the sandboxes that end only after their call, and of the streams that drop after a silence."""
_STREAMED = re.compile(r"/process\.Process/(Start|Connect)$")


class Faults:
    """An ASGI application that lets a share of another application's calls fail, by a seeded random choice.

    With a rate of 0.05 one of every twenty calls fails; which one and how is random. Rare faults are
    preferred: few calls are streams, and some of these must drop, too.

    `GET /faults` returns the counts, `PUT /faults` with `{"rate": 0.05, "kinds": ["429"]}` sets both.
    """

    def __init__(self, app: ASGIApp, cloud: Cloud, rate: float = 0.0, seed: int = 0) -> None:
        self._app = app
        self._cloud = cloud
        self.rate = rate
        self.kinds: tuple[str, ...] = KINDS
        self.done: Counter[str] = Counter()
        self.calls = 0
        self._random = random.Random(seed)
        self._begin()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or let it fail."""
        if scope["type"] != "http" or scope["path"] == "/made-here":
            await self._app(scope, receive, send)
        elif scope["path"] == "/faults":
            await self._answer(scope, receive, send)
        else:
            self.calls += 1
            sandbox = self._cloud.find(Headers(scope=scope).get("e2b-sandbox-id", ""))
            await self._fail(self._chosen(scope["path"], sandbox), sandbox, scope, receive, send)

    def _chosen(self, path: str, sandbox: SimulatedSandbox | None) -> str:
        """Return the fault for a call, of those that it can have; mostly the empty string, for none."""
        apart = {"dropped stream": _STREAMED.search(path) is not None, "sandbox gone": sandbox is not None}
        fitting = [kind for kind in self.kinds if apart.get(kind, True)]
        if not fitting or not self._is_due():
            return ""
        weights = [1 / (1 + self._of_this_rate[kind]) ** 2 for kind in fitting]
        [kind] = self._random.choices(fitting, weights)
        self._of_this_rate[kind] += 1
        return kind

    def _begin(self) -> None:
        """Start to count calls for a new rate.

        `_share` is the number of calls that should have failed so far; when it reaches `_next`, one fails.
        Between two whole numbers there is one such point, at random.
        """
        self._share, self._next = 0.0, self._random.random()
        self._of_this_rate: Counter[str] = Counter()

    def _is_due(self) -> bool:
        """Count a call and return whether it fails."""
        self._share += self.rate
        if self.rate == 0 or self._share < self._next:
            return False
        self._next = math.floor(self._next) + 1 + self._random.random()
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method == "PUT":
            wanted = await request.json()
            self.rate = float(wanted["rate"])
            self.kinds = tuple(wanted.get("kinds") or KINDS)
            self._begin()
        body = {"rate": self.rate, "kinds": self.kinds, "calls": self.calls, "done": self.done}
        await JSONResponse(body)(scope, receive, send)

    async def _fail(
        self, kind: str, sandbox: SimulatedSandbox | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.done[kind or "none"] += 1
        if kind in ("429", "502"):
            await Request(scope, receive).body()
            await _refusal(int(kind), sandbox is not None)(scope, receive, send)
        elif kind in ("lost answer", "dropped stream"):
            is_lost = kind == "lost answer"
            pieces, silence = (0, None) if is_lost else (self._random.randint(1, 4), self._later())
            with contextlib.suppress(ConnectionDroppedError, TimeoutError):
                async with asyncio.timeout(None) as limit:
                    await self._app(scope, receive, _Cut(send, pieces, silence, limit))
        else:
            if kind and sandbox is not None:
                self._end(sandbox, self._later())
            await self._app(scope, receive, send)

    def _later(self) -> float | None:
        """Return in how many seconds a fault occurs, at random; None for at once."""
        return self._random.uniform(0.0, SOON) if self._random.random() < LATE else None

    def _end(self, sandbox: SimulatedSandbox, after: float | None) -> None:
        """End a sandbox after so many seconds; None for at once."""
        if after is None:
            self._cloud.kill(sandbox, "vanished")
        else:
            asyncio.get_running_loop().call_later(after, self._cloud.kill, sandbox, "vanished")


def _refusal(status: int, by_proxy: bool) -> JSONResponse | PlainTextResponse:
    if by_proxy:
        return PlainTextResponse("Bad Gateway" if status == 502 else "Too Many Requests", status)
    return JSONResponse({"code": status, "message": "chaos"}, status)


class ConnectionDroppedError(Exception):
    """Stops an answer in the middle; the server then closes the connection."""


class _Cut:
    """Sends only the first pieces of an answer's body; with 0 only headers that announce a body.

    The connection breaks at the next piece, or `silence` seconds after the last one by means of `limit`.
    """

    def __init__(self, send: Send, pieces: int, silence: float | None, limit: asyncio.Timeout) -> None:
        self._send = send
        self._left = pieces
        self._silence = silence
        self._limit = limit

    async def __call__(self, message: Message) -> None:
        if self._left == 0 and message["type"] == "http.response.start":
            await self._send({**message, "status": 200, "headers": [(b"content-length", b"1")]})
            raise ConnectionDroppedError
        if message["type"] == "http.response.body":
            if self._left == 0:
                raise ConnectionDroppedError
            self._left -= 1
            message = {**message, "more_body": True}
        await self._send(message)
        if self._left == 0 and self._silence is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._silence)
