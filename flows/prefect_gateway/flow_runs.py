"""Flow runs: submitting them, asking after them, and telling Prefect how they stand."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Pending,
    to_state_create,
)

from flows.graphs.errors import ConflictError, NotFoundError
from flows.graphs.flow_run_state import FlowRunState, PrefectState, TaskStatus
from flows.graphs.lifecycle import Status
from flows.prefect_gateway.cleanup_deployment import CLEANUP_FLOW
from flows.prefect_gateway.prefect_errors import prefect_call
from flows.prefect_gateway.text import printable
from flows.prefect_gateway.workflow_deployments import FLOW_NAME

PAGE = 200
"""The most flow runs that Prefect's server gives at once."""

MOST = 5 * PAGE
"""How many active runs are looked at in one go."""

MESSAGE_LIMIT = 2000
"""Characters of a state's message."""

_BY_NOVA = {"by": "nova"}
"""The data of the states by which NOVA itself claims a run, or puts it in its queue."""
_BY_PREFECT = frozenset({"AwaitingConcurrencySlot", "Late", "Resuming"})
"""Names of the states by which Prefect lets a run wait on, or go on after a pause: they are no retries."""

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


def state_of(flow_run: FlowRun) -> FlowRunState:
    """Translate Prefect's flow run."""
    state = flow_run.state
    kind = state.type if state else StateType.PENDING
    name = (state.name if state else None) or kind.value.title()
    message = (state.message if state else None) or ""
    workflow_id = flow_run.parameters.get("workflow_id")
    return FlowRunState(
        flow_run_id=flow_run.id,
        kind=PrefectState(kind.value.lower()),
        state_id=state.id if state else None,
        status="RETRY" if name == "AwaitingRetry" else _STATUS_OF_TYPE[kind],
        state_name=name,
        state_message=message,
        final=bool(state and state.is_final()),
        by_nova=state is not None and state.data == _BY_NOVA,
        run_count=flow_run.run_count,
        next_attempt=state.state_details.scheduled_time if state else None,
        workflow_id=workflow_id if isinstance(workflow_id, int) else None,
        public_id=_uuid(flow_run.parameters.get("execution")),
    )


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text)) if text else None
    except ValueError:
        return None


class FlowRuns:
    """Flow runs of NOVA's deployments. Every method raises PrefectUnavailableError."""

    def __init__(self, client: PrefectClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def submit(
        self, *, deployment_id: UUID, public_id: UUID, name: str, tags: list[str], priority: str
    ) -> FlowRunState:
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

    async def find(self, flow_run_id: UUID) -> FlowRunState | None:
        """What Prefect says of a flow run; None when it knows none of that id."""
        try:
            async with prefect_call(self._timeout, "reading the flow run"):
                return state_of(await self._client.read_flow_run(flow_run_id))
        except NotFoundError:
            return None

    async def find_all(self, flow_run_ids: list[UUID]) -> dict[UUID, FlowRunState]:
        """What Prefect says of at most `PAGE` flow runs, by their ids; one it does not know is left out."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids))
        async with prefect_call(self._timeout, "reading flow runs"):
            found = await self._client.read_flow_runs(flow_run_filter=wanted, limit=len(flow_run_ids))
        return {flow_run.id: state_of(flow_run) for flow_run in found}

    async def last_heard(self, flow_run_id: UUID) -> datetime | None:
        """When something happened to a flow run last; None where nothing ever did, or not for a week.

        Of a flow run that was deleted Prefect keeps the events, which this is read from.
        """
        async with prefect_call(self._timeout, "reading the flow run's events"):
            response = await self._client.request(
                "POST",
                "/events/filter",
                json={"filter": {"resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}, "limit": 1},
            )
        newest = response.json()["events"]
        return datetime.fromisoformat(newest[0]["occurred"]) if newest else None

    async def deployed_at(self, deployment_id: UUID) -> datetime | None:
        """When a deployment was made; None where Prefect does not know it."""
        try:
            async with prefect_call(self._timeout, "reading the deployment"):
                return (await self._client.read_deployment(deployment_id)).created
        except NotFoundError:
            return None

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

    async def requeue(self, flow_run_id: UUID, message: str, at: datetime | None = None) -> bool:
        """Put a run back in its queue, due at `at` or now, and free its slots.

        False when Prefect keeps the state that it has: the run is being cancelled, say. One that waits for a
        retry already is well: an answer that was lost has the client ask twice. Raises NotFoundError, and
        ConflictError when the run can never be put back, as one whose deployment is gone.
        """
        state: State[Any] = AwaitingRetry(scheduled_time=at, message=_message(message))
        result = await self._propose(flow_run_id, state, "putting the flow run back")
        if result.status == SetStateStatus.ABORT:
            reason = getattr(result.details, "reason", None) or "it does not say why"
            raise ConflictError(f"Prefect refuses to put the flow run back: {reason}")
        waits = result.state is not None and result.state.name == "AwaitingRetry"
        return result.status == SetStateStatus.ACCEPT or waits

    async def claim(self, flow_run_id: UUID) -> State[Any] | None:
        """Move a run that waits to Pending, which works for one worker only; return its state then.

        None when Prefect refuses and keeps the state that the run has. Raises NotFoundError.
        """
        result = await self._propose(flow_run_id, Pending(), "claiming the flow run")
        accepted = result.status in (SetStateStatus.ACCEPT, SetStateStatus.REJECT)
        return result.state if accepted else None

    async def _propose(self, flow_run_id: UUID, state: State[Any], what: str) -> OrchestrationResult[Any]:
        """Propose a state that carries NOVA's mark."""
        proposed = to_state_create(state)
        # As Prefect's client does: where an answer is lost and it asks again, the server knows it.
        proposed.state_details.transition_id = uuid4()
        body = proposed.model_dump(mode="json", exclude_unset=True) | {"data": _BY_NOVA}
        async with prefect_call(self._timeout, what):
            # Not by `set_flow_run_state`, which leaves out the data of a state that is no result.
            response = await self._client.request(
                "POST",
                "/flow_runs/{id}/set_state",
                path_params={"id": flow_run_id},
                json={"state": body, "force": False},
            )
        return OrchestrationResult[Any].model_validate(response.json())

    async def retry_request(self, flow_run_id: UUID) -> UUID | None:
        """Return the state by which a person asks in Prefect for an ended run to go on; None: nobody does.

        The run waits in its queue by that state now. Prefect does not fence: what a process of NOVA's sends
        late may reach a run that is over by then, and must not have it go on. And how a run first came into
        its queue is no request.
        """
        states = await self._states(flow_run_id)
        return _request_of(states) if states and states[-1].is_scheduled() else None

    async def request_of_start(self, flow_run_id: UUID) -> UUID | None:
        """As `retry_request`, of a run that Prefect's own worker may have claimed or started since."""
        return _request_of(await self._states(flow_run_id))

    async def _states(self, flow_run_id: UUID) -> list[State[Any]]:
        """The states of a flow run, oldest first."""
        async with prefect_call(self._timeout, "reading the flow run's states"):
            states = await self._client.read_flow_run_states(flow_run_id)
        return sorted(states, key=lambda state: state.timestamp)

    async def set_final(self, flow_run_id: UUID, status: Status, message: str | None) -> None:
        """Set a run to what its execution's closed row says; one that is gone is no error."""
        ends = {Status.COMPLETED: Completed, Status.FAILED: Failed, Status.CANCELLED: Cancelled}
        state: State[Any] = ends[status](message=_message(message or ""))
        try:
            async with prefect_call(self._timeout, "ending the flow run"):
                # By force, since from Cancelling Prefect lets nothing through but Cancelled.
                await self._client.set_flow_run_state(flow_run_id, state, force=True)
        except NotFoundError:
            return

    async def active(self, pool: str) -> list[FlowRunState]:
        """NOVA's runs in a pool that somebody should be at, and those that are to be tried again.

        At most `MOST` of them, those first that were due first.
        """
        wanted = FlowRunFilter(
            # Validated, since to mypy it has no `operator`.
            state=FlowRunFilterState.model_validate(
                {
                    "operator": "or_",
                    "type": {"any_": [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]},
                    "name": {"any_": ["AwaitingRetry"]},
                }
            )
        )
        found: list[FlowRun] = []
        for offset in range(0, MOST, PAGE):
            async with prefect_call(self._timeout, "reading the active flow runs"):
                page = await self._client.read_flow_runs(
                    flow_filter=_OURS,
                    work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
                    flow_run_filter=wanted,
                    sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                    limit=PAGE,
                    offset=offset,
                )
            found += page
            if len(page) < PAGE:
                break
        return [state_of(flow_run) for flow_run in found]

    async def open_task_runs(self, flow_run_id: UUID) -> list[UUID]:
        """The task runs of a flow run that Prefect takes for pending or running."""
        return await self._task_runs(FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))

    async def stray_task_runs(self) -> list[UUID]:
        """Task runs that Prefect takes for pending or running though their flow run does not run."""
        kinds = [StateType.SCHEDULED, *TERMINAL_STATES]
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds))
        return await self._task_runs(FlowRunFilter(state=state))

    async def crash_task_runs(self, task_run_ids: list[UUID], message: str) -> None:
        """Set task runs to Crashed, but for those that have ended meanwhile."""
        for task_run_id in task_run_ids:
            async with prefect_call(self._timeout, "ending a task run"):
                await self._client.set_task_run_state(task_run_id, Crashed(message=_message(message)))

    async def _task_runs(self, of: FlowRunFilter) -> list[UUID]:
        kinds = [StateType.PENDING, StateType.RUNNING]
        state = TaskRunFilterState(type=TaskRunFilterStateType(any_=kinds))
        async with prefect_call(self._timeout, "reading task runs"):
            found = await self._client.read_task_runs(
                flow_filter=_OURS, flow_run_filter=of, task_run_filter=TaskRunFilter(state=state), limit=PAGE
            )
        return [task_run.id for task_run in found]


def _request_of(states: list[State[Any]]) -> UUID | None:
    """The state by which a person put an ended run in its queue, where it waits or has started by that.

    A run that waits once more after it has started does not do so by that any more. What NOVA says in
    between, late perhaps, takes nothing back.
    """
    ended = started = False
    request: UUID | None = None
    for state in states:
        if state.is_final():
            ended, started, request = True, False, None
        elif not state.is_scheduled():
            started = True
        else:
            if started:
                started, request = False, None
            if state.name not in _BY_PREFECT and state.data != _BY_NOVA:
                request = state.id if ended else None
    return request


_OURS = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME, CLEANUP_FLOW]))


def _message(text: str) -> str:
    return printable(text)[:MESSAGE_LIMIT]
