"""What a process does to a run that nobody runs, and whose lease it took to look after it."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import case, func, update
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import LIVE, Closure, ErrorKind, Status
from flows.store import leases
from flows.store.database import now
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts, columns


def recover(session: Session, execution_id: int, flow_run_id: uuid.UUID | None, seconds: float) -> Lease:
    """Take the lease of a run, locked by the caller, to look after it; note its flow run if it has none.

    From any status to the same.
    """
    lease = Lease(execution_id, uuid.uuid4(), seconds)
    changes: dict[str, Any] = {"lease_owner": lease.owner, "lease_until": now(seconds)}
    if flow_run_id is not None:
        changes["flow_run_id"] = func.coalesce(Execution.flow_run_id, flow_run_id)
        changes["task_id"] = func.coalesce(Execution.task_id, flow_run_id)
    session.execute(
        update(Execution)
        .where(Execution.id == execution_id)
        .values(changes)
        .execution_options(synchronize_session=False)  # the caller's row tells how it was before
    )
    return lease


def undo_recover(session: Session, lease: Lease, before: uuid.UUID | None) -> None:
    """Free a lease that was taken to look after a run; one that had run out before has run out again.

    The status stays. It runs out now, and not when it did before: the oldest is recovered first, and one that
    could not be helped must not come before all others again.
    """
    session.execute(
        update(Execution)
        .where(lease.is_ours)
        .values(lease_owner=before, lease_until=now() if before else None)
    )


def close_recovered(session: Session, lease: Lease, closure: Closure, node: str | None = None) -> None:
    """Close a run that its caller looks after, and free its lease.

    From pending, running to failed, cancelled. Raises LeaseLostError.
    """
    which = (lease.is_ours, Execution.status.in_(LIVE))
    closed = columns.close(session, which, **columns.unless_revoked(closure, node), **columns.FREE)
    if not closed and not attempts.release(session, lease):
        raise leases.lost(session, lease)


def requeue(session: Session, lease: Lease, counts: dict[str, int | None], why: str | None) -> None:
    """Note that a run, which its caller looks after, waits in its queue again, and free its lease.

    From pending, running to pending, running. `counts` are the counters with the attempt that ended. `why` is
    the error of a run that has begun and is due now; None leaves its error and its due time as they are.
    Raises LeaseLostError when somebody else looks after it by now, or runs it.
    """
    changes: dict[str, Any] = {"stepping": False, **counts, **columns.FREE}
    if why is not None:
        began = Execution.status == Status.RUNNING
        changes |= {
            "next_attempt_at": case((began, now()), else_=Execution.next_attempt_at),
            "error": case((began, columns.text(why)), else_=Execution.error),
            "error_kind": case((began, ErrorKind.CRASHED), else_=Execution.error_kind),
        }
    ours = update(Execution).where(lease.is_ours, Execution.status.in_(LIVE)).values(changes)
    if session.scalar(ours.returning(Execution.id)) is None:
        raise leases.lost(session, lease)


def resubmit(session: Session, lease: Lease) -> None:
    """Note that Prefect lost the flow run of a run that its caller looks after; it is to get another.

    From pending, running to pending, running. Its task id stays. Raises LeaseLostError.
    """
    ours = update(Execution).where(lease.is_ours, Execution.status.in_(LIVE))
    ours = ours.values(flow_run_id=None, stepping=False)
    if session.scalar(ours.returning(Execution.id)) is None:
        raise leases.lost(session, lease)
