"""The stand-in behind Prefect's real clients: httpx transports that ask it without a network."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

import httpx
import orjson
from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.stand_in.prefect import StandIn

API = "http://prefect.stand-in/api"
"""The URL of its API, which no network knows."""

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def encoded(body: Any) -> bytes:
    """The JSON of an answer's body; nothing for none."""
    return b"" if body is None else orjson.dumps(body, option=_OPTIONS)


class Transport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Carries requests to a stand-in, for asynchronous and for synchronous clients.

    One request is answered in one go, so that another never comes in between. A test that loses, delays or
    doubles messages wraps it in a transport of its own.
    """

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request of an asynchronous client."""
        return self._answer(request, await request.aread())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request of a synchronous client."""
        return self._answer(request, request.read())

    def _answer(self, request: httpx.Request, content: bytes) -> httpx.Response:
        url = request.url
        path = url.path.removeprefix("/api")
        body = orjson.loads(content) if content else None
        status, answer = self.stand_in.answer(request.method, path, dict(parse_qsl(url.query.decode())), body)
        headers = {"content-type": "application/json"}
        return httpx.Response(status, headers=headers, content=encoded(answer), request=request)


def client(stand_in: StandIn, transport: httpx.AsyncBaseTransport | None = None) -> PrefectClient:
    """Prefect's own client, connected to a stand-in, or to `transport` before it; enter it before its use."""
    return PrefectClient(API, httpx_settings=httpx_settings(transport or Transport(stand_in)))


@asynccontextmanager
async def connected(transport: httpx.AsyncBaseTransport) -> AsyncIterator[PrefectClient]:
    """Have all that asks Prefect for an asynchronous client in this context get one with this transport."""
    with temporary_settings({PREFECT_API_URL: API}):
        context = AsyncClientContext(httpx_settings=httpx_settings(transport))
        context._httpx_settings = None  # else `get_client()`, which names no settings, passes it by
        async with context:
            yield context.client


def httpx_settings(transport: httpx.AsyncBaseTransport | httpx.BaseTransport) -> dict[str, Any]:
    """Settings for a client of Prefect's that is made by hand."""
    return {"transport": transport, "verify": _no_certificates()}


@cache
def _no_certificates() -> ssl.SSLContext:
    """One context for all clients: reading the certificates takes some 30 ms for each, and none is used."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
