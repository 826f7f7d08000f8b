"""Looking executions up; what changes them stands in `executions`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, joinedload

from flows.graphs.errors import NotFoundError
from flows.store import checks
from flows.store.models import ChainEntry, Execution, Workflow, WorkflowVersion


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
    next_attempt_at: datetime | None
    """When a run that was put off, put back or opened again is due."""
    retries: int
    revoked: bool
    reopened_from: uuid.UUID | None
    nodes_done: int
    """Steps that succeeded."""


def get(session: Session, execution_id: int) -> Execution:
    """One execution with its `workflow` and its version's number loaded. Raises NotFoundError."""
    found = session.scalars(_numbered().where(Execution.id == execution_id)).one_or_none()
    if found is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    return found


def by_task(session: Session, flow_run_id: uuid.UUID) -> Execution | None:
    """The execution of a task id, which is the flow run's, loaded like `get`'s."""
    return session.scalars(_numbered().where(Execution.flow_run_id == flow_run_id)).one_or_none()


def poll(session: Session, flow_run_id: uuid.UUID, public_id: uuid.UUID | None = None) -> Poll | None:
    """What a poll of a task id needs, in one small statement; None when no execution has it.

    `public_id` finds the row that the flow run was made for where its id was not noted there.
    """
    mine = Execution.flow_run_id == flow_run_id
    if public_id is not None:
        mine |= (Execution.public_id == public_id) & Execution.flow_run_id.is_(None)
    row = session.execute(_POLL.where(mine)).one_or_none()
    return Poll(*row) if row is not None else None


def by_public_id(session: Session, public_id: uuid.UUID) -> Execution | None:
    """The execution that the API handed to Prefect under this id, with its `workflow` loaded."""
    return session.scalars(with_workflow().where(Execution.public_id == public_id)).one_or_none()


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
    statement = with_workflow().where(Execution.status.in_(checks.LIVE)).order_by(Execution.id)
    if workflow_id is not None:
        statement = statement.where(Execution.workflow_id == workflow_id)
    return list(session.scalars(statement))


def locked(session: Session, which: ColumnElement[bool]) -> Execution | None:
    """The row, ours until the transaction ends, as it is now and not as it was when we asked for it."""
    return session.scalars(
        select(Execution).where(which).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()


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
    Execution.next_attempt_at,
    Execution.retries,
    Execution.revoked,
    Execution.reopened_from,
    select(func.count())
    .where(ChainEntry.execution_id == Execution.id, ChainEntry.status == "success")
    .scalar_subquery(),
).join(Workflow, Workflow.id == Execution.workflow_id)
"""The fields of `Poll`, in their order."""


def with_workflow() -> Select[tuple[Execution]]:
    """Executions as they are now, with their `workflow` loaded."""
    return select(Execution).options(joinedload(Execution.workflow)).execution_options(populate_existing=True)


def _numbered() -> Select[tuple[Execution]]:
    """With `version` as well, but of it the number alone: the graph may be large."""
    return with_workflow().options(joinedload(Execution.version).load_only(WorkflowVersion.number))
