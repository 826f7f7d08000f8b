"""Many processes look after runs, and one of them does it: what Prefect is asked does not grow with them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
import pytest

from flows.config import times
from flows.config.settings import Settings
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.actions import Resubmit
from flows.recovery.reconciler import Reconciler
from flows.recovery.sweeps import Sweep, sweep_lock
from flows.store import executions
from flows.store.database import Database
from flows.store.transitions import submissions
from tests.recovery.scene import GRAPH, Scene
from tests.waiting import eventually


class Sweeper:
    """A process that looks after runs all the time, and the number of its requests to Prefect."""

    def __init__(self, database: Database, settings: Settings, resubmit: Resubmit | None = None) -> None:
        self.requests = 0
        sweeps = [Sweep.RUNS, *([Sweep.SUBMISSIONS] if resubmit else [])]
        self._locks = {sweep: sweep_lock(settings, sweep) for sweep in sweeps}
        self._gateway = PrefectGateway(settings)
        self._gateway._client._client.event_hooks["request"].append(self._count)
        self._reconciler = Reconciler(database, self._gateway.runs, settings, resubmit)
        self._task: asyncio.Task[None] | None = None

    async def _count(self, request: httpx.Request) -> None:
        self.requests += 1

    async def __aenter__(self) -> Self:
        await self._gateway.__aenter__()
        self._task = asyncio.create_task(self._reconciler.run_forever(self._locks))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self._gateway.__aexit__(kind, error, trace)

    async def stop(self) -> None:
        """End it, as its process ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
            for lock in self._locks.values():
                await lock.close()


@pytest.fixture
def settings(scene: Scene) -> Settings:
    """Settings of processes that look often."""
    return scene.site.settings.model_copy(update={"recovery_interval": 0.05})


async def test_one_of_many_looks_and_another_follows_it(scene: Scene, settings: Settings) -> None:
    """The others send Prefect nothing at all, until the one is gone."""
    sweepers = [Sweeper(scene.database, settings) for _ in range(5)]

    async def busy() -> list[Sweeper]:
        return [sweeper for sweeper in sweepers if sweeper.requests > 12]

    async with AsyncExitStack() as processes:
        for sweeper in sweepers:
            await processes.enter_async_context(sweeper)
        (first,) = await eventually(busy, bool)
        await first.stop()
        assert [sweeper.requests for sweeper in sweepers if sweeper is not first] == [0] * 4
        (_, _) = await eventually(busy, lambda found: len(found) == 2)
        assert [sweeper.requests for sweeper in sweepers].count(0) == 3


async def test_what_only_an_api_can_do_is_not_kept_from_it(
    scene: Scene, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks after the runs; the one that Prefect was never told of is handed over by the API."""
    monkeypatch.setattr(times, "UNSUBMITTED", 0.0)
    workflow = await scene.site.workflow(GRAPH)
    row = await scene.database.run(
        lambda session: submissions.create(
            session, workflow_id=workflow.id, client=None, priority="normal", initial={}
        )
    )

    async def resubmit(execution_id: int) -> UUID:
        assert workflow.deployment_id is not None
        state = await scene.runs.submit(
            deployment_id=workflow.deployment_id,
            public_id=row.public_id,
            name="again",
            tags=[],
            priority="normal",
        )
        return state.flow_run_id

    async def handed_over() -> bool:
        found = await scene.database.run(lambda session: executions.get(session, row.id))
        return found.flow_run_id is not None

    async def requests() -> int:
        return worker.requests

    worker, api = Sweeper(scene.database, settings), Sweeper(scene.database, settings, resubmit)
    async with worker:
        await eventually(requests, bool)
        async with api:
            await eventually(handed_over, bool)
            assert api.requests == 0  # the run itself is handed over by `resubmit`
