"""What a flow does at its start: takes the lease of its execution and begins it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from flows.store import leases, transitions
from flows.store.leases import Lease
from flows.store.models import Client, Execution
from flows.store.values import Stored

SECONDS = 30.0
"""How long the leases last that tests take."""


def begin(
    session: Session,
    *,
    flow_run_id: UUID,
    workflow_id: int,
    public_id: UUID | None = None,
    client: Client | None = None,
    initial: Stored | None = None,
    owner: UUID | None = None,
    reopens: bool = False,
    **more: Any,
) -> Execution:
    """Take the lease, for a new owner unless one is given, and begin; raises what either raises.

    It `reopens` what is over where a person has retried it.
    """
    lease = leases.take(
        session,
        flow_run_id=flow_run_id,
        public_id=public_id,
        workflow_id=workflow_id,
        owner=owner or uuid4(),
        seconds=SECONDS,
        reopens=reopens,
    )
    return transitions.begin(
        session,
        lease,
        flow_run_id=flow_run_id,
        public_id=public_id,
        workflow_id=workflow_id,
        client=client,
        initial=initial or {},
        **more,
    )


def lease_of(execution: Execution) -> Lease:
    """The lease that a row was read with."""
    assert execution.lease_owner is not None
    return Lease(execution.id, execution.lease_owner, SECONDS)
