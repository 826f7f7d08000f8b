"""How an attempt ends in its row: the run is closed, or its next attempt is scheduled.

The lease stays until Prefect has heard: a process that is slow to tell Prefect must not do so when somebody
else goes on with the run.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from flows.config import times
from flows.config.settings import Settings
from flows.graphs.errors import BreakerOpenError, NodeError, NovaError, SandboxError
from flows.runs import retry_policy
from flows.runs.loading import LoadedRun
from flows.store import circuit_breaker
from flows.store.database import now
from flows.store.leases import Lease
from flows.store.transitions import attempts


def fail(session: Session, lease: Lease, error: NovaError, node: str | None = None) -> None:
    """Close the row of a run that failed, at a node perhaps. Raises LeaseLostError."""
    at = (error.node_id if isinstance(error, NodeError) else "") or node
    attempts.fail(session, lease, str(error), error.kind, at)


def schedule_retry(
    session: Session, settings: Settings, run: LoadedRun, error: NovaError, node: str | None
) -> datetime | None:
    """Schedule the next attempt of a run whose infrastructure broke, and return when it is due.

    None where another attempt does not help, or all retries are used. An attempt that fails while E2B fails
    for everybody (the circuit breaker is open) uses none. Raises LeaseLostError.
    """
    if not retry_policy.may_pass(error):
        return None
    pause = _breaker_pause(session) if settings.uses_e2b and _is_for_breaker(error) else None
    if pause is not None:
        return attempts.wait_for_provider(session, run.lease, str(error), error.kind, node, pause)
    if run.retries >= settings.retries:
        return None
    seconds = retry_policy.delay(run.retries, settings.retry_delay, settings.retry_delay_max)
    return attempts.schedule_retry(session, run.lease, str(error), error.kind, node, seconds)


def _is_for_breaker(error: NovaError) -> bool:
    if isinstance(error, SandboxError):
        return retry_policy.is_provider_failure(error)
    return isinstance(error, BreakerOpenError)


def _breaker_pause(session: Session) -> float | None:
    """Seconds until the breaker may let somebody through; None while it is closed."""
    state = circuit_breaker.read(session)
    if state["state"] == "closed":
        return None
    if state["state"] == "half_open":
        return times.LEAST_BREAKER_PAUSE
    left = state["retry_at"] - session.scalars(select(now())).one()
    return float(max(times.LEAST_BREAKER_PAUSE, left.total_seconds()))
