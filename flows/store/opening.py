"""Opening rows of executions again that were closed: a person wants the run to go on."""

from __future__ import annotations

import uuid
from typing import Any, Final

from sqlalchemy import ColumnElement, case, update
from sqlalchemy.orm import Session

from flows.store.database import now
from flows.store.models import Execution

FORGOTTEN: Final[dict[str, Any]] = {
    "retries": 0,
    "crashes": 0,
    "crash_step": None,
    "lost_starts": 0,
    "unrepeatable_step": None,
    "revoked": False,
}
"""What a person's retry forgets: it has all the patience again, and a guarded node may start once more."""


def open_again(
    session: Session, *which: ColumnElement[bool], reopened_from: uuid.UUID | None = None
) -> int | None:
    """Open a row that failed or was cancelled after it had been started; its id, or None: there is none.

    It is due now; the error stays until the next attempt begins. For `reopened_from` see the model.
    """
    return session.scalar(
        update(Execution)
        .where(
            *which,
            Execution.status.in_(("failed", "cancelled")),
            Execution.error_kind.is_distinct_from("not_started"),
        )
        .values(
            # One that Prefect never had is handed to it as at first.
            status=case((Execution.flow_run_id.is_(None), "pending"), else_="running"),
            completed_at=None,
            next_attempt_at=now(),
            reopened_from=reopened_from,
            **FORGOTTEN,
        )
        .returning(Execution.id)
    )
