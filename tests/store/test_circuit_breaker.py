"""The circuit breaker: what callers are told, whatever was reported before, also all at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update

from flows.config import times
from flows.store import circuit_breaker
from flows.store.circuit_breaker import Admission
from flows.store.database import Database, now
from flows.store.models import CircuitBreaker
from tests.store.racing import together

THRESHOLD = 3
PAUSE = 60.0

STORIES = {
    "nothing happened yet": ("", "closed 0"),
    "callers come and go": ("in in", "closed 0"),
    "failures below the threshold": ("fail in fail in", "closed 2"),
    "a success forgives": ("fail fail ok fail fail in", "closed 2"),
    "as many failures as it takes": ("fail fail fail out out", "open 3"),
    "a failure that comes late": ("fail fail fail fail out", "open 4"),
    "a success that comes late": ("fail fail fail ok in", "closed 0"),
    "the pause is over": ("fail fail fail pause", "open 3"),
    "one tries, the others wait": ("fail fail fail pause in out out", "half_open 3"),
    "what it tried works": ("fail fail fail pause in ok in in", "closed 0"),
    "it breaks again later": ("fail fail fail pause in ok fail fail in fail out", "open 3"),
    "what it tried fails": ("fail fail fail pause in fail out out", "open 4"),
    "the next one tries after another pause": (
        "fail fail fail pause in fail pause in out ok in",
        "closed 0",
    ),
    "the one that tries never reports": ("fail fail fail pause in out silence in out", "half_open 3"),
}
"""Events in order, and the state and count after them. `in`: a caller asks and is admitted; `out`: it is
not; `pause` and `silence`: that time passes."""


def fail(database: Database, threshold: int = THRESHOLD) -> None:
    """Report a failure of the provider."""
    database.run_sync(lambda s: circuit_breaker.failed(s, threshold, PAUSE))


def admit(database: Database) -> Admission:
    """Ask whether to go on."""
    return database.run_sync(circuit_breaker.admit)


def past(database: Database, column: str) -> None:
    """Let the time in a column have come."""
    database.run_sync(lambda s: s.execute(update(CircuitBreaker).values({column: now(-1)})))


def seconds_until(database: Database, time: Any) -> float:
    """Seconds from now, by the database's clock."""
    return float((time - database.run_sync(lambda s: s.scalars(select(now())).one())).total_seconds())


def state(database: Database) -> str:
    """The state and the count of failures."""
    found = database.run_sync(circuit_breaker.read)
    return f"{found['state']} {found['failure_count']}"


@pytest.mark.parametrize("story", STORIES)
def test_the_state_follows_from_what_happened(database: Database, story: str) -> None:
    """Closed, open and half open, and who is let through in each."""
    events, end = STORIES[story]
    for place, event in enumerate(events.split()):
        match event:
            case "in" | "out":
                assert admit(database).allowed == (event == "in"), f"event {place}"
            case "fail":
                fail(database)
            case "ok":
                database.run_sync(circuit_breaker.succeeded)
            case "pause":
                past(database, "retry_at")
            case "silence":
                past(database, "probe_until")
    assert state(database) == end


def test_who_is_turned_away_learns_when_to_ask_again(database: Database) -> None:
    """When the pause is over; while somebody tries, a little later."""
    for _ in range(THRESHOLD):
        fail(database)
    refused = admit(database)
    assert not refused.allowed
    assert PAUSE - 10 < seconds_until(database, refused.retry_at) <= PAUSE
    opened = database.run_sync(circuit_breaker.read)
    assert opened["retry_at"] == refused.retry_at
    assert -10 < seconds_until(database, opened["opened_at"]) <= 0

    fail(database)
    assert database.run_sync(circuit_breaker.read) == {**opened, "failure_count": 4}

    past(database, "retry_at")
    assert admit(database) == Admission(True, is_probe=True)
    waits = seconds_until(database, admit(database).retry_at)
    assert 0 < waits <= times.BREAKER_LOOK


def test_a_success_leaves_nothing_behind(database: Database) -> None:
    """Closed as it was before anything happened."""
    fresh = database.run_sync(circuit_breaker.read)
    fail(database, threshold=1)
    database.run_sync(circuit_breaker.succeeded)
    assert (
        database.run_sync(circuit_breaker.read)
        == fresh
        == {
            "state": "closed",
            "failure_count": 0,
            "opened_at": None,
            "retry_at": None,
        }
    )


def test_a_threshold_of_one(database: Database) -> None:
    """The very first failure opens it, be it the first ever or not."""
    for _ in range(2):
        fail(database, threshold=1)
        assert state(database) == "open 1"
        assert not admit(database).allowed
        database.run_sync(circuit_breaker.succeeded)


@pytest.mark.parametrize("round_", range(5))
def test_one_of_many_is_the_one_that_tries(database: Database, round_: int) -> None:
    """All workers ask at the moment when the pause is over, and again when the one that tried is given up."""
    for _ in range(THRESHOLD):
        fail(database)
    for column in ("retry_at", "probe_until"):
        past(database, column)
        outcomes = together(*[partial(admit, database)] * 6)
        assert sorted(one.allowed for one in outcomes if isinstance(one, Admission)) == [*[False] * 5, True]


def test_failures_at_once_are_all_counted(database: Database) -> None:
    """The first ones, when there is no row yet, included."""
    assert together(*[partial(fail, database, 7)] * 6) == [None] * 6
    assert state(database) == "closed 6"
    assert together(*[partial(fail, database, 7)] * 6) == [None] * 6
    assert state(database) == "open 12"
