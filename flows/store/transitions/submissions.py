"""How a run comes into being: accepted by the API, or started in Prefect."""

from __future__ import annotations

import uuid
from contextlib import suppress

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import Closure, ErrorKind, Status
from flows.store import checks, values
from flows.store.models import Client, Execution, Workflow
from flows.store.transitions import columns
from flows.store.values import Stored


def create(
    session: Session,
    *,
    workflow_id: int,
    client: Client | None,
    priority: str,
    initial: Stored,
    public_id: uuid.UUID | None = None,
) -> Execution:
    """Insert the row of a run that is about to be submitted to Prefect under its `public_id`.

    From nothing to pending. Raises NotFoundError when the workflow or the client is gone, InvalidInputError
    for a wrong priority.
    """
    row = Execution(
        public_id=public_id or uuid.uuid4(),
        workflow_id=workflow_id,
        client_id=client.id if client else None,
        client_slug=client.slug if client else None,
        priority=checks.one_of("priority", priority, checks.PRIORITIES),
        # The digests may be written before the values: they are one transaction.
        initial={key: value.digest for key, value in initial.items()},
    )
    session.add(row)
    columns.flush(session)
    if initial:
        values.put(session, row.id, initial)
    return row


def await_create(session: Session, public_id: uuid.UUID, workflow_id: int) -> None:
    """Wait until the transaction that is to `create` this run has ended; its connection may be lost.

    Raises what becomes a DatabaseUnavailableError when that takes longer than 5 s.
    """
    session.execute(text("SET LOCAL lock_timeout = '5s'"))
    with suppress(IntegrityError), session.begin_nested() as attempt:
        # One of two with the same key waits for the other's transaction.
        session.execute(insert(Execution).values(public_id=public_id, workflow_id=workflow_id))
        attempt.rollback()


def adopt(session: Session, flow_run_id: uuid.UUID, workflow_id: int) -> None:
    """Insert the row of a run that was started in Prefect, unless it has one or its workflow is gone.

    From nothing to pending. `begin` fills in client and context.
    """
    workflow = select(Workflow.id).where(Workflow.id == workflow_id)
    # Locked, or it might be deleted before the row refers to it.
    if session.scalar(workflow.with_for_update(read=True, key_share=True)) is None:
        return
    session.execute(
        insert(Execution)
        .values(flow_run_id=flow_run_id, task_id=flow_run_id, workflow_id=workflow_id)
        # Of two that take the same flow run at once one inserts, and the other waits here, then finds it.
        .on_conflict_do_nothing()
    )


def confirm(session: Session, execution_id: int, flow_run_id: uuid.UUID) -> bool:
    """Note the flow run that Prefect made; nothing changes where the flow has noted it before.

    False when the run was refused meanwhile: that flow run will never start it.
    """
    session.execute(
        update(Execution)
        .where(Execution.id == execution_id, Execution.flow_run_id.is_(None))
        .values(flow_run_id=flow_run_id, task_id=func.coalesce(Execution.task_id, flow_run_id))
    )
    refused = select(Execution.id).where(
        Execution.id == execution_id, Execution.error_kind == ErrorKind.NOT_STARTED
    )
    return session.scalar(refused) is None


def refuse(session: Session, execution_id: int, reason: str) -> bool:
    """Close a run that Prefect did not confirm; no late flow run will start it either.

    From pending to cancelled. False when it is closed, or a flow run has it: another request with the same
    Idempotency-Key may have been told so.
    """
    return columns.close(
        session,
        (
            Execution.id == execution_id,
            Execution.status == Status.PENDING,
            Execution.attempt == 0,
            Execution.task_id.is_(None),
        ),
        **columns.of_closure(Closure(Status.CANCELLED, reason, ErrorKind.NOT_STARTED)),
        **columns.FREE,
    )
