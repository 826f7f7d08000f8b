"""Which rows there may be: PostgreSQL refuses every other one, and the tests look for what it cannot see."""

from __future__ import annotations

import importlib
import uuid
from typing import Any

import pytest
from sqlalchemy import func, literal_column
from sqlalchemy.exc import IntegrityError

from flows.graphs.lifecycle import ErrorKind, Status, StepStatus
from flows.graphs.row_states import ACROSS_ROWS, RULES
from flows.store import chain
from flows.store.database import Database, constraint
from flows.store.models import Execution, Workflow
from tests.leasing import begin, lease_of
from tests.row_checks import illegal_rows
from tests.store.rows import change, create, end

NOW = func.now()
ERROR = {"error": "boom", "error_kind": ErrorKind.NODE}
BREACHES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "status": [("running", {"status": "paused"})],
    "error_kind": [("waiting", {"error_kind": "odd"})],
    "completed_at": [
        ("pending", {"completed_at": NOW}),
        ("running", {"completed_at": NOW}),
        ("completed", {"completed_at": None}),
        ("failed", {"completed_at": None}),
        ("cancelled", {"completed_at": None}),
    ],
    "lease": [("running", {"lease_until": None}), ("running", {"lease_owner": None})],
    "attempt": [
        ("pending", {"attempt": -1}),
        ("pending", {"attempt": 1, "started_at": NOW}),
        ("running", {"attempt": 0, "started_at": None, "version_id": None}),
        ("completed", {"attempt": 0, "started_at": None, "version_id": None}),
    ],
    "begun": [
        ("running", {"started_at": None}),
        ("pending", {"started_at": NOW}),
        ("pending", {"stepping": True}),
        ("pending", {"sandbox_id": "sbx"}),
        ("pending", {"unrepeatable_step": 0}),
    ],
    "error": [
        ("completed", {"error": "boom"}),
        ("completed", {"error_kind": ErrorKind.NODE}),
        ("completed", {"failed_at_node": "mail"}),
        ("failed", {"error": None}),
        ("failed", {"error_kind": None}),
        ("failed", {"error_kind": ErrorKind.CANCELLED}),
        ("cancelled", {"error": None}),
        ("cancelled", {"error_kind": None}),
        ("cancelled", {"error_kind": ErrorKind.NODE}),
        ("running", ERROR),
        ("running", {"error": "boom", "next_attempt_at": NOW}),
        ("running", {"error_kind": ErrorKind.NODE, "next_attempt_at": NOW}),
    ],
    "next_attempt_at": [
        (status, {"next_attempt_at": NOW}) for status in ("completed", "failed", "cancelled")
    ],
    "revoked": [("completed", {"revoked": True}), ("failed", {"revoked": True})],
    "not_started": [
        ("cancelled", {"error_kind": ErrorKind.NOT_STARTED}),
        ("pending", {"error": "x", "error_kind": ErrorKind.NOT_STARTED, "next_attempt_at": NOW}),
        ("refused", {"attempt": 1, "started_at": NOW}),
    ],
    "unrepeatable_step": [("completed", {"unrepeatable_step": 1})],
    "crashes": [
        ("running", {"crashes": 1}),
        ("running", {"crash_step": 1}),
        ("running", {"crashes": -1, "crash_step": 1}),
    ],
    "counters": [("running", {"retries": -1}), ("running", {"lost_starts": -1})],
    "current_node": [
        (status, {"current_node": "mail"}) for status in ("pending", "completed", "failed", "cancelled")
    ],
}
"""Rule → rows that break it and no other: what the row was, and what is changed in it."""


@pytest.fixture
def rows(database: Database, workflow: Workflow) -> dict[str, Execution]:
    """A run that is pending, one of each other status, one that waits for its retry, and a refused one."""
    made = {"pending": create(database, workflow), "refused": create(database, workflow)}
    for name in ("running", "waiting", "completed", "failed", "cancelled"):
        made[name] = database.run_sync(lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        end(database, made[status], status)
    change(database, made["waiting"], **ERROR, next_attempt_at=NOW)
    change(
        database,
        made["refused"],
        status=Status.CANCELLED,
        error="x",
        error_kind=ErrorKind.NOT_STARTED,
        completed_at=NOW,
    )
    return made


def test_a_row_that_breaks_a_rule_is_refused(database: Database, rows: dict[str, Execution]) -> None:
    """By PostgreSQL, whoever writes it, with the name of the rule."""
    for rule, breaches in BREACHES.items():
        for name, changes in breaches:
            with pytest.raises(IntegrityError) as caught:
                change(database, rows[name], **changes)
            assert constraint(caught.value) == f"ck_executions_{rule}", (name, changes)


def test_every_rule_is_broken_once() -> None:
    """A new rule says here which row breaks it."""
    assert BREACHES.keys() == RULES.keys()


def test_the_migration_knows_the_same_rules() -> None:
    """It has a copy: what it did when it was run does not change with the code."""
    migration = importlib.import_module("flows.store.migrations.versions.0004_lifecycle")
    assert dict(RULES) == migration._RULES


# -- what PostgreSQL cannot see ----------------------------------------------------------------------


def step(number: int, status: StepStatus, attempt: int = 1) -> chain.Step:
    """A row of the chain."""
    return chain.Step(number, attempt, "mail", "action", status)


@pytest.mark.check_rows(False)
@pytest.mark.parametrize("what", ACROSS_ROWS)
def test_what_must_not_be_is_found(
    database: Database, database_url: str, execution: Execution, workflow: Workflow, what: str
) -> None:
    """Rows that are legal each by itself, and not together."""
    lease = lease_of(execution)
    database.run_sync(lambda s: chain.append(s, lease, step(0, StepStatus.SUCCESS)))
    assert illegal_rows(database_url) == {}
    broken = execution.id
    if what == "a step of a completed run failed for good":
        database.run_sync(lambda s: chain.append(s, lease, step(1, StepStatus.FAILED)))
        end(database, execution, Status.COMPLETED)
    elif what == "the node that must not start again has succeeded":
        change(database, execution, unrepeatable_step=0)
    elif what == "a step succeeded and the one before it did not":
        database.run_sync(lambda s: chain.append(s, lease, step(2, StepStatus.SUCCESS)))
    else:
        broken = create(database, workflow).id
        database.run_sync(lambda s: chain.add(s, broken, step(0, StepStatus.FAILED)))
    assert illegal_rows(database_url) == {what: [broken]}


@pytest.mark.check_rows(False)
def test_a_row_that_cannot_be_read_is_found(
    database: Database, database_url: str, execution: Execution
) -> None:
    """A sentence that was not written as JSON, say: whoever reads the row fails."""
    change(database, execution, current_node=literal_column("'mail'"))
    (what,) = illegal_rows(database_url)
    assert what.startswith("a row cannot be read: JSONDecodeError")
