"""Tasks: the state of a run, by the id that `execute` gave out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.responses import Response

from api import schemas
from api.body import BodyRoute
from api.chain import RunText, gathered
from api.dependencies import ServicesDep
from api.documentation import documented
from api.reconciliation import ask_prefect, close_if_over
from api.responses import JSON, JsonResponse, timestamp
from api.services import Services
from flows.engine.context import dumps
from flows.engine.errors import NotFoundError, PrefectUnavailableError
from flows.orchestration.runs import RunState
from flows.store import chain, executions
from flows.store.chain import Frame
from flows.store.checks import LIVE
from flows.store.models import Execution

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=BodyRoute)

_QUEUED = "Task is queued, waiting for worker"
_EXECUTING = "Task is executing"
_SUCCEEDED = "Task completed successfully"
_FAILED = "Task failed"
_CANCELLED = "Task was cancelled"
_ALL = 2**62
"""More entries than any chain has."""


@dataclass(frozen=True)
class _Known:
    """What the database knows of a task; `first` and `digests` are read for a completed one only."""

    execution: Execution
    nodes_done: int
    text: RunText
    digests: dict[str, str]
    first: list[Frame]


@router.get("/{task_id}", **documented(200, schemas.Task, 404, 422))
async def get_task(
    services: ServicesDep,
    task_id: Annotated[
        str, Path(description="What `execute` answered: the flow run's id.", examples=[schemas.TASK])
    ],
) -> Response:
    """Poll a task. One that is over is answered from the database alone."""
    flow_run_id = _parse(task_id)
    known = await _read(services, flow_run_id)
    if known is None:
        state = await services.orchestration.runs.find(flow_run_id)
        known = await _read(services, flow_run_id)  # its flow may have begun meanwhile
        if known is None:
            return JsonResponse(_unstarted(flow_run_id, state))
    if known.execution.status in LIVE:
        return await _open(services, flow_run_id, known)
    return _final(flow_run_id, known)


def _parse(task_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(task_id)
    except ValueError:
        raise NotFoundError(f"There is no task {task_id}.") from None


async def _read(services: Services, flow_run_id: uuid.UUID) -> _Known | None:
    def read(session: Session) -> _Known | None:
        execution = executions.by_task(session, flow_run_id)
        if execution is None:
            return None
        text = RunText(session, services.database, execution)
        done = chain.counts(session, [execution.id]).get(execution.id, 0)
        if execution.status != "completed":
            return _Known(execution, done, text, {}, [])
        digests = chain.state(session, execution.id)
        return _Known(execution, done, text, digests, text.read_page(session, 0, _ALL, "none"))

    return await services.database.run(read)


async def _open(services: Services, flow_run_id: uuid.UUID, known: _Known) -> Response:
    """Answer for a run that is not over as far as the database knows; close it where Prefect knows better."""
    try:
        state = await ask_prefect(services, flow_run_id)
    except PrefectUnavailableError:
        # A poll does not fail because Prefect is away for a moment: the row is the truth, if an old one.
        return JsonResponse(_from_row(flow_run_id, known, " (Prefect does not answer at the moment)"))
    if await close_if_over(services, known.execution.id, state):
        again = await _read(services, flow_run_id)
        if again is None:
            raise NotFoundError(f"There is no task {flow_run_id}.")
        if again.execution.status in LIVE:  # retried at this very moment
            return JsonResponse(_from_row(flow_run_id, again))
        return _final(flow_run_id, again)
    return JsonResponse(_from_prefect(flow_run_id, known, state))


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


def _from_prefect(flow_run_id: uuid.UUID, known: _Known, state: RunState | None) -> dict[str, Any]:
    """The answer for an open row beside a flow run that goes on."""
    assert state is not None  # a flow run that is gone closes the row
    if state.final:  # it crashed, and is about to be put back in its queue
        return _from_row(flow_run_id, known)
    execution = known.execution
    body = _body(flow_run_id, state.status, state.message)
    if state.status == "RUNNING":
        body["meta"] = _meta(known)
    elif state.status == "RETRY":
        body["error"] = execution.error or state.state_message or _FAILED
    elif state.status == "REVOKED":
        body |= {"execution_id": execution.id, "error": state.state_message or "The run is being cancelled."}
    return body


def _from_row(flow_run_id: uuid.UUID, known: _Known, remark: str = "") -> dict[str, Any]:
    """The answer for an open row when there is nobody to ask."""
    if known.execution.status == "pending":
        return _body(flow_run_id, "PENDING", _QUEUED + remark)
    return _body(flow_run_id, "RUNNING", _EXECUTING + remark) | {"meta": _meta(known)}


def _final(flow_run_id: uuid.UUID, known: _Known) -> Response:
    """The answer for a run that is over: from the database alone."""
    execution = known.execution
    if execution.status == "completed":
        return StreamingResponse(gathered(_success(flow_run_id, known)), media_type=JSON)
    body = _body(flow_run_id, "FAILURE", _FAILED)
    if execution.status == "cancelled":
        body = _body(flow_run_id, "REVOKED", _CANCELLED)
    body |= {
        "execution_id": execution.id,
        "error": execution.error or body["message"],
        "failed_at_node": execution.failed_at_node,
    }
    return JsonResponse(body)


async def _success(flow_run_id: uuid.UUID, known: _Known) -> AsyncIterator[bytes]:
    execution_id = known.execution.id
    body = _body(flow_run_id, "SUCCESS", _SUCCEEDED) | {"execution_id": execution_id}
    yield dumps(body)[:-1] + b',"result":'
    yield dumps({"execution_id": execution_id, "status": "success"})[:-1] + b',"final_context":'
    async for text in known.text.context(known.digests):
        yield text
    yield b',"execution_trace":['
    async for text in known.text.entries(known.first, 0, _ALL, "none"):
        yield text
    yield b'],"nodes_executed":' + dumps(known.nodes_done) + b"}}"


def _body(flow_run_id: uuid.UUID, status: str, message: str) -> dict[str, Any]:
    return {"task_id": str(flow_run_id), "status": status, "message": message}


def _meta(known: _Known) -> dict[str, Any]:
    execution = known.execution
    return {
        "execution_id": execution.id,
        "workflow_id": execution.workflow_id,
        "workflow_name": execution.workflow.name,
        "client_slug": execution.client_slug,
        "started_at": timestamp(execution.started_at),
        "progress": {"nodes_done": known.nodes_done, "current_node": execution.current_node},
    }
