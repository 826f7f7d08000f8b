"""Errors as answers: only here do NOVA's exceptions get HTTP statuses.

Every error has the same body: the old build's `error` and `status_code`, RFC 9457's `type`, `title` and
`detail`, and `errors`, which names each bad field. No body repeats what was sent: it may hold a secret.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api.responses import JsonResponse
from flows.config.logging import request_id
from flows.graphs.errors import (
    ConfigurationError,
    ConflictError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    ExecutionClosedError,
    InfrastructureError,
    InvalidInputError,
    NotFoundError,
    NovaError,
)

log = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which a client may ask again when the database or Prefect does not answer."""


class NameTakenError(ConflictError):
    """A name that must be unique exists already; 400, as in the old build."""


class BodyTooLargeError(InvalidInputError):
    """The request is larger than NOVA reads."""


class MediaTypeError(InvalidInputError):
    """The request's body is not declared as JSON."""


class UnknownOutcomeError(NovaError):
    """It is not known whether the request took effect; a 503 would promise that it did not."""


_STATUS: dict[type[NovaError], int] = {
    NameTakenError: 400,
    NotFoundError: 404,
    ConflictError: 409,
    ExecutionClosedError: 409,
    BodyTooLargeError: 413,
    MediaTypeError: 415,
    InvalidInputError: 422,
    InfrastructureError: 503,
    DatabaseRefusedError: 503,
    ConfigurationError: 500,
    NovaError: 500,
}
_PERMANENT = ("22", "54")
"""Classes of SQLSTATEs after which the same statement would be refused again: bad values, limits."""


def status_of(error: NovaError) -> int:
    """Return the HTTP status of an error: that of its nearest ancestor in the table.

    If PostgreSQL lacks space or time it is 503: that passes. If it would refuse again it is 500.
    """
    if isinstance(error, DatabaseRefusedError) and error.code.startswith(_PERMANENT):
        return 500
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def body_of(
    status: int, sentence: str, problems: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the body of an error; `problems` becomes `errors`, each with `field` and `message`."""
    body: dict[str, Any] = {
        "error": sentence,
        "status_code": status,
        "type": "about:blank",  # RFC 9457: the title is the status's own
        "title": HTTPStatus(status).phrase,
        "detail": sentence,
    }
    if problems is not None:
        body["errors"] = list(problems)
    return body


def answer(
    status: int,
    sentence: str,
    problems: Sequence[Mapping[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JsonResponse:
    """Return an error as a response. A 503 says when to ask again; a 413 closes the connection."""
    headers = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER))
    elif status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["Connection"] = "close"
    return JsonResponse(body_of(status, sentence, problems), status, headers)


def internal_error() -> JsonResponse:
    """Return the answer for a fault in NOVA's code: it tells only the id by which the log has it."""
    return answer(500, f"Something went wrong in NOVA. The log tells more under request {request_id.get()}.")


def _nova_error(_: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, NovaError)
    status = status_of(error)
    if isinstance(error, DatabaseRefusedError | UnknownOutcomeError):
        log.error("%s: %s", type(error).__name__, error)
        return answer(status, str(error) if isinstance(error, UnknownOutcomeError) else _refusal(status))
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s: %s", type(error).__name__, error, exc_info=error)
        return internal_error()
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        log.warning("%s: %s", type(error).__name__, error)
    if isinstance(error, DatabaseUnavailableError):
        # The error names hosts and users: only the log may have them.
        return answer(status, f"The database does not answer. Try again in {RETRY_AFTER} seconds.")
    problems = error.problems if isinstance(error, InvalidInputError) else None
    return answer(status, str(error), problems if status == HTTPStatus.UNPROCESSABLE_ENTITY else None)


def _refusal(status: int) -> str:
    """Return what a client is told when the database refuses; the error itself names files and tables."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        why = "it is short of space or memory, or took longer than it may"
        return f"The database cannot do this now: {why}. Try again in {RETRY_AFTER} seconds."
    told = f"The log tells why under request {request_id.get()}."
    return f"The database refuses this, and would do so again. {told}"


def _invalid_request(_: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, RequestValidationError)
    problems = field_problems(error.errors())
    return answer(422, sentence_of(problems), problems)


def field_problems(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return Pydantic's errors as `field` and `message`, without what was sent."""
    return [
        {
            # Without the first part, which is body, query or path.
            "field": ".".join(str(part) for part in e["loc"][1:]) or "body",
            "message": str(e["msg"]).removeprefix("Value error, "),
        }
        for e in errors
    ]


def sentence_of(problems: Sequence[Mapping[str, Any]]) -> str:
    """Return all problems as one sentence."""
    return "The request is not valid: " + "; ".join(f"{p['field']}: {p['message']}" for p in problems)


def _http_error(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address. /docs lists what there is.",
        405: f"{request.method} is not allowed here.",
    }
    return answer(error.status_code, sentences.get(error.status_code, error.detail), headers=error.headers)


def install(app: FastAPI) -> None:
    """Make the application answer these errors in this shape; the middleware answers all others."""
    app.add_exception_handler(NovaError, _nova_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
