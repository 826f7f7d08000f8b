"""Executions: the rows that say what became of every run. Each change of status is one guarded statement."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from flows.engine.errors import ConflictError, ExecutionClosedError, NotFoundError
from flows.store import checks, values
from flows.store.metrics import metrics as metrics
from flows.store.models import ChainEntry, Client, Execution, Workflow, WorkflowVersion, utcnow
from flows.store.session import constraint
from flows.store.values import Stored


@dataclass(frozen=True)
class Poll:
    """What a poll of a run has to know of it."""

    id: int
    status: str
    attempt: int
    workflow_id: int
    workflow_name: str
    version_id: int | None
    client_slug: str | None
    started_at: datetime | None
    current_node: str | None
    error: str | None
    failed_at_node: str | None
    nodes_done: int
    """Steps that succeeded."""


def create_pending(
    session: Session, *, workflow_id: int, client: Client | None, priority: str, initial: Stored
) -> Execution:
    """Insert the row of a run that is about to be handed to Prefect under its `public_id`.

    Raises NotFoundError when the workflow or the client is gone, InvalidInputError for a wrong priority.
    """
    return _insert(session, uuid.uuid4(), None, workflow_id, client, priority, initial)


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
        session, execution_id, ("pending",), None, status="failed", error=reason, error_kind="not_started"
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
            _insert(session, uuid.uuid4(), flow_run_id, workflow_id, client, priority, initial)
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
    attempt: int | None = None,
) -> bool:
    """Close a run that is pending or running. False when it was closed already, and stays as it was.

    Who knows from elsewhere that it is over gives the `attempt` that was: one begun since then goes on.
    """
    return _close(
        session,
        execution_id,
        checks.LIVE,
        attempt,
        status=status,
        error=error,
        error_kind=error_kind,
        failed_at_node=failed_at_node,
    )


def get(session: Session, execution_id: int) -> Execution:
    """One execution with its `workflow` and its version's number loaded. Raises NotFoundError."""
    found = session.scalars(_numbered().where(Execution.id == execution_id)).one_or_none()
    if found is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    return found


def by_task(session: Session, flow_run_id: uuid.UUID) -> Execution | None:
    """The execution of a task id, which is the flow run's, loaded like `get`'s."""
    return session.scalars(_numbered().where(Execution.flow_run_id == flow_run_id)).one_or_none()


def poll(session: Session, flow_run_id: uuid.UUID) -> Poll | None:
    """What a poll of a task id needs, in one small statement; None when no execution has it."""
    row = session.execute(_POLL.where(Execution.flow_run_id == flow_run_id)).one_or_none()
    return Poll(*row) if row is not None else None


def by_public_id(session: Session, public_id: uuid.UUID) -> Execution | None:
    """The execution that the API handed to Prefect under this id, with its `workflow` loaded."""
    return session.scalars(_select().where(Execution.public_id == public_id)).one_or_none()


def list_(
    session: Session,
    *,
    workflow_id: int | None = None,
    status: str | None = None,
    skip: int = 0,
    limit: int = 100,
) -> tuple[list[Execution], int]:
    """A page of the executions, newest first, and how many there are in all. Raises InvalidInputError."""
    where: list[ColumnElement[bool]] = []
    if workflow_id is not None:
        where.append(Execution.workflow_id == workflow_id)
    if status is not None:
        where.append(Execution.status == checks.one_of("status", status, checks.STATUSES))
    page = session.scalars(
        _numbered().where(*where).order_by(Execution.id.desc()).offset(skip).limit(limit)
    ).all()
    return list(page), session.scalar(select(func.count()).select_from(Execution).where(*where)) or 0


def live(session: Session, workflow_id: int | None = None) -> list[Execution]:
    """The runs that are not over, of one workflow or of all, oldest first."""
    statement = _select().where(Execution.status.in_(checks.LIVE)).order_by(Execution.id)
    if workflow_id is not None:
        statement = statement.where(Execution.workflow_id == workflow_id)
    return list(session.scalars(statement))


_POLL = select(
    Execution.id,
    Execution.status,
    Execution.attempt,
    Execution.workflow_id,
    Workflow.name,
    Execution.version_id,
    Execution.client_slug,
    Execution.started_at,
    Execution.current_node,
    Execution.error,
    Execution.failed_at_node,
    select(func.count())
    .where(ChainEntry.execution_id == Execution.id, ChainEntry.status == "success")
    .scalar_subquery(),
).join(Workflow, Workflow.id == Execution.workflow_id)
"""The fields of `Poll`, in their order."""


def _select() -> Select[tuple[Execution]]:
    return select(Execution).options(joinedload(Execution.workflow)).execution_options(populate_existing=True)


def _numbered() -> Select[tuple[Execution]]:
    """With `version` as well, but of it the number alone: the graph may be large."""
    return _select().options(joinedload(Execution.version).load_only(WorkflowVersion.number))


def _insert(
    session: Session,
    public_id: uuid.UUID,
    flow_run_id: uuid.UUID | None,
    workflow_id: int,
    client: Client | None,
    priority: str,
    initial: Stored,
) -> Execution:
    row: dict[str, Any] = {
        "public_id": public_id,
        "flow_run_id": flow_run_id,
        "workflow_id": workflow_id,
        "client_id": client.id if client else None,
        "client_slug": client.slug if client else None,
        "priority": checks.one_of("priority", priority, checks.PRIORITIES),
        # The digests may be written before the values: they are one transaction.
        "initial": {key: value.digest for key, value in initial.items()},
    }
    statement = (
        insert(Execution)
        .values(row)
        # Of two that begin the same flow run at once one inserts, and the other waits here, then finds it.
        .on_conflict_do_nothing(index_elements=[Execution.flow_run_id])
        .returning(Execution)
    )
    try:
        made = session.scalar(statement)
    except IntegrityError as error:
        gone = "client" if constraint(error).startswith("fk_executions_client_id") else "workflow"
        raise NotFoundError(f"There is no such {gone} any more.") from None
    if made is None:
        return session.scalars(select(Execution).where(Execution.flow_run_id == flow_run_id)).one()
    if initial:
        values.put(session, made.id, initial)
    return made


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
    loaded = _select().options(selectinload(Execution.version)).where(Execution.id == execution.id)
    return session.scalars(loaded).one()


def _close(
    session: Session, execution_id: int, from_: Sequence[str], attempt: int | None, **changes: str | None
) -> bool:
    closing = (
        update(Execution)
        .where(Execution.id == execution_id, Execution.status.in_(from_))
        .values(completed_at=utcnow(), current_node=None, **changes)
        .returning(Execution.id)
    )
    if attempt is not None:
        closing = closing.where(Execution.attempt == attempt)
    return session.scalar(closing) is not None
