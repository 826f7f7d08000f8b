"""Rows that Prefect knows better: a run cancelled before its start, or deleted, cannot say so itself."""

from __future__ import annotations

from uuid import UUID

from api.services import Services
from flows.prefect_gateway.flow_runs import FlowRunState, closure_for
from flows.store import executions, transitions
from flows.store.checks import LIVE
from flows.store.executions import Poll


async def note_end(services: Services, flow_run_id: UUID, row: Poll, state: FlowRunState | None) -> bool:
    """Note in an open row that its run is over in Prefect, or is being cancelled; True: read it again.

    `state` is what the watch told. It may be a second old, and the run retried since: before anything is
    written Prefect is asked anew. The flow's own word counts where it was faster, and a run that is retried
    or begins an attempt meanwhile goes on. A run that is being cancelled is noted before anybody is told, for
    it might come to its end first, and a final state is not taken back. Raises PrefectUnavailableError.
    """
    if closure_for(state) is None and not (_is_cancelling(state) and not row.revoked):
        return False
    now = await services.gateway.watch.fresh(flow_run_id)
    closed = closure_for(now, row.reopened_from)
    if closed is not None:
        status, error, kind = closed
        await services.database.run(
            lambda session: transitions.finish(
                session,
                row.id,
                status=status,
                error=error,
                error_kind=kind,
                attempt=row.attempt,
                reopened_from=row.reopened_from,
            )
        )
    elif _is_cancelling(now):
        await services.database.run(
            lambda session: transitions.revoke(session, row.id, row.attempt, row.reopened_from)
        )
    return True


async def note_end_of(services: Services, flow_run_id: UUID) -> bool:
    """As `note_end`, of a run that one knows no more of."""
    state = await services.gateway.watch.state(flow_run_id)
    row = await services.database.look(lambda session: executions.poll(session, flow_run_id))
    return row is None or row.status not in LIVE or await note_end(services, flow_run_id, row, state)


def _is_cancelling(state: FlowRunState | None) -> bool:
    return state is not None and state.kind == "cancelling"
