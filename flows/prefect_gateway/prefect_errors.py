"""Turns errors of Prefect's client into NOVA's errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError, PrefectUnavailableError


@asynccontextmanager
async def prefect_call(timeout: float, what: str) -> AsyncIterator[None]:
    """Limit calls of Prefect's client to `timeout` seconds and raise NOVA's errors.

    `what` says what is being done, for the message: "creating the flow run". The limit is needed because
    Prefect's client tries again by itself for minutes, and a caller that must answer cannot wait so long.

    Raises NotFoundError (404), ConflictError (409), InvalidInputError (any other 4xx except a refused login)
    and PrefectUnavailableError for the rest.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except ObjectNotFound as error:
        raise NotFoundError(f"Prefect does not know what was asked for ({what}).") from error
    except ObjectAlreadyExists as error:
        raise ConflictError(f"Prefect has one of that name already ({what}).") from error
    except TimeoutError as error:
        raise PrefectUnavailableError(f"Prefect did not answer within {timeout:g} s ({what}).") from error
    except httpx.HTTPStatusError as error:
        raise _of_status(error, what) from error
    except httpx.HTTPError as error:
        raise PrefectUnavailableError(
            f"Prefect's server cannot be reached ({what}): {type(error).__name__}."
        ) from error


def is_prefects(error: BaseException) -> bool:
    """Return whether an exception comes from Prefect or its server, and not from a fault in NOVA's code.

    If the server cannot be reached, the client raises a RuntimeError with the connection error as its cause.
    """
    if isinstance(error, (httpx.HTTPError, PrefectException, TimeoutError, OSError)):
        return True
    return error.__cause__ is not None and is_prefects(error.__cause__)


def _of_status(error: httpx.HTTPStatusError, what: str) -> Exception:
    status = error.response.status_code
    if status == 404:
        return NotFoundError(f"Prefect does not know what was asked for ({what}).")
    if status == 409:
        return ConflictError(f"Prefect refuses, it conflicts with what is there ({what}).")
    if status in (401, 403):
        return PrefectUnavailableError(
            f"Prefect refuses the login ({what}): set PREFECT_API_AUTH_STRING or PREFECT_API_KEY."
        )
    if 400 <= status < 500 and status not in (408, 429):
        return InvalidInputError(f"Prefect refuses the request ({what}): {error.response.text[:500]}")
    return PrefectUnavailableError(f"Prefect's server answered {status} ({what}).")
