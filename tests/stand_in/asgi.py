"""The stand-in over HTTP and WebSockets, for clients in other processes and for Prefect's event streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import orjson

from tests.stand_in import events
from tests.stand_in.prefect import StandIn
from tests.stand_in.records import JSON
from tests.stand_in.transport import encoded
from tests.stand_in.world import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_PROTOCOL_ERROR = 1002


class App:
    """An ASGI application; all is answered in the loop that serves it. `note` is told of each request."""

    def __init__(self, stand_in: StandIn, note: Callable[[str], object]) -> None:
        self._stand_in = stand_in
        self._note = note

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request or a socket."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            with contextlib.suppress(_Gone):
                await self._websocket(scope, _Socket(receive, send))

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        query = dict(parse_qsl(scope["query_string"].decode()))
        body = orjson.loads(content) if content else None
        path = scope["path"].removeprefix("/api")
        status, answer = self._stand_in.answer(scope["method"], path, query, body)
        self._note(f'"{scope["method"]} {scope["path"]} HTTP/1.1" {status}\n')
        shown = b"" if status == 204 else encoded(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(shown)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": shown})

    async def _websocket(self, scope: Message, socket: _Socket) -> None:
        path = scope["path"].removeprefix("/api")
        self._note(f'"WebSocket {scope["path"]}"\n')
        await socket.connected()
        if path not in ("/events/in", "/events/out"):
            await socket.close(_PROTOCOL_ERROR, f"The stand-in has no socket {path}")
            return
        await socket.accept(scope.get("subprotocols") or [])
        if path == "/events/in":
            while True:
                self._stand_in.receive(await socket.receive())
        await self._events_out(socket)

    async def _events_out(self, socket: _Socket) -> None:
        """Send the events that a subscriber wants: first those of the past, then each as it comes."""
        wanted: JSON = (await socket.receive())["filter"]
        try:
            wants = events.wanted_by(wanted)
        except Refusal as refusal:
            await socket.close(_PROTOCOL_ERROR, str(refusal)[:120])
            return
        queue: asyncio.Queue[JSON] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen(event: JSON) -> None:
            if wants(event):
                loop.call_soon_threadsafe(queue.put_nowait, event)

        world = self._stand_in.world
        since = (wanted.get("occurred") or {}).get("since")
        past = [each for each in world.tables.events if wants(each) and _is_since(each, since)]
        world.listeners.append(listen)
        ended = asyncio.ensure_future(socket.ended())
        try:
            for event in past:
                await socket.send({"type": "event", "event": event})
            while not ended.done():
                following = asyncio.ensure_future(queue.get())
                await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    await socket.send({"type": "event", "event": following.result()})
                else:
                    following.cancel()
        finally:
            ended.cancel()
            world.listeners.remove(listen)


def _is_since(event: JSON, since: str | None) -> bool:
    occurred = event["occurred"]
    at = occurred if isinstance(occurred, datetime) else datetime.fromisoformat(occurred)
    return since is None or at >= datetime.fromisoformat(since)


class _Gone(Exception):  # noqa: N818 - that a client leaves is no error
    """The other end has closed the socket."""


class _Socket:
    """A WebSocket that speaks JSON, with the greeting that Prefect's clients expect."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def connected(self) -> None:
        """Wait until the client is there."""
        await self._receive()

    async def accept(self, subprotocols: list[str]) -> None:
        """Let the client in; it says who it is where it speaks Prefect's protocol."""
        chosen = "prefect" if "prefect" in subprotocols else None
        await self._send({"type": "websocket.accept", "subprotocol": chosen})
        if chosen:
            await self.receive()
            await self.send({"type": "auth_success"})

    async def receive(self) -> Any:
        """Return the next message; raises _Gone."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise _Gone
        return orjson.loads(message.get("text") or message["bytes"])

    async def ended(self) -> None:
        """Return when the client is gone, whatever it says before."""
        with contextlib.suppress(_Gone):
            while True:
                await self.receive()

    async def send(self, body: JSON) -> None:
        """Send a message."""
        await self._send({"type": "websocket.send", "text": encoded(body).decode()})

    async def close(self, code: int, reason: str) -> None:
        """Refuse the client, or let it go."""
        await self._send({"type": "websocket.close", "code": code, "reason": reason})
