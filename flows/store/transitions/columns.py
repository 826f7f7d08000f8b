"""Columns and conditions that the transitions share."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, case, literal, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import NotFoundError
from flows.graphs.lifecycle import LIVE, REOPENABLE, Closure, ErrorKind, RunSnapshot, Status
from flows.store.base import utcnow
from flows.store.database import constraint, now
from flows.store.models import Execution

FREE: Final[dict[str, Any]] = {"lease_owner": None, "lease_until": None}
"""The columns of a lease that nobody has."""
RESET: Final[dict[str, Any]] = {
    "retries": 0,
    "crashes": 0,
    "crash_step": None,
    "lost_starts": 0,
    "unrepeatable_step": None,
    "revoked": False,
}
"""What a person's retry resets: all attempts are there again, and an unrepeatable node may start once
more."""


def close(session: Session, which: Sequence[ColumnElement[bool]], **changes: Any) -> bool:
    """Close the rows that match; False when none does."""
    closed = (
        update(Execution)
        .where(*which)
        .values(completed_at=utcnow(), current_node=None, next_attempt_at=None, **changes)
        .returning(Execution.id)
    )
    return session.scalar(closed) is not None


def reopen_row(session: Session, *which: ColumnElement[bool], reopened_from: uuid.UUID | None) -> int | None:
    """Open a run that failed or was cancelled; its id, or None: there is none."""
    return session.scalar(
        update(Execution)
        .where(
            *which,
            Execution.status.in_(REOPENABLE),
            Execution.error_kind.is_distinct_from(ErrorKind.NOT_STARTED),
        )
        .values(
            status=case((Execution.attempt == 0, Status.PENDING), else_=Status.RUNNING),
            completed_at=None,
            next_attempt_at=now(),
            reopened_from=reopened_from,
            **RESET,
        )
        .returning(Execution.id)
    )


def of_closure(closure: Closure, node: str | None = None) -> dict[str, Any]:
    """The columns of a closure, at a node perhaps."""
    return {
        "status": closure.status,
        "error": closure.error,
        "error_kind": closure.kind,
        "failed_at_node": node,
    }


def unless_revoked(closure: Closure, node: str | None = None) -> dict[str, Any]:
    """The columns of a closure; a run of which somebody was told that it is cancelled ends as that."""
    return of_closure(closure, node) | {
        "status": case((Execution.revoked, Status.CANCELLED), else_=closure.status),
        "error_kind": case((Execution.revoked, ErrorKind.CANCELLED), else_=closure.kind),
    }


def text(value: str) -> ColumnElement[str]:
    """A text as the column `error` stores it, to stand in a `case`: there SQLAlchemy takes it as it is."""
    return literal(value, Execution.error.type)


def open_as_seen(seen: RunSnapshot) -> tuple[ColumnElement[bool], ...]:
    """Whether a run is open, and was neither begun nor reopened since it was seen."""
    return (*as_seen(seen), Execution.status.in_(LIVE))


def as_seen(seen: RunSnapshot) -> tuple[ColumnElement[bool], ...]:
    """Whether a run was neither begun nor reopened since: a retry opens it before its attempt is counted."""
    return (
        Execution.id == seen.id,
        Execution.attempt == seen.attempt,
        Execution.reopened_from.is_not_distinct_from(seen.reopened_from),
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
