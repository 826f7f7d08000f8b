"""What the API does with deployments and their schedules."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from prefect.utilities.schema_tools.validation import ValidationError, validate

from tests.stand_in import answers, filters, flow_runs, pools
from tests.stand_in.records import JSON, Deployment, Limit, Schedule
from tests.stand_in.world import Refusal, World, conflict

Answer = tuple[int, Any]

FIELDS: JSON = {
    "version": None,
    "description": None,
    "parameters": {},
    "tags": [],
    "job_variables": {},
    "parameter_openapi_schema": {},
    "enforce_parameter_schema": True,
    "path": None,
    "pull_steps": [],
    "entrypoint": None,
    "concurrency_options": None,
}
"""What a client sets and the server only keeps, with the defaults."""


def create(world: World, body: JSON) -> Answer:
    """Create a deployment, or change the one of that name: its schedules are replaced then."""
    if body["flow_id"] not in world.tables.flows:
        raise conflict()
    queue = _queue(world, body)
    now = world.now()
    known = _by_name(world, body["flow_id"], body["name"])
    one = known or Deployment(
        id=world.new_id(),
        created=now,
        updated=now,
        name=body["name"],
        flow_id=body["flow_id"],
        fields=dict(FIELDS),
        labels={},
    )
    world.tables.deployments[one.id] = one
    _set(one, body)
    flow = world.tables.flows[one.flow_id]
    one.labels = {**flow.labels, "prefect.flow.id": flow.id, **(body.get("labels") or {})}
    one.updated = now
    one.queue_id, one.queue_name = queue
    flow_runs.delete_scheduled(world, one, auto=True, future=True)
    one.schedules = [_schedule(world, each) for each in body.get("schedules") or []]
    if "concurrency_limit" in body:
        _limit(world, one, body["concurrency_limit"])
    return (200 if known else 201), answers.deployment(world, one)


def change(world: World, deployment_id: str, body: JSON) -> Answer:
    """Change what a client says of a deployment; runs that its schedules made for later are deleted."""
    one = _deployment(world, deployment_id)
    if body.get("schedules") is not None:
        _change_schedules(world, one, body["schedules"])
    if one.fields["enforce_parameter_schema"] or body.get("enforce_parameter_schema"):
        _check(body, one, "Error updating deployment", ignore_required=True)
    if body.get("work_pool_name"):
        one.queue_id, _ = _queue(world, body)
    elif "work_pool_name" in body:
        one.queue_id = None
    one.queue_name = body.get("work_queue_name", one.queue_name)
    _set(one, body)
    flow_runs.delete_scheduled(world, one, auto=True, future=True)
    if "concurrency_limit" in body:
        _limit(world, one, body["concurrency_limit"])
    one.updated = world.now()
    return 204, None


def pause(world: World, deployment_id: str, paused: bool) -> Answer:
    """Pause a deployment's schedules, and delete the runs that they made; or have them go on."""
    one = world.deployment(deployment_id)
    one.paused = paused
    if paused:
        flow_runs.delete_scheduled(world, one, auto=True)
    return 200, None


def delete(world: World, deployment_id: str) -> Answer:
    """Delete a deployment with its schedules, its limit, and its runs that have not begun."""
    one = world.deployment(deployment_id)
    flow_runs.delete_scheduled(world, one)
    world.tables.limits.pop(one.limit_id or "", None)
    del world.tables.deployments[one.id]
    return 204, None


def by_name(world: World, flow_name: str, name: str) -> Answer:
    """The deployment of a name of a flow of a name."""
    for flow in world.tables.flows.values():
        if flow.name == flow_name and (found := _by_name(world, flow.id, name)):
            return 200, answers.deployment(world, found)
    raise Refusal(404, "Deployment not found")


def read_all(world: World, body: JSON) -> Answer:
    """The page of the deployments that a filter asks for."""
    found = filters.page(filters.deployments(world, body), body)
    return 200, [answers.deployment(world, one) for one in found]


def run(world: World, deployment_id: str, body: JSON) -> Answer:
    """Create a flow run of a deployment."""
    one = world.deployment(deployment_id)
    enforce = body.get("enforce_parameter_schema")
    if one.fields["enforce_parameter_schema"] if enforce is None else enforce:
        given = {**one.fields["parameters"], **(body.get("parameters") or {})}
        _check({"parameters": given}, one, "Error creating flow run")
    queue: tuple[str | None, str | None] = one.queue_id, one.queue_name
    if wanted := body.get("work_queue_name"):
        pool = world.pool_of_queue(one.queue_id)
        if pool is None:
            raise Refusal(
                400,
                f"Cannot create flow run in work queue {wanted} because deployment {one.id} is not "
                "associated with a work pool. Please remove work_pool_name and try again.",
            )
        queue = _queue(world, {"work_pool_name": pool.name, "work_queue_name": wanted})
    return flow_runs.create_from_deployment(world, one, body, queue)


def read_schedules(world: World, deployment_id: str) -> Answer:
    """The schedules of a deployment, the last changed first."""
    one = _deployment(world, deployment_id)
    in_order = sorted(one.schedules, key=lambda each: each.updated, reverse=True)
    return 200, [answers.schedule(one, each) for each in in_order]


def create_schedules(world: World, deployment_id: str, body: list[JSON]) -> Answer:
    """Add schedules to a deployment."""
    one = _deployment(world, deployment_id)
    taken = [each.slug for each in one.schedules if each.slug is not None]
    wanted = [each["slug"] for each in body if each.get("slug") is not None]
    if len(set(taken + wanted)) < len(taken + wanted):
        raise Refusal(409, "Schedule slugs must be unique within a deployment.")
    made = [_schedule(world, each) for each in body]
    one.schedules += made
    return 201, [answers.schedule(one, each) for each in made]


def change_schedule(world: World, deployment_id: str, schedule_id: str, body: JSON) -> Answer:
    """Change a schedule; the runs that the deployment's schedules made for later are deleted."""
    one = _deployment(world, deployment_id)
    each = _schedule_of(one, schedule_id)
    _update_schedule(world, each, body)
    flow_runs.delete_scheduled(world, one, auto=True, future=True)
    return 204, None


def delete_schedule(world: World, deployment_id: str, schedule_id: str) -> Answer:
    """Delete a schedule, and the runs that the deployment's schedules made."""
    one = _deployment(world, deployment_id)
    one.schedules.remove(_schedule_of(one, schedule_id))
    flow_runs.delete_scheduled(world, one, auto=True)
    return 204, None


def _deployment(world: World, deployment_id: str) -> Deployment:
    if deployment_id not in world.tables.deployments:
        raise Refusal(404, "Deployment not found.")
    return world.tables.deployments[deployment_id]


def _by_name(world: World, flow_id: str, name: str) -> Deployment | None:
    for one in world.tables.deployments.values():
        if one.flow_id == flow_id and one.name == name:
            return one
    return None


def _queue(world: World, body: JSON) -> tuple[str | None, str | None]:
    """The queue that a body names, its id and name; it is made where it is missing."""
    pool_name, name = body.get("work_pool_name"), body.get("work_queue_name")
    if not pool_name:
        return None, name
    pool = world.pool(pool_name)
    if not name:
        return pool.default_queue_id, None
    for queue in world.queues_of(pool):
        if queue.name == name:
            return queue.id, name
    return pools.make_queue(world, pool, {"name": name}).id, name


def _set(one: Deployment, body: JSON) -> None:
    one.fields = {**one.fields, **{key: body[key] for key in FIELDS if key in body}}
    if options := one.fields["concurrency_options"]:
        one.fields["concurrency_options"] = {"grace_period_seconds": None, **options}
    if body.get("paused") is not None:
        one.paused = body["paused"]


def _limit(world: World, one: Deployment, limit: int | None) -> None:
    known = world.tables.limits.get(one.limit_id or "")
    if limit is None:
        world.tables.limits.pop(one.limit_id or "", None)
        one.limit_id = None
    elif known is not None:
        known.limit = limit
    else:
        now = world.now()
        made = Limit(world.new_id(), now, now, f"deployment:{one.id}", limit)
        world.tables.limits[made.id] = made
        one.limit_id = made.id


def _schedule(world: World, body: JSON) -> Schedule:
    now = world.now()
    active = body.get("active")
    return Schedule(
        id=world.new_id(),
        created=now,
        updated=now,
        rule=_rule(world, body["schedule"]),
        active=True if active is None else active,
        parameters=body.get("parameters") or {},
        slug=body.get("slug"),
        max_scheduled_runs=body.get("max_scheduled_runs"),
    )


def _rule(world: World, given: JSON) -> JSON:
    """A schedule's rule with what the server adds."""
    if "cron" in given:
        return {"timezone": None, "day_or": True, **given}
    if "interval" in given:
        return {"anchor_date": world.now(), "timezone": "UTC", **given}
    return {"timezone": "UTC", **given}


def _schedule_of(one: Deployment, schedule_id: str) -> Schedule:
    for each in one.schedules:
        if each.id == schedule_id:
            return each
    raise Refusal(404, "Schedule not found.")


def _update_schedule(world: World, each: Schedule, body: JSON) -> None:
    if body.get("schedule") is not None:
        each.rule = _rule(world, body["schedule"])
    if body.get("active") is not None:
        each.active = body["active"]
    each.parameters = body.get("parameters") or {}  # what is left out is reset by the real server, too
    each.updated = world.now()


def _change_schedules(world: World, one: Deployment, wanted: list[JSON]) -> None:
    """Match schedules by their slugs where all have one, else replace them all."""
    slugs = [each.slug for each in one.schedules]
    if slugs and None not in slugs:
        if any(each.get("slug") is None for each in wanted):
            raise Refusal(
                422,
                "Please provide a slug for each schedule in your request to ensure schedules are "
                "updated correctly.",
            )
        for each in wanted:
            known = next((found for found in one.schedules if found.slug == each["slug"]), None)
            if known is not None:
                _update_schedule(world, known, each)
            else:
                one.schedules.append(_schedule(world, each))
        return
    one.schedules = [_schedule(world, each) for each in wanted]


def _check(body: JSON, one: Deployment, what: str, ignore_required: bool = False) -> None:
    """Refuse parameters that do not fit the deployment's schema."""
    schema = body.get("parameter_openapi_schema") or one.fields["parameter_openapi_schema"]
    given = one.fields["parameters"] if body.get("parameters") is None else body["parameters"]
    if "additionalProperties" not in schema:  # what the schema does not know may be anything
        given = {key: value for key, value in given.items() if key in schema.get("properties", {})}
    if (fault := _fault(json.dumps(schema), json.dumps(given), ignore_required)) is not None:
        raise Refusal(409, f"{what}: {fault}")


@lru_cache(maxsize=1000)
def _fault(schema: str, given: str, ignore_required: bool) -> str | None:
    """What is wrong with parameters; remembered, since jsonschema takes milliseconds."""
    try:
        validate(json.loads(given), json.loads(schema), raise_on_error=True, ignore_required=ignore_required)
    except ValidationError as error:
        return str(error)
    return None
