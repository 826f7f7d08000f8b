"""Which function answers which request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import prefect
from prefect.client.constants import SERVER_API_VERSION

from tests.stand_in import answers, deployments, events, flow_runs, pools, services, slots, task_runs
from tests.stand_in.records import Flow
from tests.stand_in.world import Refusal, World, conflict, failure

if TYPE_CHECKING:
    from tests.stand_in.prefect import StandIn

Answer = tuple[int, Any]
"""Status code and body."""


def answer(server: StandIn, method: str, parts: list[str], query: Mapping[str, str], body: Any) -> Answer:
    """Answer one request; `parts` are its path's."""
    world = server.world
    match parts[0]:
        case "flow_runs":
            return _flow_runs(world, method, parts[1:], body)
        case "flow_run_states":
            if len(parts) > 1:
                return flow_runs.state(world, _id(parts[1]))
            return flow_runs.states(world, _id(query["flow_run_id"]))
        case "task_runs":
            return _task_runs(world, method, parts[1:], body)
        case "deployments":
            return _deployments(world, method, parts[1:], body)
        case "work_pools":
            return _work_pools(world, method, parts[1:], body)
        case "work_queues":
            return _work_queues(world, method, parts[1:], body)
        case "flows":
            return _flows(world, method, parts[1:], body)
    return _others(server, method, parts, body)


def _flow_runs(world: World, method: str, parts: list[str], body: Any) -> Answer:
    match method, *parts:
        case "POST", "filter":
            return flow_runs.read_all(world, body or {})
        case ("POST",):
            return flow_runs.create(world, body)
        case "GET", one:
            return 200, answers.flow_run(world, world.flow_run(_id(one)))
        case "PATCH", one:
            return flow_runs.change(world, world.flow_run(_id(one)), body)
        case "DELETE", one:
            return flow_runs.delete(world, world.flow_run(_id(one)))
        case "POST", one, "set_state":
            return flow_runs.set_state(world, _id(one), body)
        case "POST", one, "resume":
            return flow_runs.resume(world, world.flow_run(_id(one)))
        case "PATCH", one, "labels":
            run = world.flow_run(_id(one))
            run.labels = {**(run.labels or {}), **body}
            return 204, None
    return _unknown(method, "flow_runs", *parts)


def _task_runs(world: World, method: str, parts: list[str], body: Any) -> Answer:
    match method, *parts:
        case "POST", "filter":
            return task_runs.read_all(world, body or {})
        case ("POST",):
            return task_runs.create(world, body)
        case "GET", one:
            return 200, answers.task_run(world, task_runs.find(world, _id(one)))
        case "PATCH", one:
            return task_runs.change(world, task_runs.find(world, _id(one)), body)
        case "DELETE", one:
            return task_runs.delete(world, task_runs.find(world, _id(one)))
        case "POST", one, "set_state":
            return task_runs.set_state(world, _id(one), body)
    return _unknown(method, "task_runs", *parts)


def _deployments(world: World, method: str, parts: list[str], body: Any) -> Answer:
    match method, *parts:
        case "POST", "filter":
            return deployments.read_all(world, body or {})
        case ("POST",):
            return deployments.create(world, body)
        case "GET", "name", flow_name, name:
            return deployments.by_name(world, flow_name, name)
        case "GET", one:
            return 200, answers.deployment(world, world.deployment(_id(one)))
        case "PATCH", one:
            return deployments.change(world, _id(one), body)
        case "DELETE", one:
            return deployments.delete(world, _id(one))
        case "POST", one, "create_flow_run":
            return deployments.run(world, _id(one), body or {})
        case "POST", one, ("pause_deployment" | "resume_deployment") as call:
            return deployments.pause(world, _id(one), call == "pause_deployment")
        case "POST", one, "schedule":
            services.schedule(world, world.deployment(_id(one)), body or {})
            return 200, None
        case "GET", one, "schedules":
            return deployments.read_schedules(world, _id(one))
        case "POST", one, "schedules":
            return deployments.create_schedules(world, _id(one), body)
        case "PATCH", one, "schedules", schedule:
            return deployments.change_schedule(world, _id(one), _id(schedule), body)
        case "DELETE", one, "schedules", schedule:
            return deployments.delete_schedule(world, _id(one), _id(schedule))
    return _unknown(method, "deployments", *parts)


def _work_pools(world: World, method: str, parts: list[str], body: Any) -> Answer:
    match method, *parts:
        case "POST", "filter":
            return pools.read_all(world, body or {})
        case ("POST",):
            return pools.create(world, body)
        case "GET", name:
            return 200, answers.pool(world, world.pool(name))
        case "PATCH", name:
            return pools.change(world, world.pool(name), body)
        case "DELETE", name:
            return pools.delete(world, world.pool(name))
        case "POST", name, "get_scheduled_flow_runs":
            return pools.due_runs(world, world.pool(name), body or {})
        case "POST", name, "queues":
            return 201, answers.queue(world, pools.make_queue(world, world.pool(name), body))
        case "POST", name, "queues", "filter":
            return pools.read_queues(world, world.pool(name), body or {})
        case "GET", name, "queues", queue:
            return 200, answers.queue(world, world.queue(world.pool(name), queue))
        case "PATCH", name, "queues", queue:
            return pools.change_queue(world, world.queue(world.pool(name), queue), body)
        case "DELETE", name, "queues", queue:
            return pools.delete_queue(world, world.queue(world.pool(name), queue), failure())
        case "POST", name, "workers", "heartbeat":
            return pools.heartbeat(world, world.pool(name), body)
        case "POST", name, "workers", "filter":
            return pools.read_workers(world, world.pool(name), body or {})
        case "DELETE", name, "workers", worker:
            return pools.delete_worker(world, world.pool(name), worker)
    return _unknown(method, "work_pools", *parts)


def _work_queues(world: World, method: str, parts: list[str], body: Any) -> Answer:
    queue = world.tables.queues.get(_id(parts[0]))
    if queue is None:
        changes = method == "PATCH"
        raise Refusal(404, f"Work Queue {parts[0]} not found" if changes else "work queue not found")
    match method:
        case "GET":
            return 200, answers.queue(world, queue)
        case "PATCH":
            return pools.change_queue(world, queue, body)
        case "DELETE":
            return pools.delete_queue(world, queue, conflict())
    return _unknown(method, "work_queues", *parts)


def _flows(world: World, method: str, parts: list[str], body: Any) -> Answer:
    tables, now = world.tables, world.now()
    match method, *parts:
        case ("POST",):
            for flow in tables.flows.values():
                if flow.name == body["name"]:
                    return 200, answers.flow(flow)
            tags, labels = body.get("tags") or [], body.get("labels") or {}
            flow = Flow(world.new_id(), now, now, body["name"], tags, labels)
            tables.flows[flow.id] = flow
            return 201, answers.flow(flow)
        case "GET", "name", name:
            for flow in tables.flows.values():
                if flow.name == name:
                    return 200, answers.flow(flow)
            raise Refusal(404, "Flow not found")
        case "GET", one:
            if (found := tables.flows.get(_id(one))) is None:
                raise Refusal(404, "Flow not found")
            return 200, answers.flow(found)
    return _unknown(method, "flows", *parts)


def _others(server: StandIn, method: str, parts: list[str], body: Any) -> Answer:
    world = server.world
    match method, *parts:
        case "GET", "ready":
            return 200, {"message": "OK"}
        case "GET", "health":
            return 200, True
        case "GET", "admin", "version":
            return 200, prefect.__version__
        case "GET", "version":
            return 200, SERVER_API_VERSION
        case "GET", "hello":
            return 200, "👋"
        case "GET", "csrf-token":
            raise Refusal(422, "CSRF protection is disabled.")
        case "POST", "v2", "concurrency_limits", "leases", lease, "renew":
            slots.renew(world, _id(lease), (body or {}).get("lease_duration", 300))
            return 204, None
        case "PATCH", "v2", "concurrency_limits", name:
            slots.change_limit(world, name, body)
            return 204, None
        case "POST", "logs":
            world.tables.logs += body
            return 201, None
        case "POST", "events", "filter":
            return events.read(world, body)
        case "POST", "events":
            for event in body:
                server.receive(event)
            return 204, None
    return _unknown(method, *parts)


def _id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refusal(404, "Not Found") from None


def _unknown(method: str, *parts: str) -> Answer:
    raise Refusal(501, f"The stand-in knows no {method} /{'/'.join(parts)}")
