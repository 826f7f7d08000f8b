"""Rows that Prefect knows better: a run cancelled before its start cannot say so itself."""

from __future__ import annotations

from uuid import UUID

from api.services import Services
from flows.graphs.flow_run_state import FlowRunState
from flows.graphs.lifecycle import LIVE, Action, Asker, closure_for, decide
from flows.store import executions
from flows.store.executions import Poll
from flows.store.transitions import interventions


async def note_end(services: Services, task_id: UUID, row: Poll, state: FlowRunState | None) -> bool:
    """Note in an open row that its run is over in Prefect, or is being cancelled; True: read it again.

    `state` is what the watch told. It may be a second old, and the run retried since: before anything is
    written Prefect is asked anew. The flow's own word counts where it was faster, and a run that is retried
    or begins an attempt meanwhile goes on. A run that is being cancelled is noted before anybody is told, for
    it might come to its end first, and a final state is not taken back. Raises PrefectUnavailableError.
    """
    seen = row.snapshot
    if decide(seen, state, Asker.POLL) is Action.LEAVE:
        return False
    now = await services.gateway.watch.fresh(row.flow_run_id or task_id)
    action = decide(seen, now, Asker.POLL)
    if action is Action.CLOSE:
        closure = closure_for(seen, now)
        await services.database.run(lambda session: interventions.close_as_seen(session, seen, closure))
    elif action is Action.REVOKE:
        await services.database.run(lambda session: interventions.revoke(session, seen))
    return True


async def note_end_of(services: Services, flow_run_id: UUID) -> bool:
    """As `note_end`, of a run that one knows no more of."""
    state = await services.gateway.watch.state(flow_run_id)
    row = await services.database.look(lambda session: executions.poll(session, flow_run_id))
    return row is None or row.status not in LIVE or await note_end(services, flow_run_id, row, state)
