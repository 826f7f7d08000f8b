"""Every read of executions but for those of `orphans`, which finds the ones that nobody runs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, joinedload

from flows.graphs.errors import NotFoundError
from flows.graphs.lifecycle import LIVE, ErrorKind, RunSnapshot, Status, StepStatus
from flows.store import checks
from flows.store.models import ChainEntry, Execution, Workflow, WorkflowVersion


@dataclass(frozen=True)
class Poll:
    """What a poll of a run has to know of it."""

    id: int
    flow_run_id: uuid.UUID | None
    task_id: uuid.UUID | None
    public_id: uuid.UUID
    status: Status
    error_kind: ErrorKind | None
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
    """When the next attempt of a run that waits for it, or that a person retried, is due."""
    retries: int
    revoked: bool
    reopened_from: uuid.UUID | None
    leased: bool
    nodes_done: int
    """Steps that succeeded."""

    @property
    def snapshot(self) -> RunSnapshot:
        """The row, as far as decisions need it."""
        return RunSnapshot(
            self.id,
            self.flow_run_id,
            self.public_id,
            self.status,
            self.attempt,
            self.error_kind,
            self.revoked,
            self.reopened_from,
            self.leased,
        )


def get(session: Session, execution_id: int) -> Execution:
    """One execution with its `workflow` and its version's number loaded. Raises NotFoundError."""
    found = session.scalars(_numbered().where(Execution.id == execution_id)).one_or_none()
    if found is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    return found


def by_task(session: Session, flow_run_id: uuid.UUID) -> Execution | None:
    """The execution of a task id, which is the flow run's, loaded like `get`'s."""
    return session.scalars(_numbered().where(_of_task(flow_run_id))).one_or_none()


def poll(session: Session, flow_run_id: uuid.UUID, public_id: uuid.UUID | None = None) -> Poll | None:
    """What a poll of a task id needs, in one small statement; None when no execution has it.

    `public_id` finds the row that the flow run was made for where its id was not noted there.
    """
    mine = _of_task(flow_run_id)
    if public_id is not None:
        mine |= (Execution.public_id == public_id) & Execution.flow_run_id.is_(None)
    row = session.execute(_POLL.where(mine)).one_or_none()
    return Poll(*row) if row is not None else None


def by_public_id(session: Session, public_id: uuid.UUID) -> Execution | None:
    """The execution that the API submitted to Prefect under this id, with its `workflow` loaded."""
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
        where.append(Execution.status == checks.one_of("status", status, tuple(Status)))
    page = session.scalars(
        _numbered().where(*where).order_by(Execution.id.desc()).offset(skip).limit(limit)
    ).all()
    return list(page), session.scalar(select(func.count()).select_from(Execution).where(*where)) or 0


def live(session: Session, workflow_id: int | None = None) -> list[Execution]:
    """The runs that are not over, of one workflow or of all, oldest first."""
    statement = with_workflow().where(Execution.status.in_(LIVE)).order_by(Execution.id)
    if workflow_id is not None:
        statement = statement.where(Execution.workflow_id == workflow_id)
    return list(session.scalars(statement))


def locked(session: Session, which: ColumnElement[bool]) -> Execution | None:
    """The row, locked until the transaction ends, as it is once it is locked."""
    return session.scalars(
        select(Execution).where(which).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()


_POLL = select(
    Execution.id,
    Execution.flow_run_id,
    Execution.task_id,
    Execution.public_id,
    Execution.status,
    Execution.error_kind,
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
    Execution.lease_owner.is_not(None),
    select(func.count())
    .where(ChainEntry.execution_id == Execution.id, ChainEntry.status == StepStatus.SUCCESS)
    .scalar_subquery(),
).join(Workflow, Workflow.id == Execution.workflow_id)
"""The fields of `Poll`, in their order."""


def _of_task(task_id: uuid.UUID) -> ColumnElement[bool]:
    """Whether a row is a task's: by its flow run, or by the first one, which Prefect may have lost."""
    return (Execution.flow_run_id == task_id) | (Execution.task_id == task_id)


def with_workflow() -> Select[tuple[Execution]]:
    """Executions as they are now, with their `workflow` loaded."""
    return select(Execution).options(joinedload(Execution.workflow)).execution_options(populate_existing=True)


def _numbered() -> Select[tuple[Execution]]:
    """With `version` as well, but of it the number alone: the graph may be large."""
    return with_workflow().options(joinedload(Execution.version).load_only(WorkflowVersion.number))
