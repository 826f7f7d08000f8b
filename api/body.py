"""Request bodies: NOVA's JSON, parsed before FastAPI sees it.

FastAPI's own parser accepts NaN, fails on deep nesting, and repeats in its errors what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import MediaTypeError
from flows.graphs.json_values import loads

_ENVELOPE = 2
"""Levels of nesting around a context's values in a body: the body itself and the context."""
_LARGE = 256 * 1024
"""Larger bodies, in bytes, are parsed in a thread, so that other requests go on meanwhile."""


async def _parse(body: bytes) -> Any:
    if len(body) <= _LARGE:
        return loads(body, envelope=_ENVELOPE)
    return await asyncio.to_thread(loads, body, envelope=_ENVELOPE)


def _check_type(request: Request) -> None:
    """Raise MediaTypeError for what any web page could send here: forms, text, and blobs without a type.

    Without a type it passes, unless a browser sent it (which sets `Origin`): old clients may rely on that.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not declared and "origin" not in request.headers:
        return
    if declared != "application/json" and not (
        declared.startswith("application/") and declared.endswith("+json")
    ):
        raise MediaTypeError("The body must be JSON; send the header Content-Type: application/json.")


class _ParsedRequest(Request):
    """A request whose body was read and parsed already."""

    def __init__(self, request: Request, body: bytes, data: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read = body, data

    async def body(self) -> bytes:
        return self._read[0]

    async def json(self) -> Any:
        return self._read[1]


class BodyRoute(APIRoute):
    """A route whose body, if it takes one, is parsed by `flows.graphs.json_values.loads`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a request that is parsed already."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def parse_and_handle(request: Request) -> Response:
            body = (await request.body()).strip()
            if body:
                _check_type(request)
            return await handle(_ParsedRequest(request, body, await _parse(body) if body else None))

        return parse_and_handle
