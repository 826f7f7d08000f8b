"""What the cleanup reads and deletes: the runs that need their sandboxes, keys that stand for nothing."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import LIVE
from flows.store.database import now
from flows.store.idempotency import KEPT
from flows.store.models import Execution, IdempotencyKey


def going_on(session: Session, flow_run_ids: Collection[UUID]) -> dict[UUID, str | None]:
    """The flow runs whose execution is not over, or that some process has the lease of.

    Each with the id of the sandbox that its execution noted last.
    """
    found = session.execute(
        select(Execution.flow_run_id, Execution.sandbox_id).where(
            Execution.flow_run_id.in_(flow_run_ids),
            or_(Execution.status.in_(LIVE), Execution.lease_owner.is_not(None)),
        )
    )
    return {flow_run_id: sandbox_id for flow_run_id, sandbox_id in found if flow_run_id is not None}


def forget_keys(session: Session) -> int:
    """Delete the idempotency keys that are too old to stand for anything; returns how many."""
    old = delete(IdempotencyKey).where(IdempotencyKey.created_at <= now() - KEPT)
    return len(session.scalars(old.returning(IdempotencyKey.key)).all())
