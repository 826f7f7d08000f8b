"""The watch over statements lets the transitions through, and finds what changes a state from elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flows.store import leases
from flows.store.database import Database, now
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts
from tests.leasing import begin, lease_of
from tests.statement_watch import STATE, changed, take_violations
from tests.store.rows import change

AWAY = {"lease_owner": None, "lease_until": None}


def make(session: Session, run: Execution) -> None:
    """Make a row by SQLAlchemy's own means."""
    session.add(Execution(workflow_id=run.workflow_id))
    session.flush()


def assign(session: Session, run: Execution) -> None:
    """Set an attribute; the statement goes out later, from nobody's function."""
    row = session.get(Execution, run.id)
    assert row is not None
    row.revoked = True


PAST_THE_TRANSITIONS: dict[str, tuple[Callable[[Session, Execution], object], set[str]]] = {
    "an update": (lambda s, run: s.execute(update(Execution).values(AWAY)), {"lease_owner", "lease_until"}),
    "SQL": (lambda s, run: s.execute(text("UPDATE executions SET crashes = 0")), {"crashes"}),
    "an attribute": (assign, {"revoked"}),
    "a row": (make, {"status", "revoked", "retries", "crashes"}),
    "an insert": (
        lambda s, run: s.execute(insert(Execution).values(workflow_id=run.workflow_id)),
        {"status", "revoked", "retries", "crashes"},
    ),
    "a lease's time": (
        lambda s, run: s.execute(update(Execution).values(lease_until=now(1))),
        {"lease_until"},
    ),
    "more than a lease's time": (
        lambda s, run: leases.hold(s, lease_of(run), retries=1),
        {"lease_until", "retries"},
    ),
}


@pytest.mark.parametrize("name", PAST_THE_TRANSITIONS)
def test_a_change_past_the_transitions_is_found(database: Database, execution: Execution, name: str) -> None:
    """However it is written; the finding names columns, statement and stack."""
    work, columns = PAST_THE_TRANSITIONS[name]
    database.run_sync(lambda s: work(s, execution))
    (found,) = take_violations()
    assert columns <= found.columns
    assert "executions" in found.sql
    assert any("test_statement_watch.py" in line or "database.py" in line for line in found.stack)


def test_the_transitions_are_let_through(database: Database, workflow: Workflow) -> None:
    """And renewals, what tests change by hand, and columns that are not of a state."""
    run = database.run_sync(partial(begin, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    lease = lease_of(run)
    database.run_sync(lambda s: leases.renew(s, [lease.owner], 60))
    database.run_sync(lambda s: attempts.complete(s, lease))
    change(database, run, lease_until=now(1))
    database.run_sync(lambda s: s.execute(update(Execution).values(flow_run_id=uuid.uuid4())))
    assert take_violations() == []


def test_what_a_statement_sets() -> None:
    """Not what it asks, returns, or sets in another table."""
    for sql, columns in (
        ("UPDATE executions SET status='x', initial='y' WHERE executions.revoked = true", {"status"}),
        ("UPDATE executions SET error=CASE WHEN executions.revoked THEN 'a' END RETURNING status", set()),
        ("update executions\n set retries = executions.retries + 1", {"retries"}),
        ("INSERT INTO executions (id, status) VALUES (1, 'revoked') RETURNING crashes", {"status"}),
        ("SET search_path = x; UPDATE executions SET crashes = 0; SELECT 1", {"crashes"}),
        ("WITH done AS (UPDATE executions SET retries=1 RETURNING id) SELECT status FROM done", {"retries"}),
        ("UPDATE circuit_breakers SET status = 1", set()),
        ("SELECT status FROM executions", set()),
        ("DELETE FROM executions WHERE status = 1", set()),
    ):
        assert changed(sql) == columns, sql
    assert {column.name for column in Execution.__table__.columns} >= STATE
