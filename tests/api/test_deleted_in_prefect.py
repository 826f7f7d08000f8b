"""What a person deletes in Prefect, or detaches there, is no caller's fault: it is made again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate

from flows.config.settings import Settings
from tests.api.conftest import running_api
from tests.builders import fresh_name

Harm = Callable[[PrefectClient, str, UUID], Awaitable[None]]
"""What is done in Prefect to a work pool and a deployment."""


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
    remake_pool,
    remake_pool_of_another_type,
    delete_queue,
    delete_flow,
    delete_deployment,
    detach,
]


async def deployment_of(prefect: PrefectClient, workflow: dict[str, Any]) -> UUID:
    """The id of a workflow's deployment."""
    return (await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")).id


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
