"""Work pools, queues, workers, and which runs are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.stand_in.conversation import Conversation, Place, assert_same


async def queues(talk: Conversation, place: Place) -> dict[str, str]:
    """Write down a pool's queues with their priorities; return their ids."""
    _, found = await talk.silently("POST", f"/work_pools/{place.pool}/queues/filter", {})
    talk.write(f"queues: {[(queue['name'], queue['priority']) for queue in found]}")
    return {queue["name"]: queue["id"] for queue in found}


async def test_pools(real: Conversation, stand_in: Conversation) -> None:
    """A pool has a name of its own and a queue that cannot be deleted."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        path = f"/work_pools/{place.pool}"
        await talk.ask("POST", "/work_pools/", {"name": place.pool, "type": "process"})
        await talk.ask("POST", "/work_pools/", {"name": "prefect-pool", "type": "process"})
        await talk.ask("GET", path)
        await talk.ask("PATCH", path, {"description": "d", "concurrency_limit": 3, "is_paused": True})
        await talk.ask("GET", path)
        await talk.ask("PATCH", path, {"concurrency_limit": None, "is_paused": False})
        await talk.ask("GET", path)
        for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
            await talk.ask(method, f"/work_pools/{uuid4()}", body)
        await talk.ask("POST", f"/work_pools/{uuid4()}/get_scheduled_flow_runs", {})
        await talk.ask("POST", f"/work_pools/{uuid4()}/workers/heartbeat", {"name": "w"})
        await talk.ask("POST", f"/work_pools/{uuid4()}/workers/filter", {})
        await talk.ask("POST", f"/work_pools/{uuid4()}/queues/filter", {})

    await assert_same(story, real, stand_in)


async def test_queues(real: Conversation, stand_in: Conversation) -> None:
    """A pool's queues have a priority each; who gets another's over the pool moves it back."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        path = f"/work_pools/{place.pool}/queues"
        ids = await queues(talk, place)
        await talk.ask("GET", f"{path}/default")
        await talk.ask("POST", path, {"name": "high"})
        await talk.ask("POST", path, {"name": "last"})
        await queues(talk, place)
        await talk.ask("PATCH", f"{path}/last", {"priority": 2, "description": "d"})
        await queues(talk, place)
        await talk.ask("PATCH", f"/work_queues/{ids['default']}", {"name": "renamed"})
        await talk.ask("PATCH", f"/work_queues/{ids['low']}", {"priority": 9})
        await queues(talk, place)
        await talk.ask("POST", path, {"name": "between"})
        await queues(talk, place)
        await talk.ask("PATCH", f"/work_queues/{ids['low']}", {"is_paused": True, "concurrency_limit": 2})
        await talk.ask("GET", f"/work_queues/{ids['low']}")
        await talk.ask("DELETE", f"{path}/last")
        await queues(talk, place)
        await talk.ask("DELETE", f"/work_queues/{ids['default']}")
        await talk.ask("GET", f"{path}/none")
        await talk.ask("PATCH", f"{path}/none", {})
        await talk.ask("PATCH", f"/work_queues/{uuid4()}", {"priority": 1})
        await talk.ask("DELETE", f"/work_queues/{ids['low']}")
        await queues(talk, place)

    await assert_same(story, real, stand_in)


async def test_due_runs(real: Conversation, stand_in: Conversation) -> None:
    """Runs are due by their queues' priorities, then by their times, as far as limits and pauses let them."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        now = datetime.now(UTC)
        ids = await queues(talk, place)
        for name, queue, minutes in (
            ("b", "high", 1),
            ("a", "high", 2),
            ("d", "normal", 9),
            ("f", "low", 3),
            ("e", "low", 4),
            ("later", "high", -60),
        ):
            details = {"scheduled_time": (now - timedelta(minutes=minutes)).isoformat()}
            state = {"type": "SCHEDULED", "name": "Late", "state_details": details}
            await place.run(name, state=state, work_queue_name=queue)
        by = {"scheduled_before": now.isoformat()}

        async def due(*chosen: str, **fields: object) -> list[str]:
            path = f"/work_pools/{place.pool}/get_scheduled_flow_runs"
            body = {"work_queue_names": list(chosen), **by, **fields}
            status, found = await talk.silently("POST", path, body)
            names = [each["flow_run"]["name"] for each in found] if status == 200 else found
            talk.write(f"{chosen} {fields}: {status} {names}")
            return list(names)

        path, queue_path = f"/work_pools/{place.pool}", f"/work_pools/{place.pool}/queues"
        assert await due() == ["a", "b", "d", "e", "f"]
        await due(limit=3)
        await due(limit=0)
        await due("low")
        await due("low", "high")
        await due("none")
        await due(scheduled_before=None)
        await due(scheduled_before=(now - timedelta(minutes=2)).isoformat())
        await due(scheduled_after=(now - timedelta(minutes=2, seconds=1)).isoformat())
        await talk.ask("PATCH", f"{queue_path}/high", {"is_paused": True})
        await due()
        await due("high")
        await talk.ask("PATCH", f"{queue_path}/high", {"is_paused": False, "concurrency_limit": 1})
        await due()
        running = await place.run("running", state={"type": "RUNNING"}, work_queue_name="high")
        await due()
        await talk.ask("GET", f"{queue_path}/high")
        await talk.ask("PATCH", path, {"concurrency_limit": 3})
        await due()
        await place.run("pending", state={"type": "PENDING"}, work_queue_name="low")
        await due()
        await talk.ask("GET", path)
        await talk.ask("PATCH", f"{queue_path}/high", {"is_paused": True})
        await due()
        await talk.ask("PATCH", f"{queue_path}/high", {"is_paused": False, "concurrency_limit": None})
        await talk.ask("PATCH", path, {"concurrency_limit": 0})
        await due()
        await talk.ask("PATCH", path, {"concurrency_limit": 9, "is_paused": True})
        await due()
        await talk.ask("PATCH", path, {"is_paused": False})
        await talk.ask("PATCH", f"/work_queues/{ids['low']}", {"priority": 1})
        await place.set_state(running, "SCHEDULED", name="AwaitingRetry")
        await due(scheduled_before=(now + timedelta(minutes=5)).isoformat())
        await place.set_state(running, "CANCELLED")
        await due()

    await assert_same(story, real, stand_in)


async def test_a_due_run(real: Conversation, stand_in: Conversation) -> None:
    """A due run is shown without its state, and is shown again until somebody takes it."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        assert await place.due() == ["run"]
        assert await place.due() == ["run"]
        await place.set_state(run, "PENDING")
        assert await place.due() == []

    await assert_same(story, real, stand_in)


async def test_deleting_a_queue(real: Conversation, stand_in: Conversation) -> None:
    """Runs and deployments of a deleted queue have none any more: nobody is shown these runs."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run("run", work_queue_name="low")
        await talk.ask("DELETE", f"/work_pools/{place.pool}/queues/low")
        await place.read(run)
        assert await place.due() == []
        await place.set_state(run, "PENDING")
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry")
        assert await place.due() == []
        await talk.ask("DELETE", f"/work_pools/{place.pool}/queues/normal")
        await talk.ask("GET", f"/deployments/{place.deployment_id}")
        await place.run("no queue")
        await place.run("other queue", work_queue_name="low")
        await talk.ask("DELETE", f"/work_pools/{place.pool}/queues/default")

    await assert_same(story, real, stand_in)


async def test_deleting_a_pool(real: Conversation, stand_in: Conversation) -> None:
    """A deployment whose pool was deleted makes runs that nobody is shown, and refuses a queue's name."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        path = f"/work_pools/{place.pool}"
        run = await place.run("run", work_queue_name="high")
        await talk.ask("DELETE", path)
        await talk.ask("DELETE", path)
        await place.read(run)
        await talk.ask("GET", f"/deployments/{place.deployment_id}")
        await place.run("with a queue", work_queue_name="high")
        await place.run("without", idempotency_key="k")
        await place.set_state(run, "PENDING")
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry")
        await place.due()
        await talk.ask("POST", "/work_pools/", {"name": place.pool, "type": "nova"})
        assert await place.due() == []
        await place.run("with a queue", work_queue_name="high")
        body = {"work_pool_name": place.pool, "work_queue_name": "high"}
        await talk.ask("PATCH", f"/deployments/{place.deployment_id}", body)
        await place.run("again", work_queue_name="high")
        assert await place.due() == ["again"]
        pool = {"work_pools": {"name": {"any_": [place.pool]}}}
        _, found = await talk.silently("POST", "/flow_runs/filter", pool)
        talk.write(f"in the new pool: {[run['name'] for run in found]}")

    await assert_same(story, real, stand_in)


async def test_workers(real: Conversation, stand_in: Conversation) -> None:
    """A worker that has just sent a heartbeat is online."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        path = f"/work_pools/{place.pool}/workers"
        for name, interval in (("one", None), ("two", 30), ("one", 60)):
            body = {"name": name, "heartbeat_interval_seconds": interval}
            await talk.ask("POST", f"{path}/heartbeat", body)
        await talk.ask("POST", f"{path}/filter", {})
        await talk.ask("POST", f"{path}/filter", {"workers": {"status": {"any_": ["ONLINE"]}}})
        await talk.ask("POST", f"{path}/filter", {"workers": {"status": {"any_": ["OFFLINE"]}}})
        await talk.ask("DELETE", f"{path}/one")
        await talk.ask("DELETE", f"{path}/one")
        await talk.ask("POST", f"{path}/filter", {"limit": 5, "offset": 0})

    await assert_same(story, real, stand_in)


async def test_a_servers_own_answers(real: Conversation, stand_in: Conversation) -> None:
    """Health, versions and the protection that is off are answered alike."""

    async def story(talk: Conversation) -> None:
        for path in ("/ready", "/health", "/admin/version", "/version", "/hello", "/csrf-token?client=x"):
            await talk.ask("GET", path)
        flow = await talk.ask("POST", "/flows/", {"name": f"flow-{uuid4()}", "tags": ["a"]})
        await talk.ask("POST", "/flows/", {"name": flow["name"]})
        await talk.ask("GET", f"/flows/{flow['id']}")
        await talk.ask("GET", f"/flows/name/{flow['name']}")
        await talk.ask("GET", f"/flows/{uuid4()}")
        await talk.ask("GET", "/flows/name/none")
        line = {"name": "n", "level": 20, "message": "m", "timestamp": datetime.now(UTC).isoformat()}
        await talk.ask("POST", "/logs/", [line])
        await talk.ask("POST", "/events", [])

    await assert_same(story, real, stand_in)
