"""Executions that nobody runs any more: finding them, and holding their lease while they are looked after.

A process that looks after one takes its lease first, for a short time: meanwhile no worker starts it, and no
other process looks after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from flows.config import times
from flows.graphs.lifecycle import LIVE, RunSnapshot, StepStatus
from flows.graphs.lost_attempts import LostAttempt
from flows.store.database import now
from flows.store.leases import Lease
from flows.store.models import ChainEntry, Execution, Workflow
from flows.store.transitions import recoveries, submissions

SECONDS = times.RECOVERY_LEASE
"""How long a lease lasts that was taken to look after a run."""


@dataclass(frozen=True)
class RecoveryLease:
    """An execution whose lease was taken to look after it."""

    row: Execution
    """As it was before, its lease included."""
    snapshot: RunSnapshot
    """The same, as far as decisions need it."""
    lease: Lease
    step: int
    """Number of its next step."""
    due: datetime | None
    """When its next attempt is to begin; None: now."""

    @property
    def lost_attempt(self) -> LostAttempt | None:
        """The attempt that nobody ended; None where the last one ended by scheduling the next."""
        row = self.row
        if self.due is not None or (row.stepping and row.next_attempt_at is not None):
            return None
        return LostAttempt(
            row.crashes, row.crash_step, row.lost_starts, row.stepping, self.step, row.current_node
        )


def take_expired(session: Session, but_not: Collection[int]) -> RecoveryLease | None:
    """Take over the lease that ran out first, of executions not in `but_not`; None: there is none."""
    return _take(session, Execution.lease_until <= now(), Execution.id.not_in(but_not))


def take_as_seen(
    session: Session, seen: RunSnapshot, flow_run_id: UUID | None = None
) -> RecoveryLease | None:
    """Take the lease of an execution that is as it was seen; None when anything has happened to it.

    One that was seen with a lease that has run out is taken if it still has. Notes the flow run, if the row
    has none yet.
    """
    return _take(
        session,
        Execution.id == seen.id,
        Execution.status == seen.status,
        Execution.attempt == seen.attempt,
        Execution.lease_until <= now() if seen.expired else Execution.lease_owner.is_(None),
        flow_run_id=flow_run_id,
    )


def _take(
    session: Session, *which: ColumnElement[bool], flow_run_id: UUID | None = None
) -> RecoveryLease | None:
    found = session.execute(
        select(Execution, Execution.next_attempt_at > now(), _EXPIRED)
        .where(*which)
        .order_by(Execution.lease_until)
        .limit(1)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        return None
    row, is_early, expired = found
    snapshot = RunSnapshot(
        row.id,
        row.flow_run_id or flow_run_id,
        row.public_id,
        row.status,
        row.attempt,
        row.error_kind,
        row.revoked,
        row.reopened_from,
        row.lease_owner is not None,
        bool(expired),
    )
    lease = recoveries.recover(session, row.id, flow_run_id, SECONDS)
    step = session.scalar(
        select(func.count()).where(ChainEntry.execution_id == row.id, ChainEntry.status == StepStatus.SUCCESS)
    )
    return RecoveryLease(row, snapshot, lease, step or 0, row.next_attempt_at if is_early else None)


def release(session: Session, recovery: RecoveryLease) -> None:
    """Leave a run as it was found, unless its lease is not ours any more."""
    recoveries.undo_recover(session, recovery.lease, recovery.row.lease_owner)


def adopt(session: Session, flow_run_id: UUID, workflow_id: int) -> RunSnapshot | None:
    """Make the row of a run that was started elsewhere and never came to make it; None: no such workflow."""
    submissions.adopt(session, flow_run_id, workflow_id)
    return match_flow_runs(session, {flow_run_id: None}).get(flow_run_id)


def match_flow_runs(session: Session, runs: Mapping[UUID, UUID | None]) -> dict[UUID, RunSnapshot]:
    """The executions of flow runs (id → the public id that it was made for), by the flow runs' ids.

    A task id finds its execution too, under that id, where Prefect lost its flow run and has another.
    """
    of_public_id = {public_id: run for run, public_id in runs.items() if public_id is not None}
    rows = session.execute(
        select(*_COLUMNS, Execution.task_id).where(
            or_(
                Execution.flow_run_id.in_(runs),
                Execution.task_id.in_(runs),
                Execution.public_id.in_(of_public_id),
            )
        )
    )
    found: dict[UUID, RunSnapshot] = {}
    for *columns, task_id in rows:
        row = RunSnapshot(*columns)
        for key in (row.flow_run_id, task_id, of_public_id.get(row.public_id)):
            if key in runs and key is not None:
                found[key] = row
    return found


def waiting(session: Session, after: int, limit: int) -> Sequence[RunSnapshot]:
    """Executions with ids above `after` that are not over, that Prefect has, and that nobody runs."""
    return _snapshots(
        session,
        Execution.id > after,
        Execution.status.in_(LIVE),
        Execution.lease_owner.is_(None),
        Execution.flow_run_id.is_not(None),
        limit=limit,
    )


def unsubmitted(session: Session, limit: int) -> Sequence[RunSnapshot]:
    """Executions that wait to be submitted to Prefect, oldest first."""
    return _snapshots(
        session,
        Execution.status.in_(LIVE),
        Execution.lease_owner.is_(None),
        Execution.flow_run_id.is_(None),
        limit=limit,
    )


def deployment_of(session: Session, execution_id: int) -> UUID | None:
    """The deployment of an execution's workflow; None where it has none, or there is no such execution."""
    return session.scalar(
        select(Workflow.deployment_id)
        .join(Execution, Execution.workflow_id == Workflow.id)
        .where(Execution.id == execution_id)
    )


_EXPIRED = func.coalesce(Execution.lease_until <= now(), False)
_COLUMNS = (
    Execution.id,
    Execution.flow_run_id,
    Execution.public_id,
    Execution.status,
    Execution.attempt,
    Execution.error_kind,
    Execution.revoked,
    Execution.reopened_from,
    Execution.lease_owner.is_not(None),
    _EXPIRED,
)
"""The fields of `RunSnapshot`, in their order."""


def _snapshots(session: Session, *which: ColumnElement[bool], limit: int) -> Sequence[RunSnapshot]:
    rows = session.execute(select(*_COLUMNS).where(*which).order_by(Execution.id).limit(limit))
    return [RunSnapshot(*row) for row in rows]
