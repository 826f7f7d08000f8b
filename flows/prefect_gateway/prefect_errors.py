"""What Prefect's failures mean to NOVA, said in one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError, PrefectUnavailableError


@asynccontextmanager
async def prefect_call(timeout: float, what: str) -> AsyncIterator[None]:
    """Bound calls of Prefect's client to `timeout` seconds and raise NOVA's errors.

    `what` is what is being done, for the message: "creating the flow run". Prefect's client tries again on
    its own for minutes; a caller that must answer cannot wait for it, hence the bound.

    Raises NotFoundError (404), ConflictError (409), InvalidInputError (any other 4xx but a refused login)
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
    """Whether an exception of Prefect's client speaks of its server, and not of a fault in NOVA's code.

    Where the server cannot be reached at all the client raises a RuntimeError that has the cause behind it.
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
