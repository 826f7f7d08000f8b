"""What a test can do to the stand-in: its clock, its database, its services, and messages that get lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import OrchestrationResult
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.workflow_deployments import Deployments, DeploymentSpec
from tests.stand_in.prefect import StandIn
from tests.stand_in.transport import API, Transport, client, connected, httpx_settings

START = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.time

    def advance(self, **ahead: float) -> None:
        """Move on."""
        self.time += timedelta(**ahead)


class Site:
    """A stand-in with a clock, NOVA's pool and a deployment, and a client."""

    def __init__(self, prefect: PrefectClient, stand_in: StandIn, clock: Clock) -> None:
        self.prefect = prefect
        self.stand_in = stand_in
        self.clock = clock
        self.deployments = Deployments(prefect, "nova", 5)
        self.deployment_id = uuid4()

    async def deploy(self, limit: int | None = None) -> None:
        """Make the pool and the deployment."""
        await self.deployments.ensure_pool()
        spec = DeploymentSpec(1, "Invoices", "invoices", None, "normal", limit, "wait", 1, None)
        self.deployment_id = await self.deployments.apply(spec)

    async def run(self) -> FlowRun:
        """Create a run that is due now by the stand-in's clock."""
        state: State[Any] = Scheduled(scheduled_time=self.clock.time)
        return await self.prefect.create_flow_run_from_deployment(self.deployment_id, state=state)

    async def state_name(self, flow_run: FlowRun) -> str | None:
        """The name of a run's state."""
        return (await self.prefect.read_flow_run(flow_run.id)).state_name


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A stand-in whose clock stands."""
    clock = Clock()
    stand_in = StandIn(now=clock)
    async with client(stand_in) as prefect:
        made = Site(prefect, stand_in, clock)
        await made.deploy()
        yield made


async def test_everything_lost(site: Site) -> None:
    """An emptied database knows no run, no pool and no deployment, and takes new ones."""
    run = await site.run()

    site.stand_in.lose_everything()

    with pytest.raises(ObjectNotFound):
        await site.prefect.read_flow_run(run.id)
    with pytest.raises(ObjectNotFound):
        await site.prefect.read_work_pool("nova")
    await site.deploy()
    assert (await site.run()).id != run.id


async def test_yesterdays_database(site: Site) -> None:
    """A restored backup has what was there when it was made, in the states of then; no id is given twice."""
    old = await site.run()
    backup = site.stand_in.snapshot()
    await site.prefect.set_flow_run_state(old.id, Running())
    new = await site.run()

    site.stand_in.restore(backup)

    assert await site.state_name(old) == "Scheduled"
    with pytest.raises(ObjectNotFound):
        await site.prefect.read_flow_run(new.id)
    assert (await site.run()).id not in (old.id, new.id)


async def test_a_deleted_pool(site: Site) -> None:
    """A test deletes a pool as people do: over the API."""
    await site.prefect.delete_work_pool("nova")

    run = await site.run()

    assert (run.work_pool_name, run.state_name) == (None, "Scheduled")


async def test_late_runs(site: Site) -> None:
    """Fifteen seconds after its time a run that nobody took is late; one that waits for a retry is not."""
    waiting, retrying = await site.run(), await site.run()
    await site.prefect.set_flow_run_state(retrying.id, Running())
    await FlowRuns(site.prefect, 5).requeue(retrying.id, "again", site.clock.time)

    site.clock.advance(seconds=14)
    site.stand_in.mark_late()
    assert await site.state_name(waiting) == "Scheduled"
    site.clock.advance(seconds=1)
    site.stand_in.mark_late()
    site.stand_in.mark_late()

    assert (await site.state_name(waiting), await site.state_name(retrying)) == ("Late", "AwaitingRetry")
    assert len(await site.prefect.read_flow_run_states(waiting.id)) == 2


async def test_cron(site: Site) -> None:
    """A schedule makes its runs ahead of their time, once each, unless its deployment is paused."""
    cron = DeploymentScheduleCreate(schedule=CronSchedule(cron="*/30 * * * *", timezone="UTC"), active=True)
    await site.prefect.create_deployment_schedules(site.deployment_id, [cron])

    async def due() -> list[str]:
        times = [run.next_scheduled_start_time for run in await site.prefect.read_flow_runs()]
        return sorted(f"{at:%H:%M}" for at in times if at)

    await site.prefect.pause_deployment(site.deployment_id)
    site.stand_in.fire_schedules()
    assert await due() == []
    await site.prefect.resume_deployment(site.deployment_id)
    site.stand_in.fire_schedules()
    site.stand_in.fire_schedules()
    assert await due() == ["12:00", "12:30", "13:00"]


async def test_services(site: Site) -> None:
    """Time ends what its worker has left: a run that is cancelling, and a slot whose lease is not renewed."""
    await site.deploy(limit=1)
    cancelling, holding = await site.run(), await site.run()
    await site.prefect.set_flow_run_state(cancelling.id, Running())
    await site.prefect.set_flow_run_state(cancelling.id, Cancelling())
    await site.prefect.set_flow_run_state(holding.id, Pending())

    async def slots() -> int | None:
        limit = (await site.prefect.read_deployment(site.deployment_id)).global_concurrency_limit
        return limit.active_slots if limit else None

    site.clock.advance(seconds=280)
    site.stand_in.run_services()
    assert (await site.state_name(cancelling), await slots()) == ("Cancelling", 1)
    site.clock.advance(seconds=21)
    site.stand_in.run_services()

    assert (await site.state_name(cancelling), await slots()) == ("Cancelled", 0)
    await site.prefect.set_flow_run_state(holding.id, Running())
    assert (await site.state_name(holding), await slots()) == ("Running", 1)


async def test_a_lost_answer(site: Site) -> None:
    """A test loses an answer in a transport of its own; the client's second try finds the deed done."""
    run = await site.run()

    class Lossy(Transport):
        """Loses the first answer, not the request."""

        lost = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            if "set_state" in request.url.path and not self.lost:
                self.lost += 1
                raise httpx.ReadError("lost", request=request)
            return response

    transport = Lossy(site.stand_in)
    async with client(site.stand_in, transport) as prefect:
        result: OrchestrationResult[Any] = await prefect.set_flow_run_state(run.id, Running())

    assert transport.lost == 1
    assert result.status.value == "REJECT"
    assert (await site.prefect.read_flow_run(run.id)).run_count == 1


async def test_the_same_each_time() -> None:
    """Two stand-ins of one seed that are asked the same give the same ids; another seed gives others."""

    async def ids(seed: int) -> list[UUID | None]:
        clock = Clock()
        stand_in = StandIn(now=clock, seed=seed)
        async with client(stand_in) as prefect:
            site = Site(prefect, stand_in, clock)
            await site.deploy()
            run = await site.run()
            return [site.deployment_id, run.id, run.state_id]

    first = await ids(1)
    assert await ids(1) == first
    assert not set(first) & set(await ids(2))


async def test_what_it_does_not_know(site: Site) -> None:
    """A call or a filter that nobody has taught the stand-in is refused, not guessed."""
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("/automations/filter", {}),
        ("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [str(uuid4())]}}}),
        ("/flow_runs/filter", {"task_runs": {"name": {"any_": ["a"]}}}),
    ]
    for path, body in unknown:
        with pytest.raises(PrefectHTTPStatusError, match="501"):
            await site.prefect._client.post(path, json=body)


async def test_prefects_own_contexts(site: Site) -> None:
    """What production code asks Prefect for, a client of either kind, can be connected to the stand-in."""
    first, second = await site.run(), await site.run()
    transport = Transport(site.stand_in)

    async with connected(transport), get_client() as prefect:
        await FlowRuns(prefect, 5).cancel(first.id)
    with SyncPrefectClient(API, httpx_settings=httpx_settings(transport)) as synchronous:
        result: OrchestrationResult[Any] = synchronous.set_flow_run_state(second.id, Completed())

    assert result.status.value == "ACCEPT"
    assert (await site.state_name(first), await site.state_name(second)) == ("Cancelled", "Completed")


async def test_fast(site: Site) -> None:
    """An answer takes well below a millisecond, with a hundred runs in the tables."""
    runs = [await site.run() for _ in range(100)]
    body = {"state": {"type": "PENDING"}}
    began, asked = time.process_time(), 0
    for run in runs:
        site.stand_in.answer("POST", f"/flow_runs/{run.id}/set_state", {}, body)
        site.stand_in.answer("GET", f"/flow_runs/{run.id}", {}, None)
        site.stand_in.answer("POST", "/work_pools/nova/get_scheduled_flow_runs", {}, {"limit": 2})
        asked += 3
    assert (time.process_time() - began) / asked < 0.001
