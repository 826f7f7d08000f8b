"""Prefect's deployments: one per workflow, kept equal to the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import Cancelling

from flows.graphs.errors import ConflictError, NotFoundError, PrefectUnavailableError
from flows.prefect_gateway import cron_schedules as sched
from flows.prefect_gateway.cleanup_deployment import ensure_cleanup
from flows.prefect_gateway.cron_schedules import ScheduleSpec, ScheduleView, validate_cron
from flows.prefect_gateway.prefect_errors import prefect_call
from flows.prefect_gateway.text import printable
from flows.prefect_gateway.work_pool import ensure_pool, is_whole

__all__ = ["DeploymentSpec", "Deployments", "ScheduleSpec", "ScheduleView", "SyncReport", "validate_cron"]

log = logging.getLogger(__name__)

FLOW_NAME = "execute-workflow"
ENTRYPOINT = "flows.execute_workflow.execute_workflow"
"""A module path: for a file path Prefect puts `flows/` first on `sys.path`, which hides the package `e2b`."""

WORKFLOW_TAG = "nova-workflow"
"""Marks the deployments that `sync` may delete; NOVA leaves all others alone."""

_IDS = 1000
"""The most ids in one request."""

_LIVE = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


@dataclass(frozen=True)
class DeploymentSpec:
    """What a workflow's deployment consists of."""

    workflow_id: int
    name: str
    slug: str
    description: str | None
    priority: str
    max_concurrent_runs: int | None
    overlap: str
    version: int
    deployment_id: UUID | None
    schedules: tuple[ScheduleSpec, ...] = ()


@dataclass
class SyncReport:
    """What `sync` did; `deployment_ids` maps every workflow's id to its deployment's."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    deployment_ids: dict[int, UUID] = field(default_factory=dict)


def parameter_schema(workflow_id: int) -> dict[str, Any]:
    """Return the JSON schema of the flow's parameters; Prefect's UI makes the form for Run from it."""
    return {
        "type": "object",
        "title": "Parameters",
        "properties": {
            "workflow_id": {
                "title": "Workflow",
                "description": "The id of this deployment's workflow. Leave it as it is.",
                "type": "integer",
                "default": workflow_id,
                "position": 0,
            },
            "client_slug": {
                "title": "Client",
                "description": "Slug of the client whose credentials the run gets; empty for none.",
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
                "position": 1,
            },
            "initial_context": {
                "title": "Initial context",
                "description": (
                    "What the nodes find in `context`. Keep it small, and put no secret here: "
                    "everybody who can open Prefect can read it."
                ),
                "anyOf": [{"type": "object"}, {"type": "null"}],
                "default": None,
                "position": 2,
            },
        },
        "required": ["workflow_id"],
    }


def _fields(spec: DeploymentSpec, pool: str) -> dict[str, Any]:
    """Return the fields for creating and for updating a deployment; these are all but the schedules."""
    strategy = (
        ConcurrencyLimitStrategy.CANCEL_NEW if spec.overlap == "skip" else ConcurrencyLimitStrategy.ENQUEUE
    )
    title = f"**{printable(spec.name)}**"
    return {
        "version": str(spec.version),
        "description": f"{title}\n\n{printable(spec.description)}" if spec.description else title,
        "parameters": {"workflow_id": spec.workflow_id},
        "tags": [WORKFLOW_TAG, f"workflow:{spec.slug}"],
        "work_pool_name": pool,
        "work_queue_name": spec.priority,
        "entrypoint": ENTRYPOINT,
        "path": None,
        "pull_steps": [],  # the code is installed where the worker is: nothing to fetch
        "parameter_openapi_schema": parameter_schema(spec.workflow_id),
        "enforce_parameter_schema": True,
        "concurrency_limit": spec.max_concurrent_runs,
        "concurrency_options": ConcurrencyOptions(collision_strategy=strategy),
    }


class Deployments:
    """Calls for the deployments of all workflows. Every method raises PrefectUnavailableError."""

    def __init__(self, client: PrefectClient, pool: str, timeout: float) -> None:
        self._client = client
        self._pool = pool
        self._timeout = timeout

    async def ensure_pool(self) -> None:
        """Make the work pool and its three queues if they are missing."""
        await ensure_pool(self._client, self._pool, self._timeout)

    async def has_whole_pool(self) -> bool:
        """Return whether the work pool exists, with its three queues in their order."""
        return await is_whole(self._client, self._pool, self._timeout)

    async def ensure_cleanup(self) -> None:
        """Create or update the deployment of the cleanup flow; an existing one keeps its schedules."""
        await ensure_cleanup(self._client, self._pool, self._timeout)

    async def apply(self, spec: DeploymentSpec) -> UUID:
        """Create or update the deployment of a workflow and return its id.

        If the deployment is not in the work pool, the pool and its queues are made first: they may be gone.
        Missing schedules of NOVA's are made, and those that NOVA no longer has are removed. All others stay
        as they are: an operator may have paused one in the UI.
        """
        found = await self._find(spec)
        if found is None or found.work_pool_name != self._pool:
            await self.ensure_pool()
        deployment_id = found.id if found is not None else None
        async with prefect_call(self._timeout, f"saving the deployment of {spec.slug}"):
            if deployment_id is None:
                flow_id = await self._client.create_flow_from_name(FLOW_NAME)
                deployment_id = await self._client.create_deployment(
                    flow_id=flow_id, name=spec.slug, **_fields(spec, self._pool)
                )
            else:
                # Not a second create: it would delete the schedules.
                update = DeploymentUpdate.model_validate(_fields(spec, self._pool))
                await self._client.update_deployment(deployment_id, update)
        await self._match_schedules(deployment_id, spec.schedules)
        return deployment_id

    async def remove(self, deployment_id: UUID) -> None:
        """Delete a deployment and its schedules; a deployment that is gone is no error."""
        try:
            async with prefect_call(self._timeout, "deleting the deployment"):
                await self._client.delete_deployment(deployment_id)
        except NotFoundError:
            return

    async def stop_runs(
        self, deployment_id: UUID, timeout: float, others: Collection[UUID] = frozenset()
    ) -> None:
        """Cancel all live runs of a deployment and those of `others`, and wait until they have stopped.

        The deployment's schedules are paused first, so that no new run starts. Raises ConflictError if runs
        still go on after `timeout` seconds; the schedules are resumed then.
        """
        paused = await self._pause(deployment_id)
        try:
            await self._cancel(deployment_id, others, timeout)
        except BaseException:
            if paused:
                with anyio.CancelScope(shield=True):
                    await self._resume(deployment_id)
            raise

    async def _pause(self, deployment_id: UUID) -> bool:
        """Pause the schedules; return False if they were paused before or the deployment is gone."""
        try:
            async with prefect_call(self._timeout, "pausing the deployment"):
                if (await self._client.read_deployment(deployment_id)).paused:
                    return False
                await self._client.pause_deployment(deployment_id)
        except NotFoundError:
            return False
        return True

    async def _resume(self, deployment_id: UUID) -> None:
        try:
            async with prefect_call(self._timeout, "resuming the deployment"):
                await self._client.resume_deployment(deployment_id)
        except NotFoundError:
            return
        except PrefectUnavailableError as error:
            log.error("The deployment %s stays paused, resume it in Prefect's UI: %s", deployment_id, error)

    async def _cancel(self, deployment_id: UUID, others: Collection[UUID], timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        while runs := await self._live_runs(deployment_id, others):
            for run in runs:
                if run.state_type != StateType.CANCELLING:
                    async with prefect_call(self._timeout, "cancelling a flow run"):
                        await self._client.set_flow_run_state(run.id, Cancelling())
            if asyncio.get_running_loop().time() > deadline:
                raise ConflictError(
                    f"{len(runs)} run(s) were told to stop but still go on: "
                    + ", ".join(run.name for run in runs[:5])
                    + ". Try again when they have stopped."
                )
            await asyncio.sleep(0.25)

    async def of_workflows(self) -> dict[UUID, str]:
        """Return the pool's deployments that have NOVA's tag: id → name.

        NOVA leaves all others alone: those in another pool belong to another installation on this server.
        """
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[WORKFLOW_TAG]))
        async with prefect_call(self._timeout, "reading the deployments"):
            return {
                found.id: found.name
                async for page in _pages(self._client, ours)
                for found in page
                if found.work_pool_name == self._pool
            }

    async def count(self, deployment_ids: Collection[UUID]) -> int:
        """Return how many of these deployments are in the work pool. Costs one small request per thousand."""
        ids, found = [str(each) for each in deployment_ids], 0
        for start in range(0, len(ids), _IDS):
            wanted = {
                "deployments": {"id": {"any_": ids[start : start + _IDS]}},
                "work_pools": {"name": {"any_": [self._pool]}},
            }
            async with prefect_call(self._timeout, "counting the deployments"):
                response = await self._client.request("POST", "/deployments/count", json=wanted)
            found += int(response.json())
        return found

    async def sync(self, specs: AsyncIterable[DeploymentSpec], before: Mapping[UUID, str]) -> SyncReport:
        """Make the deployments equal to the workflows: create, update, delete.

        `specs` should read each workflow only when it is asked for. `before` is what `of_workflows` returned
        before the first was read. Only these are ever deleted: a workflow that is made meanwhile has a
        deployment, but no spec here. Raises ConflictError for a name that another pool has.
        """
        report = SyncReport()
        async for spec in specs:
            known = await self._find(spec)
            report.deployment_ids[spec.workflow_id] = await self.apply(spec)
            (report.created if known is None else report.updated).append(spec.slug)
        for deployment_id in before.keys() - set(report.deployment_ids.values()):
            await self.remove(deployment_id)
            report.removed.append(before[deployment_id])
        return report

    async def put_schedule(
        self, deployment_id: UUID, spec: ScheduleSpec, *, keep_active: bool = False
    ) -> None:
        """Create or update one of NOVA's schedules; raises NotFoundError when the deployment is gone.

        With `keep_active`, a schedule that an operator paused in the UI stays paused.
        """
        async with prefect_call(self._timeout, "saving the schedule"):
            for schedule in await self._client.read_deployment_schedules(deployment_id):
                if sched.nova_id(schedule) == spec.id:
                    await self._client.update_deployment_schedule(
                        deployment_id,
                        schedule.id,
                        active=None if keep_active else spec.active,
                        schedule=sched.to_create(spec).schedule,
                        parameters=spec.parameters,
                    )
                    return
            await self._client.create_deployment_schedules(deployment_id, [sched.to_create(spec)])

    async def remove_schedule(self, deployment_id: UUID, schedule_id: int) -> None:
        """Delete one of NOVA's schedules by its id in the database; one that is gone is no error."""
        try:
            async with prefect_call(self._timeout, "deleting the schedule"):
                for schedule in await self._client.read_deployment_schedules(deployment_id):
                    if sched.nova_id(schedule) == schedule_id:
                        await self._client.delete_deployment_schedule(deployment_id, schedule.id)
        except NotFoundError:
            return

    async def list_schedules(self, deployment_id: UUID) -> list[ScheduleView]:
        """Return all schedules of a deployment, also those made in Prefect; raises NotFoundError."""
        async with prefect_call(self._timeout, "reading the schedules"):
            return [sched.view(s) for s in await self._client.read_deployment_schedules(deployment_id)]

    async def _find(self, spec: DeploymentSpec) -> DeploymentResponse | None:
        """Return the workflow's deployment, found by its id or else by its name; None if there is none.

        Raises ConflictError if another installation has the name.
        """
        if spec.deployment_id is not None:
            try:
                async with prefect_call(self._timeout, "reading the deployment"):
                    return await self._client.read_deployment(spec.deployment_id)
            except NotFoundError:
                pass
        try:
            async with prefect_call(self._timeout, "reading the deployment"):
                found = await self._client.read_deployment_by_name(f"{FLOW_NAME}/{spec.slug}")
        except NotFoundError:
            return None
        if found.work_pool_name not in (None, self._pool):
            raise ConflictError(
                f"Prefect has a deployment {FLOW_NAME}/{spec.slug} of work pool {found.work_pool_name} "
                f"already: two installations of NOVA cannot share a Prefect server and workflow names."
            )
        return found

    async def _match_schedules(self, deployment_id: UUID, specs: Sequence[ScheduleSpec]) -> None:
        async with prefect_call(self._timeout, "matching the schedules"):
            found = {
                number: schedule.id
                for schedule in await self._client.read_deployment_schedules(deployment_id)
                if (number := sched.nova_id(schedule)) is not None
            }
            wanted = {spec.id: spec for spec in specs}
            if missing := [sched.to_create(spec) for number, spec in wanted.items() if number not in found]:
                await self._client.create_deployment_schedules(deployment_id, missing)
            for number in found.keys() - wanted.keys():
                await self._client.delete_deployment_schedule(deployment_id, found[number])

    async def _live_runs(self, deployment_id: UUID, others: Collection[UUID]) -> list[FlowRun]:
        live = FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVE))
        async with prefect_call(self._timeout, "reading the live runs"):
            found = await self._client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
                flow_run_filter=FlowRunFilter(state=live),
            )
            if missing := set(others) - {run.id for run in found}:
                named = FlowRunFilterId(any_=list(missing))
                found += await self._client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(state=live, id=named)
                )
            return found


async def _pages(
    client: PrefectClient, wanted: DeploymentFilter, size: int = 200
) -> AsyncIterator[list[DeploymentResponse]]:
    """Yield all deployments that match a filter, page by page."""
    offset = 0
    while page := await client.read_deployments(deployment_filter=wanted, limit=size, offset=offset):
        yield page
        offset += size
