"""Rows as they are in the database, and the passing of time, which tests do not wait for."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from flows.store import leases
from flows.store.database import Database, now
from flows.store.leases import Lease
from flows.store.models import Execution
from tests.leasing import SECONDS


def take(
    database: Database, execution: Execution, owner: uuid.UUID | None = None, *, reopens: bool = False
) -> Lease | None:
    """Take the lease of a run that has a flow run, for a new owner unless one is given."""
    assert execution.flow_run_id is not None
    flow_run_id = execution.flow_run_id
    return database.run_sync(
        lambda s: leases.take(
            s,
            flow_run_id=flow_run_id,
            public_id=execution.public_id,
            workflow_id=execution.workflow_id,
            owner=owner or uuid.uuid4(),
            seconds=SECONDS,
            reopens=reopens,
        )
    )


def expire(database: Database, execution: Execution) -> None:
    """Let the lease run out, a second ago."""
    change(database, execution, lease_until=now(-1))


def change(database: Database, execution: Execution, **columns: Any) -> None:
    """Set columns of the row."""
    database.run_sync(
        lambda s: s.execute(update(Execution).where(Execution.id == execution.id).values(columns))
    )


def everything(database: Database) -> list[Any]:
    """All that the database has of executions: rows, chains, values."""

    def read(session: Session) -> list[Any]:
        tables = ("executions", "chain_entries", "context_values", "idempotency_keys")
        return [session.execute(text(f"SELECT t::text FROM {name} t ORDER BY 1")).all() for name in tables]

    return database.run_sync(read)


def seconds_left(database: Database, execution: Execution, column: str = "lease_until") -> float:
    """Seconds from now, by the database's clock, until the time in a column."""
    left = database.run_sync(
        lambda s: s.scalar(select(getattr(Execution, column) - now()).where(Execution.id == execution.id))
    )
    assert isinstance(left, timedelta)
    return left.total_seconds()
