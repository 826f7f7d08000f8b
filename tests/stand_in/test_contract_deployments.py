"""Deployments and schedules: what is kept, what is replaced, and which runs go with them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON

NEVER: JSON = {"cron": "0 0 29 2 *", "timezone": "Europe/Berlin"}
HOURLY: JSON = {"cron": "30 * * * *", "timezone": "UTC"}


async def runs_of(talk: Conversation, place: Place) -> list[JSON]:
    """Write down which runs a deployment has, in the order of their times; return them."""
    body = {
        "flow_runs": {"deployment_id": {"any_": [place.deployment_id]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    _, found = await talk.silently("POST", "/flow_runs/filter", body)
    talk.write(f"runs: {[(run['state_name'], run['auto_scheduled'], run['run_count']) for run in found]}")
    return list(found)


async def test_a_deployments_fields(real: Conversation, stand_in: Conversation) -> None:
    """A second creation changes the deployment and replaces its schedules; an update only what it names."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make(version="1", description="d", schedules=[{"schedule": NEVER}])
        path = f"/deployments/{place.deployment_id}"
        again = await place.deploy(version="2", work_queue_name="high", concurrency_limit=2)
        assert again["id"] == place.deployment_id
        await talk.ask("GET", f"/deployments/name/flow-{place.mark}/deployment")
        await talk.ask("GET", f"/deployments/name/flow-{place.mark}/other")
        await talk.ask(
            "PATCH", path, {"tags": ["x"], "description": None, "entrypoint": "a.b", "pull_steps": []}
        )
        await talk.ask("GET", path)
        options = {"collision_strategy": "CANCEL_NEW"}
        await talk.ask("PATCH", path, {"concurrency_limit": 1, "concurrency_options": options})
        await talk.ask("PATCH", path, {"paused": True})
        await talk.ask("GET", path)
        await talk.ask("PATCH", path, {"work_pool_name": place.pool, "work_queue_name": "new"})
        await talk.ask("GET", path)
        await talk.ask("PATCH", path, {"work_pool_name": place.pool})
        await talk.ask("GET", path)
        await talk.ask("PATCH", path, {"work_pool_name": None})
        await talk.ask("GET", path)
        for method in ("GET", "PATCH", "DELETE"):
            await talk.ask(method, f"/deployments/{uuid4()}", {} if method == "PATCH" else None)
        await place.deploy(work_pool_name="no such pool")
        await talk.ask("POST", "/deployments/", {"flow_id": str(uuid4()), "name": "x"})

    await assert_same(story, real, stand_in)


async def test_finding_deployments(real: Conversation, stand_in: Conversation) -> None:
    """Deployments are found by their tags, ids, flows and pools, page by page in the order of their names."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        tag = f"tag-{place.mark}"
        for name in ("c", "a", "b"):
            await place.deploy(name, tags=[tag, name])

        async def find(**wanted: object) -> None:
            _, found = await talk.silently("POST", "/deployments/filter", wanted)
            talk.write(f"{wanted}: {[one['name'] for one in found]}")

        await find(deployments={"tags": {"all_": [tag]}})
        await find(deployments={"tags": {"all_": [tag]}}, limit=2)
        await find(deployments={"tags": {"all_": [tag]}}, limit=2, offset=2)
        await find(deployments={"tags": {"all_": [tag, "b"]}})
        await find(deployments={"id": {"any_": [place.deployment_id]}})
        await find(flows={"name": {"any_": [f"flow-{place.mark}"]}}, deployments={"name": {"any_": ["a"]}})
        await find(work_pools={"name": {"any_": [place.pool]}})
        await find(deployments={"tags": {"all_": ["no such tag"]}})

    await assert_same(story, real, stand_in)


async def test_schedules(real: Conversation, stand_in: Conversation) -> None:
    """Schedules are made, changed and deleted one by one; their slugs are theirs alone."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        path = f"/deployments/{place.deployment_id}/schedules"
        first = {"schedule": NEVER, "active": False, "slug": "nova-1", "parameters": {"a": 1}}
        made = await talk.ask("POST", path, [first])
        await talk.ask("POST", path, [{"schedule": HOURLY, "active": False, "slug": "nova-1"}])
        await talk.ask("POST", path, [{"schedule": {"interval": 3600.0}, "active": False}])
        await talk.ask("GET", path)
        await talk.ask("PATCH", f"{path}/{made[0]['id']}", {"schedule": HOURLY, "parameters": {}})
        await talk.ask("GET", path)
        await talk.ask("PATCH", f"/deployments/{place.deployment_id}", {"version": "2"})
        await talk.ask("DELETE", f"{path}/{made[0]['id']}")
        await talk.ask("DELETE", f"{path}/{made[0]['id']}")
        await talk.ask("PATCH", f"{path}/{made[0]['id']}", {"active": True})
        await talk.ask("GET", path)
        nowhere = f"/deployments/{uuid4()}/schedules"
        for method, body in (("GET", None), ("POST", []), ("PATCH", {}), ("DELETE", None)):
            one = "" if method in ("GET", "POST") else f"/{uuid4()}"
            await talk.ask(method, nowhere + one, body)

    await assert_same(story, real, stand_in)


async def test_scheduled_runs(real: Conversation, stand_in: Conversation) -> None:
    """A schedule's runs are made ahead, once each; they go when it or its deployment changes."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make(parameters={"workflow_id": 1}, paused=True)
        path = f"/deployments/{place.deployment_id}"
        given = {"parameters": {"client_slug": "acme"}, "slug": "nova-7", "active": True}
        made = await talk.ask("POST", f"{path}/schedules", [{"schedule": HOURLY, **given}])
        start = (datetime.now(UTC) + timedelta(days=1)).replace(hour=6, minute=0, second=0, microsecond=0)
        window = {"start_time": start.isoformat(), "max_runs": 3}
        own = await place.run("own")

        async def make() -> None:
            await talk.ask("POST", f"{path}/schedule", {"min_runs": 3, **window})
            await talk.ask("POST", f"{path}/schedule", {"min_runs": 2, "min_time": 0, **window})
            found = await runs_of(talk, place)
            due = [datetime.fromisoformat(run["next_scheduled_start_time"]) for run in found[1:]]
            assert due == [start + timedelta(minutes=30, hours=number) for number in range(3)]
            _, shown = await talk.silently("GET", f"/flow_runs/{found[1]['id']}")
            talk.write(talk.comparable({**shown, "name": "random"}))

        await make()
        await talk.ask("PATCH", path, {"version": "3"})
        await runs_of(talk, place)
        await make()
        await talk.ask("PATCH", f"{path}/schedules/{made[0]['id']}", {"active": True})
        await runs_of(talk, place)
        await make()
        await place.set_state((await runs_of(talk, place))[1], "SCHEDULED", name="AwaitingConcurrencySlot")
        await talk.ask("POST", f"{path}/pause_deployment")
        await talk.ask("POST", f"{path}/resume_deployment")
        await talk.ask("POST", f"/deployments/{uuid4()}/pause_deployment")
        await runs_of(talk, place)
        await talk.ask("DELETE", f"{path}/schedules/{made[0]['id']}")
        await talk.ask("DELETE", path)
        await place.read(own)

    await assert_same(story, real, stand_in)


async def test_deleting_a_deployment(real: Conversation, stand_in: Conversation) -> None:
    """What has not begun goes with its deployment, and what waits for a slot or was started stays."""
    states: dict[str, JSON] = {
        "scheduled": {"type": "SCHEDULED"},
        "late": {"type": "SCHEDULED", "name": "Late"},
        "retry": {"type": "SCHEDULED", "name": "AwaitingRetry"},
        "slot": {"type": "SCHEDULED", "name": "AwaitingConcurrencySlot"},
        "pending": {"type": "PENDING"},
        "running": {"type": "RUNNING"},
        "failed": {"type": "FAILED"},
    }

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        for name, state in states.items():
            await place.run(name, state=state)
        begun = await place.run("begun", state={"type": "RUNNING"})
        await place.set_state(begun, "SCHEDULED", name="AwaitingRetry")
        await talk.ask("DELETE", f"/deployments/{place.deployment_id}")
        body = {"flows": {"id": {"any_": [place.flow_id]}}, "sort": "NAME_ASC"}
        _, left = await talk.silently("POST", "/flow_runs/filter", body)
        talk.write(f"{[(run['name'], run['deployment_id']) for run in left]}")
        assert "scheduled" not in [run["name"] for run in left]
        await place.due()
        again = await place.deploy()
        assert again["id"] != place.deployment_id

    await assert_same(story, real, stand_in)
