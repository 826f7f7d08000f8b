"""What the API does with flow runs: create, read, change, delete, and set their states."""

from __future__ import annotations

from typing import Any

from tests.stand_in import answers, events, filters
from tests.stand_in.records import JSON, PAUSED, RUNNING, SCHEDULED, Deployment, FlowRun, State
from tests.stand_in.rules import CORE, FORCED
from tests.stand_in.slots import HOLDING, release
from tests.stand_in.transitions import Rule, Transition, carry_out, new_state, state_json
from tests.stand_in.world import Refusal, World, conflict

POLICY: JSON = {
    "max_retries": 0,
    "retry_delay_seconds": 0.0,
    "retries": None,
    "retry_delay": None,
    "pause_keys": [],
    "resuming": False,
    "retry_type": None,
}

Answer = tuple[int, Any]
"""Status code and body."""


def create_from_deployment(
    world: World, of: Deployment, body: JSON, queue: tuple[str | None, str | None]
) -> Answer:
    """Create a run of a deployment in a queue (id and name); the same idempotency key gives the same run."""
    fields = {
        "flow_id": of.flow_id,
        "deployment_id": of.id,
        "deployment_version": of.fields["version"],
        "parameters": {**of.fields["parameters"], **(body.get("parameters") or {})},
        "tags": list(dict.fromkeys([*of.fields["tags"], *(body.get("tags") or [])])),
        "labels": {
            **of.labels,
            "prefect.flow.id": of.flow_id,
            "prefect.deployment.id": of.id,
            **(body.get("labels") or {}),
        },
        "queue_id": queue[0],
        "queue_name": queue[1],
        "job_variables": body.get("job_variables", {}),
    }
    state = new_state(world, body.get("state") or {"type": SCHEDULED})
    return _create(world, body, fields, state)


def create(world: World, body: JSON) -> Answer:
    """Create a run of a flow that has no deployment."""
    flow = world.tables.flows.get(body["flow_id"])
    if flow is None:
        raise conflict()
    queue_id = queue_name = None
    if pool_name := body.get("work_pool_name"):
        pool, queue_name = world.pool(pool_name), body.get("work_queue_name")
        queue_id = world.queue(pool, queue_name).id if queue_name else pool.default_queue_id
    fields = {
        "flow_id": flow.id,
        "deployment_id": body.get("deployment_id"),
        "parameters": body.get("parameters") or {},
        "tags": list(body.get("tags") or []),
        "labels": {**flow.labels, "prefect.flow.id": flow.id, **(body.get("labels") or {})},
        "queue_id": queue_id,
        "queue_name": queue_name,
        "job_variables": body.get("job_variables", {} if body.get("idempotency_key") is None else None),
    }
    return _create(world, body, fields, new_state(world, body.get("state") or {"type": "PENDING"}))


def _create(world: World, body: JSON, fields: JSON, state: State) -> Answer:
    key = body.get("idempotency_key")
    if key is not None and (known := world.tables.keys.get((fields["flow_id"], key))):
        if key == "":  # which the server does not take for a key, but PostgreSQL does
            raise conflict()
        return 200, answers.flow_run(world, world.tables.flow_runs[known])
    now = world.now()
    run = FlowRun(
        id=world.new_id(),
        created=now,
        updated=now,
        name=body.get("name") or f"run-{world.new_id()[:8]}",
        policy={**POLICY, **(body.get("empirical_policy") or {})},
        context=body.get("context") or {},
        flow_version=body.get("flow_version"),
        parent_task_run_id=body.get("parent_task_run_id"),
        idempotency_key=key,
        **fields,
    )
    world.tables.flow_runs[run.id] = run
    if run.idempotency_key is not None:
        world.tables.keys[run.flow_id, run.idempotency_key] = run.id
    orchestrate(world, run, state, FORCED)
    return 201, answers.flow_run(world, run)


def change(world: World, run: FlowRun, body: JSON) -> Answer:
    """Change the fields of a run that a client may change."""
    if body.get("job_variables") is not None and (run.state is None or run.state.type != SCHEDULED):
        state = run.state.type if run.state else None
        raise Refusal(400, f"Job variables for a flow run in state {state} cannot be updated")
    for key in ("name", "flow_version", "parameters", "tags", "infrastructure_pid", "job_variables"):
        if key in body:
            setattr(run, key, body[key])
    if "empirical_policy" in body:
        run.policy = {**POLICY, **body["empirical_policy"]}
    run.updated = world.now()
    return 204, None


def delete(world: World, run: FlowRun) -> Answer:
    """Delete a run; a slot that it has of its deployment is free again."""
    if run.state is not None and run.state.type in HOLDING:
        release(world, run, None)
    world.delete_flow_run(run.id)
    return 204, None


def set_state(world: World, flow_run_id: str, body: JSON) -> Answer:
    """Propose a state."""
    run = world.tables.flow_runs.get(flow_run_id)
    if run is None:
        raise Refusal(404, f"Flow run with id {flow_run_id} not found", "exception_message")
    state = new_state(world, body["state"])
    return _answered(run, orchestrate(world, run, state, FORCED if body.get("force") else CORE))


def resume(world: World, run: FlowRun) -> Answer:
    """Have a paused run go on, or a suspended one be taken by a worker again."""
    if run.state is None or run.state.type != PAUSED:
        details = {"type": "abort_details", "reason": "Cannot resume a flow run that is not paused."}
        return 200, {"state": None, "status": "ABORT", "details": details}
    suspended = run.state.details["pause_reschedule"]
    body = {"type": SCHEDULED, "name": "Resuming"} if suspended else {"type": RUNNING}
    return _answered(run, orchestrate(world, run, new_state(world, body), CORE))


def _answered(run: FlowRun, result: JSON) -> Answer:
    is_new = result.pop("is_new")
    return (201 if is_new else 200), result


def orchestrate(world: World, run: FlowRun, state: State, rules: list[Rule[FlowRun]]) -> JSON:
    """Take a proposal through rules, and tell of the new state, if there is one."""
    initial = run.state
    result = carry_out(Transition(world, run, initial, state), rules)
    result["is_new"] = run.state is not initial
    if result["is_new"]:
        world.emit(events.of_state_change(world, run, initial))
    return result


def states(world: World, flow_run_id: str) -> Answer:
    """All states of a run, oldest first; none where there is no such run."""
    run = world.tables.flow_runs.get(flow_run_id)
    return 200, [state_json(state) for state in run.states] if run else []


def state(world: World, state_id: str) -> Answer:
    """One state of any run."""
    for run in world.tables.flow_runs.values():
        for one in run.states:
            if one.id == state_id:
                return 200, state_json(one)
    raise Refusal(404, "Flow run state not found")


def read_all(world: World, body: JSON) -> Answer:
    """The page of the flow runs that a filter asks for."""
    found = filters.in_order(filters.flow_runs(world, body), body.get("sort"))
    return 200, [answers.flow_run(world, run) for run in filters.page(found, body)]


def delete_scheduled(world: World, of: Deployment, *, auto: bool = False, future: bool = False) -> None:
    """Delete runs of a deployment that have not begun: all, or only those that its schedules made.

    Those that wait for a slot stay.
    """
    now = world.now()
    for run in list(world.tables.flow_runs.values()):
        if run.deployment_id != of.id or run.state is None or run.run_count > 0:
            continue
        if run.state.type != SCHEDULED or run.state.name == "AwaitingConcurrencySlot":
            continue
        if auto and not run.auto_scheduled:
            continue
        if future and not (run.next_scheduled_start_time and run.next_scheduled_start_time > now):
            continue
        world.delete_flow_run(run.id)
