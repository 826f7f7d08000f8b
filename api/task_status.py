"""The answers to polls of a task; a poll also notes in the row what only Prefect knows.

For example, a run that was cancelled before its start cannot write that itself.
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
    """Note in an open row that Prefect ended or cancels its run; return whether to read the row again.

    `state` comes from the watch. It may be a second old, and the run may have been retried since: so Prefect
    is asked again before anything is written. If the flow has written its own end first, that end counts. A
    run that is retried or begins an attempt meanwhile goes on. A cancellation is noted before any client is
    told of it: else the run might end differently first, and an end is final. Raises PrefectUnavailableError.
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
    """Do the same as `note_end`, given only the flow run's id."""
    state = await services.gateway.watch.state(flow_run_id)
    row = await services.database.look(lambda session: executions.poll(session, flow_run_id))
    return row is None or row.status not in LIVE or await note_end(services, flow_run_id, row, state)


# -- the contract's answers --------------------------------------------------------------------------


def unstarted(task_id: UUID, state: FlowRunState | None) -> dict[str, Any]:
    """Return the answer for a run that has no row: Prefect has it, but its flow has not begun.

    Raises NotFoundError for a run that succeeded without a row: it is not ours, or was deleted with its
    workflow.
    """
    if state is None or state.workflow_id is None or state.status == "SUCCESS":
        raise NotFoundError(f"There is no task {task_id}.")
    if state.status == "RUNNING" and state.state_name == "Running":
        # Its flow is about to make the row; until then there is no execution to name.
        return _body(task_id, "PENDING", _QUEUED)
    body = _body(task_id, state.status, state.message)
    if state.status in ("FAILURE", "RETRY", "REVOKED"):
        body["error"] = state.state_message or state.message
    if state.status == "RETRY":
        body |= {"retries": 0, "next_attempt_at": timestamp(state.next_attempt or utcnow())}
    return body


def from_prefect(task_id: UUID, row: Poll, state: FlowRunState | None) -> dict[str, Any]:
    """Return the answer for an open row and its flow run's state, which may be a second old."""
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
    """Return the answer for an open row without Prefect's state."""
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
    """Return the answer for a run that waits for its next attempt; without a known time, it is due now."""
    return _body(task_id, "RETRY", f"Task failed, retrying ({row.attempt} attempts){remark}") | {
        "error": row.error or why or _FAILED,
        "retries": row.retries,
        "next_attempt_at": timestamp(row.next_attempt_at or due or utcnow()),
    }


def closed(task_id: UUID, row: Poll) -> dict[str, Any]:
    """Return the answer for a run that failed or was cancelled."""
    body = _body(task_id, "FAILURE", _FAILED)
    if row.status is Status.CANCELLED:
        body = _body(task_id, "REVOKED", CANCELLED_TASK)
    return body | {
        "execution_id": row.id,
        "error": row.error or body["message"],
        "failed_at_node": row.failed_at_node,
    }


def succeeded(task_id: UUID, row: Poll) -> dict[str, Any]:
    """Return the answer for a completed run, without its result."""
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
