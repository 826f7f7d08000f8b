"""Workflows: make, read, change, delete and run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Body, Header
from sqlalchemy.orm import Session

from api import requests, schemas, submission, views
from api.body import BodyRoute
from api.dependencies import DatabaseDep, Graphs, Limit, ServicesDep, Skip, WorkflowId
from api.documentation import documented
from api.errors import NameTakenError
from api.responses import JsonResponse
from api.services import Services
from flows.graphs.errors import ConflictError, Fault, InvalidGraphError, PrefectUnavailableError
from flows.store import executions, workflows
from flows.store.models import Workflow
from flows.store.workflows import WorkflowFields

router = APIRouter(prefix="/workflows", tags=["workflows"], route_class=BodyRoute)

STOP_TIMEOUT = 60.0
"""Seconds that the live runs of a workflow get to stop when it is deleted."""


@router.post("", **documented(201, schemas.SavedWorkflow, 400, 413, 415, 422))
async def create_workflow(services: ServicesDep, body: requests.WorkflowCreate) -> JsonResponse:
    """Make a workflow and its Prefect deployment. A graph with faults is refused, and all are named."""
    warnings = await _check_graph(services, body.graph_definition)

    def write(session: Session) -> Workflow:
        with _name_taken():
            return workflows.create(
                session,
                name=body.name,
                description=body.description,
                graph=body.graph_definition,
                priority=body.priority,
                max_concurrent_runs=body.max_concurrent_runs,
                overlap=body.overlap,
            )

    row = await services.database.run(write)
    await services.background.finish(_deploy_or_undo(services, row.id))
    return JsonResponse(_saved(row, warnings), 201)


@router.get("", **documented(200, schemas.Workflows, 422))
async def list_workflows(
    database: DatabaseDep, skip: Skip = 0, limit: Limit = 100, graphs: Graphs = "full"
) -> JsonResponse:
    """List workflows, oldest first."""
    if graphs == "none":
        rows, total = await database.run(lambda session: workflows.list_without_graphs(session, skip, limit))
        listed = [views.workflow_without_graph(row) for row in rows]
    else:
        rows, total = await database.run(lambda session: workflows.list_(session, skip, limit))
        listed = [views.workflow(row) for row in rows]
    return JsonResponse({"workflows": listed, "total": total})


@router.get("/{workflow_id}", **documented(200, schemas.Workflow, 404, 422))
async def get_workflow(database: DatabaseDep, workflow_id: WorkflowId) -> JsonResponse:
    """Get one workflow with its current graph."""
    return JsonResponse(
        views.workflow(await database.run(lambda session: workflows.get(session, workflow_id)))
    )


@router.put("/{workflow_id}", **documented(200, schemas.SavedWorkflow, 400, 404, 413, 415, 422))
async def update_workflow(
    services: ServicesDep, workflow_id: WorkflowId, body: requests.WorkflowUpdate
) -> JsonResponse:
    """Change any subset of a workflow's fields, and its Prefect deployment.

    A changed graph becomes a new version; started runs keep theirs. After a 503 the same request may be sent
    again.
    """
    fields = _changes(body)
    await services.database.run(lambda session: workflows.without_graph(session, workflow_id))
    warnings = await _check_graph(services, fields["graph"]) if "graph" in fields else []
    if not await services.gateway.healthy():
        raise PrefectUnavailableError("Prefect's server cannot be reached; nothing was changed.")

    def write(session: Session) -> Workflow:
        with _name_taken():
            return workflows.update(session, workflow_id, **fields)

    row = await services.database.run(write)
    try:
        await services.background.finish(submission.deploy(services, workflow_id))
    except PrefectUnavailableError as error:
        raise PrefectUnavailableError(
            f"{error} The workflow is saved, but not its deployment: send the request again."
        ) from error
    return JsonResponse(_saved(row, warnings))


@router.delete("/{workflow_id}", **documented(200, schemas.Message, 404, 409, 422))
async def delete_workflow(services: ServicesDep, workflow_id: WorkflowId) -> JsonResponse:
    """Delete a workflow with its executions. Live runs are cancelled first; this waits until they stop."""
    row = await services.database.run(lambda session: workflows.without_graph(session, workflow_id))
    await services.background.finish(_delete(services, workflow_id, row.deployment_id))
    return JsonResponse({"message": f"Workflow {workflow_id} is deleted, and its executions with it."})


@router.post(
    "/{workflow_id}/execute",
    tags=["tasks"],
    **documented(
        202,
        schemas.Queued,
        *(404, 409, 413, 415, 422),
        sentences={409: "This Idempotency-Key was given with another request. Take a new one."},
    ),
)
async def execute_workflow(
    services: ServicesDep,
    workflow_id: WorkflowId,
    body: Annotated[requests.Execute | None, Body()] = None,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 ASCII characters. For 24 hours the same key and body are the same task.",
        ),
    ] = None,
) -> JsonResponse:
    """Run a workflow; answers when Prefect has confirmed the run. After a 503 it will never be started.

    With an `Idempotency-Key`, a client that got a 503 or no answer may send the same request again.
    """
    wanted = body or requests.Execute()
    pending, task_id = await submission.execute(
        services,
        workflow_id,
        client_slug=wanted.client_slug,
        initial_context=wanted.initial_context or {},
        priority=wanted.priority,
        key=key,
    )
    return JsonResponse(
        {
            "task_id": str(task_id),
            "status": "queued",
            "workflow_id": pending.workflow_id,
            "workflow_name": pending.workflow_name,
            "message": f"Workflow queued for execution. Use GET /tasks/{task_id} to check status.",
        },
        202,
    )


async def _check_graph(services: Services, graph: dict[str, Any]) -> list[Fault]:
    """Return the warnings of a graph; raises InvalidGraphError when it has faults."""
    validation = await services.graphs.validate(graph)
    if validation.faults:
        raise InvalidGraphError(validation.faults)
    return validation.warnings


def _changes(body: requests.WorkflowUpdate) -> WorkflowFields:
    fields = cast(WorkflowFields, body.model_dump(exclude_unset=True, exclude={"graph_definition"}))
    if body.graph_definition is not None:
        fields["graph"] = body.graph_definition
    return fields


def _saved(row: Workflow, warnings: list[Fault]) -> dict[str, Any]:
    return views.workflow(row) | {"warnings": [views.fault(warning) for warning in warnings]}


@contextmanager
def _name_taken() -> Iterator[None]:
    try:
        yield
    except ConflictError as error:
        raise NameTakenError(str(error)) from None


async def _deploy_or_undo(services: Services, workflow_id: int) -> None:
    """Deploy a workflow that was just made; if that fails, delete it, so that its name is free."""
    try:
        await submission.deploy(services, workflow_id)
    except Exception:
        await services.database.run(lambda session: workflows.delete(session, workflow_id))
        raise


async def _delete(services: Services, workflow_id: int, deployment_id: UUID | None) -> None:
    deployments = services.gateway.deployments

    def live(session: Session) -> list[UUID]:
        # A deployment of prefect.yaml may run it, too: so the runs of the rows are stopped as well.
        rows = executions.live(session, workflow_id)
        return [row.flow_run_id for row in rows if row.flow_run_id is not None]

    if deployment_id is not None:
        others = await services.database.run(live)
        await deployments.stop_runs(deployment_id, STOP_TIMEOUT, others)
        await deployments.remove(deployment_id)

    def remove(session: Session) -> UUID | None:
        current = workflows.locked(session, workflow_id).deployment_id
        workflows.delete(session, workflow_id)
        return current

    current = await services.database.run(remove)
    if current is not None and current != deployment_id:
        # A run that was started meanwhile has made the deployment again.
        await deployments.stop_runs(current, STOP_TIMEOUT)
        await deployments.remove(current)
