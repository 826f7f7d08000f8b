"""`Idempotency-Key`: a client that repeats a request gets the same run, never a second one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError
from flows.graphs.lifecycle import ErrorKind
from flows.store import checks, executions, idempotency
from flows.store.models import Execution

T = TypeVar("T")


class _LostRaceError(Exception):
    """Another request with the same key was faster; this one's transaction is rolled back."""


def run_of(session: Session, key: str, digest: str, make: Callable[[], Execution]) -> Execution:
    """Return the execution of a key; `make` makes it if there is none yet.

    An execution that was never started (503) stays closed, because its flow run may still appear: the key
    gets a new one. Raises ConflictError if the key was given with another request (`digest`), and
    InvalidInputError for a key that is not ASCII. Call it through `until_won`.
    """
    if not key.isascii():  # other characters arrive differently, depending on the client
        raise checks.invalid("Idempotency-Key", "must be of ASCII characters")
    known = idempotency.find(session, key)
    if known is None:
        made = make()
        if not idempotency.put(session, key, digest, made.id):
            raise _LostRaceError
        return made
    if known.digest != digest:
        raise ConflictError("This Idempotency-Key was given with another request. Take a new one.")
    found = executions.get(session, known.execution_id)
    if found.error_kind is not ErrorKind.NOT_STARTED:
        return found
    made = make()
    if not idempotency.move(session, key, found.id, made.id):
        raise _LostRaceError
    return made


async def until_won(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, and again for as long as another request with the same key interferes."""
    while True:
        try:
            return await work()
        except _LostRaceError:
            continue
