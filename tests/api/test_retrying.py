"""A person retries a run: what its row and Prefect say then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Failed,
    Running,
)

from flows.config.settings import Settings
from flows.graphs.lifecycle import ErrorKind, Status
from flows.recovery.reconciler import Reconciler
from flows.store.database import Database, now
from flows.store.transitions import columns
from tests.api.conftest import SetState, make_settings, running_api
from tests.api.looks import SET_STATE, in_prefect, row_of, status
from tests.api.relay import Relay
from tests.store import rows
from tests.waiting import eventually

Start = Callable[..., Any]
Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]


@pytest.mark.parametrize("end", [Status.FAILED, Status.CANCELLED])
async def test_a_run_is_retried(
    api: httpx.AsyncClient,
    start: Start,
    prefect: PrefectClient,
    set_state: SetState,
    database: Database,
    end: Status,
) -> None:
    """It waits in its queue, reads RETRY with its error, and goes on under the same id."""
    task_id, run = await start()
    await run.begin()
    await run.step("start", "start")
    await run.finish(end, error="KeyError: 'amount'")
    await set_state(task_id, Failed() if end is Status.FAILED else Cancelled())
    assert await status(api, task_id) in ("FAILURE", "REVOKED")
    answer = await api.post(f"/tasks/{task_id}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "RETRY")
    assert answer.json()["execution_id"] == run.execution_id
    body = (await api.get(f"/tasks/{task_id}")).json()
    assert (body["status"], body["error"]) == ("RETRY", "KeyError: 'amount'")
    assert body["message"] == "Task failed, retrying (1 attempts)"
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    assert (await run.begin()).attempt == 2
    await eventually(lambda: status(api, task_id), lambda now: now != "FAILURE")
    again = await api.post(f"/tasks/{task_id}/retry")
    assert (again.status_code, "running" in again.json()["error"]) == (409, True)


async def test_a_retry_waits_for_the_run_to_come_to_rest(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, set_state: SetState, database: Database
) -> None:
    """The row is closed a moment before Prefect hears of it, and what Prefect hears then must not end it."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await run.finish(Status.FAILED, error="no")
    retry = asyncio.create_task(api.post(f"/tasks/{task_id}/retry"))
    await asyncio.wait({retry}, timeout=0.5)
    assert not retry.done()
    await set_state(task_id, Failed())
    assert (await retry).status_code == 202
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    assert (await row_of(database, task_id)).status == "running"


async def test_a_retry_waits_until_nobody_has_the_run(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, database: Database
) -> None:
    """Its worker may be about to tell Prefect of its end, which must not come after the retry."""
    task_id, _ = await failed()
    rows.change(database, await row_of(database, task_id), lease_owner=uuid4(), lease_until=now(30))
    retry = asyncio.create_task(api.post(f"/tasks/{task_id}/retry"))
    await asyncio.wait({retry}, timeout=0.5)
    assert not retry.done()
    assert await in_prefect(prefect, task_id) == "Failed"
    rows.change(database, await row_of(database, task_id), **columns.FREE)
    assert (await retry).status_code == 202
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"


@pytest.mark.parametrize("stops", [True, False])
async def test_a_run_that_is_being_cancelled_is_retried_when_it_has_stopped(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, set_state: SetState, stops: bool
) -> None:
    """Its task reads REVOKED, so a client may think that it is over; 409 where it does not stop in time."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    assert (await api.post(f"/tasks/{task_id}/cancel")).json()["status"] == "REVOKED"
    retry = asyncio.create_task(api.post(f"/tasks/{task_id}/retry"))
    await asyncio.wait({retry}, timeout=0.5)
    assert not retry.done()
    if stops:
        await run.finish(Status.CANCELLED, error="The run was cancelled.")
        await set_state(task_id, Cancelled())
        assert (await retry).status_code == 202
        assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    else:
        refused = await retry
        assert (refused.status_code, refused.json()["error"]) == (
            409,
            f"Execution {run.execution_id} is being cancelled and has not stopped yet. Ask again.",
        )
        assert await status(api, task_id) == "REVOKED"


async def test_a_run_that_does_not_come_to_rest_is_not_retried(
    api: httpx.AsyncClient, start: Start, set_state: SetState, database: Database
) -> None:
    """409 says to ask again: the reconciler ends it in Prefect within seconds."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await run.finish(Status.FAILED, error="no")
    answer = await api.post(f"/tasks/{task_id}/retry")
    assert (answer.status_code, "Ask again" in answer.json()["error"]) == (409, True)
    assert (await row_of(database, task_id)).status == "failed"


async def test_a_run_that_succeeded_is_not_retried(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, set_state: SetState
) -> None:
    """409, and Prefect still has it as completed."""
    task_id, run = await start()
    await run.begin()
    await run.finish()
    await set_state(task_id, Completed())
    answer = await api.post(f"/tasks/{task_id}/retry")
    assert (answer.status_code, "completed" in answer.json()["error"]) == (409, True)
    assert await in_prefect(prefect, task_id) == "Completed"


@pytest.mark.parametrize("operation", ["retry", "skip"])
async def test_a_run_that_was_deleted_in_prefect_is_retried_as_another_flow_run(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, database: Database, operation: str
) -> None:
    """Its task's id stays, by which it is polled, cancelled and retried."""
    task_id, run = await failed()
    await prefect.delete_flow_run(UUID(task_id))
    path = {"retry": f"/tasks/{task_id}/retry", "skip": f"/executions/{run.execution_id}/nodes/1/skip"}
    answer = await api.post(path[operation])
    assert (answer.status_code, answer.json()["task_id"]) == (202, task_id)
    row = await row_of(database, task_id)
    assert (row.status, row.lease_owner, str(row.task_id)) == ("running", None, task_id)
    assert row.flow_run_id is not None
    assert str(row.flow_run_id) != task_id
    flow_run = await prefect.read_flow_run(row.flow_run_id)
    assert (flow_run.state_name, flow_run.parameters["execution"]) == ("Scheduled", str(row.public_id))
    assert await status(api, task_id) == "RETRY"
    for _ in range(2):
        assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
        assert await status(api, task_id) == "REVOKED"
        assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
        assert await status(api, task_id) == "RETRY"
    assert await in_prefect(prefect, str(row.flow_run_id)) == "AwaitingRetry"


async def test_a_run_that_was_retried_in_the_ui_is_open_at_once(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, set_state: SetState, database: Database
) -> None:
    """It waits in Prefect already; the row follows."""
    task_id, _ = await failed()
    await set_state(task_id, AwaitingRetry())
    assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
    assert (await row_of(database, task_id)).status == "running"
    assert await status(api, task_id) == "RETRY"


@pytest.mark.parametrize("polled", [True, False])
async def test_a_retry_that_prefect_did_not_hear_of_is_not_lost(
    api: httpx.AsyncClient,
    failed: Start,
    prefect: PrefectClient,
    prefect_wire: Wire,
    settings: Settings,
    encryption_key: str,
    database: Database,
    reconciler: Reconciler,
    polled: bool,
) -> None:
    """Prefect went away after the row was opened: 202, no poll closes it, and the next look tells Prefect."""
    task_id, _ = await failed()
    async with prefect_wire() as (relay, url):
        own = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=5)
        async with running_api(own) as wired:
            assert (await wired.get("/health")).status_code == 200
            relay.refused = SET_STATE
            assert (await wired.post(f"/tasks/{task_id}/retry")).status_code == 202
    assert await in_prefect(prefect, task_id) == "Failed"
    if polled:
        assert await status(api, task_id) == "RETRY"
    await reconciler.once()
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    assert (await row_of(database, task_id)).status == "running"
    assert await status(api, task_id) == "RETRY"


async def test_a_retried_run_may_be_cancelled_before_it_begins(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, database: Database
) -> None:
    """And retried again, and so on."""
    task_id, _ = await failed()
    for _ in range(2):
        assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
        assert await status(api, task_id) == "RETRY"
        assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
        assert await status(api, task_id) == "REVOKED"
        assert (await row_of(database, task_id)).status == "cancelled"
        assert await in_prefect(prefect, task_id) == "Cancelled"


@pytest.mark.parametrize("operation", ["retry", "skip"])
@pytest.mark.parametrize("end", [Status.FAILED, Status.CANCELLED])
async def test_a_cancellation_waits_for_a_retry_that_is_on_its_way_to_prefect(
    api: httpx.AsyncClient,
    failed: Start,
    prefect: PrefectClient,
    prefect_wire: Wire,
    set_state: SetState,
    settings: Settings,
    encryption_key: str,
    database: Database,
    reconciler: Reconciler,
    operation: str,
    end: Status,
) -> None:
    """Prefect is slow, and what arrives late would undo the cancellation; in order, both hold."""
    task_id, run = await failed()
    if end is Status.CANCELLED:
        row = await row_of(database, task_id)
        rows.change(database, row, status=end, error_kind=ErrorKind.CANCELLED)
        await set_state(task_id, Cancelled())
    path = {"retry": f"/tasks/{task_id}/retry", "skip": f"/executions/{run.execution_id}/nodes/1/skip"}
    async with prefect_wire() as (relay, url):
        own = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=20)
        async with running_api(own) as slow:
            relay.held = SET_STATE
            retry = asyncio.create_task(slow.post(path[operation]))
            await eventually(lambda: asyncio.sleep(0, relay.requests(SET_STATE)), bool)
            cancel = asyncio.create_task(api.post(f"/tasks/{task_id}/cancel"))
            await asyncio.wait({cancel}, timeout=1)
            assert not cancel.done()
            assert await status(api, task_id) == "RETRY"
            relay.through.set()
            assert ((await retry).status_code, (await cancel).status_code) == (202, 202)
    assert await in_prefect(prefect, task_id) == "Cancelled"
    assert await status(api, task_id) == "REVOKED"
    await reconciler.once()
    row = await row_of(database, task_id)
    assert (row.status, row.lease_owner) == ("cancelled", None)
