"""Faults of infrastructure: which ones pass by themselves, and how long to wait for that."""

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
"""How often something is tried again in place before the run's next attempt is scheduled."""
LONGEST_IN_PLACE = 30.0
"""Longest pause in place, in seconds: meanwhile the run holds a worker's slot."""
JITTER = 0.2
"""Each pause is longer or shorter by up to this share, by chance: runs that failed together return apart."""
LASTING = frozenset({"authentication", "space"})
"""Reasons of a SandboxError that do not pass: another try would fail the same way."""
WAITED_OUT = frozenset({"no_turn"})
"""Reasons that the provider has waited out already (`NOVA_E2B_PATIENCE`). A bare `rate_limit` or `busy` comes
from another call than the creation: the start of the runner, say."""
PROVIDER = frozenset({"no_turn", "rate_limit", "busy", "unreachable", "unwell"})
"""Reasons that tell of the provider as a whole."""
OWN = frozenset({"runner", "refused"})
"""Reasons that lie in what was asked for: a template that has no Python, or that E2B does not know."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Shortest and longest pause between two tries while the database is away, in seconds."""


def may_pass(error: Exception) -> bool:
    """Whether the run may succeed when it is tried again later."""
    if isinstance(error, SandboxError):
        return error.reason not in LASTING
    return isinstance(error, InfrastructureError)


def may_pass_soon(error: SandboxError) -> bool:
    """Whether it is worth trying again in place."""
    return error.reason not in LASTING | WAITED_OUT


def is_provider_failure(error: SandboxError) -> bool:
    """Whether the circuit breaker counts an error: what runs in a sandbox may end it, too.

    A sandbox that was made and cannot be used counts as one that cannot be made.
    """
    return error.reason in PROVIDER or (error.unused and error.reason not in LASTING | OWN)


def pauses(first: float, tries: int = TRIES) -> Iterator[float]:
    """Yield the seconds before each further try: twice as long as before, more or less."""
    for number in range(tries):
        yield jittered(min(LONGEST_IN_PLACE, first * 2**number))


def delay(retries: int, first: float, longest: float) -> float:
    """Return the seconds until the next attempt of a run that has used so many retries."""
    return float(jittered(min(longest, first * 2.0**retries)))


def jittered(seconds: float) -> float:
    """Return a little more or less."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)


async def retry_until_database(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt again and again while the database is away; what it refuses is raised at once.

    Meanwhile nobody can take a lease over: the write waits, and finds out by itself whether it still may. It
    may have been committed before, if only the answer was lost.
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
    """Do the work in one transaction, as soon as the database is there; see `retry_until_database`.

    Raises DatabaseRefusedError, and what the work raises.
    """
    return await retry_until_database(lambda: database.run(work))
