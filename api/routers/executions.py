"""Executions: the runs with their results, and their Chains of Work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Path, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api import interventions, requests, schemas, views
from api.body import BodyRoute
from api.chain_stream import Contexts, RunText, gathered
from api.dependencies import DatabaseDep, ExecutionId, Limit, OfWorkflow, ServicesDep, Skip, WithStatus
from api.documentation import documented
from api.responses import JSON, JsonResponse
from api.services import Services
from api.task_status import note_end_of
from flows.graphs.errors import PrefectUnavailableError
from flows.graphs.json_values import dumps
from flows.graphs.lifecycle import LIVE, Status
from flows.store import chain, executions
from flows.store.chain import Frame
from flows.store.models import Execution

router = APIRouter(prefix="/executions", tags=["executions"], route_class=BodyRoute)

_ALL = 2**62
"""More entries than any chain has."""


@router.get("", **documented(200, schemas.Executions, 422))
async def list_executions(
    database: DatabaseDep,
    workflow_id: OfWorkflow = None,
    status: WithStatus = None,
    skip: Skip = 0,
    limit: Limit = 100,
) -> JsonResponse:
    """List executions, newest first; a `result` has no final context here."""
    if workflow_id is not None and not 0 < workflow_id < 2**31:
        return JsonResponse({"executions": [], "total": 0})

    def read(session: Session) -> dict[str, object]:
        rows, total = executions.list_(
            session, workflow_id=workflow_id, status=status, skip=skip, limit=limit
        )
        counts = chain.counts(session, [row.id for row in rows if row.status is Status.COMPLETED])
        return {"executions": [views.execution(row, counts.get(row.id, 0)) for row in rows], "total": total}

    return JsonResponse(await database.run(read))


@router.get("/{execution_id}", **documented(200, schemas.Execution, 404, 422))
async def get_execution(services: ServicesDep, execution_id: ExecutionId) -> StreamingResponse:
    """Get one execution, with the final context of a completed one."""
    database = services.database

    def read(session: Session) -> tuple[Execution, int, dict[str, str]]:
        row = executions.get(session, execution_id)
        if row.status is not Status.COMPLETED:
            return row, 0, {}
        return row, chain.counts(session, [row.id]).get(row.id, 0), chain.state(session, row.id)

    row, nodes, digests = await database.run(read)
    if row.status in LIVE and await _close_if_over(services, row.flow_run_id):
        row, nodes, digests = await database.run(read)
    view = views.execution(row, nodes)
    result = view.pop("result")
    text = RunText(database, row.id, row.version_id)

    async def write() -> AsyncIterator[bytes]:
        # The result goes last, because only it may be large.
        yield dumps(view)[:-1] + b',"result":'
        if result is None:
            yield b"null}"
            return
        yield dumps(result)[:-1] + b',"final_context":'
        async for piece in text.context(digests):
            yield piece
        yield b"}}"

    return StreamingResponse(gathered(write()), media_type=JSON)


async def _close_if_over(services: Services, flow_run_id: UUID | None) -> bool:
    """Close an open row whose run is over in Prefect; return False if Prefect does not answer."""
    if flow_run_id is None:
        return False
    with contextlib.suppress(PrefectUnavailableError):
        return await note_end_of(services, flow_run_id)
    return False


@router.post(
    "/{execution_id}/nodes/{step}/skip",
    **documented(
        202,
        schemas.Accepted,
        *(404, 409, 413, 415, 422),
        sentences={409: "Execution 8 is at step 3, node 'mail': only that one can be skipped."},
    ),
)
async def skip_node(
    services: ServicesDep,
    execution_id: ExecutionId,
    step: Annotated[int, Path(ge=0, lt=2**31, description="The step at which the run stopped.")],
    body: Annotated[requests.SkipNode | None, Body()] = None,
) -> JsonResponse:
    """Skip the node at which a run stopped: the run goes on after it, as if the node had made this context.

    Secret values in it are encrypted like those of `initial_context`.
    """
    given = body or requests.SkipNode()
    task_id = await services.background.finish(
        interventions.skip(services, execution_id, step, given.context, given.branch)
    )
    return JsonResponse(
        views.accepted(task_id, execution_id, "RETRY", f"Step {step} is skipped; the task is queued"), 202
    )


@router.get("/{execution_id}/chain", **documented(200, schemas.Chain, 404, 422))
async def get_chain(
    database: DatabaseDep,
    execution_id: ExecutionId,
    skip: Skip = 0,
    limit: Annotated[
        int | None, Query(ge=1, le=1000, description="How many at most; all of them if it is left out.")
    ] = None,
    contexts: Annotated[
        Contexts, Query(description="`full`: both contexts of each node; `changes`: what it changed; `none`.")
    ] = "full",
) -> StreamingResponse:
    """Read the Chain of Work in order, streamed. Secret values read `***`."""
    most = limit or _ALL

    def read(session: Session) -> tuple[RunText, list[Frame], int]:
        row = executions.get(session, execution_id)
        text = RunText(database, row.id, row.version_id)
        return text, text.read_page(session, skip, most, contexts), chain.count(session, execution_id)

    text, first, total = await database.run(read)

    async def write() -> AsyncIterator[bytes]:
        yield dumps({"execution_id": execution_id})[:-1] + b',"entries":['
        async for piece in text.entries(first, most, contexts):
            yield piece
        yield b'],"total":' + dumps(total) + b"}"

    return StreamingResponse(gathered(write()), media_type=JSON)
