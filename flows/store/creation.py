"""Making rows of executions: by the API before it asks Prefect, or by the flow of a run from elsewhere."""

from __future__ import annotations

import uuid
from contextlib import suppress

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import NotFoundError
from flows.store import checks, values
from flows.store.database import constraint
from flows.store.models import Client, Execution, Workflow
from flows.store.values import Stored


def create_pending(
    session: Session,
    *,
    workflow_id: int,
    client: Client | None,
    priority: str,
    initial: Stored,
    public_id: uuid.UUID | None = None,
) -> Execution:
    """Insert the row of a run that is about to be handed to Prefect under its `public_id`, made if not given.

    Raises NotFoundError when the workflow or the client is gone, InvalidInputError for a wrong priority.
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
    flush(session)
    if initial:
        values.put(session, row.id, initial)
    return row


def settle(session: Session, public_id: uuid.UUID, workflow_id: int) -> None:
    """Wait until whoever is about to insert a run has committed or not: its connection may be gone already.

    Raises what becomes a DatabaseUnavailableError when that takes longer than 5 s.
    """
    session.execute(text("SET LOCAL lock_timeout = '5s'"))
    with suppress(IntegrityError), session.begin_nested() as attempt:
        # One of two with the same key waits for the other's transaction.
        session.execute(insert(Execution).values(public_id=public_id, workflow_id=workflow_id))
        attempt.rollback()


def ensure_row(session: Session, flow_run_id: uuid.UUID, workflow_id: int) -> None:
    """Make the row of a run that was started elsewhere, unless it has one or its workflow is gone.

    Client and context are filled in by `executions.begin`, which knows them.
    """
    workflow = select(Workflow.id).where(Workflow.id == workflow_id)
    # Locked, or it might be deleted before the row refers to it.
    if session.scalar(workflow.with_for_update(read=True, key_share=True)) is None:
        return
    session.execute(
        insert(Execution)
        .values(flow_run_id=flow_run_id, workflow_id=workflow_id)
        # Of two that take the same flow run at once one inserts, and the other waits here, then finds it.
        .on_conflict_do_nothing(index_elements=[Execution.flow_run_id])
    )


def flush(session: Session) -> None:
    """Write what is new of an execution; raises NotFoundError when its workflow or client is gone."""
    try:
        session.flush()
    except IntegrityError as error:
        if not constraint(error).startswith("fk_executions_"):
            raise
        gone = "client" if constraint(error).startswith("fk_executions_client_id") else "workflow"
        raise NotFoundError(f"There is no such {gone} any more.") from None
