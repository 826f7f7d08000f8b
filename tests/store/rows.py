"""Rows as they are in the database, the ways in which tests bring one about, and the passing of time."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import ErrorKind, RunSnapshot, Status
from flows.store import executions, orphans
from flows.store.database import Database, now
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, submissions
from flows.store.values import Value
from tests import endings, leasing
from tests.leasing import SECONDS, begin, lease_of

COUNTED: dict[str, Any] = {
    "retries": 2,
    "crashes": 2,
    "crash_step": 1,
    "lost_starts": 3,
    "unrepeatable_step": 1,
}
"""Some of each count that a person's retry resets."""
FORGOTTEN: dict[str, Any] = {**dict.fromkeys(COUNTED, 0), "crash_step": None, "unrepeatable_step": None}
"""The same counts after a person's retry."""


def read(database: Database, execution: Execution) -> Execution:
    """The row as it is now."""
    return database.run_sync(lambda s: executions.get(s, execution.id))


def snapshot(database: Database, execution: Execution) -> RunSnapshot:
    """The row as it is now, as far as decisions need it."""
    flow_run_id = read(database, execution).flow_run_id or uuid.uuid4()
    key = {flow_run_id: execution.public_id}
    return database.run_sync(lambda s: orphans.match_flow_runs(s, key))[flow_run_id]


def counters(database: Database, execution: Execution) -> dict[str, Any]:
    """What a person's retry resets."""
    row = read(database, execution)
    return {name: getattr(row, name) for name in COUNTED}


def begin_next(database: Database, execution: Execution) -> Execution:
    """Begin the next attempt, as somebody else."""
    flow_run_id = execution.flow_run_id
    assert flow_run_id is not None
    return database.run_sync(
        lambda s: begin(
            s,
            flow_run_id=flow_run_id,
            public_id=execution.public_id,
            workflow_id=execution.workflow_id,
        )
    )


def create(
    database: Database, workflow: Workflow, initial: dict[str, Value] | None = None, priority: str = "normal"
) -> Execution:
    """Make the row that the API makes before it asks Prefect."""
    return database.run_sync(
        lambda s: submissions.create(
            s, workflow_id=workflow.id, client=None, priority=priority, initial=initial or {}
        )
    )


def claim_of(execution: Execution, owner: uuid.UUID | None = None) -> LeaseClaim:
    """What a worker claims that finds the run's flow run, for a new owner unless one is given."""
    assert execution.flow_run_id is not None
    return LeaseClaim(
        execution.flow_run_id, execution.public_id, execution.workflow_id, owner or uuid.uuid4(), SECONDS
    )


def take(database: Database, execution: Execution, owner: uuid.UUID | None = None) -> Lease | None:
    """Take the lease of a run that has a flow run, for a new owner unless one is given."""
    return database.run_sync(lambda s: attempts.take(s, claim_of(execution, owner)))


def take_retried(
    database: Database, execution: Execution, request: uuid.UUID | None = None, owner: uuid.UUID | None = None
) -> Lease | None:
    """Open a run that a person retried in Prefect, by a new request unless given, and take its lease."""
    return database.run_sync(
        lambda s: leasing.take_retried(s, claim_of(execution, owner), request or uuid.uuid4())
    )


def end(
    database: Database,
    execution: Execution,
    status: Status,
    error: str = "boom",
    kind: ErrorKind = ErrorKind.NODE,
    node: str | None = None,
) -> None:
    """Close a run as the process does that has its lease, which is free then."""
    lease = lease_of(read(database, execution))

    def write(session: Session) -> None:
        endings.end(session, lease, status, error, kind, node)
        assert attempts.release(session, lease)

    database.run_sync(write)


def expire(database: Database, execution: Execution) -> None:
    """Let the lease run out, a second ago, where there is one."""
    leased = (Execution.id == execution.id) & Execution.lease_owner.is_not(None)
    database.run_sync(lambda s: s.execute(update(Execution).where(leased).values(lease_until=now(-1))))


def change(database: Database, execution: Execution, **columns: Any) -> None:
    """Set columns of the row by hand."""
    database.run_sync(
        lambda s: s.execute(update(Execution).where(Execution.id == execution.id).values(columns))
    )


def everything(database: Database) -> list[Any]:
    """All that the database has of executions: rows, chains, values."""

    def look(session: Session) -> list[Any]:
        tables = ("executions", "chain_entries", "context_values", "idempotency_keys")
        return [session.execute(text(f"SELECT t::text FROM {name} t ORDER BY 1")).all() for name in tables]

    return database.run_sync(look)


def seconds_left(database: Database, execution: Execution, column: str = "lease_until") -> float:
    """Seconds from now, by the database's clock, until the time in a column."""
    left = database.run_sync(
        lambda s: s.scalar(select(getattr(Execution, column) - now()).where(Execution.id == execution.id))
    )
    assert isinstance(left, timedelta)
    return left.total_seconds()
