"""Tasks: the state of a run, by the id that `execute` gave out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from api import schemas
from api.body import BodyRoute
from api.chain import RunText, gathered
from api.dependencies import ServicesDep
from api.documentation import documented
from api.reconciliation import close_if_over
from api.responses import JSON, JsonResponse, timestamp
from api.services import Services
from flows.engine.context import dumps
from flows.engine.errors import NotFoundError, PrefectUnavailableError
from flows.orchestration.runs import RunState
from flows.store import chain, executions
from flows.store.checks import LIVE
from flows.store.executions import Poll
from flows.store.session import Database

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=BodyRoute)

_QUEUED = "Task is queued, waiting for worker"
_EXECUTING = "Task is executing"
_SUCCEEDED = "Task completed successfully"
_FAILED = "Task failed"
_CANCELLED = "Task was cancelled"
_ALL = 2**62
"""More entries than any chain has."""


@router.get("/{task_id}", **documented(200, schemas.Task, 404, 422))
async def get_task(
    services: ServicesDep,
    task_id: Annotated[
        str, Path(description="What `execute` answered: the flow run's id.", examples=[schemas.TASK])
    ],
) -> Response:
    """Poll a task. One that is over is answered from the database alone."""
    flow_run_id = _parse(task_id)
    row = await _read(services, flow_run_id)
    if row is None:
        state = await services.orchestration.watch.state(flow_run_id)
        row = await _read(services, flow_run_id)  # its flow may have begun meanwhile
        if row is None:
            return JsonResponse(_unstarted(flow_run_id, state))
    if row.status in LIVE:
        return await _open(services, flow_run_id, row)
    return await _final(services.database, flow_run_id, row)


def _parse(task_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(task_id)
    except ValueError:
        raise NotFoundError(f"There is no task {task_id}.") from None


async def _read(services: Services, flow_run_id: uuid.UUID) -> Poll | None:
    return await services.database.look(lambda session: executions.poll(session, flow_run_id))


async def _open(services: Services, flow_run_id: uuid.UUID, row: Poll) -> Response:
    """Answer for a run that is not over as far as the database knows; close it where Prefect knows better."""
    watch = services.orchestration.watch
    try:
        state = await watch.state(flow_run_id)
        if await close_if_over(services, flow_run_id, state):
            again = await _read(services, flow_run_id)
            if again is None:
                raise NotFoundError(f"There is no task {flow_run_id}.")
            if again.status not in LIVE:
                return await _final(services.database, flow_run_id, again)
            row, state = again, await watch.state(flow_run_id)
    except PrefectUnavailableError:
        # A poll does not fail because Prefect is away for a moment: the row is the truth, if an old one.
        return JsonResponse(_from_row(flow_run_id, row, " (Prefect does not answer at the moment)"))
    return JsonResponse(_from_prefect(flow_run_id, row, state))


def _unstarted(flow_run_id: uuid.UUID, state: RunState | None) -> dict[str, Any]:
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
    return body


def _from_prefect(flow_run_id: uuid.UUID, row: Poll, state: RunState | None) -> dict[str, Any]:
    """The answer for an open row beside what Prefect said of its flow run, a second ago perhaps."""
    has_begun = row.status == "running" and state is not None and state.run_count == 0
    if state is None or state.final or (has_begun and state.status == "PENDING"):
        return _from_row(flow_run_id, row)  # the row is ahead: it was retried, or has just begun
    body = _body(flow_run_id, state.status, state.message)
    if state.status == "RUNNING":
        body["meta"] = _meta(row)
    elif state.status == "RETRY":
        body["error"] = row.error or state.state_message or _FAILED
    elif state.status == "REVOKED":
        body |= {"execution_id": row.id, "error": state.state_message or "The run is being cancelled."}
    return body


def _from_row(flow_run_id: uuid.UUID, row: Poll, remark: str = "") -> dict[str, Any]:
    """The answer for an open row when there is nobody to ask."""
    if row.status == "pending":
        return _body(flow_run_id, "PENDING", _QUEUED + remark)
    return _body(flow_run_id, "RUNNING", _EXECUTING + remark) | {"meta": _meta(row)}


async def _final(database: Database, flow_run_id: uuid.UUID, row: Poll) -> Response:
    """The answer for a run that is over: from the database alone."""
    if row.status == "completed":
        return await _success(database, flow_run_id, row)
    body = _body(flow_run_id, "FAILURE", _FAILED)
    if row.status == "cancelled":
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
