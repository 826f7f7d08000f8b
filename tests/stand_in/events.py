"""Events: those that the server emits, those of clients that tell of task runs, and who wants which."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tests.stand_in import task_runs
from tests.stand_in.records import JSON, PAUSED, FlowRun, Pool, State, TaskRun
from tests.stand_in.transitions import new_state
from tests.stand_in.world import Refusal, World, moment

TIGHT = timedelta(minutes=5)
"""An event follows another one that is not older than this."""


def of_state_change(world: World, run: FlowRun, initial: State | None) -> JSON:
    """The event `prefect.flow-run.<state's name>`; its id is the new state's."""
    state = run.state
    if state is None:
        raise RuntimeError("A run without a state has not changed it.")
    return {
        "id": state.id,
        "event": f"prefect.flow-run.{state.name}",
        "occurred": state.timestamp,
        "received": world.now(),
        "follows": initial.id if initial and state.timestamp - initial.timestamp < TIGHT else None,
        "resource": {
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "prefect.run-count": str(run.run_count),
            "prefect.state-message": state.message or "",
            "prefect.state-name": state.name,
            "prefect.state-timestamp": state.timestamp.isoformat(),
            "prefect.state-type": state.type,
        },
        "related": _related(world, run),
        "payload": {
            "intended": {"from": initial.type if initial else None, "to": state.type},
            "initial_state": _shown(initial) if initial else None,
            "validated_state": _shown(state),
        },
    }


def _shown(state: State) -> JSON:
    shown: JSON = {"type": state.type, "name": state.name}
    if state.message:
        shown["message"] = state.message
    if state.type == PAUSED:
        shown["pause_reschedule"] = str(state.details["pause_reschedule"]).lower()
    return shown


def read(world: World, body: JSON) -> tuple[int, JSON]:
    """Answer which events there are of one resource, newest first; they outlast it."""
    match body:
        case {"filter": {"resource": {"id": [resource]}, **more}, "limit": limit, **others}:
            if not more and not others:
                found = [one for one in world.tables.events if _resource(one) == resource]
                return 200, {"events": found[: -limit - 1 : -1], "total": len(found), "next_page": None}
    raise Refusal(501, f"The stand-in does not find events by {body}")


def _resource(event: JSON) -> object:
    return event["resource"]["prefect.resource.id"]


def _related(world: World, run: FlowRun) -> list[JSON]:
    tables = world.tables
    flow, deployment = tables.flows.get(run.flow_id), tables.deployments.get(run.deployment_id or "")
    queue, pool = tables.queues.get(run.queue_id or ""), world.pool_of_queue(run.queue_id)
    found = (("flow", flow), ("deployment", deployment), ("work-queue", queue), ("work-pool", pool))
    related = [
        {
            "prefect.resource.id": f"prefect.{role}.{one.id}",
            "prefect.resource.name": one.name,
            "prefect.resource.role": role,
            **({"prefect.work-pool.type": one.type} if isinstance(one, Pool) else {}),
        }
        for role, one in found
        if one is not None
    ]
    tags = {*run.tags, *(flow.tags if flow else []), *(deployment.fields["tags"] if deployment else [])}
    return related + [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in sorted(tags)
    ]


def record_task_run(world: World, event: JSON) -> None:
    """Make or change the task run that a client's event tells of; an older one only adds to its states.

    Prefect's engine tells of its tasks' states by events alone.
    """
    payload = event["payload"]
    fields: JSON = payload["task_run"]
    flow_run_id = _id_of(event, "flow-run")
    if flow_run_id is not None and flow_run_id not in world.tables.flow_runs:
        return
    run = _known(world, event, flow_run_id, fields)
    if run is None:
        own_id = event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")
        run = task_runs.make(world, {**fields, "flow_run_id": flow_run_id}, own_id)
        run.labels = fields.get("labels")
    state = new_state(world, payload["validated_state"])
    state.id, state.timestamp = event["id"], moment(event["occurred"]) or world.now()
    state.details["flow_run_id"], state.details["task_run_id"] = flow_run_id, run.id
    if all(state.id != known.id for known in run.states):
        run.states.append(state)
        run.states.sort(key=lambda one: one.timestamp)
    if run.state is None or run.state.timestamp < state.timestamp:
        run.state = state
        _take_over(run, fields)
        run.updated = world.now()


def _take_over(run: TaskRun, fields: JSON) -> None:
    """Note what the client counted itself."""
    for key in ("expected_start_time", "next_scheduled_start_time", "start_time", "end_time"):
        if key in fields:
            setattr(run, key, moment(fields[key]))
    for key in ("name", "run_count", "flow_run_run_count", "total_run_time", "task_inputs", "tags"):
        if key in fields:
            setattr(run, key, fields[key])


def _known(world: World, event: JSON, flow_run_id: str | None, fields: JSON) -> TaskRun | None:
    own_id = event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")
    key = (flow_run_id, fields["task_key"], fields["dynamic_key"])
    for run in world.tables.task_runs.values():
        if run.id == own_id or (flow_run_id and (run.flow_run_id, run.task_key, run.dynamic_key) == key):
            return run
    return None


def _id_of(event: JSON, role: str) -> str | None:
    for resource in event.get("related") or []:
        if resource.get("prefect.resource.role") == role:
            return str(resource["prefect.resource.id"]).removeprefix(f"prefect.{role}.")
    return None


def wanted_by(wanted: JSON) -> Callable[[JSON], bool]:
    """Whether a subscriber's filter wants an event: by its name, its resource or any of its resources."""
    names, own, related = (wanted.get(key) or {} for key in ("event", "resource", "any_resource"))
    for key, value in wanted.items():
        known = key in ("event", "resource", "any_resource", "occurred", "order")
        if not known and (any(value.values()) if isinstance(value, dict) else value):
            raise Refusal(501, f"The stand-in knows no filter {key!r} of events: {value!r}")

    def wants(event: JSON) -> bool:
        resources = [event["resource"], *(event.get("related") or [])]
        return (
            _matches(names, "name", "prefix", [event["event"]])
            and _matches(own, "id", "id_prefix", [event["resource"]["prefect.resource.id"]])
            and _matches(related, "id", "id_prefix", [one["prefect.resource.id"] for one in resources])
        )

    return wants


def _matches(wanted: JSON, whole: str, beginning: str, values: list[str]) -> bool:
    if wanted.get(whole) and not set(wanted[whole]) & set(values):
        return False
    prefixes = wanted.get(beginning)
    return not prefixes or any(value.startswith(tuple(prefixes)) for value in values)
