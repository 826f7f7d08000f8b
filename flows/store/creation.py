"""Making rows of executions: by the API before it asks Prefect, or by the flow of a run from elsewhere."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.engine.errors import NotFoundError
from flows.store import checks, values
from flows.store.models import Client, Execution
from flows.store.queries import get, with_workflow
from flows.store.session import constraint
from flows.store.values import Stored


def create_pending(
    session: Session, *, workflow_id: int, client: Client | None, priority: str, initial: Stored
) -> Execution:
    """Insert the row of a run that is about to be handed to Prefect under its `public_id`.

    Raises NotFoundError when the workflow or the client is gone, InvalidInputError for a wrong priority.
    """
    return insert_row(session, uuid.uuid4(), None, workflow_id, client, priority, initial)


def insert_row(
    session: Session,
    public_id: uuid.UUID,
    flow_run_id: uuid.UUID | None,
    workflow_id: int,
    client: Client | None,
    priority: str,
    initial: Stored,
) -> Execution:
    """Insert a row, or find the one that the flow run has already."""
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
        .returning(Execution.id)
    )
    try:
        execution_id = session.scalar(statement)
    except IntegrityError as error:
        gone = "client" if constraint(error).startswith("fk_executions_client_id") else "workflow"
        raise NotFoundError(f"There is no such {gone} any more.") from None
    if execution_id is None:
        return session.scalars(with_workflow().where(Execution.flow_run_id == flow_run_id)).one()
    values.put(session, execution_id, initial)
    return get(session, execution_id)
