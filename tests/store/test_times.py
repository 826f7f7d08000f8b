"""Times from the database: in UTC, whatever time zone PostgreSQL shows them in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import ErrorKind
from flows.store import circuit_breaker, idempotency, schedules, workflows
from flows.store.database import Database, now
from flows.store.models import Execution, IdempotencyKey
from flows.store.transitions import attempts
from tests.leasing import begin, lease_of

ZERO = timedelta(0)


@pytest.fixture
def far_away(in_new_york: str) -> Iterator[Database]:
    """A database of another time zone."""
    database = Database(in_new_york)
    yield database
    database.close()


def times_of(row: object) -> list[datetime]:
    """All times of a row."""
    return [value for value in vars(row).values() if isinstance(value, datetime)]


def test_every_time_is_read_in_utc(far_away: Database, graph: dict[str, Any]) -> None:
    """Columns, the database's clock, and what is computed from them."""

    def write(session: Session) -> list[datetime]:
        workflow = workflows.create(session, name="One", graph=graph)
        schedule = schedules.add(session, workflow.id, cron="0 9 * * *")
        run = begin(session, flow_run_id=uuid.uuid4(), workflow_id=workflow.id)
        idempotency.put(session, "key", "0" * 64, run.id)
        circuit_breaker.failed(session, 1, 60)
        refused = circuit_breaker.admit(session)
        assert refused.retry_at is not None
        due = attempts.schedule_retry(session, lease_of(run), "e", ErrorKind.INFRASTRUCTURE, None, 60)
        session.expire_all()
        key = session.scalars(select(IdempotencyKey)).one()
        row = session.scalars(select(Execution)).one()
        version = workflows.get(session, workflow.id).current
        session.refresh(schedule)
        assert row.next_attempt_at == due
        found = [time for one in (workflow, version, schedule, key, row) for time in times_of(one)]
        return [*found, due, refused.retry_at, session.scalars(select(now(5))).one()]

    assert far_away.run_sync(lambda s: s.scalar(text("SHOW timezone"))) == "America/New_York"
    found = far_away.run_sync(write)
    assert len(found) >= 12
    assert {time.utcoffset() for time in found} == {ZERO}
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=2) for time in found)
    state = far_away.run_sync(circuit_breaker.read)
    assert {state["opened_at"].utcoffset(), state["retry_at"].utcoffset()} == {ZERO}


def test_the_clock_is_compared_and_reckoned_with(database: Database) -> None:
    """Intervals are added to it, and times subtracted from it, as SQL does."""

    def read(session: Session) -> tuple[object, bool]:
        left = session.scalars(select(now(60) - now())).one()
        return left, session.scalars(select(now(5) > now() + timedelta(seconds=1))).one()

    left, is_later = database.run_sync(read)
    assert isinstance(left, timedelta)
    assert timedelta(seconds=59) < left <= timedelta(seconds=60)
    assert is_later
