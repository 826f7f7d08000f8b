"""Due runs that are in no queue, because it was deleted in Prefect.

Prefect never gives such a run to a worker, and cannot move it to another queue.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.prefect_gateway.cleanup_deployment import CLEANUP_FLOW
from flows.prefect_gateway.flow_runs import PAGE
from flows.prefect_gateway.prefect_errors import prefect_call
from flows.prefect_gateway.workflow_deployments import FLOW_NAME

_OURS = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME, CLEANUP_FLOW]))


class AdriftRuns:
    """Looks for runs in no queue among the due runs of NOVA's flows, one page at a time."""

    def __init__(self, client: PrefectClient, pool: str, timeout: float) -> None:
        self._client = client
        self._pool = pool
        self._timeout = timeout
        self._offset = 0

    async def due(self) -> list[FlowRun]:
        """Return the runs of the next page that are in no queue, oldest first.

        Runs whose deployment is in no pool, or in another one, are left out: they are not ours to run. Costs
        one request if no run is in no queue. Raises PrefectUnavailableError.
        """
        wanted = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC)),
        )
        async with prefect_call(self._timeout, "looking for runs in no queue"):
            page = await self._client.read_flow_runs(
                flow_filter=_OURS,
                flow_run_filter=wanted,
                sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
                limit=PAGE,
                offset=self._offset,
            )
            self._offset = self._offset + PAGE if len(page) == PAGE else 0
            adrift = [run for run in page if run.work_pool_name is None]
            ours = await self._in_pool({run.deployment_id for run in adrift if run.deployment_id})
        return [run for run in adrift if run.deployment_id in ours]

    async def _in_pool(self, deployment_ids: set[UUID]) -> set[UUID]:
        """Return those of these deployments that are in the pool."""
        if not deployment_ids:
            return set()
        wanted = DeploymentFilter(id=DeploymentFilterId(any_=list(deployment_ids)))
        found = await self._client.read_deployments(deployment_filter=wanted, limit=PAGE)
        return {deployment.id for deployment in found if deployment.work_pool_name == self._pool}
