"""What infrastructure breaks: what passes by itself, how long to wait for it, and how to outlast it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from sqlalchemy.orm import Session

from flows.config.log_once import OutageLog
from flows.graphs.errors import DatabaseUnavailableError, InfrastructureError, SandboxError
from flows.store.database import Database

log = logging.getLogger(__name__)
_outage = OutageLog(log)

T = TypeVar("T")

TRIES = 3
"""How often something is tried again in place before the run is put off."""
LONGEST_IN_PLACE = 30.0
"""Seconds that nothing waits longer for in place, where it holds a worker's slot."""
JITTER = 0.2
"""Share by which a pause is longer or shorter, by chance: what failed together shall not come again so."""
LASTING = frozenset({"authentication", "space"})
"""Reasons of a SandboxError that another try would find again."""
WAITED_OUT = frozenset({"no_turn"})
"""Reasons that whoever makes sandboxes has waited out already, for as long as its patience lasted. A bare
refusal, `rate_limit` or `busy`, comes from another call than the creation: the start of the runner, say."""
PROVIDER = frozenset({"no_turn", "rate_limit", "busy", "unreachable", "unwell"})
"""Reasons that speak of the provider as a whole, whenever they come."""
OWN = frozenset({"runner", "refused"})
"""Reasons that lie in what was asked for: a template without Python, or of which E2B knows nothing."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks whether the database is back."""


def passes(error: Exception) -> bool:
    """Whether the run may succeed when it is tried again later."""
    if isinstance(error, SandboxError):
        return error.reason not in LASTING
    return isinstance(error, InfrastructureError)


def may_pass_soon(error: SandboxError) -> bool:
    """Whether it is worth trying again in place."""
    return error.reason not in LASTING | WAITED_OUT


def is_provider_failure(error: SandboxError) -> bool:
    """Whether the circuit breaker is to count it: a sandbox in use may also end by what runs in it.

    One that was made and cannot be used is as little worth as one that cannot be made.
    """
    return error.reason in PROVIDER or (error.unused and error.reason not in LASTING | OWN)


def pauses(first: float, tries: int = TRIES) -> Iterator[float]:
    """Seconds before each further try: each twice as long as the one before, more or less."""
    for number in range(tries):
        yield jittered(min(LONGEST_IN_PLACE, first * 2**number))


def delay(retries: int, first: float, longest: float) -> float:
    """Seconds that a run is put off which was put off so many times before."""
    return float(jittered(min(longest, first * 2.0**retries)))


def jittered(seconds: float) -> float:
    """A little more or less."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)


async def retry_until_database(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again and again for as long as the database is away.

    While it is, nobody can take a lease over: what is to be written waits, and the write itself finds out
    whether it still may. It may have been committed before, if only the answer was lost.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            result = await attempt()
        except DatabaseUnavailableError as error:
            _outage.began("Runs wait for the database: %s", error)
        else:
            _outage.ended("Runs wait for the database no more.")
            return result
        await asyncio.sleep(jittered(pause))
        pause = min(2 * pause, LONGEST_PAUSE)


async def run_until_committed(database: Database, work: Callable[[Session], T]) -> T:
    """Do the work in one transaction, as soon as the database is there; see `retry_until_database`."""
    return await retry_until_database(lambda: database.run(work))
