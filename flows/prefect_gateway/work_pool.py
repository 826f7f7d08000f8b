"""The work pool and its three queues."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool, WorkQueue
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.graphs.errors import NotFoundError
from flows.prefect_gateway.prefect_errors import prefect_call

QUEUES = {"high": 1, "normal": 2, "low": 3}
"""Queue → Prefect's priority: workers take all runs of 1 before any of 2."""

DEFAULT_QUEUE = "normal"

WORKER_TYPE = "nova"
"""Runs flows in one warm process (`deployments/worker/`); Prefect's type process can serve it, too."""

JOB_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"env": {}},
    "variables": {"type": "object", "properties": {}},
}
"""No job variables: a warm process has one environment. Prefect refuses an empty `job_configuration`."""


async def ensure_pool(client: PrefectClient, name: str, timeout: float) -> None:
    """Make the pool and its queues if they are missing, and set the queues' priorities.

    A pool that exists keeps its type, limits and job template: they are the operator's. Several processes may
    do this at the same time. Raises PrefectUnavailableError.
    """
    async with prefect_call(timeout, "setting up the work pool"):
        for left in reversed(range(len(QUEUES) + 1)):
            try:
                await _ensure_queues(client, await _read_or_create(client, name))
                return
            except (ObjectAlreadyExists, ObjectNotFound):
                if not left:
                    raise
                # Another process made one of the queues first, and may make the next one first, too.


async def is_whole(client: PrefectClient, name: str, timeout: float) -> bool:
    """Return whether the pool has its three queues in the order of their priorities. Costs one request.

    An operator may have put other queues between them. Raises PrefectUnavailableError.
    """
    try:
        async with prefect_call(timeout, "looking at the work pool"):
            found = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=name)}
    except NotFoundError:
        return False
    priorities = [found[queue].priority for queue in QUEUES if queue in found]
    return len(priorities) == len(QUEUES) and priorities == sorted(priorities)


async def _ensure_queues(client: PrefectClient, pool: WorkPool) -> None:
    queues = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=pool.name)}
    # Prefect gives every pool a queue that cannot be deleted: it is renamed to one of the three.
    default = next((q for q in queues.values() if q.id == pool.default_queue_id), None)
    if default is not None and DEFAULT_QUEUE not in queues:
        await client.update_work_queue(default.id, name=DEFAULT_QUEUE)
        queues[DEFAULT_QUEUE] = default
    for queue, priority in QUEUES.items():
        await _ensure_queue(client, pool.name, queue, priority, queues.get(queue))


async def _read_or_create(client: PrefectClient, name: str) -> WorkPool:
    try:
        return await client.read_work_pool(name)
    except ObjectNotFound:
        pass
    description = "Runs NOVA's workflows; priorities are its queues high, normal and low."
    try:
        return await client.create_work_pool(
            WorkPoolCreate(
                name=name, type=WORKER_TYPE, description=description, base_job_template=JOB_TEMPLATE
            )
        )
    except ObjectAlreadyExists:  # another `nova deploy` was faster
        return await client.read_work_pool(name)


async def _ensure_queue(
    client: PrefectClient, pool: str, queue: str, priority: int, found: WorkQueue | None
) -> None:
    if found is None:
        await client.create_work_queue(name=queue, priority=priority, work_pool_name=pool)
    elif found.priority != priority:
        await client.update_work_queue(found.id, priority=priority)
