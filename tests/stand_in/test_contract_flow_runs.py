"""Flow runs: creating, finding, changing and deleting them is answered as by Prefect's server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON

SCHEMA: JSON = {
    "type": "object",
    "properties": {
        "workflow_id": {"type": "integer"},
        "client_slug": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["workflow_id"],
}


async def test_idempotency(real: Conversation, stand_in: Conversation) -> None:
    """A key gives the run of its flow that has it, whatever else is asked for, while that run is there."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        first = await place.run("first", idempotency_key="k", parameters={"a": 1})
        again = await place.run("again", idempotency_key="k", parameters={"a": 2}, work_queue_name="high")
        assert again["id"] == first["id"]
        assert again["parameters"] == {"a": 1}
        await place.set_state(first, "RUNNING")
        await place.run("again", idempotency_key="k")
        await place.deploy("other")
        await talk.ask("POST", "/flow_runs/", {"flow_id": place.flow_id, "name": "x", "idempotency_key": "k"})
        await talk.ask("DELETE", f"/flow_runs/{first['id']}")
        await talk.ask("DELETE", f"/flow_runs/{first['id']}")
        new = await place.run("new", idempotency_key="k")
        assert new["id"] != first["id"]
        await place.run("empty", idempotency_key="")
        await place.run("empty", idempotency_key="")

    await assert_same(story, real, stand_in)


async def test_parameters(real: Conversation, stand_in: Conversation) -> None:
    """A run's parameters are its deployment's and its own; those that do not fit the schema are refused."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make(
            parameter_openapi_schema=SCHEMA, parameters={"workflow_id": 1}, enforce_parameter_schema=True
        )
        await place.run(parameters={"execution": str(uuid4())})
        await place.run(parameters={"workflow_id": "one"})
        await place.run(parameters={"client_slug": 5})
        await place.run(parameters={"client_slug": "acme", "workflow_id": None})
        await place.run(parameters={"workflow_id": "one"}, enforce_parameter_schema=False)
        run = await place.run(work_queue_name="new queue", labels={"x": "y"}, tags=["b", "a"])
        await talk.ask("GET", f"/work_pools/{place.pool}/queues/new queue")
        await talk.ask("PATCH", f"/flow_runs/{run['id']}/labels", {"x": "z", "more": 1})
        await place.read(run)

    await assert_same(story, real, stand_in)


async def test_changes(real: Conversation, stand_in: Conversation) -> None:
    """A run is renamed, tagged and given other parameters; its job variables only while it is scheduled."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        path = f"/flow_runs/{run['id']}"
        await talk.ask("PATCH", path, {"name": "other", "tags": ["c"]})
        await place.read(run)
        await talk.ask("PATCH", path, {"parameters": {"b": 1}, "flow_version": "2"})
        await talk.ask("PATCH", path, {"job_variables": {"env": {}}})
        await place.read(run)
        await place.set_state(run, "PENDING")
        await talk.ask("PATCH", path, {"job_variables": {"env": {}}})
        await talk.ask("PATCH", path, {"infrastructure_pid": "1"})
        await place.read(run)
        for method in ("GET", "PATCH", "DELETE"):
            await talk.ask(method, f"/flow_runs/{uuid4()}", {} if method == "PATCH" else None)
        await talk.ask("POST", f"/flow_runs/{uuid4()}/set_state", {"state": {"type": "PENDING"}})
        await talk.ask("POST", f"/deployments/{uuid4()}/create_flow_run", {})
        await talk.ask("GET", "/flow_runs/none")

    await assert_same(story, real, stand_in)


async def test_filters(real: Conversation, stand_in: Conversation) -> None:
    """The filters that NOVA uses find the same runs, in the same order."""
    states: dict[str, JSON] = {
        "scheduled": {"type": "SCHEDULED"},
        "retry": {"type": "SCHEDULED", "name": "AwaitingRetry"},
        "pending": {"type": "PENDING"},
        "running": {"type": "RUNNING"},
        "suspended": {"type": "PAUSED", "name": "Suspended"},
        "cancelling": {"type": "CANCELLING"},
        "completed": {"type": "COMPLETED"},
    }

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        flow = {"name": {"any_": [f"flow-{place.mark}"]}}
        now = datetime.now(UTC)
        ids: dict[str, str] = {}
        for number, (name, state) in enumerate(states.items()):
            due = (now - timedelta(minutes=number)).isoformat()
            details = {"state_details": {"scheduled_time": due}} if state["type"] == "SCHEDULED" else {}
            run = await place.run(name, state={**state, **details}, tags=[name], work_queue_name="high")
            ids[name] = run["id"]

        async def find(**wanted: object) -> None:
            path, body = "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", **wanted}
            status, found = await talk.silently("POST", path, body)
            assert status == 200, found
            talk.write(f"{wanted}: {[run['name'] for run in found]}")

        active = ["PENDING", "RUNNING", "CANCELLING"]
        pool = {"name": {"any_": [place.pool]}}
        either = {"operator": "or_", "type": {"any_": active}, "name": {"any_": ["AwaitingRetry"]}}
        await find(flow_runs={"id": {"any_": [ids["running"], ids["completed"], str(uuid4())]}})
        await find(flow_runs={"id": {"any_": []}})
        await find(flows=flow)
        await find(flows=flow, flow_runs={"state": either}, work_pools=pool)
        await find(flows=flow, flow_runs={"state": {**either, "operator": "and_"}}, work_pools=pool)
        await find(flows=flow, flow_runs={"state": {"name": {"any_": ["Cancelling", "Suspended"]}}})
        await find(flow_runs={"id": {"any_": list(ids.values())}, "state": {"type": {"any_": active}}})
        await find(deployments={"id": {"any_": [place.deployment_id]}}, sort="NAME_DESC", limit=2, offset=1)
        await find(flow_runs={"deployment_id": {"any_": [place.deployment_id]}}, sort="NAME_ASC", limit=0)
        await find(
            flow_runs={"tags": {"all_": ["a", "retry"]}, "deployment_id": {"is_null_": False}}, flows=flow
        )
        await find(flows=flow, flow_runs={"name": {"like_": "ED"}, "state": {"type": {"not_any_": active}}})
        await find(flows=flow, work_pool_queues={"name": {"any_": ["low"]}})
        before = (now - timedelta(seconds=30)).isoformat()
        await find(flows=flow, flow_runs={"expected_start_time": {"before_": before}})
        await find(flows=flow, flow_runs={"next_scheduled_start_time": {"after_": before}})
        await find(flows=flow, sort="NEXT_SCHEDULED_START_TIME_ASC", limit=2)
        await find(flows={"name": {"any_": ["no such flow"]}})
        for refused in ({"limit": 201}, {"limit": -1}, {"sort": "BY_LUCK"}):
            status, _ = await talk.silently("POST", "/flow_runs/filter", refused)
            talk.write(f"{refused}: {status}")

    await assert_same(story, real, stand_in)
