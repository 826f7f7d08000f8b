"""What comes from outside of a run: a person's retry or cancellation, and Prefect's word."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from flows.config import times
from flows.graphs.errors import ConflictError, NotFoundError
from flows.graphs.lifecycle import LIVE, REOPENABLE, Closure, ErrorKind, RunSnapshot, Status
from flows.store import leases
from flows.store.database import now
from flows.store.executions import locked
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts, columns

_AS_BEFORE: Final = (
    *("status", "completed_at", "error", "error_kind", "failed_at_node", "reopened_from", "next_attempt_at"),
    *columns.RESET,
)
"""The columns that `undo_reopen` restores."""

HOLD_SECONDS: Final = times.RECOVERY_LEASE
"""How long a lease lasts that a person's retry holds."""


@dataclass(frozen=True)
class Reopened:
    """A run that was opened for a person, and what is needed to undo that."""

    lease: Lease
    before: Mapping[str, Any]
    """The columns of its row before."""
    skipped: int | None = None
    """The id of the chain entry that leads it past a node."""


def revoke(session: Session, seen: RunSnapshot) -> bool:
    """Note that a run is cancelled though it has not stopped yet; its caller tells nobody before.

    From pending, running to pending, running. It ends as cancelled, even if its last node succeeds first.
    False when that attempt is over, or the run was retried since.
    """
    revoked = (
        update(Execution).where(*columns.open_as_seen(seen)).values(revoked=True).returning(Execution.id)
    )
    return session.scalar(revoked) is not None


def cancel_stopped(session: Session, execution_id: int, message: str) -> bool:
    """Close a run whose process was told to stop and has released its lease, or lost it by time.

    From pending, running to cancelled. False where somebody else goes on with it, or it is closed.
    """
    free = or_(Execution.lease_owner.is_(None), Execution.lease_until <= now())
    return columns.close(
        session,
        (Execution.id == execution_id, Execution.status.in_(LIVE), free),
        **columns.of_closure(Closure(Status.CANCELLED, message, ErrorKind.CANCELLED)),
        **columns.FREE,
    )


def close_as_seen(session: Session, seen: RunSnapshot, closure: Closure) -> bool:
    """Close a run that is over in Prefect, if its row is as it was seen; a process with its lease loses it.

    From pending, running to failed, cancelled. False when it was closed, begun or retried since.
    """
    return columns.close(
        session, columns.open_as_seen(seen), **columns.unless_revoked(closure), **columns.FREE
    )


def lock_reopenable(session: Session, execution_id: int) -> Execution:
    """Lock the row of a run that may be reopened, and return it.

    The status stays. Raises NotFoundError, and ConflictError when there is nothing to retry.
    """
    execution = locked(session, Execution.id == execution_id)
    has_owner = select(Execution.id).where(Execution.id == execution_id, Execution.lease_until > now())
    if execution is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    if execution.error_kind == ErrorKind.NOT_STARTED:
        raise ConflictError(f"Execution {execution_id} was never started. Start its workflow anew.")
    if execution.status not in REOPENABLE:
        raise ConflictError(f"Execution {execution_id} is {execution.status}, not failed or cancelled.")
    if session.scalar(has_owner) is not None:
        raise ConflictError(f"Execution {execution_id} changes hands at this moment. Ask again.")
    return execution


def reopen(session: Session, execution_id: int, reopened_from: uuid.UUID | None) -> Reopened:
    """Open a run for a person's retry: due now, all counters at zero; the error stays until it begins.

    From failed, cancelled to pending, running. `reopened_from` is the state of its flow run from which the
    person retries it: see `Execution.reopened_from`. The caller has its lease until Prefect has heard:
    meanwhile nobody else takes or cancels the run, and where the caller dies the lease runs out. Raises
    NotFoundError, and ConflictError when there is nothing to retry or somebody else has the lease.
    """
    row = lock_reopenable(session, execution_id)
    before = {name: getattr(row, name) for name in _AS_BEFORE}
    columns.reopen_row(session, Execution.id == execution_id, reopened_from=reopened_from)
    lease = Lease(execution_id, uuid.uuid4(), HOLD_SECONDS)
    session.execute(
        update(Execution)
        .where(Execution.id == execution_id)
        .values(lease_owner=lease.owner, lease_until=now(lease.seconds))
    )
    return Reopened(lease, before)


def reopen_recovered(session: Session, lease: Lease, request: uuid.UUID) -> None:
    """Open a run that a person retried in Prefect, for a caller that looks after it; frees its lease.

    From failed, cancelled to pending, running. `request` is the state by which the person asks. Raises
    LeaseLostError.
    """
    columns.reopen_row(session, lease.is_ours, reopened_from=request)
    if not attempts.release(session, lease):
        raise leases.lost(session, lease)


def undo_reopen(session: Session, reopened: Reopened) -> None:
    """Close a run again whose retry Prefect refused, exactly as it was, and free its lease.

    From pending, running to failed, cancelled. Raises LeaseLostError.
    """
    ours = update(Execution).where(reopened.lease.is_ours, Execution.status.in_(LIVE))
    ours = ours.values(**reopened.before, **columns.FREE)
    if session.scalar(ours.returning(Execution.id)) is None:
        raise leases.lost(session, reopened.lease)
