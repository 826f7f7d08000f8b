"""Leases: of all processes that might run an execution, one at a time may write what becomes of it.

A lease has an owner, a new one each time a process takes a run, and a time until which nobody else may take
it. Every write of a flow begins with `hold`, so that a process that was only slow, and comes back after
another one took the run over, changes nothing. Times are the database's. Leases are taken and released in
`flows.store.transitions`; here they are renewed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from flows.graphs.errors import LeaseLostError
from flows.graphs.lifecycle import LIVE, Status
from flows.store.database import now
from flows.store.models import Execution


@dataclass(frozen=True)
class Lease:
    """The right to write one execution."""

    execution_id: int
    owner: UUID
    seconds: float
    """How long it lasts from each renewal."""

    @property
    def is_ours(self) -> ColumnElement[bool]:
        """Whether an execution's row is still this owner's."""
        return (Execution.id == self.execution_id) & (Execution.lease_owner == self.owner)


@dataclass(frozen=True)
class LeaseClaim:
    """Which process wants the lease of which run: the row with `public_id`, or else that of the flow run."""

    flow_run_id: UUID
    public_id: UUID | None
    workflow_id: int
    owner: UUID
    seconds: float

    @property
    def matches(self) -> tuple[ColumnElement[bool], ...]:
        """Whether a row is the one that this flow run may run."""
        mine = (
            Execution.flow_run_id == self.flow_run_id
            if self.public_id is None
            else Execution.public_id == self.public_id
        )
        free = or_(Execution.flow_run_id.is_(None), Execution.flow_run_id == self.flow_run_id)
        return mine, Execution.workflow_id == self.workflow_id, free

    @property
    def startable(self) -> tuple[ColumnElement[bool], ...]:
        """Whether it is, and is not over."""
        return (*self.matches, Execution.status.in_(LIVE))


def renew(session: Session, owners: Collection[UUID], seconds: float) -> set[UUID]:
    """Let leases last so many seconds from now, and return the owners that still have theirs."""
    ours = session.scalars(
        update(Execution)
        # By the second condition the index on `lease_until` finds the few rows that are leased.
        .where(Execution.lease_owner.in_(owners), Execution.lease_until.is_not(None))
        .values(lease_until=now(seconds))
        .returning(Execution.lease_owner)
    )
    return {owner for owner in ours if owner is not None}


def hold(session: Session, lease: Lease, **changes: Any) -> None:
    """Make sure that a running execution is ours, and keep it so until the transaction ends.

    The first statement of every write of a flow. It renews the lease, even one that has run out, if nobody
    has taken it yet, and sets `changes` of the row in the same statement. Raises LeaseLostError when somebody
    else took the execution, or closed it.
    """
    held = session.scalar(
        update(Execution)
        .where(lease.is_ours, Execution.status == Status.RUNNING)
        .values({"lease_until": now(lease.seconds), **changes})
        .returning(Execution.id)
    )
    if held is None:
        raise lost(session, lease)


def lost(session: Session, lease: Lease) -> LeaseLostError:
    """Make the error that says what became of a lease that is not ours any more."""
    row = session.execute(
        select(Execution.status, Execution.lease_owner).where(Execution.id == lease.execution_id)
    ).one_or_none()
    if row is None:
        return LeaseLostError(f"Execution {lease.execution_id} was deleted.")
    if row.lease_owner is not None and row.lease_owner != lease.owner:
        return LeaseLostError(f"Execution {lease.execution_id} was taken over by another process.")
    return LeaseLostError(f"Execution {lease.execution_id} is {row.status}, and not ours any more.")
