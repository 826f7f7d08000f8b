"""Prefect as the processes of the simulation reach it: its real client, and a stand-in behind a seam."""

from __future__ import annotations

import re
from typing import Any

import httpx
import orjson
from prefect.client.orchestration import PrefectClient

from tests.simulation.gates import Gate, Process
from tests.stand_in.transport import Transport, client

PATIENCE = 60.0
"""Seconds that Prefect's client waits for an answer (`PREFECT_API_REQUEST_TIMEOUT`)."""

_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class GatedTransport(httpx.AsyncBaseTransport):
    """Carries a process's requests to the stand-in: each is a step, and so is its answer."""

    def __init__(self, transport: Transport, gate: Gate, process: Process) -> None:
        self._transport = transport
        self._gate = gate
        self._process = process
        self.is_open = True
        """Whether requests pass at once, as while the process starts."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer when the simulation says so; raises what httpx does where it says that something is lost."""
        content = await request.aread()
        if self.is_open:
            return self._transport.handle_request(request)
        call = self._gate.call(
            self._process,
            _label(request, content),
            lambda: self._transport.handle_request(request),
            _lost,
        )
        timer = self._process.loop.call_later(PATIENCE, _give_up, call.answer)
        try:
            return await call.answer
        finally:
            timer.cancel()


def connect(transport: httpx.AsyncBaseTransport) -> PrefectClient:
    """Prefect's client, with its requests through a transport."""
    return client(None, transport)  # type: ignore[arg-type]


def _give_up(answer: Any) -> None:
    if not answer.done():
        answer.set_exception(httpx.ReadTimeout("Prefect did not answer."))


def _lost(has_arrived: bool) -> Exception:
    if has_arrived:
        return httpx.RemoteProtocolError("Server disconnected without sending a response.")
    return httpx.ReadError("The connection was reset.")


def _label(request: httpx.Request, content: bytes) -> str:
    path = request.url.path.removeprefix("/api")
    text = f"Prefect: {request.method} {_IDS.sub(lambda found: found[0][:4], path)}"
    if path.endswith("set_state"):
        body = orjson.loads(content)
        state = body["state"]
        text += f" {state.get('name') or state['type']}{' by force' if body.get('force') else ''}"
    return text
