"""Executions: what became of the runs, and their Chains of Work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api import schemas, views
from api.body import BodyRoute
from api.chain import Contexts, RunText, gathered
from api.dependencies import DatabaseDep, ExecutionId, Limit, OfWorkflow, ServicesDep, Skip, WithStatus
from api.documentation import documented
from api.reconciliation import ask_prefect, close_if_over
from api.responses import JSON, JsonResponse
from api.services import Services
from flows.engine.context import dumps
from flows.engine.errors import PrefectUnavailableError
from flows.store import chain, executions
from flows.store.chain import Frame
from flows.store.checks import LIVE

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
    """List executions, newest first. A `result` is without its final context here."""
    if workflow_id is not None and not 0 < workflow_id < 2**31:
        return JsonResponse({"executions": [], "total": 0})

    def read(session: Session) -> dict[str, object]:
        rows, total = executions.list_(
            session, workflow_id=workflow_id, status=status, skip=skip, limit=limit
        )
        counts = chain.counts(session, [row.id for row in rows if row.status == "completed"])
        return {"executions": [views.execution(row, counts.get(row.id, 0)) for row in rows], "total": total}

    return JsonResponse(await database.run(read))


@router.get("/{execution_id}", **documented(200, schemas.Execution, 404, 422))
async def get_execution(services: ServicesDep, execution_id: ExecutionId) -> StreamingResponse:
    """Get one execution, with the final context of a completed one."""
    database = services.database
    await _reconcile(services, execution_id)

    def read(session: Session) -> tuple[dict[str, object], dict[str, str], RunText]:
        row = executions.get(session, execution_id)
        counts = chain.counts(session, [row.id])
        digests = chain.state(session, row.id) if row.status == "completed" else {}
        return views.execution(row, counts.get(row.id, 0)), digests, RunText(session, database, row)

    view, digests, text = await database.run(read)
    result = view["result"]

    async def write() -> AsyncIterator[bytes]:
        # The result goes last, since it alone may be large.
        yield dumps({key: value for key, value in view.items() if key != "result"})[:-1] + b',"result":'
        if result is None:
            yield b"null}"
            return
        yield dumps(result)[:-1] + b',"final_context":'
        async for piece in text.context(digests):
            yield piece
        yield b"}}"

    return StreamingResponse(gathered(write()), media_type=JSON)


async def _reconcile(services: Services, execution_id: int) -> None:
    """Close the row of a run that ended in Prefect without its flow; Prefect being away changes nothing."""
    row = await services.database.run(lambda session: executions.get(session, execution_id))
    if row.status not in LIVE or row.flow_run_id is None:
        return
    with contextlib.suppress(PrefectUnavailableError):
        await close_if_over(services, row.id, await ask_prefect(services, row.flow_run_id))


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
        text = RunText(session, database, executions.get(session, execution_id))
        return text, text.read_page(session, skip, most, contexts), chain.count(session, execution_id)

    text, first, total = await database.run(read)

    async def write() -> AsyncIterator[bytes]:
        yield dumps({"execution_id": execution_id})[:-1] + b',"entries":['
        async for piece in text.entries(first, skip, most, contexts):
            yield piece
        yield b'],"total":' + dumps(total) + b"}"

    return StreamingResponse(gathered(write()), media_type=JSON)
