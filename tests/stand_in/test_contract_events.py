"""Events: what subscribers hear of runs, and task runs of which Prefect's engine tells by events alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.events import Event
from prefect.events.clients import PrefectEventSubscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON
from tests.stand_in.server import StandInServer
from tests.waiting import eventually

BEGUN = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Conversation]:
    """A conversation with a stand-in on a port of its own."""
    with StandInServer(tmp_path / "log") as server:
        async with PrefectClient(server.api_url) as connected:
            yield Conversation(connected)


async def test_what_subscribers_hear(real: Conversation, served: Conversation) -> None:
    """A subscriber hears of the new states of its pool's runs, also of those of the minute before it came."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        pool = (await talk.ask("GET", f"/work_pools/{place.pool}"))["id"]
        names = ["Scheduled", "AwaitingRetry", "Cancelling", "Suspended"]
        wanted = EventFilter(
            event=EventNameFilter(name=[f"prefect.flow-run.{name}" for name in names]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool}"]),
        )
        run = await place.run("run", work_queue_name="high", tags=["b"])
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry", message="again")
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "PAUSED", name="Suspended")
        await place.set_state(run, "CANCELLING")
        for event in await _heard(str(talk.client.api_url), wanted, 4):
            shown = event.model_dump(mode="json")
            shown["related"].sort(key=lambda one: str(one["prefect.resource.role"]))
            shown["related"].sort(key=lambda one: str(one["prefect.resource.id"]).startswith("prefect.tag"))
            talk.write(talk.comparable(shown))

    await assert_same(story, real, served)


async def _heard(api_url: str, wanted: EventFilter, number: int) -> list[Event]:
    """Listen until so many events have come; the real server replays each only after some seconds."""
    for _ in range(10):
        events: list[Event] = []
        with contextlib.suppress(TimeoutError):
            async with PrefectEventSubscriber(api_url, wanted) as subscriber, asyncio.timeout(3):
                while len(events) < number:
                    events.append(await anext(subscriber))
                return events
    raise AssertionError(f"heard of {len(events)} of {number}")


async def test_task_runs_from_events(real: Conversation, served: Conversation) -> None:
    """A task run is made and changed by what its events tell; one that comes late changes nothing."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        flow_run = await place.run(state={"type": "RUNNING"})
        task_run = str(uuid4())

        async def tell(state: str, second: int, run_count: int, **fields: Any) -> None:
            body = _event(flow_run["id"], task_run, state, second, {"run_count": run_count, **fields})
            status, _ = await talk.silently("POST", "/events", [body])
            assert status == 204

        async def shown(state: str) -> None:
            async def look() -> JSON:
                status, answer = await talk.silently("GET", f"/task_runs/{task_run}")
                return dict(answer) if status == 200 else {}

            found = await eventually(look, lambda run: run.get("state_type") == state, 20)
            talk.write(talk.comparable(found))

        await tell("PENDING", 1, 0)
        await shown("PENDING")
        await tell("RUNNING", 2, 1, start_time=_at(2))
        await shown("RUNNING")
        await tell("COMPLETED", 9, 1, end_time=_at(9), total_run_time=7.0)
        await shown("COMPLETED")
        await tell("RUNNING", 5, 1)
        await tell("FAILED", 10, 1, name="renamed")
        await shown("FAILED")
        body = {"state": {"type": "CRASHED", "message": "gone"}}
        await talk.ask("POST", f"/task_runs/{task_run}/set_state", body)

    await assert_same(story, real, served)


def _at(second: int) -> str:
    return (BEGUN + timedelta(seconds=second)).isoformat()


def _event(flow_run: str, task_run: str, state: str, second: int, fields: JSON) -> JSON:
    """An event as Prefect's task engine emits it."""
    known = {"name": "Read the mail", "task_key": "node", "dynamic_key": "1", "tags": [], "task_inputs": {}}
    validated: JSON = {
        "type": state,
        "name": state.title(),
        "message": None,
        "state_details": {},
        "data": None,
    }
    return {
        "id": str(uuid4()),
        "occurred": _at(second),
        "event": f"prefect.task-run.{state.title()}",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run}",
            "prefect.orchestration": "client",
        },
        "related": [
            {"prefect.resource.id": f"prefect.flow-run.{flow_run}", "prefect.resource.role": "flow-run"}
        ],
        "payload": {"validated_state": validated, "task_run": {**known, **fields}},
    }


async def test_odd_subscribers(served: Conversation) -> None:
    """A subscriber whose filter the stand-in does not know is turned away with the reason."""
    import websockets

    address = str(served.client.api_url).replace("http", "ws") + "events/out"
    async with websockets.connect(address, subprotocols=[websockets.Subprotocol("prefect")]) as socket:
        await socket.send(json.dumps({"type": "auth", "token": None}))
        await socket.recv()
        await socket.send(json.dumps({"type": "filter", "filter": {"text": {"query": "x"}}}))
        with pytest.raises(websockets.ConnectionClosedError, match="knows no filter 'text'"):
            await socket.recv()


async def test_events_outlast_their_run(real: Conversation, served: Conversation) -> None:
    """Of a run that was deleted there are events; of one that a server never had there are none."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        await place.set_state(run, "RUNNING")
        await talk.ask("DELETE", f"/flow_runs/{run['id']}")

        async def events_of(flow_run_id: str) -> JSON:
            body = {"filter": {"resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}, "limit": 1}
            status, answer = await talk.silently("POST", "/events/filter", body)
            assert status == 200
            return dict(answer)

        found = await eventually(lambda: events_of(run["id"]), lambda answer: answer["total"] > 1)
        [newest] = found["events"]
        talk.write(f"{found['total']} {newest['event']}")
        talk.write(str((await events_of(str(uuid4())))["events"]))

    await assert_same(story, real, served)
