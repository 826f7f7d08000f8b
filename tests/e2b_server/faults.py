"""Calls that fail as a cloud's do: refused, broken off in the middle, or with their sandbox gone."""

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

from tests.e2b_server.places import Places, SandboxSession

KINDS = ("429", "502", "lost answer", "dropped stream", "sandbox gone")
"""What can happen to a call. An answer is lost after the call was carried out; a stream drops on its way.

A sandbox is gone when it is called, or soon after: nobody calls it while a node runs in it.
"""
SOON = 0.3
"""Seconds within which a fault strikes that does not come at once."""
LATE = 0.75
"""Share of the sandboxes that are gone only after their call, and of the streams that drop in silence."""
_STREAMED = re.compile(r"/process\.Process/(Start|Connect)$")


class Faults:
    """An ASGI application that lets a share of another one's calls fail, by chance but seeded.

    With a rate of 0.05 one of every twenty calls fails; chance says which one of them, and how. What has
    happened seldom so far is the likelier: few calls are streams, and these are to drop, too.

    `GET /faults` counts what was done, `PUT /faults` with `{"rate": 0.05, "kinds": ["429"]}` changes it.
    """

    def __init__(self, app: ASGIApp, places: Places, rate: float = 0.0, seed: int = 0) -> None:
        self._app = app
        self._places = places
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
            named = self._places.find(Headers(scope=scope).get("e2b-sandbox-id", ""))
            await self._fail(self._chosen(scope["path"], named), named, scope, receive, send)

    def _chosen(self, path: str, named: SandboxSession | None) -> str:
        """What is to happen to a call, of what can happen to such a one; nothing, mostly."""
        apart = {"dropped stream": _STREAMED.search(path) is not None, "sandbox gone": named is not None}
        fitting = [kind for kind in self.kinds if apart.get(kind, True)]
        if not fitting or not self._is_due():
            return ""
        weights = [1 / (1 + self._of_this_rate[kind]) ** 2 for kind in fitting]
        [kind] = self._random.choices(fitting, weights)
        self._of_this_rate[kind] += 1
        return kind

    def _begin(self) -> None:
        """Count the calls of a rate: the share that should have failed, and at which one more does.

        There is one such point between any two whole numbers.
        """
        self._share, self._next = 0.0, self._random.random()
        self._of_this_rate: Counter[str] = Counter()

    def _is_due(self) -> bool:
        """Whether the turn of the next call that fails has come."""
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
        self, kind: str, named: SandboxSession | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.done[kind or "none"] += 1
        if kind in ("429", "502"):
            await Request(scope, receive).body()
            await _refusal(int(kind), named is not None)(scope, receive, send)
        elif kind in ("lost answer", "dropped stream"):
            is_lost = kind == "lost answer"
            pieces, silence = (0, None) if is_lost else (self._random.randint(1, 4), self._later())
            with contextlib.suppress(ConnectionDroppedError, TimeoutError):
                async with asyncio.timeout(None) as limit:
                    await self._app(scope, receive, _Cut(send, pieces, silence, limit))
        else:
            if kind and named is not None:
                self._end(named, self._later())
            await self._app(scope, receive, send)

    def _later(self) -> float | None:
        """In how many seconds a fault strikes, by chance; None: at once."""
        return self._random.uniform(0.0, SOON) if self._random.random() < LATE else None

    def _end(self, place: SandboxSession, after: float | None) -> None:
        """Let a sandbox vanish."""
        if after is None:
            self._places.kill(place, "vanished")
        else:
            asyncio.get_running_loop().call_later(after, self._places.kill, place, "vanished")


def _refusal(status: int, by_proxy: bool) -> JSONResponse | PlainTextResponse:
    if by_proxy:
        return PlainTextResponse("Bad Gateway" if status == 502 else "Too Many Requests", status)
    return JSONResponse({"code": status, "message": "chaos"}, status)


class ConnectionDroppedError(Exception):
    """Ends an answer where it is: the server closes a connection whose answer is not whole."""


class _Cut:
    """Sends so many pieces of an answer's body, or nothing but a promise of one, then no more.

    It ends with the piece that is one too many, or after `silence` seconds, if `limit` is over before that.
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
