"""The circuit breaker of the sandbox provider: one state for all workers.

While it is closed everybody uses the provider. After so many failures in a row it is open: nobody tries, runs
wait. When its pause is over it is half open: one caller tries, the others wait for its result. Only failures
of the provider count, never those of a node's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, case, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flows.config import times
from flows.store.base import UtcTime
from flows.store.database import now
from flows.store.models import CircuitBreaker

NAME: Final = "e2b"

_IS_MINE: Final = CircuitBreaker.name == NAME


@dataclass(frozen=True)
class Admission:
    """Whether a caller may use the provider; if not, when it is to ask again."""

    allowed: bool
    retry_at: datetime | None = None
    is_probe: bool = False
    """Whether the caller tries for all others, who wait meanwhile."""


def admit(session: Session) -> Admission:
    """Ask whether a sandbox may be made. An admitted caller reports the result: `succeeded` or `failed`."""
    if _state(session) == "closed":
        return Admission(True)
    probe = session.scalar(
        update(CircuitBreaker)
        .where(
            _IS_MINE,
            or_(
                and_(CircuitBreaker.state == "open", CircuitBreaker.retry_at <= now()),
                and_(CircuitBreaker.state == "half_open", CircuitBreaker.probe_until <= now()),
            ),
        )
        .values(state="half_open", probe_until=now(times.BREAKER_PROBE))
        .returning(CircuitBreaker.name)
    )
    if probe is not None:
        return Admission(True, is_probe=True)
    soon = func.least(CircuitBreaker.probe_until, now(times.BREAKER_LOOK), type_=UtcTime)
    waiting = case((CircuitBreaker.state == "half_open", soon), else_=CircuitBreaker.retry_at)
    state, retry_at = session.execute(select(CircuitBreaker.state, waiting).where(_IS_MINE)).one()
    return Admission(True) if state == "closed" else Admission(False, retry_at)


def failed(session: Session, threshold: int, pause: float) -> None:
    """Count a failure of the provider; the `threshold`-th in a row opens the breaker for `pause` seconds.

    Any failure opens it while it is half open. A failure while it is open is of a call that began before.
    """
    opens = or_(CircuitBreaker.state == "half_open", CircuitBreaker.failures + 1 >= threshold)
    opens_now = and_(CircuitBreaker.state != "open", opens)
    first: dict[str, Any] = {"state": "closed", "failures": 1}
    if threshold <= 1:
        first |= {"state": "open", "opened_at": now(), "retry_at": now(pause)}
    session.execute(
        insert(CircuitBreaker)
        .values(name=NAME, **first)
        .on_conflict_do_update(
            index_elements=[CircuitBreaker.name],
            set_={
                "failures": CircuitBreaker.failures + 1,
                "state": case((opens_now, "open"), else_=CircuitBreaker.state),
                "opened_at": case((opens_now, now()), else_=CircuitBreaker.opened_at),
                "retry_at": case((opens_now, now(pause)), else_=CircuitBreaker.retry_at),
                "probe_until": None,
            },
        )
    )


def succeeded(session: Session) -> None:
    """Note that the provider works: closed, and the count of failures begins anew."""
    session.execute(
        update(CircuitBreaker)
        .where(_IS_MINE, or_(CircuitBreaker.failures > 0, CircuitBreaker.state != "closed"))
        .values(state="closed", failures=0, opened_at=None, retry_at=None, probe_until=None)
    )


def read(session: Session) -> dict[str, Any]:
    """For `/metrics`: `state`, `failure_count`, `opened_at`, `retry_at`."""
    row = session.scalars(
        select(CircuitBreaker).where(_IS_MINE).execution_options(populate_existing=True)
    ).one_or_none()
    if row is None:
        return {"state": "closed", "failure_count": 0, "opened_at": None, "retry_at": None}
    return {
        "state": row.state,
        "failure_count": row.failures,
        "opened_at": row.opened_at,
        "retry_at": row.retry_at,
    }


def _state(session: Session) -> str:
    return session.scalar(select(CircuitBreaker.state).where(_IS_MINE)) or "closed"
