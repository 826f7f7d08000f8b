"""Schedules of a workflow: NOVA's own, and those that were made in Prefect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api import requests, schemas, submission, views
from api.body import BodyRoute
from api.dependencies import ScheduleId, ServicesDep, WorkflowId
from api.documentation import documented
from api.responses import JsonResponse
from api.services import Services
from flows.graphs.errors import InvalidInputError, NotFoundError, PrefectUnavailableError
from flows.graphs.json_values import dumps
from flows.prefect_gateway.cron_schedules import ScheduleView, validate_cron
from flows.runs.deployment_specs import schedule_spec
from flows.store import clients, schedules, workflows
from flows.store.models import Schedule
from flows.store.schedules import ScheduleFields

router = APIRouter(prefix="/workflows/{workflow_id}/schedules", tags=["schedules"], route_class=BodyRoute)

_PARAMETERS = {"client_slug": (str, "a text"), "initial_context": (dict, "an object")}
_PARAMETERS_LIMIT = 64 * 1024
"""Bytes. Prefect itself accepts 512 KiB, and shows them to everybody."""


@router.get("", **documented(200, schemas.Schedules, 404, 422))
async def list_schedules(services: ServicesDep, workflow_id: WorkflowId) -> JsonResponse:
    """List the schedules of a workflow, also those made in Prefect (`source`)."""
    rows = await services.database.run(lambda session: schedules.list_(session, workflow_id))
    in_prefect = await _in_prefect(services, workflow_id)
    found = {view.id: view for view in in_prefect}
    ours = [_merged(row, found.get(row.id)) for row in rows]
    theirs = [views.prefect_schedule(view) for view in in_prefect if view.id is None]
    return JsonResponse({"schedules": ours + theirs, "total": len(ours) + len(theirs)})


@router.post("", **documented(201, schemas.Schedule, 404, 413, 415, 422))
async def create_schedule(
    services: ServicesDep, workflow_id: WorkflowId, body: requests.ScheduleCreate
) -> JsonResponse:
    """Add a schedule: a cron line in its own time zone, and the parameters of the runs."""
    validate_cron(body.cron, body.timezone)
    _check_parameters(body.parameters)

    def write(session: Session) -> Schedule:
        _check_client(session, body.parameters)
        return schedules.add(
            session,
            workflow_id,
            cron=body.cron,
            timezone=body.timezone,
            parameters=body.parameters,
            active=body.active,
        )

    row = await services.database.run(write)

    async def put() -> None:
        try:
            await _put(services, workflow_id, row)
        except Exception:
            await services.database.run(lambda session: schedules.delete(session, workflow_id, row.id))
            raise

    await services.background.finish(put())
    return JsonResponse(views.schedule(row), 201)


@router.get("/{schedule_id}", **documented(200, schemas.Schedule, 404, 422))
async def get_schedule(
    services: ServicesDep, workflow_id: WorkflowId, schedule_id: ScheduleId
) -> JsonResponse:
    """Get one of NOVA's schedules, with an operator's changes in Prefect, if Prefect answers."""
    row = await services.database.run(lambda session: schedules.get(session, workflow_id, schedule_id))
    found: dict[int | None, ScheduleView] = {}
    with contextlib.suppress(PrefectUnavailableError):
        found = {view.id: view for view in await _in_prefect(services, workflow_id)}
    return JsonResponse(_merged(row, found.get(row.id)))


@router.put("/{schedule_id}", **documented(200, schemas.Schedule, 404, 413, 415, 422))
async def update_schedule(
    services: ServicesDep, workflow_id: WorkflowId, schedule_id: ScheduleId, body: requests.ScheduleUpdate
) -> JsonResponse:
    """Change any subset of a schedule's fields. After a 503 it is unchanged."""
    before = await services.database.run(lambda session: schedules.get(session, workflow_id, schedule_id))
    fields = cast(ScheduleFields, body.model_dump(exclude_unset=True))
    validate_cron(fields.get("cron", before.cron), fields.get("timezone", before.timezone))
    _check_parameters(fields.get("parameters", {}))

    def write(session: Session, fields: ScheduleFields) -> Schedule:
        return schedules.update(session, workflow_id, schedule_id, **fields)

    def check_and_write(session: Session) -> Schedule:
        _check_client(session, fields.get("parameters", {}))
        return write(session, fields)

    row = await services.database.run(check_and_write)
    keep_active = "active" not in fields
    old = ScheduleFields(
        cron=before.cron, timezone=before.timezone, parameters=before.parameters, active=before.active
    )

    async def put() -> None:
        try:
            await _put(services, workflow_id, row, keep_active=keep_active)
        except Exception:
            await services.database.run(lambda session: write(session, old))
            raise

    await services.background.finish(put())
    return JsonResponse(views.schedule(row))


@router.delete("/{schedule_id}", **documented(200, schemas.Message, 404, 422))
async def delete_schedule(
    services: ServicesDep, workflow_id: WorkflowId, schedule_id: ScheduleId
) -> JsonResponse:
    """Delete one of NOVA's schedules; runs that it has made go on."""

    def read(session: Session) -> UUID | None:
        schedules.get(session, workflow_id, schedule_id)
        return workflows.without_graph(session, workflow_id).deployment_id

    deployment_id = await services.database.run(read)

    async def delete() -> None:
        if deployment_id is not None:
            await services.gateway.deployments.remove_schedule(deployment_id, schedule_id)
        await services.database.run(lambda session: schedules.delete(session, workflow_id, schedule_id))

    await services.background.finish(delete())
    return JsonResponse({"message": f"Schedule {schedule_id} is deleted."})


async def _in_prefect(services: Services, workflow_id: int) -> list[ScheduleView]:
    row = await services.database.run(lambda session: workflows.without_graph(session, workflow_id))
    if row.deployment_id is None:
        return []
    try:
        return await services.gateway.deployments.list_schedules(row.deployment_id)
    except NotFoundError:
        return []  # the deployment is gone; the next run or `nova deploy` makes it again, with its schedules


def _merged(row: Schedule, found: ScheduleView | None) -> dict[str, Any]:
    """Return one of NOVA's schedules, with the time and `active` as an operator has set them in Prefect."""
    if found is None:
        return views.schedule(row)
    when = {"cron": found.cron, "timezone": found.timezone} if found.cron else {}
    return views.schedule(row) | when | {"active": found.active, "rule": found.rule}


async def _put(services: Services, workflow_id: int, row: Schedule, *, keep_active: bool = False) -> None:
    """Make Prefect's schedule equal to the row; make the deployment again if it is gone."""
    workflow = await services.database.run(lambda session: workflows.without_graph(session, workflow_id))
    deployments = services.gateway.deployments
    if workflow.deployment_id is not None:
        try:
            spec = schedule_spec(row)
            await deployments.put_schedule(workflow.deployment_id, spec, keep_active=keep_active)
            return
        except NotFoundError:
            pass
    await submission.deploy(services, workflow_id)  # this makes the database's schedules, too


def _check_parameters(parameters: dict[str, Any]) -> None:
    """Raise InvalidInputError, which names each parameter that the flow or Prefect does not accept."""
    problems = []
    for name, value in parameters.items():
        kind, what = _PARAMETERS.get(name, (None, ""))
        if kind is None:
            problems.append((name, f"is not known; there are {' and '.join(_PARAMETERS)}"))
        elif value is not None and not isinstance(value, kind):
            problems.append((name, f"must be {what}"))
        elif not all(map(_portable, _scalars(value))):
            problems.append((name, "contains NUL, a lone surrogate or too long an integer for a schedule"))
    if len(dumps(parameters)) > _PARAMETERS_LIMIT:
        problems.append(("", f"must not be larger than {_PARAMETERS_LIMIT} bytes"))
    _raise(problems)


def _check_client(session: Session, parameters: dict[str, Any]) -> None:
    slug = parameters.get("client_slug")
    if slug is None:
        return
    try:
        clients.get(session, slug)
    except NotFoundError as error:
        _raise([("client_slug", str(error))])


def _raise(problems: list[tuple[str, str]]) -> None:
    if problems:
        named = [
            {"field": f"parameters.{name}".rstrip("."), "message": message} for name, message in problems
        ]
        raise InvalidInputError(
            "The schedule is not valid: " + "; ".join(f"{p['field']} {p['message']}" for p in named), named
        )


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _portable(scalar: Any) -> bool:
    """Return whether Prefect's JSON and database accept this."""
    if isinstance(scalar, str):
        return "\0" not in scalar and not any("\ud800" <= character <= "\udfff" for character in scalar)
    return not isinstance(scalar, int) or -(2**63) <= scalar < 2**63
