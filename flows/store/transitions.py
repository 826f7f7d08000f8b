"""Executions: the rows that say what became of every run, and what may happen to them.

Who runs one has its lease (see `leases`); what comes from outside (a rejection, a cancellation, a person's
retry) needs none, and changes a row only from the status that it expects. Making rows, finding them and
opening them again stand in modules of their own, but are called by this one's name.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session, selectinload

from flows.graphs.errors import ConflictError, ExecutionClosedError, LeaseLostError, NotFoundError
from flows.store import checks, creation, leases, values
from flows.store.base import utcnow
from flows.store.creation import create_pending as create_pending
from flows.store.database import now
from flows.store.executions import Poll as Poll
from flows.store.executions import by_public_id as by_public_id
from flows.store.executions import by_task as by_task
from flows.store.executions import get as get
from flows.store.executions import list_ as list_
from flows.store.executions import live as live
from flows.store.executions import locked, with_workflow
from flows.store.executions import poll as poll
from flows.store.leases import Lease
from flows.store.metrics import metrics as metrics
from flows.store.models import Client, Execution, Workflow, WorkflowVersion
from flows.store.retrying import reopen as reopen
from flows.store.retrying import skip as skip
from flows.store.values import Stored


def confirm(session: Session, execution_id: int, flow_run_id: uuid.UUID) -> bool:
    """Note the flow run that Prefect made; nothing happens when the flow was faster and did so itself.

    False when the run was rejected meanwhile: that flow run will never start it.
    """
    session.execute(
        update(Execution)
        .where(Execution.id == execution_id, Execution.flow_run_id.is_(None))
        .values(flow_run_id=flow_run_id)
    )
    rejected = select(Execution.id).where(Execution.id == execution_id, Execution.error_kind == "not_started")
    return session.scalar(rejected) is None


def reject(session: Session, execution_id: int, reason: str) -> bool:
    """Close a run that Prefect did not confirm, as never started: no late flow run will start it either.

    False when it is closed, or a flow run has it: another request with the same key may have been told so.
    """
    return _close(
        session,
        (Execution.id == execution_id, Execution.status == "pending", Execution.flow_run_id.is_(None)),
        status="failed",
        error=reason,
        error_kind="not_started",
        **leases.FREE,
    )


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
    """Start an attempt of a run whose lease was taken: its first, or a further one after whatever ended it.

    `client`, `initial` and `priority` count at the first attempt of a run that the API did not make (no
    `public_id`). The first start pins the graph's current version. The chain so far stays: see
    `chain.visits`. So does `sandbox_id`, for its sandbox to be killed. Returns the row with `workflow` and
    `version` loaded.

    Raises, also to say why there was no lease to take: ExecutionClosedError when the run is over or was never
    started (`reject`), ConflictError when it belongs to another flow run or workflow, NotFoundError
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
        execution.client_id = client.id if client else None
        execution.client_slug = client.slug if client else None
        execution.priority = checks.one_of("priority", priority, checks.PRIORITIES)
        execution.initial = values.put(session, execution.id, initial)
    return _start(session, execution)


def set_progress(
    session: Session, lease: Lease, *, current_node: str | None = None, sandbox_id: str | None = None
) -> None:
    """Note the node that a run is at, and the sandbox that it has; what is None stays as it was.

    With a sandbox there is, from now on, a node that may have been started. Raises LeaseLostError.
    """
    changes: dict[str, Any] = {}
    if current_node is not None:
        changes["current_node"] = current_node
    if sandbox_id is not None:
        changes |= {"sandbox_id": sandbox_id, "stepping": True, "lost_starts": 0}
    leases.hold(session, lease, **changes)


def mark_unrepeatable(session: Session, lease: Lease, step: int) -> None:
    """Note, before it is sent, that a step's node is about to start and must never be started again.

    It holds until the step succeeds (`chain.append`) or a person retries or skips it. Raises LeaseLostError.
    """
    leases.hold(session, lease, unrepeatable_step=step)


def schedule_retry(
    session: Session,
    lease: Lease,
    *,
    error: str,
    error_kind: str,
    at_node: str | None,
    seconds: float,
    counted: bool = True,
    keep_lease: bool = False,
) -> datetime:
    """Put a run off for so many seconds, and return when its next attempt is due; it stays `running`.

    `counted` unless it only waits, as for the circuit breaker. The lease is given back, unless it is kept
    until Prefect has been told. Raises LeaseLostError.
    """
    if keep_lease:  # the same may have been said before, and the answer lost
        said = session.scalar(select(Execution.next_attempt_at).where(lease.is_ours))
        if said is not None:
            return said
    due = session.scalars(select(now(seconds))).one()
    leases.hold(
        session,
        lease,
        retries=Execution.retries + int(counted),
        next_attempt_at=due,
        error=error,
        error_kind=error_kind,
        failed_at_node=at_node,
        **({} if keep_lease else leases.FREE),
    )
    return due


def revoke(session: Session, execution_id: int, attempt: int, reopened_from: uuid.UUID | None = None) -> bool:
    """Note, before anybody is told so, that a run is cancelled though it has not stopped yet.

    It ends as `cancelled`, even if its last node succeeds first. False when that attempt is over, or the run
    was retried since it was seen as `reopened_from`.
    """
    revoked = (
        update(Execution)
        .where(
            Execution.id == execution_id,
            Execution.status.in_(checks.LIVE),
            *_unchanged(attempt, reopened_from),
        )
        .values(revoked=True)
        .returning(Execution.id)
    )
    return session.scalar(revoked) is not None


def finish(
    session: Session,
    execution_id: int,
    *,
    status: str,
    error: str | None = None,
    error_kind: str | None = None,
    failed_at_node: str | None = None,
    lease: Lease | None = None,
    keep_lease: bool = False,
    attempt: int | None = None,
    reopened_from: uuid.UUID | None = None,
) -> bool:
    """Close a run that is pending or running. False when it was closed already, and stays as it was.

    The flow gives its lease, and LeaseLostError is raised unless that is still its own; it may keep it until
    Prefect has been told, so that nobody goes on with the run before. Without a lease the word comes from
    outside, and takes the lease from whoever has it. Who knows from elsewhere that it is over gives the
    `attempt` that was and what it was `reopened_from`: a run begun or retried since then goes on. A run that
    was revoked ends as cancelled.
    """
    which = [Execution.id == execution_id, Execution.status.in_(checks.LIVE)]
    if lease is not None:
        which.append(lease.is_ours)
    if attempt is not None:
        which += _unchanged(attempt, reopened_from)
    closed = _close(
        session,
        which,
        status=case((Execution.revoked, "cancelled"), else_=status),
        error=error,
        error_kind=error_kind,
        failed_at_node=failed_at_node,
        **({} if keep_lease else leases.FREE),
    )
    if not closed and lease is not None:
        kept = keep_lease and leases.renew(session, [lease.owner], lease.seconds)
        if not kept and not leases.release(session, lease):
            raise leases.lost(session, lease)
    return closed


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
    if execution.error_kind == "not_started":
        raise ExecutionClosedError(f"Execution {execution.id} was given up before it started.")
    if execution.status not in checks.LIVE:
        raise ExecutionClosedError(f"Execution {execution.id} is {execution.status} already.")


def _start(session: Session, execution: Execution) -> Execution:
    if execution.version_id is None:
        execution.version_id = session.scalars(
            select(WorkflowVersion.id)
            .join(Workflow, Workflow.id == WorkflowVersion.workflow_id)
            .where(Workflow.id == execution.workflow_id, WorkflowVersion.number == Workflow.version)
        ).one()
    execution.status = "running"
    execution.attempt += 1
    execution.started_at = execution.started_at or utcnow()
    execution.completed_at = execution.error = execution.error_kind = execution.failed_at_node = None
    execution.next_attempt_at = None
    creation.flush(session)
    loaded = with_workflow().options(selectinload(Execution.version)).where(Execution.id == execution.id)
    return session.scalars(loaded).one()


def _unchanged(attempt: int, reopened_from: uuid.UUID | None) -> list[ColumnElement[bool]]:
    """Whether a run is as it was seen: a person's retry opens it before its next attempt is counted."""
    return [Execution.attempt == attempt, Execution.reopened_from.is_not_distinct_from(reopened_from)]


def _close(session: Session, which: Sequence[ColumnElement[bool]], **changes: Any) -> bool:
    closed = (
        update(Execution)
        .where(*which)
        .values(completed_at=utcnow(), current_node=None, next_attempt_at=None, **changes)
        .returning(Execution.id)
    )
    return session.scalar(closed) is not None
