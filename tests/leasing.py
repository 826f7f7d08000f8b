"""What a flow does at its start: takes the lease of its execution and begins it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from flows.store import orphans
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Client, Execution
from flows.store.transitions import attempts
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
    request: UUID | None = None,
    **more: Any,
) -> Execution:
    """Take the lease, for a new owner unless one is given, and begin; raises what either raises.

    `request` is the state in Prefect by which a person retries a run that is over.
    """
    claim = LeaseClaim(flow_run_id, public_id, workflow_id, owner or uuid4(), SECONDS)
    lease = attempts.take(session, claim)
    if lease is None and request is not None:
        lease = take_retried(session, claim, request)
    return attempts.begin(
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


def take_retried(session: Session, claim: LeaseClaim, request: UUID) -> Lease | None:
    """Open a run that a person retried in Prefect, as it stands now, and take its lease."""
    seen = orphans.match_flow_runs(session, {claim.flow_run_id: claim.public_id})[claim.flow_run_id]
    return attempts.take_retried(session, claim, request, seen)
