"""Retries and skips that Prefect refuses: 409, and all is as it was, to the last counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.states import Cancelled, Failed
from sqlalchemy.orm import Session

from api import interventions
from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.execute_workflow import execute_workflow
from flows.graphs.lifecycle import ErrorKind, Status
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.reconciler import Reconciler
from flows.store import executions
from flows.store.database import Database
from flows.store.transitions import submissions
from tests.api.conftest import SetState
from tests.api.runs import Run
from tests.store import rows

Start = Callable[..., Any]


@pytest.fixture(params=[Status.FAILED, Status.CANCELLED])
async def adrift(
    request: pytest.FixtureRequest,
    set_state: SetState,
    prefect: PrefectClient,
    workflow: dict[str, Any],
    database: Database,
    cipher: Cipher,
) -> tuple[str, Run]:
    """A run that is over after a long story, and that has no deployment in Prefect, so no queue either."""
    flow_run_id = (await prefect.create_flow_run(execute_workflow)).id

    def write(session: Session) -> None:
        row = submissions.create(
            session, workflow_id=workflow["id"], client=None, priority="normal", initial={}
        )
        submissions.confirm(session, row.id, flow_run_id)

    await database.run(write)
    task_id = str(flow_run_id)
    run = Run(database, cipher, task_id)
    row = await run.begin()
    await run.step("start", "start")
    await run.step("read", status="failed", error_message="no", error_type="OSError")
    story = {"retries": 2, "crashes": 1, "crash_step": 1, "lost_starts": 3, "unrepeatable_step": 1}
    rows.change(database, row, **story)
    await run.finish(request.param, error="OSError: no", kind=ErrorKind.INTERRUPTED, node="read")
    await set_state(task_id, Failed() if request.param is Status.FAILED else Cancelled())
    return task_id, run


@pytest.fixture
async def over(start: Start, set_state: SetState) -> str:
    """A task that failed."""
    task_id, run = await start()
    await run.begin()
    await run.finish(Status.FAILED)
    await set_state(task_id, Failed())
    return str(task_id)


@pytest.mark.parametrize("operation", ["retry", "skip"])
async def test_what_prefect_refuses_is_not_done(
    api: httpx.AsyncClient,
    adrift: tuple[str, Run],
    prefect: PrefectClient,
    database: Database,
    operation: str,
) -> None:
    """The run stays closed, unrepeatable node and all, and of the skip there is no trace; each time."""
    task_id, run = adrift
    before = rows.everything(database)
    polled = (await api.get(f"/tasks/{task_id}")).json()
    for _ in range(2):
        if operation == "retry":
            answer = await api.post(f"/tasks/{task_id}/retry")
        else:
            path = f"/executions/{run.execution_id}/nodes/1/skip"
            answer = await api.post(path, json={"context": {"amount": 7, "note": "a new value"}})
        assert answer.status_code == 409
        assert "without an associated deployment" in answer.json()["error"]
        assert rows.everything(database) == before
        assert (await api.get(f"/tasks/{task_id}")).json() == polled
    assert (await prefect.read_flow_run(UUID(task_id))).state_name in ("Failed", "Cancelled")


async def test_a_flow_run_that_is_deleted_at_that_moment_is_not_missed(
    api: httpx.AsyncClient,
    over: str,
    prefect: PrefectClient,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect had it when the retry looked: the run gets another one, under the same task id."""
    go_on = interventions._go_on

    async def late(*arguments: Any) -> None:
        await prefect.delete_flow_run(UUID(over))
        await go_on(*arguments)

    monkeypatch.setattr(interventions, "_go_on", late)
    assert (await api.post(f"/tasks/{over}/retry")).status_code == 202
    assert (await api.get(f"/tasks/{over}")).json()["status"] == "RETRY"
    row = await database.run(lambda session: executions.by_task(session, UUID(over)))
    assert row is not None
    assert row.flow_run_id not in (None, UUID(over))


async def test_a_retry_is_not_lost_where_the_flow_run_is_ended_at_that_moment(
    api: httpx.AsyncClient,
    over: str,
    prefect: PrefectClient,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A late word of NOVA's had put it in its queue, so that it seemed to wait; the reconciler ends it."""
    go_on, clock = interventions._go_on, [0.0]
    async with PrefectGateway(settings) as gateway:
        await gateway.runs.requeue(UUID(over), "Its worker was stopped.")
        reconciler = Reconciler(database, gateway.runs, settings, clock=lambda: clock[0])
        await reconciler.once()

        async def late(*arguments: Any) -> None:
            clock[0] += 1000
            assert (await reconciler.once()).ended == 1
            await go_on(*arguments)

        monkeypatch.setattr(interventions, "_go_on", late)
        assert (await api.post(f"/tasks/{over}/retry")).status_code == 202
        assert (await api.get(f"/tasks/{over}")).json()["status"] == "RETRY"
        assert (await prefect.read_flow_run(UUID(over))).state_name == "AwaitingRetry"
