"""What a worker needs around it: a pool, workflows with deployments, and somebody who submits runs."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import func, select

from deployments.worker.worker import NovaWorker
from flows.config.settings import Settings
from flows.graphs import json_values
from flows.graphs.lifecycle import RunSnapshot, closure_for
from flows.prefect_gateway.gateway import PrefectGateway
from flows.prefect_gateway.workflow_deployments import DeploymentSpec
from flows.store import executions, orphans, workflows
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import interventions, submissions
from flows.store.values import Value
from tests.builders import fresh_name
from tests.servers import ServerProcess, clean_environment
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)
WAIT = (
    "import os, time\nopen(context['told'] + '.begun', 'w').close()\n"
    "while not os.path.exists(context['told']): time.sleep(0.02)\n"
)
"""Code of a node that waits until a test makes the file `told`."""


async def until_begun(told: Path) -> None:
    """Wait until a node with `WAIT` has begun; its row names it a moment earlier."""
    begun = Path(f"{told}.begun")
    await eventually(lambda: asyncio.to_thread(begun.exists), bool)


class Site:
    """A work pool of type nova of its own, and NOVA around it but for the API."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        gateway: PrefectGateway,
        prefect: PrefectClient,
        fork_server: Path | None = None,
    ) -> None:
        self._fork_server = fork_server
        self.database = database
        self.settings = settings
        self.gateway = gateway
        self.prefect = prefect

    @property
    def pool(self) -> str:
        """Name of the work pool."""
        return self.settings.work_pool

    async def prepare(self, kind: str = "nova") -> None:
        """Make the pool with its three queues."""
        template = NovaWorker.get_default_base_job_template() if kind == "nova" else {}
        await self.prefect.create_work_pool(
            WorkPoolCreate(name=self.pool, type=kind, base_job_template=template)
        )
        await self.gateway.deployments.ensure_pool()

    async def workflow(self, graph: dict[str, Any], **fields: Any) -> Workflow:
        """Save a workflow and deploy it."""
        saved = await self.database.run(
            lambda session: workflows.create(session, name=fresh_name(), graph=graph, **fields)
        )
        spec = DeploymentSpec(
            workflow_id=saved.id,
            name=saved.name,
            slug=saved.slug,
            description=None,
            priority=saved.priority,
            max_concurrent_runs=saved.max_concurrent_runs,
            overlap=saved.overlap,
            version=1,
            deployment_id=None,
        )
        deployment_id = await self.gateway.deployments.apply(spec)

        def note(session: Any) -> Workflow:
            workflows.set_deployment(session, saved.id, deployment_id)
            return workflows.get(session, saved.id)

        return await self.database.run(note)

    async def submit(self, workflow: Workflow, priority: str = "normal", **initial: Any) -> UUID:
        """Submit a run as the API does and return its flow run's id."""
        fragments = json_values.to_fragments(initial)

        def write(session: Any) -> Execution:
            stored = {key: Value(data) for key, data in fragments.items()}
            return submissions.create(
                session, workflow_id=workflow.id, client=None, priority=priority, initial=stored
            )

        row = await self.database.run(write)
        assert workflow.deployment_id is not None
        state = await self.gateway.runs.submit(
            deployment_id=workflow.deployment_id,
            public_id=row.public_id,
            name=f"{workflow.slug} #{row.id}",
            tags=[f"workflow:{workflow.slug}"],
            priority=priority,
        )
        await self.database.run(lambda session: submissions.confirm(session, row.id, state.flow_run_id))
        return state.flow_run_id

    async def deploy(self, entrypoint: str) -> UUID:
        """Deploy a flow that is not NOVA's; return the deployment's id."""
        name = entrypoint.rpartition(".")[2]
        flow_id = await self.prefect.create_flow_from_name(name.replace("_", "-"))
        return await self.prefect.create_deployment(
            flow_id=flow_id,
            name=f"test-{uuid4().hex[:8]}",
            entrypoint=entrypoint,
            path=None,
            pull_steps=[],
            work_pool_name=self.pool,
            work_queue_name="normal",
        )

    async def execution(self, flow_run_id: UUID) -> Execution:
        """Read the execution of a flow run."""
        row = await self.database.run(lambda session: executions.by_task(session, flow_run_id))
        assert row is not None
        return row

    async def snapshot(self, flow_run_id: UUID) -> RunSnapshot:
        """Read the execution of a flow run, as far as decisions need it."""
        seen = await self.database.run(lambda session: orphans.match_flow_runs(session, {flow_run_id: None}))
        return seen[flow_run_id]

    async def close_as_seen(self, flow_run_id: UUID) -> None:
        """Close an execution as Prefect says, as a poll does; who has its lease loses it."""
        row, state = await self.snapshot(flow_run_id), await self.gateway.runs.find(flow_run_id)
        closure = closure_for(row, state)
        assert await self.database.run(lambda session: interventions.close_as_seen(session, row, closure))

    async def flow_runs(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """Read flow runs in one request, in the order of their start."""
        found = await self.prefect.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(ids))), limit=200
        )
        return sorted(found, key=lambda run: (run.start_time is None, run.start_time))

    async def until_state(self, flow_run_id: UUID, *names: str, timeout: float = 60.0) -> FlowRun:
        """Wait until a run is in one of these states."""
        return await eventually(
            lambda: self.prefect.read_flow_run(flow_run_id), lambda run: run.state_name in names, timeout
        )

    async def until_all(self, ids: Sequence[UUID], name: str, timeout: float = 90.0) -> list[FlowRun]:
        """Wait until all runs are in this state."""
        return await eventually(
            lambda: self.flow_runs(ids),
            lambda runs: len(runs) == len(ids) and all(run.state_name == name for run in runs),
            timeout,
        )

    async def until_rows(self, ids: Sequence[UUID], status: str, timeout: float = 90.0) -> None:
        """Wait until the executions of all these flow runs have this status; asks the database alone."""
        statement = select(func.count()).where(Execution.flow_run_id.in_(ids), Execution.status == status)
        await eventually(
            lambda: self.database.run(lambda session: session.scalar(statement)),
            lambda found: found == len(ids),
            timeout,
        )

    async def until_step(self, flow_run_id: UUID, node_id: str, timeout: float = 60.0) -> Execution:
        """Wait until a run has come to this node."""
        return await eventually(
            lambda: self.execution(flow_run_id), lambda row: row.current_node == node_id, timeout
        )

    def worker(
        self,
        folder: Path,
        *options: str,
        kind: str = "nova",
        limit: int | None = 2,
        api_url: str = "",
        **extra: str,
    ) -> ServerProcess:
        """Start a worker's command, with `extra` variables in its environment."""
        name = f"worker-{next(_numbers)}"
        environment = clean_environment() | {
            "PREFECT_API_URL": api_url or self.settings.prefect_api_url,
            "PREFECT_HOME": str(folder / f"{name}-home"),
            "DATABASE_URL": self.settings.database_url,
            "NOVA_ENCRYPTION_KEY": self.settings.encryption_key.get_secret_value(),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PYTHONPATH": str(ROOT),
            **extra,
        }
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--name", name]
        command += ["--type", kind, "--install-policy", "never"]
        command += [*(["--limit", str(limit)] if limit else []), *options]
        return ServerProcess(command, environment, folder / f"{name}.log", self._fork_server)
