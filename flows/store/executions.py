"""Executions: the rows that say what became of every run. Each change of status is one guarded statement."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session, selectinload

from flows.engine.errors import ConflictError, ExecutionClosedError, NotFoundError
from flows.store import checks, creation
from flows.store.creation import create_pending as create_pending
from flows.store.metrics import metrics as metrics
from flows.store.models import Client, Execution, Workflow, WorkflowVersion, utcnow
from flows.store.queries import by_public_id as by_public_id
from flows.store.queries import by_task as by_task
from flows.store.queries import get as get
from flows.store.queries import list_ as list_
from flows.store.queries import live as live
from flows.store.queries import with_workflow
from flows.store.values import Stored


def confirm(session: Session, execution_id: int, flow_run_id: uuid.UUID) -> None:
    """Note the flow run that Prefect made; nothing happens when the flow was faster and did so itself."""
    session.execute(
        update(Execution)
        .where(Execution.id == execution_id, Execution.flow_run_id.is_(None))
        .values(flow_run_id=flow_run_id)
    )


def reject(session: Session, execution_id: int, reason: str) -> bool:
    """Close a run that Prefect did not confirm, as never started: no late flow run will start it either.

    False when it is not pending any more: a flow run has it, or it is closed.
    """
    return _close(
        session, execution_id, ("pending",), status="failed", error=reason, error_kind="not_started"
    )


def begin(
    session: Session,
    *,
    flow_run_id: uuid.UUID,
    public_id: uuid.UUID | None,
    workflow_id: int,
    client: Client | None,
    initial: Stored,
    priority: str = "normal",
) -> Execution:
    """Take a run over for a flow run, or on again after it failed or its worker died; count the attempt.

    The row is the one with `public_id`; without that, the one of this flow run, made if there is none (then,
    and only then, `client`, `initial` and `priority` count). The first start pins the graph's current
    version. The chain so far stays: see `chain.visits`. So does `sandbox_id`, for its sandbox to be killed.
    Returns the row with `workflow` and `version` loaded.

    Raises ExecutionClosedError when the run was completed, cancelled or never started (`reject`),
    ConflictError when it belongs to another flow run or workflow, NotFoundError when there is no row with
    `public_id`, no such workflow or no such client (any more).
    """
    if public_id is None:
        mine = Execution.flow_run_id == flow_run_id
        if session.scalar(select(Execution.id).where(mine)) is None:
            creation.insert_row(session, uuid.uuid4(), flow_run_id, workflow_id, client, priority, initial)
        execution = _locked(session, mine)
    else:
        execution = _locked(session, Execution.public_id == public_id)
    if execution is None:
        raise NotFoundError(f"There is no execution {public_id or flow_run_id}: was it deleted?")
    _check_startable(execution, flow_run_id, workflow_id)
    return _start(session, execution, flow_run_id)


def set_progress(
    session: Session, execution_id: int, *, current_node: str | None = None, sandbox_id: str | None = None
) -> None:
    """Note the node that a run is at, and the sandbox that it has; what is None stays as it was."""
    given = {"current_node": current_node, "sandbox_id": sandbox_id}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        session.execute(update(Execution).where(Execution.id == execution_id).values(changes))


def finish(
    session: Session,
    execution_id: int,
    *,
    status: str,
    error: str | None = None,
    error_kind: str | None = None,
    failed_at_node: str | None = None,
) -> bool:
    """Close a run that is pending or running. False when it was closed already, and stays as it was."""
    return _close(
        session,
        execution_id,
        checks.LIVE,
        status=status,
        error=error,
        error_kind=error_kind,
        failed_at_node=failed_at_node,
    )


def _locked(session: Session, which: ColumnElement[bool]) -> Execution | None:
    """The row, ours until the transaction ends, as it is now and not as it was when we asked for it."""
    return session.scalars(
        select(Execution).where(which).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()


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
    if execution.status in ("completed", "cancelled"):
        raise ExecutionClosedError(f"Execution {execution.id} is {execution.status} already.")


def _start(session: Session, execution: Execution, flow_run_id: uuid.UUID) -> Execution:
    if execution.version_id is None:
        execution.version_id = session.scalars(
            select(WorkflowVersion.id)
            .join(Workflow, Workflow.id == WorkflowVersion.workflow_id)
            .where(Workflow.id == execution.workflow_id, WorkflowVersion.number == Workflow.version)
        ).one()
    execution.flow_run_id = flow_run_id
    execution.status = "running"
    execution.attempt += 1
    execution.started_at = execution.started_at or utcnow()
    execution.completed_at = execution.error = execution.error_kind = execution.failed_at_node = None
    session.flush()
    loaded = with_workflow().options(selectinload(Execution.version)).where(Execution.id == execution.id)
    return session.scalars(loaded).one()


def _close(session: Session, execution_id: int, from_: Sequence[str], **changes: str | None) -> bool:
    closed = session.scalar(
        update(Execution)
        .where(Execution.id == execution_id, Execution.status.in_(from_))
        .values(completed_at=utcnow(), current_node=None, **changes)
        .returning(Execution.id)
    )
    return closed is not None
