"""An attempt of a run, from its lease to its end: what the process does that runs it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.orm import Session, selectinload

from flows.graphs.errors import (
    ConflictError,
    ExecutionClosedError,
    LeaseHeldError,
    LeaseLostError,
    NotFoundError,
)
from flows.graphs.lifecycle import CANCELLED, LIVE, Closure, ErrorKind, RunSnapshot, Status
from flows.store import checks, leases, values
from flows.store.base import utcnow
from flows.store.database import now
from flows.store.executions import locked, with_workflow
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Client, Execution, Workflow, WorkflowVersion
from flows.store.transitions import columns, submissions
from flows.store.values import Stored


def take(session: Session, claim: LeaseClaim) -> Lease | None:
    """Take the lease of a run that is about to start; the same owner renews it. Makes the row if need be.

    From pending, running to pending, running. None when there is nothing to run: `begin` says why. Raises
    LeaseHeldError when the lease is somebody else's and has not run out, of a run that is over, too: Prefect
    has not heard of its end yet.
    """
    lease = _acquire(session, claim)
    if lease is None and claim.public_id is None:
        submissions.adopt(session, claim.flow_run_id, claim.workflow_id)
        lease = _acquire(session, claim)
    if lease is None:
        # A run that may start was somebody's a moment ago, even if it has become free since.
        may_start = Execution.status.in_(LIVE) & ~Execution.revoked
        held = select(Execution.id).where(*claim.matches, or_(Execution.lease_until > now(), may_start))
        if (execution_id := session.scalar(held)) is not None:
            raise LeaseHeldError(f"Another process has execution {execution_id}.")
    return lease


def take_retried(session: Session, claim: LeaseClaim, request: uuid.UUID, seen: RunSnapshot) -> Lease | None:
    """Open a run that a person retried in Prefect, and take its lease, in one.

    From failed, cancelled to pending, running. `request` is the state in Prefect by which the person asks: it
    opens a run once. `seen` is the row as it stood before Prefect was asked for the request: a run that went
    on and ended since is not opened, for the request may be older than that. None when there is nothing to
    open.
    """
    opened = columns.reopen_row(
        session,
        *claim.matches,
        *columns.as_seen(seen),
        Execution.reopened_from.is_distinct_from(request),
        Execution.lease_owner.is_(None) | (Execution.lease_until <= now()),
        reopened_from=request,
    )
    return _acquire(session, claim) if opened is not None else None


def release(session: Session, lease: Lease) -> bool:
    """Free a run's lease, so that others may take it; False when it was not ours any more."""
    released = update(Execution).where(lease.is_ours).values(columns.FREE).returning(Execution.id)
    return session.scalar(released) is not None


def begin(
    session: Session,
    lease: Lease | None,
    *,
    flow_run_id: uuid.UUID,
    public_id: uuid.UUID | None,
    workflow_id: int,
    client: Client | None,
    initial: Stored,
    priority: str = "normal",
) -> Execution:
    """Begin an attempt of a run whose lease was taken; return its row, `workflow` and `version` loaded.

    From pending, running to running. `client`, `initial` and `priority` count at the first attempt of a run
    that the API did not make (no `public_id`). The first start pins the graph's current version. The chain so
    far stays, and so does `sandbox_id`, for that sandbox to be ended.

    Raises, also to say why there was no lease to take: ExecutionClosedError when the run is over, is being
    cancelled or was refused, ConflictError when it belongs to another flow run or workflow, NotFoundError
    when there is no such row, or no such client (any more). Raises LeaseLostError when the lease is not ours.
    """
    mine = Execution.flow_run_id == flow_run_id if public_id is None else Execution.public_id == public_id
    execution = locked(session, mine)
    if execution is None:
        raise NotFoundError(f"There is no execution {public_id or flow_run_id}: was it deleted?")
    _check_startable(execution, flow_run_id, workflow_id)
    if lease is None or execution.lease_owner != lease.owner:
        raise LeaseLostError(f"Execution {execution.id} is not this process's to begin.")
    if public_id is None and execution.attempt == 0:
        execution.initial = values.put(session, execution.id, initial)
        execution.client_id = client.id if client else None
        execution.client_slug = client.slug if client else None
        execution.priority = checks.one_of("priority", priority, checks.PRIORITIES)
    return _start(session, execution)


def note_sandbox(session: Session, lease: Lease, sandbox_id: str) -> None:
    """Note the sandbox of an attempt: from now on a node may have been started. Raises LeaseLostError."""
    leases.hold(session, lease, sandbox_id=sandbox_id, stepping=True, lost_starts=0)


def mark_unrepeatable(session: Session, lease: Lease, step: int) -> None:
    """Note, before it is sent, that a step's node is about to start and must never be started again.

    It holds until the step succeeds or a person retries or skips it. Raises LeaseLostError.
    """
    leases.hold(session, lease, unrepeatable_step=step)


def step_done(session: Session, lease: Lease, *, succeeded: bool, next_node: str | None) -> None:
    """Note that a step's node has ended, and the node that comes next; the chain has its row.

    A node that failed stays unrepeatable: a run that dies before it is closed must not start it again. Raises
    LeaseLostError.
    """
    changes: dict[str, Any] = {"unrepeatable_step": None} if succeeded else {}
    if next_node is not None:
        changes["current_node"] = next_node
    leases.hold(session, lease, **changes)


def complete(session: Session, lease: Lease) -> None:
    """Close a run that came to its end. Its lease stays until Prefect has heard.

    From running to completed, or to cancelled where somebody was told so. Raises LeaseLostError.
    """
    _end(
        session,
        lease,
        (Status.RUNNING,),
        status=case((Execution.revoked, Status.CANCELLED), else_=Status.COMPLETED),
        error=case((Execution.revoked, columns.text(CANCELLED)), else_=None),
        error_kind=case((Execution.revoked, ErrorKind.CANCELLED), else_=None),
        failed_at_node=None,
    )


def fail(session: Session, lease: Lease, error: str, kind: ErrorKind, node: str | None) -> None:
    """Close a run that stopped with an error, at a node perhaps. Its lease stays until Prefect has heard.

    From pending, running to failed, or to cancelled where somebody was told so. Raises LeaseLostError.
    """
    _end(session, lease, LIVE, **columns.unless_revoked(Closure(Status.FAILED, error, kind), node))


def cancel(session: Session, lease: Lease, message: str) -> None:
    """Close a run that its own process has stopped. Its lease stays until Prefect has heard.

    From pending, running to cancelled. Raises LeaseLostError.
    """
    _end(session, lease, LIVE, **columns.of_closure(Closure(Status.CANCELLED, message, ErrorKind.CANCELLED)))


def schedule_retry(
    session: Session, lease: Lease, error: str, kind: ErrorKind, node: str | None, seconds: float
) -> datetime:
    """Have a run that infrastructure stopped begin again in so many seconds; return when it is due.

    From running to running. One of its retries is used. Its lease stays until Prefect has heard. Raises
    LeaseLostError.
    """
    return _schedule_attempt(session, lease, error, kind, node, seconds, retries=Execution.retries + 1)


def wait_for_provider(
    session: Session, lease: Lease, error: str, kind: ErrorKind, node: str | None, seconds: float
) -> datetime:
    """As `schedule_retry`, while E2B fails for everybody: none of the run's retries is used.

    From running to running.
    """
    return _schedule_attempt(session, lease, error, kind, node, seconds)


def _acquire(session: Session, claim: LeaseClaim) -> Lease | None:
    """Take a lease that is free, ran out, or is this owner's already, of a run that may start."""
    execution_id = session.scalar(
        update(Execution)
        .where(
            *claim.startable,
            ~Execution.revoked,
            or_(
                Execution.lease_owner.is_(None),
                Execution.lease_owner == claim.owner,
                Execution.lease_until <= now(),
            ),
        )
        .values(
            flow_run_id=claim.flow_run_id,
            task_id=func.coalesce(Execution.task_id, claim.flow_run_id),
            lease_owner=claim.owner,
            lease_until=now(claim.seconds),
            stepping=False,
        )
        .returning(Execution.id)
    )
    return Lease(execution_id, claim.owner, claim.seconds) if execution_id is not None else None


def _check_startable(execution: Execution, flow_run_id: uuid.UUID, workflow_id: int) -> None:
    if execution.workflow_id != workflow_id:
        raise ConflictError(
            f"Execution {execution.id} is of workflow {execution.workflow_id}, not {workflow_id}."
        )
    if execution.flow_run_id not in (None, flow_run_id):
        raise ConflictError(
            f"Execution {execution.id} belongs to flow run {execution.flow_run_id}. Retry that one, "
            "or start the workflow anew without an execution id."
        )
    if execution.error_kind == ErrorKind.NOT_STARTED:
        raise ExecutionClosedError(f"Execution {execution.id} was refused before it started.")
    if execution.status not in LIVE:
        raise ExecutionClosedError(f"Execution {execution.id} is {execution.status} already.")
    if execution.revoked:
        raise ExecutionClosedError(f"Execution {execution.id} is being cancelled.")


def _start(session: Session, execution: Execution) -> Execution:
    if execution.version_id is None:
        with session.no_autoflush:  # the client may be gone: `columns.flush` says so
            execution.version_id = session.scalars(
                select(WorkflowVersion.id)
                .join(Workflow, Workflow.id == WorkflowVersion.workflow_id)
                .where(Workflow.id == execution.workflow_id, WorkflowVersion.number == Workflow.version)
            ).one()
    execution.status = Status.RUNNING
    execution.attempt += 1
    execution.started_at = execution.started_at or utcnow()
    execution.error = execution.error_kind = execution.failed_at_node = execution.next_attempt_at = None
    columns.flush(session)
    loaded = with_workflow().options(selectinload(Execution.version)).where(Execution.id == execution.id)
    return session.scalars(loaded).one()


def _schedule_attempt(
    session: Session,
    lease: Lease,
    error: str,
    kind: ErrorKind,
    node: str | None,
    seconds: float,
    **changes: Any,
) -> datetime:
    # The same may have been written before, and only the answer been lost.
    written = session.scalar(select(Execution.next_attempt_at).where(lease.is_ours))
    if written is not None:
        return written
    due = session.scalars(select(now(seconds))).one()
    why = {"error": error, "error_kind": kind, "failed_at_node": node}
    leases.hold(session, lease, next_attempt_at=due, **why, **changes)
    return due


def _end(session: Session, lease: Lease, origins: tuple[Status, ...], **changes: Any) -> None:
    """Close a run for its own process, whose lease lasts anew. What it has closed before stays as it is."""
    renewed = {"lease_until": now(lease.seconds)}
    if columns.close(session, (lease.is_ours, Execution.status.in_(origins)), **renewed, **changes):
        return
    closed_before = update(Execution).where(lease.is_ours, Execution.status.not_in(LIVE)).values(renewed)
    if session.scalar(closed_before.returning(Execution.id)) is None:
        raise leases.lost(session, lease)
