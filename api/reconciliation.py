"""Rows that Prefect knows better: a run cancelled before its start, or deleted, cannot say so itself."""

from __future__ import annotations

from uuid import UUID

from api.services import Services
from flows.orchestration.runs import RunState, closing
from flows.store import executions
from flows.store.checks import LIVE


async def close_if_over(services: Services, flow_run_id: UUID, state: RunState | None) -> bool:
    """Close the open row of a run that is over in Prefect; True when the row is worth reading again.

    `state` is what the watch told. It may be a second old, and the run retried since: before a row is closed
    Prefect is asked anew. The flow's own word counts where it was faster, and an attempt that begins
    meanwhile goes on. Raises PrefectUnavailableError.
    """
    if closing(state) is None:
        return False
    row = await services.database.look(lambda session: executions.poll(session, flow_run_id))
    if row is None or row.status not in LIVE:
        return True
    closed = closing(await services.orchestration.watch.fresh(flow_run_id))
    if closed is None:
        return True
    status, error, kind = closed
    await services.database.run(
        lambda session: executions.finish(
            session, row.id, status=status, error=error, error_kind=kind, attempt=row.attempt
        )
    )
    return True
