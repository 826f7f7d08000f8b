"""What a flow does last: closes the row of its run, whose lease stays until Prefect has heard."""

from __future__ import annotations

from sqlalchemy.orm import Session

from flows.graphs.lifecycle import ErrorKind, Status
from flows.store.leases import Lease
from flows.store.transitions import attempts


def end(
    session: Session,
    lease: Lease,
    status: Status,
    error: str = "Why.",
    kind: ErrorKind = ErrorKind.NODE,
    node: str | None = None,
) -> None:
    """Close a run for its own process; `kind` and `node` count for one that failed."""
    if status is Status.COMPLETED:
        attempts.complete(session, lease)
    elif status is Status.CANCELLED:
        attempts.cancel(session, lease, error)
    else:
        attempts.fail(session, lease, error, kind, node)
