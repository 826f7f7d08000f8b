"""Tasks: the state of a run, by the id that `execute` returned."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from api import interventions, schemas, task_status, views
from api.body import BodyRoute
from api.chain_stream import RunText, gathered
from api.dependencies import ServicesDep, TaskId
from api.documentation import documented
from api.responses import JSON, JsonResponse
from api.services import Services
from flows.graphs.errors import NotFoundError, PrefectUnavailableError
from flows.graphs.json_values import dumps
from flows.graphs.lifecycle import LIVE, Status
from flows.store import chain, executions
from flows.store.database import Database
from flows.store.executions import Poll

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=BodyRoute)

_ALL = 2**62
"""More entries than any chain has."""


@router.get("/{task_id}", **documented(200, schemas.Task, 404, 422))
async def get_task(services: ServicesDep, task_id: TaskId) -> Response:
    """Poll a task. If it is over, only the database is read."""
    row = await _read(services, task_id)
    if row is None:
        state = await services.gateway.watch.state(task_id)
        # Its flow may have begun meanwhile, or its row may not have the flow run's id yet.
        row = await _read(services, task_id, state.public_id if state else None)
        if row is None:
            return JsonResponse(task_status.unstarted(task_id, state))
    if row.status in LIVE:
        return await _open(services, task_id, row)
    return await _final(services.database, task_id, row)


@router.post(
    "/{task_id}/cancel",
    **documented(202, schemas.Accepted, 404, 409, 422, sentences={409: "Execution 8 is completed already."}),
)
async def cancel_task(services: ServicesDep, task_id: TaskId) -> JsonResponse:
    """Cancel a run. A waiting run is over at once; a running one stops, and reads `REVOKED` from now on."""
    execution_id = await services.background.finish(interventions.cancel(services, task_id))
    return JsonResponse(views.accepted(task_id, execution_id, "REVOKED", task_status.CANCELLED_TASK), 202)


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
    """Retry a run that failed or was cancelled, from the node after its last success."""
    execution_id = await services.background.finish(interventions.retry(services, task_id))
    return JsonResponse(views.accepted(task_id, execution_id, "RETRY", "Task is queued again"), 202)


async def _read(
    services: Services, flow_run_id: uuid.UUID, public_id: uuid.UUID | None = None
) -> Poll | None:
    return await services.database.look(lambda session: executions.poll(session, flow_run_id, public_id))


async def _open(services: Services, task_id: uuid.UUID, row: Poll) -> Response:
    """Answer for a run with an open row; close the row first if the run is over in Prefect."""
    if row.flow_run_id is None and row.task_id is not None:  # Prefect lost it and gets it again
        return JsonResponse(task_status.from_row(task_id, row))
    watch, flow_run_id = services.gateway.watch, row.flow_run_id or task_id
    try:
        state = await watch.state(flow_run_id)
        if await task_status.note_end(services, task_id, row, state):
            again = await _read(services, task_id, state.public_id if state else None)
            if again is None:
                raise NotFoundError(f"There is no task {task_id}.")
            if again.status not in LIVE:
                return await _final(services.database, task_id, again)
            row, state = again, await watch.state(flow_run_id)
    except PrefectUnavailableError:
        # A poll does not fail because Prefect is away for a moment: the row may be old, but it is true.
        remark = " (Prefect does not answer at the moment)"
        return JsonResponse(task_status.from_row(task_id, row, remark))
    return JsonResponse(task_status.from_prefect(task_id, row, state))


async def _final(database: Database, task_id: uuid.UUID, row: Poll) -> Response:
    """Return the answer for a run that is over; only the database is read."""
    if row.status is Status.COMPLETED:
        return await _success(database, task_id, row)
    return JsonResponse(task_status.closed(task_id, row))


async def _success(database: Database, task_id: uuid.UUID, row: Poll) -> Response:
    text = RunText(database, row.id, row.version_id)
    digests, first = await database.run(
        lambda session: (chain.state(session, row.id), text.read_page(session, 0, _ALL, "none"))
    )
    body = task_status.succeeded(task_id, row)

    async def write() -> AsyncIterator[bytes]:
        yield dumps(body)[:-1] + b',"result":'
        yield dumps({"execution_id": row.id, "status": schemas.SUCCEEDED})[:-1] + b',"final_context":'
        async for piece in text.context(digests):
            yield piece
        yield b',"execution_trace":['
        async for piece in text.entries(first, _ALL, "none"):
            yield piece
        yield b'],"nodes_executed":' + dumps(row.nodes_done) + b"}}"

    return StreamingResponse(gathered(write()), media_type=JSON)
