"""Deployments in a real Prefect server: one per workflow, kept equal to the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.states import Running

from flows.config.settings import Settings
from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError, PrefectUnavailableError
from flows.prefect_gateway.cron_schedules import ScheduleSpec, validate_cron
from flows.prefect_gateway.gateway import PrefectGateway
from flows.prefect_gateway.workflow_deployments import DeploymentSpec
from tests.builders import each
from tests.servers import free_port
from tests.stand_in.prefect import StandIn
from tests.stand_in.transport import Transport
from tests.stand_in.transport import client as client_of

pytestmark = pytest.mark.real_prefect


@pytest.fixture
async def gateway(prefect_server: str) -> AsyncIterator[PrefectGateway]:
    """NOVA's connection to the server, with a pool of this test's own."""
    settings = Settings(PREFECT_API_URL=prefect_server, NOVA_WORK_POOL=f"pool-{uuid4().hex[:8]}")
    async with PrefectGateway(settings) as connection:
        await connection.deployments.ensure_pool()
        yield connection


@pytest.fixture
async def prefect(prefect_server: str) -> AsyncIterator[PrefectClient]:
    """Prefect's own client, to see what the server really holds."""
    async with PrefectClient(prefect_server) as client:
        yield client


@pytest.fixture
def invoices() -> DeploymentSpec:
    """The deployment of an invoice workflow, with a name that no other test uses."""
    return DeploymentSpec(
        workflow_id=uuid4().int % 1_000_000,
        name="Invoice Processing V3",
        slug=f"invoices-{uuid4().hex[:8]}",
        description="Reads invoices",
        priority="normal",
        max_concurrent_runs=None,
        overlap="queue",
        version=1,
        deployment_id=None,
    )


def daily(number: int = 1, cron: str = "0 9 * * *") -> ScheduleSpec:
    """A schedule at nine in Madrid."""
    return ScheduleSpec(number, cron, "Europe/Madrid", {"client_slug": "idom"}, True)


class AlwaysSecond(Transport):
    """The way to a Prefect server on which another process does what this one does, a moment before it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request that changes something after it was answered once already."""
        if request.method in ("POST", "PATCH") and not request.url.path.endswith("/filter"):
            await super().handle_async_request(request)
        return await super().handle_async_request(request)


async def test_processes_that_make_the_pool_at_the_same_time_do_not_disturb_each_other() -> None:
    """Whatever this one is about to make, the other was faster: the pool is whole, and nothing is refused."""
    stand_in = StandIn()
    async with PrefectGateway(Settings(), client_of(stand_in, AlwaysSecond(stand_in))) as second:
        await second.deployments.ensure_pool()
    queues = stand_in.world.tables.queues.values()
    assert {queue.name: queue.priority for queue in queues} == {"high": 1, "normal": 2, "low": 3}


async def test_pool_has_three_queues_in_order_of_priority(
    gateway: PrefectGateway, prefect: PrefectClient
) -> None:
    """A new pool has the queues high, normal and low, in this order, and no other."""
    await gateway.deployments.ensure_pool()
    queues = await prefect.read_work_queues(work_pool_name=gateway.deployments._pool)
    assert {q.name: q.priority for q in queues} == {"high": 1, "normal": 2, "low": 3}


async def test_deployment_shows_the_workflow(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A workflow's deployment carries its name, description, queue, tags and parameters as a form."""
    deployment_id = await gateway.deployments.apply(invoices)
    deployment = await prefect.read_deployment(deployment_id)
    assert deployment.name == invoices.slug
    assert deployment.description == "**Invoice Processing V3**\n\nReads invoices"
    assert deployment.work_queue_name == "normal"
    assert f"workflow:{invoices.slug}" in deployment.tags
    assert deployment.parameters == {"workflow_id": invoices.workflow_id}
    assert deployment.parameter_openapi_schema is not None
    assert set(deployment.parameter_openapi_schema["properties"]) == {
        "workflow_id",
        "client_slug",
        "initial_context",
    }


async def test_applying_again_changes_and_keeps_every_schedule(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """An update reaches the deployment and leaves schedules alone, ours and those made in the UI."""
    first = await gateway.deployments.apply(replace(invoices, schedules=(daily(),)))
    await prefect.create_deployment_schedules(
        first, [DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)))]
    )
    again = await gateway.deployments.apply(
        replace(invoices, description="New", priority="high", schedules=(daily(),), max_concurrent_runs=2)
    )
    deployment = await prefect.read_deployment(again)
    assert again == first
    assert deployment.work_queue_name == "high"
    assert deployment.global_concurrency_limit is not None
    assert deployment.global_concurrency_limit.limit == 2
    listed = await gateway.deployments.list_schedules(first)
    assert sorted((s.id or 0, s.cron) for s in listed) == [(0, None), (1, "0 9 * * *")]


async def test_concurrency_limit_can_be_taken_away(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A workflow without `max_concurrent_runs` has no limit in Prefect either, though it had one."""
    deployment_id = await gateway.deployments.apply(replace(invoices, max_concurrent_runs=1))
    await gateway.deployments.apply(invoices)
    assert (await prefect.read_deployment(deployment_id)).global_concurrency_limit is None


async def test_schedule_paused_in_prefect_stays_paused(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """What an operator pauses in the UI, a later sync does not switch on again."""
    spec = replace(invoices, schedules=(daily(),))
    deployment_id = await gateway.deployments.apply(spec)
    schedule = (await prefect.read_deployment_schedules(deployment_id))[0]
    await prefect.update_deployment_schedule(deployment_id, schedule.id, active=False)
    await gateway.deployments.apply(spec)
    assert [s.active for s in await gateway.deployments.list_schedules(deployment_id)] == [False]


async def test_schedule_is_put_changed_and_removed(gateway: PrefectGateway, invoices: DeploymentSpec) -> None:
    """A schedule set over the API is made once, changed in place and taken away."""
    deployments = gateway.deployments
    deployment_id = await deployments.apply(invoices)
    await deployments.put_schedule(deployment_id, daily())
    await deployments.put_schedule(deployment_id, daily(cron="30 8 * * 1"))
    (listed,) = await deployments.list_schedules(deployment_id)
    assert (listed.cron, listed.timezone, listed.parameters) == (
        "30 8 * * 1",
        "Europe/Madrid",
        {"client_slug": "idom"},
    )
    await deployments.remove_schedule(deployment_id, 1)
    assert await deployments.list_schedules(deployment_id) == []


async def test_sync_heals_and_leaves_foreign_deployments_alone(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """Sync makes what is missing, deletes deployments of deleted workflows, and touches no other."""
    flow_id = await prefect.create_flow_from_name("execute-workflow")
    foreign = await prefect.create_deployment(flow_id=flow_id, name=f"foreign-{uuid4().hex[:8]}")
    gone = replace(invoices, slug=f"gone-{uuid4().hex[:8]}", workflow_id=invoices.workflow_id + 1)
    gone_id = await gateway.deployments.apply(gone)
    lost_id = await gateway.deployments.apply(invoices)
    await prefect.delete_deployment(lost_id)

    before = await gateway.deployments.of_workflows()
    new_id = await gateway.deployments.apply(replace(gone, slug=f"new-{uuid4().hex[:8]}"))

    report = await gateway.deployments.sync(each(replace(invoices, deployment_id=lost_id)), before)

    assert report.created == [invoices.slug]
    assert gone.slug in report.removed
    assert report.deployment_ids[invoices.workflow_id] != lost_id
    assert (await prefect.read_deployment(foreign)).id == foreign
    assert (await prefect.read_deployment(new_id)).id == new_id  # made while the sync went on
    with pytest.raises(NotFoundError):
        await gateway.deployments.list_schedules(gone_id)


async def test_sync_keeps_the_hands_off_another_installation(
    gateway: PrefectGateway, prefect_server: str, invoices: DeploymentSpec
) -> None:
    """What is of another work pool on the same Prefect server is neither removed nor taken."""
    settings = Settings(PREFECT_API_URL=prefect_server, NOVA_WORK_POOL=f"staging-{uuid4().hex[:8]}")
    async with PrefectGateway(settings) as staging:
        await staging.deployments.ensure_pool()
        theirs = replace(invoices, slug=f"theirs-{uuid4().hex[:8]}")
        theirs_id = await staging.deployments.apply(theirs)
        report = await gateway.deployments.sync(each(), await gateway.deployments.of_workflows())
        assert theirs.slug not in report.removed
        assert await staging.deployments.list_schedules(theirs_id) == []
        with pytest.raises(ConflictError, match="staging-"):
            await gateway.deployments.apply(theirs)


async def test_a_pause_in_prefect_outlives_a_new_time(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A changed cron line leaves a schedule paused that an operator has paused."""
    deployments = gateway.deployments
    deployment_id = await deployments.apply(replace(invoices, schedules=(daily(),)))
    (schedule,) = await prefect.read_deployment_schedules(deployment_id)
    await prefect.update_deployment_schedule(deployment_id, schedule.id, active=False)
    await deployments.put_schedule(deployment_id, daily(cron="30 8 * * 1"), keep_active=True)
    (listed,) = await deployments.list_schedules(deployment_id)
    assert (listed.cron, listed.active) == ("30 8 * * 1", False)


async def test_run_carries_its_name_tags_queue_and_parameters(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A submitted run has the execution's id beside the workflow's, and the same id is the same run."""
    deployment_id = await gateway.deployments.apply(invoices)
    public_id = uuid4()

    async def submit() -> UUID:
        state = await gateway.runs.submit(
            deployment_id=deployment_id,
            public_id=public_id,
            name="invoices #8 idom",
            tags=["client:idom"],
            priority="high",
        )
        return state.flow_run_id

    first, second = await submit(), await submit()
    assert first == second
    run = await prefect.read_flow_run(first)
    assert run.parameters == {"workflow_id": invoices.workflow_id, "execution": str(public_id)}
    assert (run.name, run.work_queue_name) == ("invoices #8 idom", "high")
    assert {"client:idom", f"workflow:{invoices.slug}"} <= set(run.tags)
    state = await gateway.runs.find(first)
    assert state is not None
    assert (state.status, state.message) == ("PENDING", "Task is queued, waiting for worker")


async def test_stopping_cancels_what_waits(gateway: PrefectGateway, invoices: DeploymentSpec) -> None:
    """Before a workflow is deleted its waiting runs are cancelled."""
    deployment_id = await gateway.deployments.apply(invoices)
    run = await gateway.runs.submit(
        deployment_id=deployment_id, public_id=uuid4(), name="x", tags=[], priority="normal"
    )
    await gateway.deployments.stop_runs(deployment_id, timeout=10)
    state = await gateway.runs.find(run.flow_run_id)
    assert state is not None
    assert (state.status, state.final) == ("REVOKED", True)


async def test_runs_that_do_not_stop_leave_the_schedules_on(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A refused deletion changes nothing; a deployment that an operator paused stays paused, too."""
    deployment_id = await gateway.deployments.apply(invoices)
    run = await gateway.runs.submit(
        deployment_id=deployment_id, public_id=uuid4(), name="x", tags=[], priority="normal"
    )
    await prefect.set_flow_run_state(run.flow_run_id, Running(), force=True)
    for paused in (False, True):
        if paused:
            await prefect.pause_deployment(deployment_id)
        with pytest.raises(ConflictError):
            await gateway.deployments.stop_runs(deployment_id, timeout=0)
        assert (await prefect.read_deployment(deployment_id)).paused is paused


async def test_stopping_takes_runs_of_other_deployments_along(
    gateway: PrefectGateway, prefect: PrefectClient, invoices: DeploymentSpec
) -> None:
    """A run of the same workflow that another deployment started is cancelled with the rest."""
    deployment_id = await gateway.deployments.apply(invoices)
    other_id = await gateway.deployments.apply(replace(invoices, slug=f"other-{uuid4().hex[:8]}"))
    run = await gateway.runs.submit(
        deployment_id=other_id, public_id=uuid4(), name="x", tags=[], priority="normal"
    )
    await gateway.deployments.stop_runs(deployment_id, timeout=10, others=[run.flow_run_id])
    assert (await prefect.read_flow_run(run.flow_run_id)).state_name == "Cancelled"


async def test_the_cleanup_is_deployed_once_and_its_schedule_is_the_operators(
    gateway: PrefectGateway, prefect: PrefectClient
) -> None:
    """It is in the pool's first queue, every five minutes; deploying again keeps a changed schedule."""
    await gateway.deployments.ensure_cleanup()
    deployment = await prefect.read_deployment_by_name(f"cleanup/{gateway.deployments._pool}")
    assert (deployment.entrypoint, deployment.work_queue_name) == ("flows.cleanup.cleanup", "high")
    [schedule] = deployment.schedules
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.active) == ("*/5 * * * *", True)
    await prefect.update_deployment_schedule(
        deployment.id, schedule.id, active=False, schedule=CronSchedule(cron="0 * * * *")
    )
    await gateway.deployments.ensure_cleanup()
    [kept] = (await prefect.read_deployment(deployment.id)).schedules
    assert isinstance(kept.schedule, CronSchedule)
    assert (kept.id, kept.schedule.cron, kept.active) == (schedule.id, "0 * * * *", False)
    assert deployment.id not in await gateway.deployments.of_workflows()


async def test_unknown_run_is_none_and_missing_deployment_is_said(gateway: PrefectGateway) -> None:
    """An id that Prefect never issued is no run, and a deleted deployment is a NotFoundError."""
    assert await gateway.runs.find(uuid4()) is None
    with pytest.raises(NotFoundError):
        await gateway.runs.submit(
            deployment_id=uuid4(), public_id=uuid4(), name="x", tags=[], priority="normal"
        )


async def test_prefect_gone_is_said() -> None:
    """Without a server every call says that Prefect cannot be reached, in a second."""
    settings = Settings(PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api", NOVA_PREFECT_TIMEOUT=1)
    async with PrefectGateway(settings) as connection:
        assert not await connection.healthy()
        with pytest.raises(PrefectUnavailableError):
            await connection.runs.find(uuid4())


@pytest.mark.parametrize(
    ("cron", "timezone"), [("61 * * * *", "UTC"), ("nonsense", "UTC"), ("0 9 * * *", "Mars/Olympus")]
)
def test_bad_schedules_are_refused(cron: str, timezone: str) -> None:
    """A cron line or a time zone that Prefect could not run is refused and the field is named."""
    with pytest.raises(InvalidInputError) as refused:
        validate_cron(cron, timezone)
    assert refused.value.problems


def test_good_schedules_pass() -> None:
    """The seed's daily schedule is valid."""
    validate_cron("0 9 * * *", "Europe/Madrid")
    assert CronSchedule(cron="0 9 * * *").cron
