"""What workers do to a run, by hand and step by step, and how they die; and a reconciler that looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Pending, Running
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import ErrorKind, RunSnapshot, Status, StepStatus
from flows.recovery.actions import Report, Resubmit
from flows.recovery.reconciler import Reconciler
from flows.store import chain, executions
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions
from tests import leasing
from tests.builders import action, line
from tests.endings import end
from tests.leasing import SECONDS, begin, lease_of
from tests.store import rows
from tests.worker.site import Site

GRAPH = line(action("a", "context['a'] = 1"), action("b", "context['b'] = 2"))
NOTHING = Report()
NOBODYS_SANDBOX = "local-4194303-ended"
"""The id of a local sandbox that has ended."""


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds since whenever."""
        return self.now


class Scene:
    """A pool without a worker, and a reconciler."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.database = site.database
        self.prefect = site.prefect
        self.runs = site.gateway.runs
        self.clock = Clock()
        self.reconciler = self.another()

    def another(self, resubmit: Resubmit | None = None) -> Reconciler:
        """A reconciler of another process, by the same clock."""
        return Reconciler(
            self.database, self.runs, self.site.settings, resubmit, clock=lambda: self.clock.now
        )

    async def look(self) -> Report:
        """Let the reconciler look once."""
        return await self.reconciler.once()

    async def look_again_after(self, seconds: float) -> Report:
        """Let it look, and again when so much time has gone by; the second report."""
        assert await self.look() == NOTHING
        self.clock.now += seconds
        return await self.look()

    async def submitted(self, **workflow: Any) -> UUID:
        """Submit a run of a new workflow and return the flow run's id."""
        return await self.site.submit(await self.site.workflow(GRAPH, **workflow))

    async def taken(self, flow_run_id: UUID, request: UUID | None = None) -> Lease:
        """Take a run's lease, as a NOVA worker does before it proposes Pending.

        `request` is the state in Prefect by which a person retries a run that is over.
        """

        def take(session: Session) -> Lease:
            row = executions.by_task(session, flow_run_id)
            assert row is not None
            claim = LeaseClaim(flow_run_id, row.public_id, row.workflow_id, uuid4(), SECONDS)
            lease = (
                attempts.take(session, claim)
                if request is None
                else leasing.take_retried(session, claim, request)
            )
            assert lease is not None
            return lease

        return await self.database.run(take)

    async def claimed(self, flow_run_id: UUID) -> Lease:
        """Take a run and make it Pending."""
        lease = await self.taken(flow_run_id)
        await self.set_state(flow_run_id, Pending())
        return lease

    async def begun(self, flow_run_id: UUID) -> Lease:
        """Take a run and begin it; no node was started yet."""
        lease = await self.claimed(flow_run_id)
        await self.set_state(flow_run_id, Running())

        def work(session: Session) -> Lease:
            row = executions.by_task(session, flow_run_id)
            assert row is not None
            begun = begin(
                session,
                flow_run_id=flow_run_id,
                workflow_id=row.workflow_id,
                public_id=row.public_id,
                owner=lease.owner,
            )
            return lease_of(begun)

        return await self.database.run(work)

    async def stepping(self, flow_run_id: UUID) -> Lease:
        """Begin a run and note its sandbox: a node may have been started."""
        lease = await self.begun(flow_run_id)

        def note(session: Session) -> None:
            attempts.note_sandbox(session, lease, NOBODYS_SANDBOX)
            attempts.step_done(session, lease, succeeded=True, next_node="a")

        await self.database.run(note)
        return lease

    async def step(self, lease: Lease, number: int, node: str) -> None:
        """Write the row of a step that succeeded."""
        step = chain.Step(step=number, attempt=1, node_id=node, node_type="action", status=StepStatus.SUCCESS)
        await self.database.run(lambda session: chain.append(session, lease, step, current_node=node))

    async def ended(self, lease: Lease, status: Status = Status.COMPLETED) -> None:
        """Close the row, as the flow does before Prefect is told; its lease stays."""
        await self.database.run(lambda session: end(session, lease, status))

    async def finished(self, lease: Lease, status: Status = Status.COMPLETED) -> None:
        """Close the row and release its lease, as a worker does that Prefect has heard."""
        await self.ended(lease, status)
        await self.released(lease)

    async def released(self, lease: Lease) -> None:
        """Release a lease."""
        await self.database.run(lambda session: attempts.release(session, lease))

    async def retry_scheduled(self, lease: Lease, seconds: float) -> datetime:
        """Put a run off, as the flow does before Prefect is told; its lease stays."""
        return await self.database.run(
            lambda session: attempts.schedule_retry(
                session, lease, "E2B is away.", ErrorKind.INFRASTRUCTURE, "a", seconds
            )
        )

    async def reopened(self, flow_run_id: UUID) -> Lease:
        """Open the row for a person's retry, as the API does before Prefect is told; its lease stays."""
        row, state = await self.row(flow_run_id), await self.runs.find(flow_run_id)
        assert state is not None
        opened = await self.database.run(
            lambda session: interventions.reopen(session, row.id, state.state_id)
        )
        return opened.lease

    async def died(self, *flow_run_ids: UUID) -> None:
        """Let the leases of these runs run out."""
        for flow_run_id in flow_run_ids:
            rows.expire(self.database, await self.row(flow_run_id))

    async def set_state(self, flow_run_id: UUID, state: State[Any], force: bool = False) -> str:
        """Propose a state in Prefect and return the name of the one that the run has then."""
        await self.prefect.set_flow_run_state(flow_run_id, state, force=force)
        return await self.state(flow_run_id)

    async def state(self, flow_run_id: UUID) -> str:
        """The name of a run's state in Prefect."""
        return (await self.prefect.read_flow_run(flow_run_id)).state_name or ""

    async def row(self, flow_run_id: UUID) -> Execution:
        """The execution of a flow run."""
        return await self.site.execution(flow_run_id)

    async def snapshot(self, flow_run_id: UUID) -> RunSnapshot:
        """The row of a flow run, as far as decisions need it."""
        return await self.site.snapshot(flow_run_id)

    async def ui_run(self, workflow: Workflow, **parameters: Any) -> UUID:
        """Start a run as the UI does: there is no row."""
        assert workflow.deployment_id is not None
        run = await self.prefect.create_flow_run_from_deployment(
            workflow.deployment_id, parameters=parameters or None
        )
        return run.id

    async def task_run(self, flow_run_id: UUID, state: State[Any]) -> TaskRun:
        """Make a task run in this state, as its event is written down."""
        made = await self.prefect.create_task_run(node, flow_run_id, dynamic_key=str(uuid4()))
        await self.prefect.set_task_run_state(made.id, state, force=True)
        return await self.prefect.read_task_run(made.id)

    async def task_event(self, run: TaskRun, state: State[Any], occurred: datetime) -> None:
        """Send the event of a task run's state, as the engine does, which may come late."""
        told: dict[str, Any] = {
            "type": state.type.value,
            "name": state.name,
            "message": "",
            "state_details": {},
        }
        left_out = {
            "id",
            "created",
            "updated",
            "flow_run_id",
            "state_id",
            "state_type",
            "state_name",
            "state",
        }
        body = run.model_dump(mode="json", exclude_none=True, exclude=left_out)
        event = {
            "id": str(uuid4()),
            "occurred": occurred.isoformat(),
            "event": f"prefect.task-run.{state.name}",
            "resource": {
                "prefect.resource.id": f"prefect.task-run.{run.id}",
                "prefect.orchestration": "client",
            },
            "related": [
                {
                    "prefect.resource.id": f"prefect.flow-run.{run.flow_run_id}",
                    "prefect.resource.role": "flow-run",
                }
            ],
            "payload": {"validated_state": told, "initial_state": None, "task_run": body},
        }
        await self.prefect.request("POST", "/events", json=[event])


@task
async def node() -> None:
    """A node, as Prefect sees one."""


def ago(seconds: float) -> datetime:
    """So many seconds before now."""
    return datetime.now(UTC) - timedelta(seconds=seconds)
