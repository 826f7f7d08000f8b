"""What a person deletes in Prefect, or detaches there, is no caller's fault: it is made again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.exceptions import ObjectNotFound

from flows.config.settings import Settings
from tests.api.conftest import running_api
from tests.builders import fresh_name
from tests.servers import PrefectServer
from tests.waiting import eventually

pytestmark = pytest.mark.real_prefect  # what deleting takes along is what it is about

Harm = Callable[[PrefectClient, str, UUID], Awaitable[None]]
"""What is done in Prefect to a work pool and a deployment."""


@pytest.fixture
def prefect_server(private_server: PrefectServer) -> str:
    """URL of the API of a server of which others miss nothing."""
    return private_server.api_url


@pytest.fixture
def pool() -> str:
    """A work pool of this test's own."""
    return f"pool-{uuid4().hex[:8]}"


@pytest.fixture
def settings(settings: Settings, pool: str) -> Settings:
    """Settings with that pool; what looks after deployments looks seldom."""
    return settings.model_copy(update={"work_pool": pool})


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API with that pool."""
    async with running_api(settings) as client:
        yield client


@pytest.fixture
async def workflow(api: httpx.AsyncClient, invoices: dict[str, Any]) -> dict[str, Any]:
    """A workflow of high priority: its queue may be deleted, which the pool's default one may not."""
    body = {"name": fresh_name("Deleted"), "graph_definition": invoices, "priority": "high"}
    made: dict[str, Any] = (await api.post("/workflows", json=body)).raise_for_status().json()
    return made


async def delete_pool(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """The pool is gone, and with it its queues."""
    await prefect.delete_work_pool(pool)


async def remake_pool(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """A worker's heartbeat has made the pool again, with the one queue that every pool has."""
    await prefect.delete_work_pool(pool)
    await prefect.create_work_pool(WorkPoolCreate(name=pool, type="nova"))


async def remake_pool_of_another_type(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """A person has made the pool again, for Prefect's own workers."""
    await prefect.delete_work_pool(pool)
    await prefect.create_work_pool(WorkPoolCreate(name=pool, type="process"))


async def delete_queue(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """The deployment's queue is gone, the pool is there."""
    queue = await prefect.read_work_queue_by_name("high", work_pool_name=pool)
    await prefect.delete_work_queue_by_id(queue.id)


async def delete_flow(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """The flow is gone, and with it all its deployments."""
    deployment = await prefect.read_deployment(deployment_id)
    await prefect.delete_flow(deployment.flow_id)


async def delete_deployment(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """The deployment is gone."""
    await prefect.delete_deployment(deployment_id)


async def detach(prefect: PrefectClient, pool: str, deployment_id: UUID) -> None:
    """The deployment is in no pool any more."""
    await prefect.update_deployment(deployment_id, DeploymentUpdate(work_pool_name=None))


HARMS = [
    delete_pool,
    pytest.param(remake_pool, marks=pytest.mark.long),
    pytest.param(remake_pool_of_another_type, marks=pytest.mark.long),
    delete_queue,
    pytest.param(delete_flow, marks=pytest.mark.long),
    delete_deployment,
    pytest.param(detach, marks=pytest.mark.long),
]


async def deployment_of(prefect: PrefectClient, workflow: dict[str, Any]) -> UUID:
    """The id of a workflow's deployment."""
    return (await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")).id


async def in_prefect(prefect: PrefectClient, workflow: dict[str, Any]) -> list[DeploymentSchedule]:
    """The schedules of a workflow's deployment."""
    return await prefect.read_deployment_schedules(await deployment_of(prefect, workflow))


@pytest.mark.parametrize("harm", HARMS)
async def test_a_run_finds_its_way_whatever_was_deleted(
    api: httpx.AsyncClient, prefect: PrefectClient, pool: str, workflow: dict[str, Any], harm: Harm
) -> None:
    """202, and the run waits in the queue of its priority, where a worker finds it."""
    await harm(prefect, pool, await deployment_of(prefect, workflow))
    response = await api.post(f"/workflows/{workflow['id']}/execute")
    assert response.status_code == 202, response.text
    flow_run = await prefect.read_flow_run(UUID(response.json()["task_id"]))
    assert (flow_run.work_pool_name, flow_run.work_queue_name) == (pool, "high")
    queues = await prefect.read_work_queues(work_pool_name=pool)
    assert {queue.name: queue.priority for queue in queues} == {"high": 1, "normal": 2, "low": 3}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_workflow_is_changed_whatever_was_deleted(
    api: httpx.AsyncClient, prefect: PrefectClient, pool: str, workflow: dict[str, Any], harm: Harm
) -> None:
    """200, and its deployment is in the pool again."""
    await harm(prefect, pool, await deployment_of(prefect, workflow))
    response = await api.put(f"/workflows/{workflow['id']}", json={"description": "New"})
    assert response.status_code == 200, response.text
    deployment = await prefect.read_deployment(await deployment_of(prefect, workflow))
    assert (deployment.work_pool_name, deployment.work_queue_name) == (pool, "high")


async def test_a_pool_that_wants_more_than_nova_has_is_nobodys_mistake(
    api: httpx.AsyncClient, prefect: PrefectClient, pool: str, workflow: dict[str, Any]
) -> None:
    """503 that says what Prefect refuses: the pool was made again with a variable that has no default."""
    await prefect.delete_work_pool(pool)
    template = {
        "job_configuration": {"image": "{{ image }}"},
        "variables": {
            "type": "object",
            "properties": {"image": {"type": "string"}},
            "required": ["image"],
        },
    }
    await prefect.create_work_pool(WorkPoolCreate(name=pool, type="docker", base_job_template=template))
    response = await api.post(f"/workflows/{workflow['id']}/execute")
    assert (response.status_code, response.json()["status_code"]) == (503, 503)
    assert "image" in response.json()["error"]


@pytest.mark.parametrize("harm", HARMS)
async def test_deployments_are_healed_though_nobody_asks_for_a_run(
    api: httpx.AsyncClient,
    prefect: PrefectClient,
    settings: Settings,
    pool: str,
    workflow: dict[str, Any],
    harm: Harm,
) -> None:
    """An API that looks finds them: they are in their queue again, and no run stays planned outside of it.

    Prefect's scheduler may add one there that it was about to plan: the worker takes it when it is due.
    """
    address = f"/workflows/{workflow['id']}/schedules"
    (await api.post(address, json={"cron": "0 9 * * *"})).raise_for_status()
    tags = FlowRunFilterTags(all_=[f"workflow:{workflow['slug']}"])

    async def planned() -> dict[UUID, str | None]:
        runs = await prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tags))
        return {run.id: run.work_pool_name for run in runs}

    before = await eventually(planned, bool)
    await harm(prefect, pool, await deployment_of(prefect, workflow))

    async def queue() -> tuple[str | None, str | None]:
        try:
            deployment = await prefect.read_deployment(await deployment_of(prefect, workflow))
        except ObjectNotFound:
            return None, None
        return deployment.work_pool_name, deployment.work_queue_name

    async with running_api(settings.model_copy(update={"recovery_interval": 0.2})):
        await eventually(queue, lambda found: found == (pool, "high"))
        await eventually(lambda: in_prefect(prefect, workflow), bool)
    assert {name for run, name in (await planned()).items() if run in before} <= {pool}


async def test_queues_that_prefect_made_by_itself_get_their_order_back(
    api: httpx.AsyncClient, prefect: PrefectClient, settings: Settings, pool: str, workflow: dict[str, Any]
) -> None:
    """Two were deleted, and a run asked for one: Prefect made it, as the first of all."""
    normal = (await api.post("/workflows", json=_like(workflow) | {"priority": "normal"})).json()
    for name in ("high", "low"):
        queue = await prefect.read_work_queue_by_name(name, work_pool_name=pool)
        await prefect.delete_work_queue_by_id(queue.id)
    (await api.post(f"/workflows/{normal['id']}/execute", json={"priority": "low"})).raise_for_status()

    async def order() -> list[str]:
        queues = await prefect.read_work_queues(work_pool_name=pool)
        return [queue.name for queue in sorted(queues, key=lambda queue: queue.priority)]

    assert await order() == ["low", "normal"]
    async with running_api(settings.model_copy(update={"recovery_interval": 0.2})):
        await eventually(order, lambda found: found == ["high", "normal", "low"])


async def test_health_says_that_the_pool_is_gone(
    api: httpx.AsyncClient, prefect: PrefectClient, pool: str, workflow: dict[str, Any]
) -> None:
    """503 until it is there again: no worker finds a run."""
    assert (await api.get("/health")).status_code == 200
    await prefect.delete_work_pool(pool)
    health, detailed = await api.get("/health"), await api.get("/health/detailed")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    assert (health.json()["prefect"], health.json()["workers"]) == ("connected", 0)
    assert detailed.status_code == 503
    assert detailed.json()["components"]["work_pool"] == {"healthy": False}
    assert any(pool in issue for issue in detailed.json()["issues"])
    (await api.post(f"/workflows/{workflow['id']}/execute")).raise_for_status()
    assert (await api.get("/health")).status_code == 200


def _like(workflow: dict[str, Any]) -> dict[str, Any]:
    """What makes another workflow with the same graph."""
    return {"name": fresh_name("Deleted"), "graph_definition": workflow["graph_definition"]}
