"""Rows that Prefect knows better: a run cancelled before its start, or deleted, cannot say so itself."""

from __future__ import annotations

import asyncio
import uuid

from api.services import Services
from flows.engine.errors import PrefectUnavailableError
from flows.orchestration.runs import RunState, closing
from flows.store import executions

PATIENCE = 2.0
"""Seconds that reading a known run waits for Prefect: as long as clients pause between two polls."""


async def ask_prefect(services: Services, flow_run_id: uuid.UUID) -> RunState | None:
    """Return what Prefect says of a run; None when it knows none. Raises PrefectUnavailableError."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await services.orchestration.runs.find(flow_run_id)
    except TimeoutError:
        raise PrefectUnavailableError(f"Prefect did not answer within {PATIENCE:g} s.") from None


async def close_if_over(services: Services, execution_id: int, state: RunState | None) -> bool:
    """Close an open row whose run is over in Prefect; False while the run may go on.

    The flow's own word counts where it was faster: then the row stays as it closed it.
    """
    closed = closing(state)
    if closed is None:
        return False
    status, error, kind = closed
    await services.database.run(
        lambda session: executions.finish(session, execution_id, status=status, error=error, error_kind=kind)
    )
    return True
