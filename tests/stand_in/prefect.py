"""A stand-in of Prefect's server, in memory: the REST calls that NOVA and Prefect's flow engine make.

It answers without any I/O, in well below a millisecond, and does the same thing each time. What it does is
held against the real server by `test_contract*.py`; where they differ the real one is right. A call, a filter
or an order that it does not know is answered with 501, never with a guess.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import prefect
from prefect.client.constants import SERVER_API_VERSION

from tests.stand_in import answers, deployments, events, flow_runs, pools, services, slots, task_runs
from tests.stand_in.records import JSON, Flow
from tests.stand_in.world import Refusal, Tables, World, conflict, failure

Answer = tuple[int, Any]
"""Status code and body."""


def real_time() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


class StandIn:
    """Prefect's server: `answer` is its API, the other methods are what happens to it in a test.

    `now` is its clock. The ids that it gives are the same ones in each stand-in of the same `seed`.
    """

    def __init__(self, now: Callable[[], datetime] = real_time, seed: int = 0) -> None:
        self.world = World(now, seed)
        self._lock = threading.RLock()  # a test may act while a server's thread answers

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Answer:
        """Answer one request; `path` is without `/api`."""
        try:
            with self._lock:
                return self._route(method, path.strip("/").split("/"), query, body)
        except Refusal as refusal:
            return refusal.status, refusal.body

    def lose_everything(self) -> None:
        """Empty the database."""
        with self._lock:
            self.world.tables = Tables()

    def snapshot(self) -> bytes:
        """Return a backup of the database."""
        with self._lock:
            return pickle.dumps(self.world.tables)

    def restore(self, backup: bytes) -> None:
        """Put a backup in the place of the database."""
        with self._lock:
            self.world.tables = pickle.loads(backup)

    def mark_late(self) -> None:
        """Mark overdue runs Late."""
        with self._lock:
            services.mark_late(self.world)

    def fire_schedules(self) -> None:
        """Make the next runs of all active schedules, as the scheduler does."""
        with self._lock:
            services.schedule_all(self.world)

    def run_services(self) -> None:
        """Do all that the real server does by itself, once, as is due by its clock."""
        with self._lock:
            services.run_all(self.world)

    def _route(self, method: str, parts: list[str], query: Mapping[str, str], body: Any) -> Answer:
        match parts[0]:
            case "flow_runs":
                return self._flow_runs(method, parts[1:], body)
            case "flow_run_states":
                if len(parts) > 1:
                    return flow_runs.state(self.world, _id(parts[1]))
                return flow_runs.states(self.world, _id(query["flow_run_id"]))
            case "task_runs":
                return self._task_runs(method, parts[1:], body)
            case "deployments":
                return self._deployments(method, parts[1:], body)
            case "work_pools":
                return self._work_pools(method, parts[1:], body)
            case "work_queues":
                return self._work_queues(method, parts[1:], body)
            case "flows":
                return self._flows(method, parts[1:], body)
        return self._others(method, parts, body)

    def _flow_runs(self, method: str, parts: list[str], body: Any) -> Answer:
        world = self.world
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

    def _task_runs(self, method: str, parts: list[str], body: Any) -> Answer:
        world = self.world
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

    def _deployments(self, method: str, parts: list[str], body: Any) -> Answer:
        world = self.world
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

    def _work_pools(self, method: str, parts: list[str], body: Any) -> Answer:
        world = self.world
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

    def _work_queues(self, method: str, parts: list[str], body: Any) -> Answer:
        queue = self.world.tables.queues.get(_id(parts[0]))
        if queue is None:
            changes = method == "PATCH"
            raise Refusal(404, f"Work Queue {parts[0]} not found" if changes else "work queue not found")
        match method:
            case "GET":
                return 200, answers.queue(self.world, queue)
            case "PATCH":
                return pools.change_queue(self.world, queue, body)
            case "DELETE":
                return pools.delete_queue(self.world, queue, conflict())
        return _unknown(method, "work_queues", *parts)

    def _flows(self, method: str, parts: list[str], body: Any) -> Answer:
        tables, now = self.world.tables, self.world.now()
        match method, *parts:
            case ("POST",):
                for flow in tables.flows.values():
                    if flow.name == body["name"]:
                        return 200, answers.flow(flow)
                tags, labels = body.get("tags") or [], body.get("labels") or {}
                flow = Flow(self.world.new_id(), now, now, body["name"], tags, labels)
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

    def _others(self, method: str, parts: list[str], body: Any) -> Answer:
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
                slots.renew(self.world, _id(lease), (body or {}).get("lease_duration", 300))
                return 204, None
            case "PATCH", "v2", "concurrency_limits", name:
                slots.change_limit(self.world, name, body)
                return 204, None
            case "POST", "logs":
                self.world.tables.logs += body
                return 201, None
            case "POST", "events":
                for event in body:
                    self.receive(event)
                return 204, None
        return _unknown(method, *parts)

    def receive(self, event: JSON) -> None:
        """Take an event that a client emitted."""
        self.world.emit(event)
        by_client = event["resource"].get("prefect.orchestration") == "client"
        if by_client and event["event"].startswith("prefect.task-run."):
            events.record_task_run(self.world, event)


def _id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refusal(404, "Not Found") from None


def _unknown(method: str, *parts: str) -> Answer:
    raise Refusal(501, f"The stand-in knows no {method} /{'/'.join(parts)}")
