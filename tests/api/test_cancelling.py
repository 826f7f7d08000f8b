"""A person cancels a run: what its row and Prefect say then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.states import (
    AwaitingRetry,
    Crashed,
    Pending,
    Running,
    Suspended,
)
from sqlalchemy import update

from flows.graphs.lifecycle import Status
from flows.store.database import Database
from flows.store.leases import LeaseClaim
from flows.store.models import Execution
from flows.store.transitions import attempts
from tests.api.conftest import SetState
from tests.api.looks import in_prefect, row_of, status
from tests.api.relay import Relay
from tests.leasing import SECONDS, lease_of

Start = Callable[..., Any]
Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]


async def test_a_run_in_the_queue_is_cancelled_at_once(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, database: Database
) -> None:
    """Row, task and Prefect say so when the answer comes; a second time it is over already."""
    task_id, _ = await start()
    answer = await api.post(f"/tasks/{task_id}/cancel")
    row = await row_of(database, task_id)
    assert (answer.status_code, answer.json()) == (
        202,
        {"task_id": task_id, "status": "REVOKED", "execution_id": row.id, "message": "Task was cancelled"},
    )
    assert (row.status, row.error_kind, row.lease_owner) == ("cancelled", "cancelled", None)
    assert row.error == "The run was cancelled."  # what a retry of it shows until it begins
    assert await status(api, task_id) == "REVOKED"
    assert await in_prefect(prefect, task_id) == "Cancelled"
    again = await api.post(f"/tasks/{task_id}/cancel")
    assert (again.status_code, again.json()["error"]) == (409, f"Execution {row.id} is cancelled already.")


@pytest.mark.parametrize("pid", [None, "host:123"])
async def test_a_run_that_waits_for_its_retry_is_cancelled_at_once(
    api: httpx.AsyncClient,
    start: Start,
    prefect: PrefectClient,
    set_state: SetState,
    database: Database,
    pid: str | None,
) -> None:
    """Of a run that has had a process Prefect would wait for that one: nobody is left to tell it to."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    due = await run.schedule_retry("E2B does not answer.", 300)
    await set_state(task_id, AwaitingRetry(scheduled_time=due))
    if pid:
        await prefect.update_flow_run(UUID(task_id), infrastructure_pid=pid)
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
    row = await row_of(database, task_id)
    assert (row.status, row.next_attempt_at, row.lease_owner) == ("cancelled", None, None)
    assert await in_prefect(prefect, task_id) == "Cancelled"


@pytest.mark.parametrize("state", [Crashed(), Suspended()])
async def test_a_run_that_nobody_has_is_cancelled_at_once(
    api: httpx.AsyncClient,
    start: Start,
    prefect: PrefectClient,
    set_state: SetState,
    database: Database,
    state: State[Any],
) -> None:
    """Its worker died, and it was about to be put back; or it was suspended."""
    task_id, run = await start()
    row = await run.begin()
    await database.run(lambda session: attempts.release(session, lease_of(row)))
    await set_state(task_id, state)
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
    assert (await row_of(database, task_id)).status == "cancelled"
    assert await in_prefect(prefect, task_id) == "Cancelled"


async def test_a_running_run_is_told_to_stop(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, set_state: SetState, database: Database
) -> None:
    """It reads REVOKED from now, whatever it still does; its row is closed when it has stopped."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
    assert await in_prefect(prefect, task_id) == "Cancelling"
    assert await status(api, task_id) == "REVOKED"
    row = await row_of(database, task_id)
    assert (row.status, row.lease_owner is None) == ("running", False)
    await run.step("start", "start")
    await run.finish()
    assert await status(api, task_id) == "REVOKED"
    assert (await row_of(database, task_id)).status == "cancelled"


async def test_a_run_that_was_taken_a_moment_ago_is_cancelled(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, database: Database
) -> None:
    """A worker has its lease and has not claimed it in Prefect: there it cannot any more."""
    task_id, _ = await start()
    row = await row_of(database, task_id)
    claim = LeaseClaim(UUID(task_id), row.public_id, row.workflow_id, uuid4(), SECONDS)
    await database.run(lambda session: attempts.take(session, claim))
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
    assert (await row_of(database, task_id)).status == "cancelled"
    await prefect.set_flow_run_state(UUID(task_id), Pending())
    assert await in_prefect(prefect, task_id) == "Cancelled"


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED])
async def test_a_run_that_is_over_is_not_cancelled(api: httpx.AsyncClient, start: Start, end: Status) -> None:
    """409 says what it is."""
    task_id, run = await start()
    await run.begin()
    await run.finish(end)
    answer = await api.post(f"/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        f"Execution {run.execution_id} is {end} already.",
    )


async def test_a_run_from_the_ui_is_cancelled_before_it_has_a_row(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """There is no execution to tell of; it can be retried like any other."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    task_id = str((await prefect.create_flow_run_from_deployment(deployment.id)).id)
    assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 409
    answer = await api.post(f"/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["execution_id"]) == (202, None)
    assert await status(api, task_id) == "REVOKED"
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 409
    assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
    assert await status(api, task_id) == "RETRY"


async def test_a_run_whose_flow_run_was_not_noted_is_cancelled(
    api: httpx.AsyncClient, start: Start, database: Database
) -> None:
    """Its client has the id; the row is found by what Prefect was given."""
    task_id, _ = await start()
    not_noted = update(Execution).values(flow_run_id=None, task_id=None)
    await database.run(lambda session: session.execute(not_noted))
    assert (await api.post(f"/tasks/{task_id}/cancel")).status_code == 202
    assert (await row_of(database, task_id)).status == "cancelled"


@pytest.mark.parametrize("operation", ["cancel", "retry"])
@pytest.mark.parametrize("task_id", ["0199c0de-0000-4000-8000-000000000007", "7", "x" * 500])
async def test_a_task_that_was_never_issued_is_404(
    api: httpx.AsyncClient, operation: str, task_id: str
) -> None:
    """Nothing is done to what there is not."""
    assert (await api.post(f"/tasks/{task_id}/{operation}")).status_code == 404


async def test_without_prefect_nothing_is_done(
    start: Start, failed: Start, lonely: httpx.AsyncClient, database: Database
) -> None:
    """503, and the rows stay as they were."""
    task_id, _ = await start()
    other, run = await failed()
    answers = [
        await lonely.post(f"/tasks/{task_id}/cancel"),
        await lonely.post(f"/tasks/{other}/retry"),
        await lonely.post(f"/executions/{run.execution_id}/nodes/1/skip"),
    ]
    assert [answer.status_code for answer in answers] == [503] * 3
    assert (await row_of(database, task_id)).status == "pending"
    assert (await row_of(database, other)).status == "failed"
