"""The deployment of the cleanup flow, with its schedule."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from flows.prefect_gateway.prefect_errors import prefect_call

CLEANUP_FLOW = "cleanup"
CLEANUP_CRON = "*/5 * * * *"
ENTRYPOINT = "flows.cleanup.cleanup"


async def ensure_cleanup(client: PrefectClient, pool: str, timeout: float) -> None:
    """Create the pool's deployment `cleanup/<pool>`, which runs every five minutes, or update it.

    An existing one keeps its schedules: an operator may have changed or paused them in the UI. Raises
    NotFoundError when there is no such pool, and PrefectUnavailableError.
    """
    fields: dict[str, Any] = {
        "description": "Ends the sandboxes of runs that are over, and forgets old idempotency keys.",
        "tags": ["nova"],
        "work_pool_name": pool,
        "work_queue_name": "high",  # it is short, and behind other runs it could wait for ever
        "entrypoint": ENTRYPOINT,
        "path": None,
        "pull_steps": [],
        "concurrency_limit": 1,
        # Runs that were due while no worker ran need not all be made up for.
        "concurrency_options": ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    }
    async with prefect_call(timeout, "saving the deployment of the cleanup"):
        try:
            found = await client.read_deployment_by_name(f"{CLEANUP_FLOW}/{pool}")
        except ObjectNotFound:
            schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron=CLEANUP_CRON), active=True)
            flow_id = await client.create_flow_from_name(CLEANUP_FLOW)
            await client.create_deployment(flow_id=flow_id, name=pool, schedules=[schedule], **fields)
        else:
            await client.update_deployment(found.id, DeploymentUpdate.model_validate(fields))
