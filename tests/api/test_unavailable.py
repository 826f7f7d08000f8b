"""Prefect or the database gone, before, during and after: 503, and never a run lost or run twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from sqlalchemy import select

from flows.config import times
from flows.config.settings import Settings
from flows.graphs.errors import ExecutionClosedError
from flows.store.database import Database
from flows.store.models import Execution
from tests.api.conftest import make_settings, running_api
from tests.api.relay import Relay
from tests.builders import action, fresh_name, line
from tests.leasing import begin
from tests.servers import free_port
from tests.waiting import eventually

Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]


@pytest.fixture
def lonely(settings: Settings, encryption_key: str) -> Settings:
    """Settings of an API whose Prefect server does not exist."""
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    return make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)


async def rows(database: Database) -> list[Execution]:
    """All executions, oldest first."""
    return await database.run(lambda session: list(session.scalars(select(Execution).order_by(Execution.id))))


async def flow_run_ids(prefect: PrefectClient, workflow: dict[str, Any]) -> list[UUID]:
    """The flow runs that Prefect has for a workflow."""
    tags = FlowRunFilterTags(all_=[f"workflow:{workflow['slug']}"])
    return [run.id for run in await prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tags))]


async def start(database: Database, row: Execution, flow_run_id: UUID) -> None:
    """Begin a run, as its flow does; raises what that is told."""
    await database.run(
        lambda session: begin(
            session, flow_run_id=flow_run_id, public_id=row.public_id, workflow_id=row.workflow_id
        )
    )


def is_unavailable(response: httpx.Response) -> bool:
    """Whether an answer is a 503 as it should be."""
    assert "Traceback" not in response.text
    return response.status_code == response.json()["status_code"] == 503 and int(
        response.headers["Retry-After"]
    ) in range(1, 61)


async def test_without_prefect_nothing_is_started(
    workflow: dict[str, Any], lonely: Settings, database: Database
) -> None:
    """503, and the execution is closed as never started: a flow run that comes late is turned away."""
    async with running_api(lonely) as api:
        response = await api.post(f"/workflows/{workflow['id']}/execute")
    assert is_unavailable(response)
    assert "never started" in response.json()["error"]
    (row,) = await rows(database)
    assert (row.status, row.error_kind, row.flow_run_id) == ("cancelled", "not_started", None)
    with pytest.raises(ExecutionClosedError):
        await start(database, row, UUID(int=1))


async def test_without_prefect_no_workflow_is_made_or_changed(
    api: httpx.AsyncClient, workflow: dict[str, Any], lonely: Settings
) -> None:
    """503 to each, and afterwards everything is as it was; the name is free for another attempt."""
    name = fresh_name("Later")
    body = {"name": name, "graph_definition": workflow["graph_definition"]}
    async with running_api(lonely) as alone:
        answers = [
            await alone.post("/workflows", json=body),
            await alone.put(f"/workflows/{workflow['id']}", json={"description": "changed"}),
            await alone.delete(f"/workflows/{workflow['id']}"),
            await alone.post(f"/workflows/{workflow['id']}/schedules", json={"cron": "0 9 * * *"}),
            await alone.get(f"/workflows/{workflow['id']}/schedules"),
        ]
        found = (await alone.get(f"/workflows/{workflow['id']}")).json()
    assert all(map(is_unavailable, answers))
    assert found["description"] == workflow["description"]
    assert (await api.get(f"/workflows/{workflow['id']}/schedules")).json()["total"] == 0
    assert (await api.post("/workflows", json=body)).status_code == 201


async def test_a_schedule_stays_as_it_was_without_prefect(
    api: httpx.AsyncClient, workflow: dict[str, Any], lonely: Settings
) -> None:
    """A change or deletion that Prefect does not hear of does not happen."""
    address = f"/workflows/{workflow['id']}/schedules"
    made = (await api.post(address, json={"cron": "0 9 * * *"})).json()
    one = f"{address}/{made['id']}"
    async with running_api(lonely) as alone:
        assert is_unavailable(await alone.put(one, json={"cron": "0 10 * * *"}))
        assert is_unavailable(await alone.delete(one))
        assert (await alone.get(one)).json() == made


async def test_reading_goes_on_without_prefect(workflow: dict[str, Any], lonely: Settings) -> None:
    """What stands in the database is answered as ever."""
    async with running_api(lonely) as api:
        for path in ("/workflows", f"/workflows/{workflow['id']}", "/executions", "/clients", "/metrics"):
            assert (await api.get(path)).status_code == 200


async def test_an_answer_of_prefects_that_got_lost(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    prefect_wire: Wire,
    settings: Settings,
    encryption_key: str,
    database: Database,
) -> None:
    """Prefect made the flow run, but we never heard: 503, and the run that exists will not start."""
    async with prefect_wire() as (relay, url):
        deaf = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=2)
        async with running_api(deaf) as api:
            assert (await api.get("/health")).status_code == 200
            relay.deaf = True
            response = await api.post(f"/workflows/{workflow['id']}/execute")
    assert is_unavailable(response)
    (row,) = await rows(database)
    assert row.error_kind == "not_started"
    (late,) = await eventually(lambda: flow_run_ids(prefect, workflow), bool)
    with pytest.raises(ExecutionClosedError):
        await start(database, row, late)


async def test_a_run_that_started_in_spite_of_a_lost_answer(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    prefect_wire: Wire,
    settings: Settings,
    encryption_key: str,
    database: Database,
) -> None:
    """Its flow was faster than our patience: 202 with its id, since it is running."""
    async with prefect_wire() as (relay, url):
        deaf = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=10)
        async with running_api(deaf) as api:
            assert (await api.get("/health")).status_code == 200
            relay.deaf = True
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            (flow_run_id,) = await eventually(lambda: flow_run_ids(prefect, workflow), bool)
            (row,) = await rows(database)
            await start(database, row, flow_run_id)
            response = await request
    assert (response.status_code, response.json()["task_id"]) == (202, str(flow_run_id))
    (row,) = await rows(database)
    assert row.status == "running"


async def test_without_the_database_everything_is_503(
    wire: Wire, prefect_server: str, encryption_key: str
) -> None:
    """Each call, with Retry-After and no traceback; and all is well when it is back."""
    graph = line(action("a", "pass"))
    async with wire() as (relay, url), running_api(make_settings(url, prefect_server, encryption_key)) as api:
        await relay.cut()
        answers = [
            await api.get("/workflows"),
            await api.get("/workflows/1"),
            await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph}),
            await api.put("/workflows/1", json={}),
            await api.delete("/workflows/1"),
            await api.post("/workflows/1/execute"),
            await api.get("/executions"),
            await api.get("/executions/1"),
            await api.get("/executions/1/chain"),
            await api.get(f"/tasks/{UUID(int=7)}"),
            await api.get("/clients"),
            await api.get("/workflows/1/schedules"),
        ]
        assert all(map(is_unavailable, answers))
        await relay.restore()
        assert (await api.get("/workflows")).status_code == 200


async def test_the_database_lost_after_prefect_confirmed(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    wire: Wire,
    prefect_wire: Wire,
    encryption_key: str,
    database: Database,
) -> None:
    """Prefect has the run and its flow will find the row: 202, since 503 would say that it never runs."""
    async with wire() as (relay, url), prefect_wire() as (slow, prefect_url):
        own = make_settings(url, prefect_url, encryption_key, NOVA_PREFECT_TIMEOUT=20)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            slow.open.clear()
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            (flow_run_id,) = await eventually(lambda: flow_run_ids(prefect, workflow), bool)
            await relay.cut()
            slow.open.set()
            response = await request
            assert (response.status_code, response.json()["task_id"]) == (202, str(flow_run_id))
            await relay.restore()
            body = (await api.get(f"/tasks/{flow_run_id}")).json()
    assert body["status"] == "PENDING"
    (row,) = await rows(database)
    assert (row.status, row.flow_run_id) == ("pending", None)


async def test_both_lost_at_once(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    wire: Wire,
    prefect_wire: Wire,
    encryption_key: str,
    database: Database,
) -> None:
    """The answer waits for the database; 503 then, and the row is closed: no late flow run starts it."""
    async with wire() as (relay, url), prefect_wire() as (deaf, prefect_url):
        own = make_settings(url, prefect_url, encryption_key, NOVA_PREFECT_TIMEOUT=6)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            deaf.deaf = True
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            await eventually(lambda: flow_run_ids(prefect, workflow), bool)
            await relay.cut()
            await asyncio.wait({request}, timeout=8)
            assert not request.done()
            assert (await rows(database))[0].status == "pending"
            await relay.restore()
            assert is_unavailable(await request)
    assert (await rows(database))[0].error_kind == "not_started"


async def test_both_lost_for_long(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    wire: Wire,
    prefect_wire: Wire,
    encryption_key: str,
    database: Database,
) -> None:
    """A worker found the database sooner than the API: 202, since a 503 would say that it never runs."""
    async with wire() as (relay, url), prefect_wire() as (deaf, prefect_url):
        own = make_settings(url, prefect_url, encryption_key, NOVA_PREFECT_TIMEOUT=6)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            deaf.deaf = True
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            (flow_run_id,) = await eventually(lambda: flow_run_ids(prefect, workflow), bool)
            await relay.cut()
            await asyncio.wait({request}, timeout=8)
            assert not request.done()
            (row,) = await rows(database)
            await start(database, row, flow_run_id)
            await relay.restore()
            response = await request
    assert (response.status_code, response.json()["task_id"]) == (202, str(flow_run_id))
    (row,) = await rows(database)
    assert row.status == "running"


async def test_an_api_that_stops_before_the_database_is_back_promises_nothing(
    workflow: dict[str, Any],
    wire: Wire,
    lonely: Settings,
    encryption_key: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request that waited is cut off without an answer: its run may start or not."""
    monkeypatch.setattr(times, "API_DRAIN", 0.1)
    nowhere = lonely.prefect_api_url
    async with wire() as (relay, url):
        own = make_settings(url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=3)
        async with running_api(own) as api:
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            await eventually(lambda: rows(database), bool)
            await relay.cut()
            await asyncio.wait({request}, timeout=5)
            assert not request.done()
        with pytest.raises(asyncio.CancelledError):
            await request


async def test_a_row_whose_commit_was_not_answered_never_starts(
    workflow: dict[str, Any], wire: Wire, prefect_server: str, encryption_key: str, database: Database
) -> None:
    """503, and the row that stands all the same is closed: nobody finds it and hands it to Prefect."""
    async with wire() as (relay, url), running_api(make_settings(url, prefect_server, encryption_key)) as api:
        assert (await api.get("/health")).status_code == 200
        relay.deaf_after = b"COMMIT"
        request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
        await eventually(lambda: rows(database), bool)
        await relay.cut()
        relay.deaf_after, relay.deaf = b"", False
        await relay.restore()
        assert is_unavailable(await request)
    (row,) = await rows(database)
    assert (row.status, row.error_kind) == ("cancelled", "not_started")


async def test_a_row_whose_commit_was_not_answered_may_have_started(
    workflow: dict[str, Any], wire: Wire, prefect_server: str, encryption_key: str, database: Database
) -> None:
    """Somebody found the row and had it run before the API could close it: 202 with its id."""
    async with wire() as (relay, url), running_api(make_settings(url, prefect_server, encryption_key)) as api:
        assert (await api.get("/health")).status_code == 200
        relay.deaf_after = b"COMMIT"
        request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
        (row,) = await eventually(lambda: rows(database), bool)
        await relay.cut()
        await start(database, row, UUID(int=7))
        relay.deaf_after, relay.deaf = b"", False
        await relay.restore()
        response = await request
    assert (response.status_code, response.json()["task_id"]) == (202, str(UUID(int=7)))
    assert response.json()["workflow_name"] == workflow["name"]
    (row,) = await rows(database)
    assert row.status == "running"


async def test_prefect_killed_in_the_middle_of_a_post(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    prefect_wire: Wire,
    settings: Settings,
    encryption_key: str,
    database: Database,
) -> None:
    """It had made the flow run when its connection broke, and is back soon: 202, and one flow run."""
    async with prefect_wire() as (relay, url):
        own = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=20)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            relay.open.clear()
            request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
            (flow_run_id,) = await eventually(lambda: flow_run_ids(prefect, workflow), bool)
            await relay.cut()
            relay.open.set()
            await relay.restore()
            response = await request
    assert response.status_code in (202, 503)
    (row,) = await rows(database)
    assert await flow_run_ids(prefect, workflow) == [flow_run_id]
    if response.status_code == 202:
        assert response.json()["task_id"] == str(flow_run_id) == str(row.flow_run_id)
    else:
        assert row.error_kind == "not_started"
