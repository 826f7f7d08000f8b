"""Logging: plain lines on stderr, each with the id of its HTTP request."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import TextIO

NO_REQUEST = "-"

request_id: ContextVar[str] = ContextVar("nova_request_id", default=NO_REQUEST)
"""Id of the HTTP request that the current task or thread serves; `-` outside a request."""

_CHATTY = ("alembic", "httpx", "httpcore", "hpack", "asyncio", "urllib3")
"""Libraries that write a line per call at INFO."""


class RequestIdFilter(logging.Filter):
    """Sets `request_id` on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the record's `request_id` and return True."""
        record.request_id = request_id.get()
        return True


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`: the one at its creation may have been replaced and closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("The stream is always sys.stderr.")


def setup_logging(level: str = "INFO") -> None:
    """Send this process's log lines to stderr in one format; a second call only sets the level.

    Removes Prefect's and uvicorn's handlers that write to the terminal, so that each line comes once and with
    its request's id. Handlers that write elsewhere stay.
    """
    root = logging.getLogger()
    for other in [handler for handler in root.handlers if _is_terminal(handler)]:
        root.removeHandler(other)
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        handler = _StderrHandler()
        handler.addFilter(RequestIdFilter())
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s [%(request_id)s] %(message)s",
            "%Y-%m-%dT%H:%M:%S",
        )
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _is_terminal(handler: logging.Handler) -> bool:
    if isinstance(handler, _StderrHandler) or not isinstance(handler, logging.StreamHandler):
        return False
    return handler.stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
