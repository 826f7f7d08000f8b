"""Request bodies: JSON as NOVA carries it, read before FastAPI sees it.

FastAPI's own way would take NaN, break on deep nesting, and repeat in its errors what was sent.
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
"""Levels that a body puts around a context's values: the body itself and the context."""
_LARGE = 256 * 1024
"""Bytes from which on a body is parsed in a thread, so that other requests go on meanwhile."""


async def _parse(body: bytes) -> Any:
    if len(body) <= _LARGE:
        return loads(body, envelope=_ENVELOPE)
    return await asyncio.to_thread(loads, body, envelope=_ENVELOPE)


def _check_type(request: Request) -> None:
    """Refuse what a web page could send here without asking: forms, text, and blobs without a type.

    No type at all passes outside of a browser, which names its page in `Origin`; old clients may rely on it.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not declared and "origin" not in request.headers:
        return
    if declared != "application/json" and not (
        declared.startswith("application/") and declared.endswith("+json")
    ):
        raise MediaTypeError("The body must be JSON; send the header Content-Type: application/json.")


class _ParsedRequest(Request):
    """A request whose body was read already."""

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
        """Wrap FastAPI's handler: hand it a request that is parsed already."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def parse_and_handle(request: Request) -> Response:
            body = (await request.body()).strip()
            if body:
                _check_type(request)
            return await handle(_ParsedRequest(request, body, await _parse(body) if body else None))

        return parse_and_handle
