"""Figures for `/metrics`: how many runs there were, and how they ended."""

from __future__ import annotations

import uuid
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from flows.graphs.lifecycle import ErrorKind, Status
from flows.store import metrics, workflows
from flows.store.base import utcnow
from flows.store.database import Database
from flows.store.models import Workflow
from flows.store.transitions import submissions
from tests.leasing import begin
from tests.store.rows import change, create, end


def test_metrics_of_nothing(database: Database) -> None:
    """An empty database has rates of 0, and divides by nothing."""
    assert database.run_sync(metrics.metrics) == {
        "executions": {"total": 0, "completed": 0, "failed": 0, "pending": 0, "success_rate": 0.0},
        "error_rate": {"period_hours": 1, "total_executions": 0, "failed_executions": 0, "error_rate": 0.0},
        "workflows": {"total_workflows": 0, "active_workflows": 0},
    }


def test_metrics_count_the_last_day_and_the_last_hour(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Success is percent of what is over, errors of all."""
    database.run_sync(lambda s: workflows.create(s, name="Idle", graph=graph))
    kinds = [ErrorKind.INFRASTRUCTURE, None, ErrorKind.CRASHED, ErrorKind.INFRASTRUCTURE, ErrorKind.NODE]
    start = partial(begin, workflow_id=workflow.id)
    for kind in kinds:
        run = database.run_sync(partial(start, flow_run_id=uuid.uuid4()))
        end(database, run, Status.FAILED if kind else Status.COMPLETED, kind=kind or ErrorKind.NODE)
    database.run_sync(partial(start, flow_run_id=uuid.uuid4()))
    for hours in (2, 25):
        change(database, create(database, workflow), created_at=utcnow() - timedelta(hours=hours))
    assert database.run_sync(metrics.metrics) == {
        "executions": {"total": 7, "completed": 1, "failed": 4, "pending": 2, "success_rate": 20.0},
        "error_rate": {
            "period_hours": 1,
            "total_executions": 6,
            "failed_executions": 4,
            "error_rate": 66.67,
        },
        "workflows": {"total_workflows": 2, "active_workflows": 1},
    }


def test_a_refusal_is_no_failed_run(database: Database, workflow: Workflow) -> None:
    """Requests that were answered with 503 make no error rate: nothing of theirs ran and failed."""

    def refuse(session: Session) -> None:
        row = submissions.create(session, workflow_id=workflow.id, client=None, priority="normal", initial={})
        assert submissions.refuse(session, row.id, "Prefect does not answer.")

    for _ in range(3):
        database.run_sync(refuse)
    run = database.run_sync(partial(begin, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    end(database, run, Status.COMPLETED)
    figures = database.run_sync(metrics.metrics)
    assert (figures["executions"]["failed"], figures["error_rate"]["failed_executions"]) == (0, 0)
    assert figures["error_rate"]["error_rate"] == 0.0
    assert figures["executions"]["success_rate"] == 100.0
