"""Prefect that lost its data: the rows are the truth, and what is not over is handed to it again.

Prefect is the stand-in here, whose database can be emptied and restored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed, Running

from flows.credentials.cipher import Cipher
from flows.graphs.lifecycle import Status
from flows.store import executions
from flows.store.database import Database
from flows.store.models import Execution
from tests.api.conftest import make_settings, running_api
from tests.api.runs import Run
from tests.builders import action, fresh_name, line
from tests.stand_in.prefect import StandIn
from tests.stand_in.server import StandInServer
from tests.waiting import eventually

OPEN = {"PENDING", "RETRY", "RUNNING"}


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A stand-in of Prefect's server."""
    with StandInServer(tmp_path / "requests") as started:
        yield started


@pytest.fixture
def stand_in(server: StandInServer) -> StandIn:
    """Prefect, with what may happen to it."""
    return server.stand_in


@pytest.fixture
async def prefect(server: StandInServer) -> AsyncIterator[PrefectClient]:
    """What an operator does in Prefect."""
    async with PrefectClient(server.api_url) as client:
        yield client


@pytest.fixture
async def api(
    database_url: str, server: StandInServer, encryption_key: str
) -> AsyncIterator[httpx.AsyncClient]:
    """An API that looks after runs every few moments."""
    settings = make_settings(database_url, server.api_url, encryption_key, NOVA_RECOVERY_INTERVAL=0.1)
    async with running_api(settings) as client:
        yield client


class Task:
    """A run of a workflow, as its client knows it."""

    def __init__(
        self,
        api: httpx.AsyncClient,
        prefect: PrefectClient,
        database: Database,
        cipher: Cipher,
        task_id: str,
    ) -> None:
        self._api = api
        self._prefect = prefect
        self._database = database
        self.id = task_id
        self.run = Run(database, cipher, task_id)

    async def poll(self) -> str:
        """What its client reads."""
        return str((await self._api.get(f"/tasks/{self.id}")).json()["status"])

    async def row(self) -> Execution:
        """Its row."""
        found = await self._database.run(lambda session: executions.by_task(session, UUID(self.id)))
        assert found is not None
        return found

    async def flow_run(self) -> str:
        """The id that Prefect has it under, by its row."""
        return str((await self.row()).flow_run_id)

    async def is_handed_over(self) -> None:
        """Wait until Prefect has another flow run of it, while every poll says that it is not over."""

        async def look() -> Execution:
            assert await self.poll() in OPEN
            return await self.row()

        row = await eventually(
            look,
            lambda row: (
                row.flow_run_id is not None and row.flow_run_id != UUID(self.id) and row.lease_owner is None
            ),
        )
        assert row.task_id == UUID(self.id)

    async def goes_to_its_end(self) -> None:
        """Have a worker run it to its end, while its client polls it by the id that it was told."""
        row = await self.run.begin()
        assert row.flow_run_id is not None
        await self._prefect.set_flow_run_state(row.flow_run_id, Running(), force=True)
        assert await eventually(self.poll, lambda status: status not in ("RETRY", "PENDING")) == "RUNNING"
        await self.run.finish()
        assert await self.poll() == "SUCCESS"


@pytest.fixture
def submit(
    api: httpx.AsyncClient, prefect: PrefectClient, database: Database, cipher: Cipher, workflow: Any
) -> Callable[..., Any]:
    """Submit a run of the workflow, or of another one."""

    async def execute(of: dict[str, Any] | None = None) -> Task:
        answer = await api.post(f"/workflows/{(of or workflow)['id']}/execute")
        assert answer.status_code == 202, answer.text
        return Task(api, prefect, database, cipher, answer.json()["task_id"])

    return execute


async def test_runs_go_on_when_prefect_was_emptied(
    api: httpx.AsyncClient, submit: Callable[..., Any], stand_in: StandIn, prefect: PrefectClient
) -> None:
    """One that waits for its start, one for its retry, the only one of a workflow: under their task ids."""
    graph = line(action("a", "pass"))
    other = await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph})
    waits, retries, only = await submit(), await submit(), await submit(other.json())
    await retries.run.begin()
    await retries.run.schedule_retry("E2B does not answer.", -1)
    stand_in.lose_everything()
    new = await submit()  # which makes the deployment again
    for task in (waits, retries, only):
        await task.is_handed_over()
    assert await new.flow_run() == new.id
    for task in (waits, retries, only, new):
        run = await prefect.read_flow_run(UUID(await task.flow_run()))
        public_id = (await task.row()).public_id
        assert (run.state_name, run.parameters["execution"]) == ("Scheduled", str(public_id))
        await task.goes_to_its_end()
    assert (await retries.row()).attempt == 2


async def test_a_run_that_was_handed_over_again_is_cancelled_and_retried_by_its_task_id(
    api: httpx.AsyncClient, submit: Callable[..., Any], stand_in: StandIn, prefect: PrefectClient
) -> None:
    """As often as one likes."""
    task = await submit()
    stand_in.lose_everything()
    await task.is_handed_over()
    for _ in range(2):
        assert (await api.post(f"/tasks/{task.id}/cancel")).status_code == 202
        assert await task.poll() == "REVOKED"
        assert (await prefect.read_flow_run(UUID(await task.flow_run()))).state_name == "Cancelled"
        assert (await api.post(f"/tasks/{task.id}/retry")).status_code == 202
        assert await task.poll() == "RETRY"
        assert (await prefect.read_flow_run(UUID(await task.flow_run()))).state_name == "AwaitingRetry"
    await task.goes_to_its_end()


async def test_what_is_done_in_prefect_to_a_run_that_was_handed_over_again_is_seen(
    submit: Callable[..., Any], stand_in: StandIn, prefect: PrefectClient
) -> None:
    """A person cancels it there, by the id that it has there now."""
    task = await submit()
    stand_in.lose_everything()
    await task.is_handed_over()
    await prefect.set_flow_run_state(UUID(await task.flow_run()), Cancelled(message="By hand"), force=True)
    assert await eventually(task.poll, lambda status: status not in OPEN) == "REVOKED"
    assert (await task.row()).error == "By hand"


async def test_a_run_goes_on_when_prefect_was_restored_from_yesterday(
    submit: Callable[..., Any], stand_in: StandIn
) -> None:
    """One run alone was made since; the older one is still there, and so are those of after the restore."""
    old = await submit()
    backup = stand_in.snapshot()
    lost = await submit()
    stand_in.restore(backup)
    new = await submit()
    await lost.is_handed_over()
    assert [await task.flow_run() for task in (old, new)] == [old.id, new.id]
    for task in (old, lost, new):
        await task.goes_to_its_end()


async def test_a_failed_run_whose_flow_run_is_gone_is_retried(
    api: httpx.AsyncClient, submit: Callable[..., Any], stand_in: StandIn, prefect: PrefectClient
) -> None:
    """It goes on behind its last node, in a flow run that its retry makes; before that nobody touches it."""
    task = await submit()
    await task.run.begin()
    await task.run.step("start", "start")
    await task.run.finish(Status.FAILED)
    await prefect.set_flow_run_state(UUID(task.id), Failed(), force=True)
    stand_in.lose_everything()
    assert (await api.post(f"/tasks/{task.id}/retry")).status_code == 202
    assert await task.poll() == "RETRY"
    assert await task.flow_run() != task.id
    await task.goes_to_its_end()
    assert (await task.row()).attempt == 2


async def test_runs_go_on_when_the_data_that_was_lost_comes_back(
    submit: Callable[..., Any], stand_in: StandIn, prefect: PrefectClient
) -> None:
    """PREFECT_API_URL named another server for an hour: on the right one a worker failed the old flow run."""
    task = await submit()
    backup = stand_in.snapshot()
    stand_in.lose_everything()
    await task.is_handed_over()
    stand_in.restore(backup)
    not_ours: State[Any] = Failed(message="Execution 1 belongs to another flow run.")
    await prefect.set_flow_run_state(UUID(task.id), not_ours, force=True)

    async def back() -> str:
        assert await task.poll() in OPEN
        flow_run: str = await task.flow_run()
        return flow_run

    await eventually(back, lambda flow_run: flow_run == task.id)

    async def state() -> str:
        assert await task.poll() in OPEN
        return (await prefect.read_flow_run(UUID(task.id))).state_name or ""

    await eventually(state, lambda name: name == "AwaitingRetry")
    await task.goes_to_its_end()


async def test_runs_that_went_with_their_deployment_go_on(
    submit: Callable[..., Any], prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """Deleting it in Prefect deletes what waits: that is no word about the runs. It is made again."""
    first, second = await submit(), await submit()
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    await prefect.delete_deployment(deployment.id)
    for task in (first, second):
        await task.is_handed_over()
        await task.goes_to_its_end()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_run_that_a_person_deleted_is_cancelled(
    submit: Callable[..., Any], prefect: PrefectClient, begun: bool
) -> None:
    """Prefect is well, and has the others: that was an order. Many at once are so many orders."""
    tasks, kept = [await submit() for _ in range(4)], await submit()
    if begun:
        for task in tasks:
            await task.run.begin()
            await task.run.schedule_retry("E2B does not answer.", 300)
            await prefect.set_flow_run_state(UUID(task.id), Running())
    for task in tasks:
        await prefect.delete_flow_run(UUID(task.id))
    for task in tasks:
        assert await eventually(task.poll, lambda status: status not in OPEN) == "REVOKED"
        assert (await task.row()).error == "The flow run was deleted in Prefect."
    assert await kept.poll() == "PENDING"
