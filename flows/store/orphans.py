"""Executions that nobody runs any more: finding them, and holding their lease while they are looked after.

Whoever looks after one seizes its lease first, for a short time: meanwhile no worker starts it, and of two
that look at once one finds nothing to do. What comes of it (`put_back`, `executions.finish`) gives it back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from flows.config import times
from flows.graphs.errors import ConflictError
from flows.store import checks, creation, leases
from flows.store.database import now
from flows.store.leases import Lease
from flows.store.models import ChainEntry, Execution

SECONDS = times.RECOVERY_LEASE
"""How long a lease lasts that was seized."""


@dataclass(frozen=True)
class RunSnapshot:
    """An execution as far as it tells whether somebody should look after it."""

    id: int
    flow_run_id: UUID | None
    public_id: UUID
    status: str
    attempt: int
    error_kind: str | None
    revoked: bool
    """Whether it is cancelled, and was told so, though it has not stopped yet."""
    reopened_from: UUID | None
    """Prefect's state from which a person's last retry began."""
    leased: bool
    """Whether somebody has it, be it that the lease has run out."""

    @property
    def is_live(self) -> bool:
        """Whether the run is not over."""
        return self.status in checks.LIVE

    @property
    def may_be_retried(self) -> bool:
        """Whether a person who retries it in Prefect opens it again."""
        return self.status in ("failed", "cancelled") and self.error_kind != "not_started"


@dataclass(frozen=True)
class RecoveryLease:
    """An execution whose lease was taken to look after it."""

    row: Execution
    """As it was before, its lease included."""
    lease: Lease
    step: int
    """Number of its next step."""
    due: datetime | None
    """When its next attempt is to begin; None: now."""

    @property
    def counts(self) -> dict[str, Any]:
        """The row's counters with the attempt that has just come to nothing."""
        row = self.row
        if self.due is not None or (row.stepping and row.next_attempt_at is not None):
            return {}  # that attempt had ended well: it put the run off
        if not row.stepping:
            return {"lost_starts": row.lost_starts + 1}
        crashes = row.crashes + 1 if row.crash_step == self.step else 1
        return {"crashes": crashes, "crash_step": self.step, "lost_starts": 0}


def seize_expired(session: Session, but_not: Collection[int]) -> RecoveryLease | None:
    """Seize the execution whose lease ran out first, of those that are not excepted; None: there is none."""
    return _seize(session, Execution.lease_until <= now(), Execution.id.not_in(but_not))


def seize(session: Session, seen: RunSnapshot, flow_run_id: UUID | None = None) -> RecoveryLease | None:
    """Seize an execution that is as it was seen; None when anything has happened to it.

    Notes the flow run, if the row has none yet.
    """
    return _seize(
        session,
        Execution.id == seen.id,
        Execution.status == seen.status,
        Execution.attempt == seen.attempt,
        Execution.lease_owner.is_(None),
        flow_run_id=flow_run_id,
    )


def _seize(
    session: Session, *which: ColumnElement[bool], flow_run_id: UUID | None = None
) -> RecoveryLease | None:
    found = session.execute(
        select(Execution, Execution.next_attempt_at > now())
        .where(*which)
        .order_by(Execution.lease_until)
        .limit(1)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        return None
    row, is_early = found
    lease = Lease(row.id, uuid4(), SECONDS)
    session.execute(
        update(Execution)
        .where(Execution.id == row.id)
        .values(
            lease_owner=lease.owner,
            lease_until=now(SECONDS),
            flow_run_id=func.coalesce(Execution.flow_run_id, flow_run_id),
        )
        .execution_options(synchronize_session=False)  # the row is told of as it was
    )
    step = session.scalar(
        select(func.count()).where(ChainEntry.execution_id == row.id, ChainEntry.status == "success")
    )
    return RecoveryLease(row, lease, step or 0, row.next_attempt_at if is_early else None)


def hold_reopened(session: Session, execution_id: int) -> Lease:
    """Take the lease of an execution that this transaction opens again, until Prefect has heard of it.

    Meanwhile nobody cancels it unheard; whoever dies over it leaves a lease that runs out. Raises
    ConflictError when somebody else has it.
    """
    lease = Lease(execution_id, uuid4(), SECONDS)
    held = session.scalar(
        update(Execution)
        .where(Execution.id == execution_id, Execution.lease_owner.is_(None))
        .values(lease_owner=lease.owner, lease_until=now(SECONDS))
        .returning(Execution.id)
    )
    if held is None:
        raise ConflictError(f"Execution {execution_id} changes hands at this moment. Ask again.")
    return lease


def release_recovery(session: Session, seized: RecoveryLease) -> None:
    """Undo a seizure, unless the lease is not ours any more: an old lease is back, and over since now.

    As old as it was it would be the first to be seized next time, before those that can be helped.
    """
    row = seized.row
    session.execute(
        update(Execution)
        .where(seized.lease.is_ours)
        .values(lease_owner=row.lease_owner, lease_until=now() if row.lease_owner else None)
    )


def put_back(session: Session, seized: RecoveryLease, reason: str) -> None:
    """Note that an execution waits in its queue again, and give its lease back.

    The attempt that ended is counted. `reason` is its error, until the next attempt begins. Raises
    LeaseLostError when somebody else looks after it by now, or runs it.
    """
    changes = leases.FREE | {"stepping": False} | seized.counts
    if seized.row.status == "running" and seized.due is None:
        changes |= {"next_attempt_at": now(), "error": reason, "error_kind": "crashed"}
    ours = update(Execution).where(seized.lease.is_ours).values(changes).returning(Execution.id)
    if session.scalar(ours) is None:
        raise leases.lost(session, seized.lease)


def adopt(session: Session, flow_run_id: UUID, workflow_id: int) -> RunSnapshot | None:
    """Make the row of a run that was started elsewhere and never came to make it; None: no such workflow."""
    creation.ensure_row(session, flow_run_id, workflow_id)
    return match_flow_runs(session, {flow_run_id: None}).get(flow_run_id)


def match_flow_runs(session: Session, runs: Mapping[UUID, UUID | None]) -> dict[UUID, RunSnapshot]:
    """The executions of flow runs (id → the public id that it was made for), by the flow runs' ids."""
    of_public_id = {public_id: run for run, public_id in runs.items() if public_id is not None}
    found = _standings(session, or_(Execution.flow_run_id.in_(runs), Execution.public_id.in_(of_public_id)))
    return {row.flow_run_id or of_public_id[row.public_id]: row for row in found}


def waiting(session: Session, after: int, limit: int) -> Sequence[RunSnapshot]:
    """Executions with ids above `after` that are not over, that Prefect has, and that nobody runs."""
    return _standings(
        session,
        Execution.id > after,
        Execution.status.in_(checks.LIVE),
        Execution.lease_owner.is_(None),
        Execution.flow_run_id.is_not(None),
        limit=limit,
    )


def unsubmitted(session: Session, limit: int) -> Sequence[RunSnapshot]:
    """Executions that wait to be handed to Prefect, oldest first."""
    return _standings(
        session,
        Execution.status == "pending",
        Execution.lease_owner.is_(None),
        Execution.flow_run_id.is_(None),
        limit=limit,
    )


def _standings(
    session: Session, *which: ColumnElement[bool], limit: int | None = None
) -> Sequence[RunSnapshot]:
    rows = session.execute(
        select(
            Execution.id,
            Execution.flow_run_id,
            Execution.public_id,
            Execution.status,
            Execution.attempt,
            Execution.error_kind,
            Execution.revoked,
            Execution.reopened_from,
            Execution.lease_owner.is_not(None),
        )
        .where(*which)
        .order_by(Execution.id)
        .limit(limit)
    )
    return [RunSnapshot(*row) for row in rows]
