"""Figures for `/metrics` and `/health/detailed`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import LIVE, ErrorKind, Status
from flows.store.base import utcnow
from flows.store.models import Execution, Workflow


def metrics(session: Session, now: datetime | None = None) -> dict[str, Any]:
    """What the database knows of the contract's `/metrics`.

    - `executions`: those made in the last 24 hours: `total`, `completed`, `failed`, `pending` (not over, so
      running ones count), `success_rate`: completed of those that are over, in percent with two decimals.
    - `error_rate`: those made in the last hour: `period_hours`, `total_executions`, `failed_executions`,
      `error_rate`: failed of total, in percent as well.
    - `workflows`: `total_workflows`, `active_workflows`: with an execution made in the last 24 hours.

    A request that was refused is no run, and not counted. Rates of nothing are 0.
    """
    now = now or utcnow()
    day, hour = (_counts(session, now - timedelta(hours=hours)) for hours in (24, 1))
    pending = sum(day.get(status, 0) for status in LIVE)
    active = select(func.count(Execution.workflow_id.distinct())).where(
        Execution.created_at >= now - timedelta(hours=24)
    )
    return {
        "executions": {
            "total": sum(day.values()),
            Status.COMPLETED: day.get(Status.COMPLETED, 0),
            Status.FAILED: day.get(Status.FAILED, 0),
            Status.PENDING: pending,
            "success_rate": _percent(day.get(Status.COMPLETED, 0), sum(day.values()) - pending),
        },
        "error_rate": {
            "period_hours": 1,
            "total_executions": sum(hour.values()),
            "failed_executions": hour.get(Status.FAILED, 0),
            "error_rate": _percent(hour.get(Status.FAILED, 0), sum(hour.values())),
        },
        "workflows": {
            "total_workflows": session.scalar(select(func.count()).select_from(Workflow)) or 0,
            "active_workflows": session.scalar(active) or 0,
        },
    }


def _counts(session: Session, since: datetime) -> dict[Status, int]:
    runs = select(Execution.status, func.count()).where(
        Execution.created_at >= since, Execution.error_kind.is_distinct_from(ErrorKind.NOT_STARTED)
    )
    return dict(session.execute(runs.group_by(Execution.status)).tuples().all())


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0
