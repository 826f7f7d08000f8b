"""`Idempotency-Key`: a client that asks again gets the run that it has, and never a second one."""

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
    """Another request with the same key was faster: what this one has written is taken back."""


def run_of(session: Session, key: str, digest: str, make: Callable[[], Execution]) -> Execution:
    """The execution that a key stands for; `make` makes it where there is none yet.

    One that was never started (503) stays closed, since its flow run may still turn up: the key stands for a
    new one then. Raises ConflictError for another request (`digest`), and InvalidInputError for a key that
    cannot be kept. Call it by way of `until_won`.
    """
    if not key.isascii():  # what arrives depends on how the client encodes it
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
    """Do the work again for as long as another request with the same key comes in between."""
    while True:
        try:
            return await work()
        except _LostRaceError:
            continue
