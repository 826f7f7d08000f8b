"""How an attempt of a run ends in its row: closed, or put off until infrastructure works again.

The lease outlasts these words, until Prefect has heard them: a process that is slow to tell it must not do so
when somebody else goes on with the run.
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
from flows.store import circuit_breaker, transitions
from flows.store.database import now
from flows.store.leases import Lease


def complete(session: Session, lease: Lease) -> None:
    """Close the row of a run that came to its end. Raises LeaseLostError."""
    transitions.finish(session, lease.execution_id, status="completed", lease=lease, keep_lease=True)


def fail(session: Session, lease: Lease, error: NovaError, node: str | None = None) -> None:
    """Close the row of a run that failed, at a node perhaps. Raises LeaseLostError."""
    transitions.finish(
        session,
        lease.execution_id,
        status="failed",
        error=str(error),
        error_kind=error.kind,
        failed_at_node=(error.node_id if isinstance(error, NodeError) else "") or node,
        lease=lease,
        keep_lease=True,
    )


def schedule_retry(
    session: Session, settings: Settings, run: LoadedRun, error: NovaError, node: str | None
) -> datetime | None:
    """Put a run off whose infrastructure broke, and return when its next attempt is due.

    None when it is not worth another attempt, or had all that it may have; those do not count in which the
    circuit breaker says that E2B fails for everybody. Raises LeaseLostError.
    """
    if not retry_policy.passes(error):
        return None
    wait = _breaker_pause(session) if settings.uses_e2b and _is_for_breaker(error) else None
    if wait is None and run.retries >= settings.retries:
        return None
    seconds = wait or retry_policy.delay(run.retries, settings.retry_delay, settings.retry_delay_max)
    return transitions.schedule_retry(
        session,
        run.lease,
        error=str(error),
        error_kind=error.kind,
        at_node=node,
        seconds=seconds,
        counted=wait is None,
        keep_lease=True,
    )


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
