"""Cancel, retry and skip: what a person does to a run, and what its row and Prefect say then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
    Suspended,
)
from sqlalchemy import update

from flows.config.settings import Settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.graphs.lifecycle import ErrorKind, Status
from flows.recovery.reconciler import Reconciler
from flows.store import chain, executions, values
from flows.store.database import Database, now
from flows.store.leases import LeaseClaim
from flows.store.models import Execution
from flows.store.transitions import attempts, columns, submissions
from tests.api.conftest import SetState, make_settings, running_api
from tests.api.relay import Relay
from tests.api.runs import Run
from tests.leasing import SECONDS, lease_of
from tests.servers import free_port
from tests.store import rows
from tests.waiting import eventually

Start = Callable[..., Any]
Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]
SET_STATE = "POST /api/flow_runs/"
"""How a request begins that proposes a state to Prefect."""


@pytest.fixture
def failed(start: Start, set_state: SetState) -> Callable[..., Any]:
    """A run that failed at its node `read`, in its row and in Prefect."""

    async def make(**body: Any) -> tuple[str, Run]:
        task_id, run = await start(**body)
        await run.begin()
        await run.step("start", "start")
        await run.step("read", status="failed", error_message="no", error_type="OSError")
        await run.finish(Status.FAILED, error="OSError: no", node="read")
        await set_state(task_id, Failed())
        return task_id, run

    return make


@pytest.fixture
async def lonely(settings: Settings, encryption_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """An API whose Prefect server does not exist."""
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    own = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(own) as client:
        yield client


async def status(api: httpx.AsyncClient, task_id: str) -> str:
    """What a client that polls the task reads."""
    return str((await api.get(f"/tasks/{task_id}")).json()["status"])


async def row_of(database: Database, task_id: str) -> Execution:
    """The row of a task, as it is now."""
    row = await database.run(lambda session: executions.by_task(session, UUID(task_id)))
    assert row is not None
    return row


async def in_prefect(prefect: PrefectClient, task_id: str) -> str | None:
    """The name of the state that Prefect has."""
    return (await prefect.read_flow_run(UUID(task_id))).state_name


# -- cancel ------------------------------------------------------------------------------------------


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


# -- retry -------------------------------------------------------------------------------------------


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


# -- skip --------------------------------------------------------------------------------------------


async def test_a_run_goes_on_behind_a_node_that_is_skipped(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, database: Database
) -> None:
    """With the context that the person gives; the Chain of Work shows the attempt and the skip."""
    task_id, run = await failed(initial_context={"mailbox": "INBOX"})
    answer = await api.post(f"/executions/{run.execution_id}/nodes/1/skip", json={"context": {"amount": 7}})
    assert (answer.status_code, answer.json()["status"]) == (202, "RETRY")
    assert (answer.json()["task_id"], answer.json()["execution_id"]) == (task_id, run.execution_id)
    assert await status(api, task_id) == "RETRY"
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    entries = (await api.get(f"/executions/{run.execution_id}/chain")).json()["entries"]
    assert [(e["node_id"], e["attempt"], e["status"]) for e in entries[1:]] == [
        ("read", 1, "failed"),
        ("read", 2, "success"),
    ]
    assert entries[-1]["output_result"] == {"mailbox": "INBOX", "amount": 7}
    assert (await run.begin()).attempt == 2
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits == [("start", None), ("read", None)]


@pytest.mark.parametrize("branch", ["false", False])
async def test_a_decision_is_skipped_with_its_answer(
    api: httpx.AsyncClient, start: Start, set_state: SetState, database: Database, branch: object
) -> None:
    """As a string or as JSON's own; an answer that leads nowhere, or none, is refused by name."""
    task_id, run = await start()
    await run.begin()
    await run.step("start", "start")
    await run.step("read")
    await run.finish(Status.FAILED, error="no")
    await set_state(task_id, Failed())
    path = f"/executions/{run.execution_id}/nodes/2/skip"
    for wrong in ({"branch": "maybe"}, {}, {"branch": 7}):
        refused = await api.post(path, json=wrong)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "branch")
    assert (await api.post(path, json={"branch": branch})).status_code == 202
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits[-1] == ("high", "false")


async def test_secrets_in_the_context_are_sealed(
    api: httpx.AsyncClient, failed: Start, database: Database, cipher: Cipher
) -> None:
    """Passwords, and what contains one that the run had, are encrypted and shown as `***`."""
    _, run = await failed(initial_context={"email_password": "s3cret-pass"})
    given = {"db_password": "0ther-pass", "url": "imap://me:s3cret-pass@host", "both": ["0ther-pass"], "n": 1}
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    assert (await api.post(path, json={"context": given})).status_code == 202

    def read(session: Any) -> dict[str, values.Value]:
        state = chain.state(session, run.execution_id)
        held = values.load(session, run.execution_id, state.values())
        return {key: held[digest] for key, digest in state.items() if key in given}

    stored = await database.run(read)
    sealed = {key: value.sealed for key, value in stored.items()}
    assert sealed == {"db_password": True, "url": True, "both": True, "n": False}
    assert vault.open_values(cipher, stored)["db_password"] == b'"0ther-pass"'
    shown = (await api.get(f"/executions/{run.execution_id}/chain")).json()["entries"][-1]["output_result"]
    assert (shown["url"], shown["n"]) == ("***", 1)


async def test_a_clients_credentials_are_not_a_persons_to_give(
    api: httpx.AsyncClient, failed: Start, idom: dict[str, Any], database: Database
) -> None:
    """As for a node: what lies over the context anyway is left out, and its password is sealed elsewhere."""
    fields = {
        "email_user": "invoices@idom.example",
        "email_password": "client-pass",
        "imap_host": "imap.idom.example",
    }
    credential = {"kind": "email", "label": "invoices", "fields": fields}
    assert (await api.post("/clients/idom/credentials", json=credential)).status_code in (200, 201)
    _, run = await failed(client_slug="idom")
    given = {"email_user": "me", "note": "it is client-pass"}
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    assert (await api.post(path, json={"context": given})).status_code == 202
    entry = (await api.get(f"/executions/{run.execution_id}/chain?contexts=changes")).json()["entries"][-1]
    assert entry["output_result"] == {"note": "***"}


async def test_a_context_that_no_attempt_could_load_is_refused(
    failed: Start, prefect: PrefectClient, settings: Settings, encryption_key: str, prefect_server: str
) -> None:
    """The run's context counts, less what is replaced; nothing happens."""
    task_id, run = await failed(initial_context={"kept": "x" * 1200, "replaced": "x" * 600})
    own = make_settings(settings.database_url, prefect_server, encryption_key, NOVA_CONTEXT_LIMIT=2000)
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    async with running_api(own) as api:
        refused = await api.post(path, json={"context": {"given": "x" * 400}})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "context")
        assert await in_prefect(prefect, task_id) == "Failed"
        assert (await api.post(path, json={"context": {"replaced": "x" * 400}})).status_code == 202


@pytest.mark.parametrize("step", [0, 2])
async def test_only_the_node_at_which_it_failed_is_skipped(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, step: int
) -> None:
    """409 says which one that is; nothing happens."""
    task_id, run = await failed()
    answer = await api.post(f"/executions/{run.execution_id}/nodes/{step}/skip")
    assert (answer.status_code, "step 1, node 'read'" in answer.json()["error"]) == (409, True)
    assert await status(api, task_id) == "FAILURE"
    assert await in_prefect(prefect, task_id) == "Failed"


async def test_a_node_of_a_run_that_goes_on_is_not_skipped(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """Nor of one that there is not; nor with a context that is none."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    path = f"/executions/{run.execution_id}/nodes/0/skip"
    assert (await api.post(path)).status_code == 409
    assert (await api.post("/executions/99/nodes/0/skip")).status_code == 404
    assert (await api.post(f"/executions/{run.execution_id}/nodes/-1/skip")).status_code == 422
    for context in ("x", 7):
        refused = await api.post(path, json={"context": context})
        assert refused.json()["errors"][0]["field"] == "context"


async def test_a_skip_is_not_lost_and_the_node_does_not_run(
    api: httpx.AsyncClient,
    failed: Start,
    prefect: PrefectClient,
    database: Database,
    reconciler: Reconciler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API died after the row was written: when its lease has run out, the run is put in its queue."""
    task_id, run = await failed()

    async def died(*_: object) -> None:
        """Prefect never hears of it."""

    with monkeypatch.context() as patch:
        patch.setattr("api.interventions._put_in_queue", died)
        assert (await api.post(f"/executions/{run.execution_id}/nodes/1/skip")).status_code == 202
    await reconciler.once()
    assert await in_prefect(prefect, task_id) == "Failed"
    assert await status(api, task_id) == "RETRY"
    rows.expire(database, await row_of(database, task_id))
    await reconciler.once()
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    assert (await row_of(database, task_id)).lease_owner is None
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits[-1] == ("read", None)


async def test_a_run_that_was_never_started_is_neither_retried_nor_skipped(
    api: httpx.AsyncClient, workflow: dict[str, Any], prefect: PrefectClient, database: Database
) -> None:
    """Its client was told so (503): a flow run that turned up late does not change that."""
    task_id = (await api.post(f"/workflows/{workflow['id']}/execute")).json()["task_id"]
    row = await row_of(database, task_id)
    not_noted = update(Execution).values(flow_run_id=None, task_id=None)
    await database.run(lambda session: session.execute(not_noted))
    assert await database.run(lambda session: submissions.refuse(session, row.id, "Prefect was away."))
    await prefect.set_flow_run_state(UUID(task_id), Scheduled(), force=True)
    for path in (f"/tasks/{task_id}/retry", f"/executions/{row.id}/nodes/0/skip"):
        answer = await api.post(path)
        assert (answer.status_code, "never started" in answer.json()["error"]) == (409, True)
    refused = (await api.get(f"/executions/{row.id}")).json()
    assert (refused["status"], refused["error"]) == ("cancelled", "Prefect was away.")
