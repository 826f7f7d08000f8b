"""Polling a task: its state from Prefect while it runs, from the database when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Late,
    Paused,
    Pending,
    Running,
    Suspended,
)
from sqlalchemy import update

from flows.config.settings import Settings
from flows.graphs.lifecycle import Status
from flows.prefect_gateway import run_watch
from flows.recovery.reconciler import Reconciler
from flows.store.database import Database
from flows.store.models import Execution
from tests.api.conftest import SetState, make_settings, running_api
from tests.servers import free_port
from tests.waiting import eventually

Start = Callable[..., Any]


async def poll(api: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    """GET /tasks/{id}, which must be 200."""
    response = await api.get(f"/tasks/{task_id}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def becomes(api: httpx.AsyncClient, task_id: str, status: str) -> dict[str, Any]:
    """Poll until the task has a status: what was done in Prefect is told within two seconds."""
    return await eventually(lambda: poll(api, task_id), lambda body: body["status"] == status)


@pytest.mark.parametrize("state", [None, Late(scheduled_time=datetime.now(UTC)), Pending()])
async def test_a_queued_task_is_pending(
    api: httpx.AsyncClient, start: Start, set_state: SetState, state: State[Any] | None
) -> None:
    """Scheduled, late or pending: exactly three fields."""
    task_id, _ = await start()
    if state is not None:
        await set_state(task_id, state)
    assert await poll(api, task_id) == {
        "task_id": task_id,
        "status": "PENDING",
        "message": "Task is queued, waiting for worker",
    }


async def test_a_running_task_tells_how_far_it_is(
    api: httpx.AsyncClient, start: Start, set_state: SetState, workflow: dict[str, Any], idom: dict[str, Any]
) -> None:
    """`meta` has the contract's fields, and the progress."""
    task_id, run = await start(client_slug="idom")
    await set_state(task_id, Running())
    execution = await run.begin()
    await run.step("start", "start")
    await run.step("read", changes={"amount": 1200})
    body = await poll(api, task_id)
    assert (body["status"], body["message"]) == ("RUNNING", "Task is executing")
    assert body["meta"] == {
        "execution_id": execution.id,
        "workflow_id": workflow["id"],
        "workflow_name": workflow["name"],
        "client_slug": "idom",
        "started_at": body["meta"]["started_at"],
        "progress": {"nodes_done": 2, "current_node": "read"},
    }
    assert body["meta"]["started_at"].endswith("Z")


@pytest.mark.parametrize("state", [Paused(), Suspended()])
async def test_a_paused_task_reads_running_and_says_so(
    api: httpx.AsyncClient, start: Start, set_state: SetState, state: State[Any]
) -> None:
    """Paused and suspended runs go on one day: RUNNING, with a message that names it."""
    task_id, run = await start()
    await run.begin()
    await set_state(task_id, state)
    body = await eventually(
        lambda: poll(api, task_id), lambda body: str(state.name).lower() in body["message"]
    )
    assert body["status"] == "RUNNING"


async def test_a_task_that_will_be_tried_again_is_retry(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """RETRY, never FAILURE: a polling client stops at the first final state. Its execution is running."""
    task_id, run = await start()
    await set_state(task_id, Running())
    execution = await run.begin()
    await set_state(task_id, AwaitingRetry(message="The sandbox went away"))
    body = await becomes(api, task_id, "RETRY")
    assert body == {
        "task_id": task_id,
        "status": "RETRY",
        "message": "Task failed, retrying (1 attempts)",
        "error": "The sandbox went away",
        "retries": 0,
        "next_attempt_at": body["next_attempt_at"],
    }
    assert body["next_attempt_at"].endswith("Z")
    assert (await api.get(f"/executions/{execution.id}")).json()["status"] == "running"


@pytest.mark.parametrize("told", [False, True])
async def test_a_run_that_was_put_off_is_retry(
    api: httpx.AsyncClient, start: Start, set_state: SetState, told: bool
) -> None:
    """From its row, before Prefect is told and afterwards: why, how often, and when it is tried again."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    due = await run.schedule_retry("E2B does not answer.", 300)
    if told:
        await set_state(task_id, AwaitingRetry(scheduled_time=due))
    assert await poll(api, task_id) == {
        "task_id": task_id,
        "status": "RETRY",
        "message": "Task failed, retrying (1 attempts)",
        "error": "E2B does not answer.",
        "retries": 1,
        "next_attempt_at": due.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }


async def test_a_run_that_was_put_off_and_is_told_so_without_prefect(
    start: Start, settings: Settings, encryption_key: str
) -> None:
    """The row has all of it."""
    task_id, run = await start()
    await run.begin()
    await run.schedule_retry("E2B does not answer.", 300)
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    lonely = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(lonely) as alone:
        body = await poll(alone, task_id)
    assert (body["status"], body["retries"]) == ("RETRY", 1)


async def test_a_run_that_was_put_off_and_cancelled_is_revoked(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """In Prefect, while it waits: nobody has to run it for that."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await run.schedule_retry("E2B does not answer.", 300)
    await set_state(task_id, Cancelled())
    await becomes(api, task_id, "REVOKED")


async def test_a_task_that_succeeded_has_its_result(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """The final context, the chain without contexts, and the count of every step."""
    task_id, run = await start(initial_context={"mailbox": "INBOX"})
    await set_state(task_id, Running())
    await run.begin()
    await run.step("start", "start")
    await run.step("read", status="failed", error_message="no", error_type="OSError")
    await run.step("read", changes={"amount": 1200}, stdout="12 mails\n")
    await run.step("high", "decision", decision_result="true", path_taken="approve")
    await run.step("approve", changes={"approved": False})
    await run.step("end", "end")
    await run.finish()
    await set_state(task_id, Completed())
    body = await poll(api, task_id)
    result = body["result"]
    assert list(body) == ["task_id", "status", "message", "execution_id", "result"]
    assert (body["status"], body["message"]) == ("SUCCESS", "Task completed successfully")
    assert body["execution_id"] == result["execution_id"] == run.execution_id
    assert result["status"] == "success"
    assert result["final_context"] == {"mailbox": "INBOX", "amount": 1200, "approved": False}
    assert result["nodes_executed"] == 5
    trace = result["execution_trace"]
    assert [entry["node_id"] for entry in trace] == ["start", "read", "read", "high", "approve", "end"]
    assert {entry["input_context"] for entry in trace} == {None}
    assert trace == (await api.get(f"/executions/{run.execution_id}/chain?contexts=none")).json()["entries"]


async def test_a_task_that_failed_says_why_and_where(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """The error is a sentence; the node is named."""
    task_id, run = await start()
    await run.begin()
    await run.finish(Status.FAILED, error="KeyError: 'amount'", node="high")
    await set_state(task_id, Failed())
    assert await poll(api, task_id) == {
        "task_id": task_id,
        "status": "FAILURE",
        "message": "Task failed",
        "execution_id": run.execution_id,
        "error": "KeyError: 'amount'",
        "failed_at_node": "high",
    }


@pytest.mark.parametrize(("begun", "status"), [(True, "RETRY"), (False, "PENDING")])
async def test_a_run_that_crashed_is_not_over(
    api: httpx.AsyncClient, start: Start, set_state: SetState, begun: bool, status: str
) -> None:
    """It is put back in its queue: a client that polled a final state would believe it."""
    task_id, run = await start()
    if begun:
        await run.begin()
    await set_state(task_id, Crashed(message="The worker was killed"))
    body = await becomes(api, task_id, status)
    assert body.get("error") == ("The worker was killed" if begun else None)
    assert not begun or body["next_attempt_at"].endswith("Z")


async def test_a_run_that_reads_revoked_stays_so(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """It was being cancelled, was told so, and came to its end all the same: it is cancelled."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await set_state(task_id, Cancelling())
    await becomes(api, task_id, "REVOKED")
    await run.finish()
    assert (await poll(api, task_id))["status"] == "REVOKED"
    assert (await api.get(f"/executions/{run.execution_id}")).json()["status"] == "cancelled"


async def test_a_run_whose_flow_run_was_not_noted_is_not_over_when_that_crashed(
    api: httpx.AsyncClient, start: Start, set_state: SetState, database: Database
) -> None:
    """The database was away when Prefect confirmed it: its row is found by what Prefect was given."""
    task_id, _ = await start()
    not_noted = update(Execution).values(flow_run_id=None, task_id=None)
    await database.run(lambda session: session.execute(not_noted))
    await set_state(task_id, Crashed(message="The worker was killed"))
    for _ in range(3):
        assert (await poll(api, task_id))["status"] == "PENDING"


async def test_a_cancelled_task_is_revoked(api: httpx.AsyncClient, start: Start, set_state: SetState) -> None:
    """While it is being cancelled and afterwards; its execution is `cancelled`."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await set_state(task_id, Cancelling())
    assert (await becomes(api, task_id, "REVOKED"))["error"] == "The run is being cancelled."
    await set_state(task_id, Cancelled(message="An operator did it"))
    body = await eventually(lambda: poll(api, task_id), lambda body: body["error"] == "An operator did it")
    assert (body["status"], body["execution_id"]) == ("REVOKED", run.execution_id)
    assert (await api.get(f"/executions/{run.execution_id}")).json()["status"] == "cancelled"


async def test_a_run_cancelled_before_it_started_is_revoked(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """No flow ever saw it, so the poll closes the row."""
    task_id, _ = await start()
    await set_state(task_id, Cancelled())
    await becomes(api, task_id, "REVOKED")
    assert (await api.get("/executions?status=cancelled")).json()["total"] == 1


async def test_an_execution_cancelled_before_it_started_says_so_itself(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """Nobody polled its task: reading the execution closes the row as well."""
    task_id, _ = await start()
    await set_state(task_id, Cancelled(message="An operator did it"))
    (listed,) = (await api.get("/executions")).json()["executions"]

    async def read() -> dict[str, Any]:
        found: dict[str, Any] = (await api.get(f"/executions/{listed['id']}")).json()
        return found

    execution = await eventually(read, lambda found: found["status"] == "cancelled")
    assert execution["error"] == "An operator did it"


async def test_a_flow_run_that_prefect_does_not_have_is_not_over_for_that(
    api: httpx.AsyncClient, start: Start, prefect: PrefectClient, reconciler: Reconciler
) -> None:
    """Prefect may have lost it with others: the reconciler finds out, for what a poll says is final."""
    task_id, _ = await start()
    await prefect.delete_flow_run(UUID(task_id))
    since = time.monotonic()
    while time.monotonic() - since < 2 * run_watch.PACE:
        assert (await poll(api, task_id))["status"] == "PENDING"
    await reconciler.once()
    body = await poll(api, task_id)
    assert (body["status"], body["error"]) == ("REVOKED", "The flow run was deleted in Prefect.")


async def test_completed_in_prefect_alone_is_no_success(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """Marked by hand while its row was open: the row decides, and it has no result."""
    task_id, run = await start()
    await run.begin()
    await set_state(task_id, Completed())
    await becomes(api, task_id, "FAILURE")


async def test_an_open_row_is_not_final_whatever_the_order(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """The flow has closed its row, Prefect still says running: the row is the answer."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await run.step("start", "start")
    await run.finish()
    assert (await poll(api, task_id))["status"] == "SUCCESS"


@pytest.mark.parametrize(
    "task_id", ["0199c0de-0000-4000-8000-000000000007", "abc123-def456-ghi789", "7", "%00", "x" * 500]
)
async def test_an_id_that_was_never_issued_is_404(api: httpx.AsyncClient, task_id: str) -> None:
    """The old build said PENDING for ever."""
    response = await api.get(f"/tasks/{task_id}")
    assert (response.status_code, response.json()["status_code"]) == (404, 404)


async def test_a_run_from_the_ui_can_be_polled_before_it_starts(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], set_state: SetState
) -> None:
    """It has no row yet; Prefect knows it, so its states are told all the same."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    task_id = str((await prefect.create_flow_run_from_deployment(deployment.id)).id)
    assert (await poll(api, task_id))["status"] == "PENDING"
    await set_state(task_id, Running())
    assert (await poll(api, task_id))["status"] == "PENDING"
    await set_state(task_id, Cancelled())
    await becomes(api, task_id, "REVOKED")
    await set_state(task_id, Crashed(message="No module named flows"))
    assert (await becomes(api, task_id, "FAILURE"))["error"] == "No module named flows"
    assert (await api.post(f"/tasks/{task_id}/retry")).status_code == 202
    body = await becomes(api, task_id, "RETRY")
    assert (body["retries"], body["next_attempt_at"][-1]) == (0, "Z")


async def test_the_tasks_of_a_deleted_workflow_are_gone(
    api: httpx.AsyncClient, start: Start, set_state: SetState, workflow: dict[str, Any]
) -> None:
    """Deleting a workflow removes its executions, so nobody is told of a success without a result."""
    task_id, run = await start()
    await run.begin()
    await run.finish()
    await set_state(task_id, Completed())
    await api.delete(f"/workflows/{workflow['id']}")
    await eventually(lambda: api.get(f"/tasks/{task_id}"), lambda answer: answer.status_code == 404)


@pytest.mark.parametrize(
    ("status", "final"),
    [(Status.COMPLETED, "SUCCESS"), (Status.FAILED, "FAILURE"), (Status.CANCELLED, "REVOKED")],
)
async def test_a_finished_run_is_answered_without_prefect(
    start: Start, settings: Settings, encryption_key: str, status: Status, final: str
) -> None:
    """A poll is cheap: with Prefect gone for good a final state is answered as ever."""
    task_id, run = await start()
    await run.begin()
    await run.finish(status)
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    async with running_api(make_settings(settings.database_url, nowhere, encryption_key)) as alone:
        body = await poll(alone, task_id)
    assert body["status"] == final


async def test_a_poll_does_not_fail_because_prefect_is_away(
    start: Start, settings: Settings, encryption_key: str
) -> None:
    """An open row is answered as the database has it, and the message says what is not known."""
    task_id, run = await start()
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    lonely = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(lonely) as alone:
        body = await poll(alone, task_id)
        assert body["status"] == "PENDING"
        assert "Prefect" in body["message"]
        await run.begin()
        body = await poll(alone, task_id)
        assert (body["status"], body["meta"]["execution_id"]) == ("RUNNING", run.execution_id)
        assert (await alone.get(f"/tasks/{uuid4()}")).status_code == 503


async def test_times_are_utc_wherever_the_database_is(
    in_new_york: str, api: httpx.AsyncClient, start: Start
) -> None:
    """Every answer tells the moment, not the server's wall clock."""
    task_id, run = await start()
    execution = await run.begin()
    await run.step("read")
    started = (await poll(api, task_id))["meta"]["started_at"]
    chain = (await api.get(f"/executions/{execution.id}/chain")).json()["entries"]
    listed = (await api.get("/workflows")).json()["workflows"]
    await run.schedule_retry("E2B does not answer.", 1)
    due = (await poll(api, task_id))["next_attempt_at"]
    for moment in (started, chain[0]["timestamp"], listed[0]["updated_at"], due):
        assert moment.endswith("Z")
        assert abs((datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()) < 60
