"""The Connect protocol with JSON, as E2B's daemon uses it."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

STATUS = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "internal": 500,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


class RpcError(Exception):
    """A call failed; `code` is one of Connect's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def body(self) -> dict[str, str]:
        """Return the error in Connect's format."""
        return {"code": self.code, "message": str(self)}

    def response(self) -> Response:
        """Return the answer to a call without a stream."""
        return JSONResponse(self.body(), STATUS[self.code])


def frame(message: dict[str, Any], *, last: bool = False) -> bytes:
    """Return a message in a stream's envelope: a flag byte, four bytes of length, JSON."""
    data = json.dumps(message, separators=(",", ":")).encode("utf-8")
    return struct.pack(">BI", 2 if last else 0, len(data)) + data


async def frames(request: Request) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages of a request's stream as they arrive."""
    buffer = bytearray()
    async for data in request.stream():
        buffer += data
        while len(buffer) >= 5:
            flag, size = struct.unpack(">BI", buffer[:5])
            if len(buffer) < 5 + size:
                break
            message = json.loads(buffer[5 : 5 + size] or b"{}")
            del buffer[: 5 + size]
            if not flag & 2:
                yield message


async def only(request: Request) -> dict[str, Any]:
    """Read the request to its end and return its only message; the answer is a stream."""
    messages = [message async for message in frames(request)]
    return messages[0]
