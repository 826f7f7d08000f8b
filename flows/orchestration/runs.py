"""Flow runs: submitting them, asking after them, and what their states mean in the contract."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling

from flows.engine.errors import NotFoundError
from flows.orchestration.errors import prefect_call

TaskStatus = Literal["PENDING", "RUNNING", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
"""The task states of the HTTP contract."""

PAGE = 200
"""The most flow runs that Prefect's server gives at once."""

Closing = tuple[Literal["failed", "cancelled"], str, str]
"""How an execution's row is closed from outside: status, error, error kind."""

_STATUS_OF_TYPE: dict[StateType, TaskStatus] = {
    StateType.SCHEDULED: "PENDING",
    StateType.PENDING: "PENDING",
    StateType.RUNNING: "RUNNING",
    StateType.PAUSED: "RUNNING",
    StateType.COMPLETED: "SUCCESS",
    StateType.FAILED: "FAILURE",
    StateType.CRASHED: "FAILURE",
    StateType.CANCELLING: "REVOKED",
    StateType.CANCELLED: "REVOKED",
}


@dataclass(frozen=True)
class RunState:
    """What Prefect says of a flow run."""

    flow_run_id: UUID
    status: TaskStatus
    state_name: str
    """Prefect's own word: Late, AwaitingRetry, Suspended, …"""
    state_message: str
    final: bool
    run_count: int
    """How often it was started."""
    next_attempt: datetime | None
    """When a run that waits is due."""
    workflow_id: int | None
    """The parameter of that name; None for a flow run that is not of a workflow."""

    @property
    def message(self) -> str:
        """The contract's sentence for this state."""
        if self.status == "RETRY":
            return f"Task failed, retrying ({self.run_count} attempts)"
        if self.state_name in ("Paused", "Suspended"):
            return f"Task is executing ({self.state_name.lower()} in Prefect)"
        return {
            "PENDING": "Task is queued, waiting for worker",
            "RUNNING": "Task is executing",
            "SUCCESS": "Task completed successfully",
            "FAILURE": "Task failed",
            "REVOKED": "Task was cancelled",
        }[self.status]


def state_of(flow_run: FlowRun) -> RunState:
    """Translate Prefect's flow run."""
    state = flow_run.state
    kind = state.type if state else StateType.PENDING
    name = (state.name if state else None) or kind.value.title()
    workflow_id = flow_run.parameters.get("workflow_id")
    return RunState(
        flow_run_id=flow_run.id,
        status="RETRY" if name == "AwaitingRetry" else _STATUS_OF_TYPE[kind],
        state_name=name,
        state_message=(state.message if state else None) or "",
        final=bool(state and state.is_final()),
        run_count=flow_run.run_count,
        next_attempt=state.state_details.scheduled_time if state else None,
        workflow_id=workflow_id if isinstance(workflow_id, int) else None,
    )


def closing(state: RunState | None) -> Closing | None:
    """What an execution's open row becomes, given Prefect's state; None while the run may still go on.

    The flow closes its row before it ends, so a final state beside an open row says that the flow could
    not: it was cancelled before its start, crashed, was deleted (no state at all) or marked by hand.
    """
    if state is None:
        return "cancelled", "The flow run was deleted in Prefect.", "cancelled"
    if not state.final:
        return None
    if state.status == "REVOKED":
        return "cancelled", state.state_message or "The run was cancelled.", "cancelled"
    if state.status == "SUCCESS":
        return (
            "failed",
            "The flow run was marked as completed in Prefect before it had run to its end.",
            "crashed",
        )
    return "failed", state.state_message or f"The flow run ended as {state.state_name}.", "crashed"


class Runs:
    """Flow runs of NOVA's deployments. Every method raises PrefectUnavailableError."""

    def __init__(self, client: PrefectClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def submit(
        self, *, deployment_id: UUID, public_id: UUID, name: str, tags: list[str], priority: str
    ) -> RunState:
        """Create the flow run of an execution; the same `public_id` gives the same run.

        Raises NotFoundError when the deployment is gone.
        """
        async with prefect_call(self._timeout, "creating the flow run"):
            flow_run = await self._client.create_flow_run_from_deployment(
                deployment_id,
                parameters={"execution": str(public_id)},
                idempotency_key=str(public_id),
                name=name,
                tags=tags,
                work_queue_name=priority,
            )
        return state_of(flow_run)

    async def find(self, flow_run_id: UUID) -> RunState | None:
        """What Prefect says of a flow run; None when it knows none of that id."""
        try:
            async with prefect_call(self._timeout, "reading the flow run"):
                return state_of(await self._client.read_flow_run(flow_run_id))
        except NotFoundError:
            return None

    async def find_all(self, flow_run_ids: list[UUID]) -> dict[UUID, RunState]:
        """What Prefect says of at most `PAGE` flow runs, by their ids; one it does not know is left out."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids))
        async with prefect_call(self._timeout, "reading flow runs"):
            found = await self._client.read_flow_runs(flow_run_filter=wanted, limit=len(flow_run_ids))
        return {flow_run.id: state_of(flow_run) for flow_run in found}

    async def cancel(self, flow_run_id: UUID) -> None:
        """Ask for a run to stop; one that is over or unknown is no error."""
        try:
            async with prefect_call(self._timeout, "cancelling the flow run"):
                await self._client.set_flow_run_state(flow_run_id, Cancelling())
        except NotFoundError:
            return

    async def label(self, flow_run_id: UUID, *, name: str, tags: list[str]) -> None:
        """Name and tag a flow run that was not made by the API (the UI, the CLI, a schedule)."""
        async with prefect_call(self._timeout, "naming the flow run"):
            await self._client.update_flow_run(flow_run_id, name=name, tags=tags)
