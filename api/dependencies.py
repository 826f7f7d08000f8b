"""The dependencies and parameters of endpoints."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from pydantic import BeforeValidator

from api.schemas import TASK, ExecutionStatus
from api.services import Services, services_of
from flows.graphs.errors import NotFoundError
from flows.prefect_gateway.gateway import PrefectGateway
from flows.store.database import Database

_MAX_ID = 2**31 - 1


async def services(request: Request) -> Services:
    """Return everything that the API holds while it runs."""
    return services_of(request.app)


async def database(request: Request) -> Database:
    """Return NOVA's database."""
    return services_of(request.app).database


async def gateway(request: Request) -> PrefectGateway:
    """Return the connection to Prefect."""
    return services_of(request.app).gateway


def existing_id(number: int, what: str) -> int:
    """Return the id; raise NotFoundError if no row can have it."""
    if not 0 < number <= _MAX_ID:
        raise NotFoundError(f"There is no such {what}.")
    return number


async def workflow_id(
    workflow_id: Annotated[int, Path(description="Id of a workflow.", examples=[1])],
) -> int:
    """Return a workflow's id; raise NotFoundError for a number that no row can have."""
    return existing_id(workflow_id, "workflow")


async def execution_id(
    execution_id: Annotated[int, Path(description="Id of an execution.", examples=[8])],
) -> int:
    """Return an execution's id; raise NotFoundError for a number that no row can have."""
    return existing_id(execution_id, "execution")


async def task_id(
    task_id: Annotated[str, Path(description="What `execute` answered: the flow run's id.", examples=[TASK])],
) -> UUID:
    """Return a task's id; raise NotFoundError for text that is no UUID."""
    try:
        return UUID(task_id)
    except ValueError:
        raise NotFoundError(f"There is no task {task_id}.") from None


async def schedule_id(
    schedule_id: Annotated[int, Path(description="Id of a schedule.", examples=[1])],
) -> int:
    """Return a schedule's id; raise NotFoundError for a number that no row can have."""
    return existing_id(schedule_id, "schedule")


def _blank_is_none(value: object) -> object:
    return None if value == "" else value


ServicesDep = Annotated[Services, Depends(services)]
DatabaseDep = Annotated[Database, Depends(database)]
OrchestrationDep = Annotated[PrefectGateway, Depends(gateway)]
WorkflowId = Annotated[int, Depends(workflow_id)]
ExecutionId = Annotated[int, Depends(execution_id)]
TaskId = Annotated[UUID, Depends(task_id)]
ScheduleId = Annotated[int, Depends(schedule_id)]
Skip = Annotated[int, Query(ge=0, lt=2**63, description="How many to leave out.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Graphs = Annotated[
    Literal["full", "none"], Query(description="`none` leaves the graphs out, which may be large.")
]
OfWorkflow = Annotated[
    int | None, BeforeValidator(_blank_is_none), Query(description="Only those of this workflow.")
]
WithStatus = Annotated[
    ExecutionStatus | None, BeforeValidator(_blank_is_none), Query(description="Only those in this status.")
]
