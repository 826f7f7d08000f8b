"""What a poll of a task answers, and what it notes in the row where Prefect knows better.

A run that was cancelled before its start cannot say so itself.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from api.responses import timestamp
from api.services import Services
from flows.graphs.errors import NotFoundError
from flows.graphs.flow_run_state import FlowRunState, PrefectState
from flows.graphs.lifecycle import LIVE, Action, Asker, Status, closure_for, decide
from flows.store import executions
from flows.store.base import utcnow
from flows.store.executions import Poll
from flows.store.transitions import interventions

_QUEUED = "Task is queued, waiting for worker"
_EXECUTING = "Task is executing"
_SUCCEEDED = "Task completed successfully"
_FAILED = "Task failed"
CANCELLED_TASK = "Task was cancelled"


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


# -- the contract's answers --------------------------------------------------------------------------


def unstarted(task_id: UUID, state: FlowRunState | None) -> dict[str, Any]:
    """The answer for a run that has no row: Prefect has it, but its flow did not begin (yet).

    A run that got to its end without a row is not one of ours, or was deleted with its workflow.
    """
    if state is None or state.workflow_id is None or state.status == "SUCCESS":
        raise NotFoundError(f"There is no task {task_id}.")
    if state.status == "RUNNING" and state.state_name == "Running":
        # Its flow makes the row at any moment; until then there is no execution to tell of.
        return _body(task_id, "PENDING", _QUEUED)
    body = _body(task_id, state.status, state.message)
    if state.status in ("FAILURE", "RETRY", "REVOKED"):
        body["error"] = state.state_message or state.message
    if state.status == "RETRY":
        body |= {"retries": 0, "next_attempt_at": timestamp(state.next_attempt or utcnow())}
    return body


def from_prefect(task_id: UUID, row: Poll, state: FlowRunState | None) -> dict[str, Any]:
    """The answer for an open row beside what Prefect said of its flow run, a second ago perhaps."""
    if row.status is Status.RUNNING and not row.revoked and state is not None:
        if state.kind is PrefectState.CRASHED or state.is_over_limit:  # it is about to be requeued
            return _retry(task_id, row, state.state_message)
        if state.status == "RETRY" and row.next_attempt_at is None:
            return _retry(task_id, row, state.state_message, due=state.next_attempt)
        is_old = state.run_count == 0  # Prefect was asked before the run began
        if state.status == "PENDING" and row.next_attempt_at is None and not is_old:
            return _body(task_id, state.status, state.message)
        if state.status == "RUNNING" and row.next_attempt_at is None:
            return _body(task_id, state.status, state.message) | {"meta": _meta(row)}
    return from_row(task_id, row)


def from_row(task_id: UUID, row: Poll, remark: str = "") -> dict[str, Any]:
    """The answer for an open row by itself."""
    if row.revoked:
        body = _body(task_id, "REVOKED", CANCELLED_TASK)
        return body | {"execution_id": row.id, "error": "The run is being cancelled."}
    if row.next_attempt_at is not None:
        return _retry(task_id, row, remark=remark)
    if row.status is Status.PENDING:
        return _body(task_id, "PENDING", _QUEUED + remark)
    return _body(task_id, "RUNNING", _EXECUTING + remark) | {"meta": _meta(row)}


def _retry(
    task_id: UUID, row: Poll, why: str = "", remark: str = "", due: datetime | None = None
) -> dict[str, Any]:
    """The answer for a run that waits for its next attempt; one that is about to be requeued is due now."""
    return _body(task_id, "RETRY", f"Task failed, retrying ({row.attempt} attempts){remark}") | {
        "error": row.error or why or _FAILED,
        "retries": row.retries,
        "next_attempt_at": timestamp(row.next_attempt_at or due or utcnow()),
    }


def closed(task_id: UUID, row: Poll) -> dict[str, Any]:
    """The answer for a run that failed or was cancelled."""
    body = _body(task_id, "FAILURE", _FAILED)
    if row.status is Status.CANCELLED:
        body = _body(task_id, "REVOKED", CANCELLED_TASK)
    return body | {
        "execution_id": row.id,
        "error": row.error or body["message"],
        "failed_at_node": row.failed_at_node,
    }


def succeeded(task_id: UUID, row: Poll) -> dict[str, Any]:
    """The answer for a run that is completed, but for its result."""
    return _body(task_id, "SUCCESS", _SUCCEEDED) | {"execution_id": row.id}


def _body(task_id: UUID, status: str, message: str) -> dict[str, Any]:
    return {"task_id": str(task_id), "status": status, "message": message}


def _meta(row: Poll) -> dict[str, Any]:
    return {
        "execution_id": row.id,
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow_name,
        "client_slug": row.client_slug,
        "started_at": timestamp(row.started_at),
        "progress": {"nodes_done": row.nodes_done, "current_node": row.current_node},
    }
