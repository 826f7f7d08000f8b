"""Leases: of all processes that might run an execution, one at a time may write what becomes of it.

A lease has an owner, drawn anew each time somebody takes a run up, and a time until which nobody else may
take it. Every write of a flow begins with `hold`, so a process that was only slow, and comes back after
another one took over, changes nothing. Times are the database's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from flows.graphs.errors import LeaseHeldError, LeaseLostError
from flows.store import checks, creation, opening
from flows.store.database import now
from flows.store.models import Execution

FREE: dict[str, Any] = {"lease_owner": None, "lease_until": None}


@dataclass(frozen=True)
class Lease:
    """The right to write one execution."""

    execution_id: int
    owner: UUID
    seconds: float
    """How long it lasts from each sign of life."""

    @property
    def is_ours(self) -> ColumnElement[bool]:
        """Whether an execution's row is still this owner's."""
        return (Execution.id == self.execution_id) & (Execution.lease_owner == self.owner)


def take(
    session: Session,
    *,
    flow_run_id: UUID,
    public_id: UUID | None,
    workflow_id: int,
    owner: UUID,
    seconds: float,
    reopens: bool = False,
) -> Lease | None:
    """Take the lease of the execution of a flow run that is about to start; the same owner renews it.

    The row is the one with `public_id`; without that, the one of this flow run, made if there is none. A row
    that failed or was cancelled is opened again where the flow run `reopens` it: a person retried it.

    None when there is nothing to run: `begin` says why. Raises LeaseHeldError when the lease is somebody
    else's and has not run out.
    """

    def acquire() -> int | None:
        return session.scalar(
            update(Execution)
            .where(
                mine,
                *startable,
                or_(
                    Execution.lease_owner.is_(None),
                    Execution.lease_owner == owner,
                    Execution.lease_until <= now(),
                ),
            )
            .values(flow_run_id=flow_run_id, lease_owner=owner, lease_until=now(seconds), stepping=False)
            .returning(Execution.id)
        )

    mine = Execution.flow_run_id == flow_run_id if public_id is None else Execution.public_id == public_id
    ours = (
        Execution.workflow_id == workflow_id,
        or_(Execution.flow_run_id.is_(None), Execution.flow_run_id == flow_run_id),
    )
    startable = (*ours, Execution.status.in_(checks.LIVE))
    execution_id = acquire()
    if execution_id is None and reopens:
        # What stands there as the retry's beginning only has to be another one than before.
        opening.open_again(session, mine, *ours, reopened_from=owner)
        execution_id = acquire()
    if execution_id is None and public_id is None:
        creation.ensure_row(session, flow_run_id, workflow_id)
        execution_id = acquire()
    if execution_id is not None:
        return Lease(execution_id, owner, seconds)
    held = session.scalar(select(Execution.id).where(mine, *startable))
    if held is not None:
        raise LeaseHeldError(f"Execution {held} is being run by another process.")
    return None


def renew(session: Session, owners: Collection[UUID], seconds: float) -> set[UUID]:
    """Let leases last so many seconds from now, and return the owners that still have theirs."""
    ours = session.scalars(
        update(Execution)
        # The second condition is what lets the index on `lease_until` find the few rows that are leased.
        .where(Execution.lease_owner.in_(owners), Execution.lease_until.is_not(None))
        .values(lease_until=now(seconds))
        .returning(Execution.lease_owner)
    )
    return {owner for owner in ours if owner is not None}


def release(session: Session, lease: Lease) -> bool:
    """Give a lease back; False when it was not ours any more."""
    given_back = update(Execution).where(lease.is_ours).values(FREE).returning(Execution.id)
    return session.scalar(given_back) is not None


def hold(session: Session, lease: Lease, **changes: Any) -> None:
    """Make sure that a running execution is ours, and keep it so until the transaction ends.

    The first statement of every write of a flow. It renews the lease, even one that ran out, for nobody took
    it yet; `changes` of the row cost no further statement. Raises LeaseLostError when somebody else took the
    execution, or closed it.
    """
    held = session.scalar(
        update(Execution)
        .where(lease.is_ours, Execution.status == "running")
        .values({"lease_until": now(lease.seconds), **changes})
        .returning(Execution.id)
    )
    if held is None:
        raise lost(session, lease)


def lost(session: Session, lease: Lease) -> LeaseLostError:
    """Say what became of a lease that is not ours any more."""
    row = session.execute(
        select(Execution.status, Execution.lease_owner).where(Execution.id == lease.execution_id)
    ).one_or_none()
    if row is None:
        return LeaseLostError(f"Execution {lease.execution_id} was deleted.")
    if row.lease_owner is not None and row.lease_owner != lease.owner:
        return LeaseLostError(f"Execution {lease.execution_id} was taken over by another process.")
    return LeaseLostError(f"Execution {lease.execution_id} is {row.status}, and not ours any more.")
