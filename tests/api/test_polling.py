"""Polls of open runs: what they cost Prefect, and what they make of answers that are a second old."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed

from flows.config.settings import Settings
from flows.graphs.flow_run_state import FlowRunState
from flows.prefect_gateway import run_watch
from flows.store.database import Database
from tests.api.conftest import SetState, make_settings, running_api
from tests.api.relay import Relay
from tests.leasing import begin
from tests.waiting import eventually

Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]

LOOK_UP = "POST /api/flow_runs/filter"
READ = "GET /api/flow_runs/"
AWAY = "Prefect does not answer"


@pytest.fixture
async def wired(
    prefect_wire: Wire, settings: Settings, encryption_key: str
) -> AsyncIterator[tuple[Relay, httpx.AsyncClient]]:
    """An API whose requests to Prefect go through a relay."""
    async with prefect_wire() as (relay, url):
        own = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=20)
        async with running_api(own) as api:
            yield relay, api


async def submit(api: httpx.AsyncClient, workflow: dict[str, Any]) -> str:
    """Execute the workflow; the task's id."""
    response = await api.post(f"/workflows/{workflow['id']}/execute")
    return str(response.json()["task_id"])


async def poll(api: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    """GET /tasks/{id}, which must be 200."""
    response = await api.get(f"/tasks/{task_id}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_polls_cost_prefect_the_same_however_many_they_are(
    wired: tuple[Relay, httpx.AsyncClient], workflow: dict[str, Any]
) -> None:
    """Twenty clients poll ten open runs: one request a second to Prefect serves all polls."""
    relay, api = wired
    tasks = [await submit(api, workflow) for _ in range(10)]
    polls: Counter[str] = Counter()

    since = time.monotonic()

    async def client(task_id: str) -> None:
        while time.monotonic() - since < 3 * run_watch.PACE:
            polls[(await poll(api, task_id))["status"]] += 1

    await asyncio.gather(*(client(task_id) for task_id in tasks * 2))
    assert polls.keys() == {"PENDING"}
    assert 1 <= len(relay.requests(LOOK_UP)) <= 2 + (time.monotonic() - since) / run_watch.PACE
    assert relay.requests(READ) == []


async def test_the_first_polls_of_a_new_run_ask_nobody(
    wired: tuple[Relay, httpx.AsyncClient], workflow: dict[str, Any]
) -> None:
    """What Prefect said when it made the run is news enough."""
    relay, api = wired
    assert (await poll(api, await submit(api, workflow)))["status"] == "PENDING"
    assert relay.requests(READ) + relay.requests(LOOK_UP) == []


async def test_executions_are_looked_up_together_too(
    wired: tuple[Relay, httpx.AsyncClient], workflow: dict[str, Any]
) -> None:
    """Reading open executions costs Prefect no more than polling their tasks."""
    relay, api = wired
    for _ in range(5):
        await submit(api, workflow)
    ids = [row["id"] for row in (await api.get("/executions")).json()["executions"]]
    since = time.monotonic()
    while time.monotonic() - since < 2 * run_watch.PACE:
        answers = await asyncio.gather(*(api.get(f"/executions/{number}") for number in ids))
        assert {answer.json()["status"] for answer in answers} == {"pending"}
    assert 1 <= len(relay.requests(LOOK_UP)) <= 2 + (time.monotonic() - since) / run_watch.PACE
    assert relay.requests(READ) == []


async def test_an_old_answer_closes_no_run_that_goes_on_again(
    api: httpx.AsyncClient,
    prefect: PrefectClient,
    workflow: dict[str, Any],
    set_state: SetState,
    database: Database,
) -> None:
    """A run crashed, was polled, and was retried at once: the next poll asks anew, and its row stays open."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    flow_run_id = (await prefect.create_flow_run_from_deployment(deployment.id)).id
    task_id = str(flow_run_id)
    await set_state(task_id, Crashed())
    assert (await poll(api, task_id))["status"] == "FAILURE"
    await set_state(task_id, AwaitingRetry())
    row = await database.run(
        lambda session: begin(session, flow_run_id=flow_run_id, workflow_id=workflow["id"])
    )
    assert (await poll(api, task_id))["status"] == "RETRY"
    assert (await api.get(f"/executions/{row.id}")).json()["status"] == "running"


async def test_a_slow_poll_closes_no_run_that_was_retried_meanwhile(
    api: httpx.AsyncClient, start: Callable[..., Any], set_state: SetState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw the run cancelled; before it could note so another poll did, and a person retried the run."""
    task_id, run = await start()
    await run.begin()
    await run.schedule_retry("E2B does not answer.", 300)
    await set_state(task_id, Cancelled())
    ask, asked = run_watch.RunWatch.fresh, 0

    async def slow(self: run_watch.RunWatch, flow_run_id: UUID) -> FlowRunState | None:
        nonlocal asked
        asked += 1
        first, state = asked == 1, await ask(self, flow_run_id)
        if first:
            assert (await poll(api, task_id))["status"] == "REVOKED"
            assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
        return state

    monkeypatch.setattr(run_watch.RunWatch, "fresh", slow)
    await eventually(lambda: poll(api, task_id), lambda _: asked > 0)
    assert (await poll(api, task_id))["status"] == "RETRY"
    assert (await api.get(f"/executions/{run.execution_id}")).json()["status"] == "running"


async def test_a_run_that_has_just_begun_reads_running(
    api: httpx.AsyncClient, start: Callable[..., Any]
) -> None:
    """Its row is ahead of what Prefect said when it was made."""
    task_id, run = await start()
    await run.begin()
    body = await poll(api, task_id)
    assert (body["status"], body["meta"]["execution_id"]) == ("RUNNING", run.execution_id)


async def test_many_polls_without_prefect_are_answered_together(
    wired: tuple[Relay, httpx.AsyncClient], workflow: dict[str, Any]
) -> None:
    """All from their rows, with a remark, after one wait at most; and all is well when Prefect is back."""
    relay, api = wired
    tasks = [await submit(api, workflow) for _ in range(5)]
    await relay.cut()
    await eventually(lambda: poll(api, tasks[0]), lambda body: AWAY in body["message"])
    since = time.monotonic()
    for _ in range(3):
        bodies = await asyncio.gather(*(poll(api, task_id) for task_id in tasks * 4))
        assert {body["status"] for body in bodies} == {"PENDING"}
    assert time.monotonic() - since < 30
    await relay.restore()
    await eventually(lambda: poll(api, tasks[0]), lambda body: AWAY not in body["message"])


async def test_a_prefect_that_hangs_holds_no_poll_up(
    wired: tuple[Relay, httpx.AsyncClient], workflow: dict[str, Any], set_state: SetState
) -> None:
    """It takes requests and does not answer: polls tell what the row does, and later what happened."""
    relay, api = wired
    task_id = await submit(api, workflow)
    relay.open.clear()
    await eventually(lambda: poll(api, task_id), lambda body: AWAY in body["message"])
    await set_state(task_id, Cancelling())
    relay.open.set()
    await eventually(lambda: poll(api, task_id), lambda body: body["status"] == "REVOKED")
