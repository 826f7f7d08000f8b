"""Tasks: the state of a run, by the id that `execute` gave out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from api import interventions, schemas, views
from api.body import BodyRoute
from api.chain_stream import RunText, gathered
from api.dependencies import ServicesDep, TaskId
from api.documentation import documented
from api.responses import JSON, JsonResponse, timestamp
from api.services import Services
from api.task_status import note_end
from flows.graphs.errors import NotFoundError, PrefectUnavailableError
from flows.graphs.flow_run_state import FlowRunState, PrefectState
from flows.graphs.json_values import dumps
from flows.graphs.lifecycle import LIVE, Status
from flows.store import chain, executions
from flows.store.base import utcnow
from flows.store.database import Database
from flows.store.executions import Poll

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=BodyRoute)

_QUEUED = "Task is queued, waiting for worker"
_EXECUTING = "Task is executing"
_SUCCEEDED = "Task completed successfully"
_FAILED = "Task failed"
_CANCELLED = "Task was cancelled"
_ALL = 2**62
"""More entries than any chain has."""


@router.get("/{task_id}", **documented(200, schemas.Task, 404, 422))
async def get_task(services: ServicesDep, task_id: TaskId) -> Response:
    """Poll a task. One that is over is answered from the database alone."""
    row = await _read(services, task_id)
    if row is None:
        state = await services.gateway.watch.state(task_id)
        # Its flow may have begun meanwhile, or only its id is not noted yet.
        row = await _read(services, task_id, state.public_id if state else None)
        if row is None:
            return JsonResponse(_unstarted(task_id, state))
    if row.status in LIVE:
        return await _open(services, task_id, row)
    return await _final(services.database, task_id, row)


@router.post(
    "/{task_id}/cancel",
    **documented(202, schemas.Accepted, 404, 409, 422, sentences={409: "Execution 8 is completed already."}),
)
async def cancel_task(services: ServicesDep, task_id: TaskId) -> JsonResponse:
    """Cancel a run. One that waits is over at once; one that is running stops, and reads `REVOKED`."""
    execution_id = await services.background.finish(interventions.cancel(services, task_id))
    return JsonResponse(views.accepted(task_id, execution_id, "REVOKED", _CANCELLED), 202)


@router.post(
    "/{task_id}/retry",
    **documented(
        202,
        schemas.Accepted,
        *(404, 409, 422),
        sentences={409: "Execution 8 is running, not failed or cancelled."},
    ),
)
async def retry_task(services: ServicesDep, task_id: TaskId) -> JsonResponse:
    """Try a run that failed or was cancelled again: it goes on behind its last node that succeeded."""
    execution_id = await services.background.finish(interventions.retry(services, task_id))
    return JsonResponse(views.accepted(task_id, execution_id, "RETRY", "Task is queued again"), 202)


async def _read(
    services: Services, flow_run_id: uuid.UUID, public_id: uuid.UUID | None = None
) -> Poll | None:
    return await services.database.look(lambda session: executions.poll(session, flow_run_id, public_id))


async def _open(services: Services, flow_run_id: uuid.UUID, row: Poll) -> Response:
    """Answer for a run that is not over as far as the database knows; close it where Prefect knows better."""
    watch = services.gateway.watch
    try:
        state = await watch.state(flow_run_id)
        if await note_end(services, flow_run_id, row, state):
            again = await _read(services, flow_run_id, state.public_id if state else None)
            if again is None:
                raise NotFoundError(f"There is no task {flow_run_id}.")
            if again.status not in LIVE:
                return await _final(services.database, flow_run_id, again)
            row, state = again, await watch.state(flow_run_id)
    except PrefectUnavailableError:
        # A poll does not fail because Prefect is away for a moment: the row is the truth, if an old one.
        return JsonResponse(_from_row(flow_run_id, row, " (Prefect does not answer at the moment)"))
    return JsonResponse(_from_prefect(flow_run_id, row, state))


def _unstarted(flow_run_id: uuid.UUID, state: FlowRunState | None) -> dict[str, Any]:
    """The answer for a run that has no row: Prefect has it, but its flow did not begin (yet).

    A run that got to its end without a row is not one of ours, or was deleted with its workflow.
    """
    if state is None or state.workflow_id is None or state.status == "SUCCESS":
        raise NotFoundError(f"There is no task {flow_run_id}.")
    if state.status == "RUNNING" and state.state_name == "Running":
        # Its flow makes the row at any moment; until then there is no execution to tell of.
        return _body(flow_run_id, "PENDING", _QUEUED)
    body = _body(flow_run_id, state.status, state.message)
    if state.status in ("FAILURE", "RETRY", "REVOKED"):
        body["error"] = state.state_message or state.message
    if state.status == "RETRY":
        body |= {"retries": 0, "next_attempt_at": timestamp(state.next_attempt or utcnow())}
    return body


def _from_prefect(flow_run_id: uuid.UUID, row: Poll, state: FlowRunState | None) -> dict[str, Any]:
    """The answer for an open row beside what Prefect said of its flow run, a second ago perhaps."""
    if row.status is Status.RUNNING and not row.revoked and state is not None:
        if state.kind is PrefectState.CRASHED:  # to be put back in its queue
            return _retry(flow_run_id, row, state.state_message)
        if state.status == "RETRY" and row.next_attempt_at is None:
            return _retry(flow_run_id, row, state.state_message, due=state.next_attempt)
        has_begun = state.run_count == 0  # when Prefect was asked it had not
        if state.status == "PENDING" and row.next_attempt_at is None and not has_begun:
            return _body(flow_run_id, state.status, state.message)
        if state.status == "RUNNING" and row.next_attempt_at is None:
            return _body(flow_run_id, state.status, state.message) | {"meta": _meta(row)}
    return _from_row(flow_run_id, row)


def _from_row(flow_run_id: uuid.UUID, row: Poll, remark: str = "") -> dict[str, Any]:
    """The answer for an open row by itself."""
    if row.revoked:
        body = _body(flow_run_id, "REVOKED", _CANCELLED)
        return body | {"execution_id": row.id, "error": "The run is being cancelled."}
    if row.next_attempt_at is not None:
        return _retry(flow_run_id, row, remark=remark)
    if row.status is Status.PENDING:
        return _body(flow_run_id, "PENDING", _QUEUED + remark)
    return _body(flow_run_id, "RUNNING", _EXECUTING + remark) | {"meta": _meta(row)}


def _retry(
    flow_run_id: uuid.UUID, row: Poll, why: str = "", remark: str = "", due: datetime | None = None
) -> dict[str, Any]:
    """The answer for a run that waits for its next attempt; one that is yet to be put back is due now."""
    return _body(flow_run_id, "RETRY", f"Task failed, retrying ({row.attempt} attempts){remark}") | {
        "error": row.error or why or _FAILED,
        "retries": row.retries,
        "next_attempt_at": timestamp(row.next_attempt_at or due or utcnow()),
    }


async def _final(database: Database, flow_run_id: uuid.UUID, row: Poll) -> Response:
    """The answer for a run that is over: from the database alone."""
    if row.status is Status.COMPLETED:
        return await _success(database, flow_run_id, row)
    body = _body(flow_run_id, "FAILURE", _FAILED)
    if row.status is Status.CANCELLED:
        body = _body(flow_run_id, "REVOKED", _CANCELLED)
    body |= {
        "execution_id": row.id,
        "error": row.error or body["message"],
        "failed_at_node": row.failed_at_node,
    }
    return JsonResponse(body)


async def _success(database: Database, flow_run_id: uuid.UUID, row: Poll) -> Response:
    text = RunText(database, row.id, row.version_id)
    digests, first = await database.run(
        lambda session: (chain.state(session, row.id), text.read_page(session, 0, _ALL, "none"))
    )
    body = _body(flow_run_id, "SUCCESS", _SUCCEEDED) | {"execution_id": row.id}

    async def write() -> AsyncIterator[bytes]:
        yield dumps(body)[:-1] + b',"result":'
        yield dumps({"execution_id": row.id, "status": "success"})[:-1] + b',"final_context":'
        async for piece in text.context(digests):
            yield piece
        yield b',"execution_trace":['
        async for piece in text.entries(first, 0, _ALL, "none"):
            yield piece
        yield b'],"nodes_executed":' + dumps(row.nodes_done) + b"}}"

    return StreamingResponse(gathered(write()), media_type=JSON)


def _body(flow_run_id: uuid.UUID, status: str, message: str) -> dict[str, Any]:
    return {"task_id": str(flow_run_id), "status": status, "message": message}


def _meta(row: Poll) -> dict[str, Any]:
    return {
        "execution_id": row.id,
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow_name,
        "client_slug": row.client_slug,
        "started_at": timestamp(row.started_at),
        "progress": {"nodes_done": row.nodes_done, "current_node": row.current_node},
    }
