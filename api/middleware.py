"""What wraps every request: its id, the limit of its body, and the answer to unexpected errors."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import BodyTooLargeError, answer, internal_error, status_of
from api.services import services_of
from flows.config.logging import request_id

log = logging.getLogger(__name__)

HEADER = "X-Request-ID"
_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIdMiddleware:
    """Gives each request an id, the client's own if it is usable, which its answer and log lines carry.

    Unhandled exceptions become a 500 here, where the id is still known.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        identity = given if _USABLE_ID.fullmatch(given) else str(uuid.uuid4())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[HEADER] = identity
            await send(message)

        token = request_id.set(identity)
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("%s %s: the client hung up", scope["method"], ascii(scope["path"]))
        except Exception:
            log.exception("%s %s failed", scope["method"], ascii(scope["path"]))
            if started:
                # A part was sent: only a broken connection tells the client that the rest is missing.
                raise
            await internal_error()(scope, receive, send_with_id)
        finally:
            request_id.reset(token)


class BodyLimitMiddleware:
    """Refuses bodies of more than `max_body` bytes: at once if Content-Length says so, else while reading."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = services_of(scope["app"]).settings.max_body
        error = BodyTooLargeError(f"The request is larger than {limit} bytes, the most that is read.")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            await answer(status_of(error), str(error))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise error
            return message

        await self.app(scope, counted, send)
