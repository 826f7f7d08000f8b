"""Flow runs: create them, read them, and set their states in Prefect."""

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
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType, TaskRun
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
"""The most flow runs that Prefect's server returns at once."""

MOST = 5 * PAGE
"""The most active runs that `active` returns."""

MESSAGE_LIMIT = 2000
"""The most characters of a state's message."""

_BY_NOVA = {"by": "nova"}
"""Marks the states by which NOVA itself claims or requeues a run; it is their `data`."""
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
    """Return the state of Prefect's flow run in NOVA's terms."""
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
    """Calls for the flow runs of NOVA's deployments. Every method raises PrefectUnavailableError."""

    def __init__(self, client: PrefectClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def submit(
        self, *, deployment_id: UUID, public_id: UUID, name: str, tags: list[str], priority: str
    ) -> FlowRunState:
        """Create the flow run of an execution and return its state; the same `public_id` gives the same run.

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
        """Return the state of a flow run; None if Prefect has no such run."""
        try:
            async with prefect_call(self._timeout, "reading the flow run"):
                return state_of(await self._client.read_flow_run(flow_run_id))
        except NotFoundError:
            return None

    async def find_all(self, flow_run_ids: list[UUID]) -> dict[UUID, FlowRunState]:
        """Return the states of at most `PAGE` flow runs by id; unknown ones are left out."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids))
        async with prefect_call(self._timeout, "reading flow runs"):
            found = await self._client.read_flow_runs(flow_run_filter=wanted, limit=len(flow_run_ids))
        return {flow_run.id: state_of(flow_run) for flow_run in found}

    async def last_heard(self, flow_run_id: UUID) -> datetime | None:
        """Return the time of a flow run's last event; None if it had none, or none for a week.

        Prefect keeps the events of a flow run that was deleted.
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
        """Return when a deployment was made; None if Prefect does not know it."""
        try:
            async with prefect_call(self._timeout, "reading the deployment"):
                return (await self._client.read_deployment(deployment_id)).created
        except NotFoundError:
            return None

    async def cancel(self, flow_run_id: UUID) -> None:
        """Ask Prefect to cancel a run; a run that is over or unknown is no error."""
        try:
            async with prefect_call(self._timeout, "cancelling the flow run"):
                await self._client.set_flow_run_state(flow_run_id, Cancelling())
        except NotFoundError:
            return

    async def label(self, flow_run_id: UUID, *, name: str, tags: list[str]) -> None:
        """Name and tag a flow run that NOVA's API did not make (but Prefect's UI or CLI, or a schedule)."""
        async with prefect_call(self._timeout, "naming the flow run"):
            await self._client.update_flow_run(flow_run_id, name=name, tags=tags)

    async def requeue(self, flow_run_id: UUID, message: str, at: datetime | None = None) -> bool:
        """Requeue a run, due at `at` or now, and free its slots; return whether it waits in its queue now.

        Prefect refuses if the run is being cancelled, say. A run that already waits for a retry counts as
        requeued: the client may ask twice, if an answer was lost. Raises NotFoundError, and ConflictError
        when the run can never be requeued, for example because its deployment is gone.
        """
        state: State[Any] = AwaitingRetry(scheduled_time=at, message=_message(message))
        result = await self._propose(flow_run_id, state, "requeueing the flow run")
        if result.status == SetStateStatus.ABORT:
            reason = getattr(result.details, "reason", None) or "it does not say why"
            raise ConflictError(f"Prefect refuses to requeue the flow run: {reason}")
        waits = result.state is not None and result.state.name == "AwaitingRetry"
        return result.status == SetStateStatus.ACCEPT or waits

    async def claim(self, flow_run_id: UUID) -> State[Any] | None:
        """Move a waiting run to Pending, which works for one worker only; return the run's state.

        Returns None if Prefect refuses and keeps the run's state. Raises NotFoundError.
        """
        result = await self._propose(flow_run_id, Pending(), "claiming the flow run")
        accepted = result.status in (SetStateStatus.ACCEPT, SetStateStatus.REJECT)
        return result.state if accepted else None

    async def _propose(self, flow_run_id: UUID, state: State[Any], what: str) -> OrchestrationResult[Any]:
        """Propose a state that is marked as NOVA's (`_BY_NOVA`)."""
        proposed = to_state_create(state)
        # As Prefect's client does: if it asks again after a lost answer, the server knows the request.
        proposed.state_details.transition_id = uuid4()
        body = proposed.model_dump(mode="json", exclude_unset=True) | {"data": _BY_NOVA}
        async with prefect_call(self._timeout, what):
            # Not with `set_flow_run_state`: it leaves out the data of a state that is no result.
            response = await self._client.request(
                "POST",
                "/flow_runs/{id}/set_state",
                path_params={"id": flow_run_id},
                json={"state": body, "force": False},
            )
        return OrchestrationResult[Any].model_validate(response.json())

    async def retry_request(self, flow_run_id: UUID) -> UUID | None:
        """Return the id of the state by which a person retried an ended run in Prefect; None if nobody did.

        The run must still wait in its queue by that state. A state that NOVA set does not count: it may have
        arrived late, when the run was over. The state by which a run was first queued does not count either.
        """
        states = await self._states(flow_run_id)
        return _request_of(states) if states and states[-1].is_scheduled() else None

    async def request_of_start(self, flow_run_id: UUID) -> UUID | None:
        """Return the same as `retry_request`, also if a worker has claimed or started the run since."""
        return _request_of(await self._states(flow_run_id))

    async def _states(self, flow_run_id: UUID) -> list[State[Any]]:
        """Return the states of a flow run, oldest first."""
        async with prefect_call(self._timeout, "reading the flow run's states"):
            states = await self._client.read_flow_run_states(flow_run_id)
        return sorted(states, key=lambda state: state.timestamp)

    async def set_final(self, flow_run_id: UUID, status: Status, message: str | None) -> None:
        """Set a run to the final status of its execution's row; a run that is gone is no error."""
        ends = {Status.COMPLETED: Completed, Status.FAILED: Failed, Status.CANCELLED: Cancelled}
        state: State[Any] = ends[status](message=_message(message or ""))
        try:
            async with prefect_call(self._timeout, "ending the flow run"):
                # Forced, because after Cancelling Prefect accepts only Cancelled.
                await self._client.set_flow_run_state(flow_run_id, state, force=True)
        except NotFoundError:
            return

    async def active(self, pool: str) -> list[FlowRunState]:
        """Return NOVA's runs in a pool that a process should be running, or that wait for a retry.

        Returns at most `MOST` of them, by the time at which they were due.
        """
        wanted = FlowRunFilter(
            # `model_validate`, because mypy sees no `operator` in it.
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
        """Return the task runs of a flow run that are Pending or Running in Prefect."""
        found = await self._task_runs(FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        return [task_run.id for task_run in found]

    async def stray_task_runs(self, pool: str) -> list[UUID]:
        """Return a pool's task runs that are open in Prefect although their flow run does not run."""
        kinds = [StateType.SCHEDULED, *TERMINAL_STATES]
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds))
        found = await self._task_runs(FlowRunFilter(state=state))
        flow_run_ids = list({task_run.flow_run_id for task_run in found if task_run.flow_run_id is not None})
        if not flow_run_ids:
            return []
        # Other installations may share the server.
        async with prefect_call(self._timeout, "reading the flow runs of task runs"):
            ours = await self._client.read_flow_runs(
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids)),
                limit=PAGE,
            )
        known = {flow_run.id for flow_run in ours}
        return [task_run.id for task_run in found if task_run.flow_run_id in known]

    async def crash_task_runs(self, task_run_ids: list[UUID], message: str) -> None:
        """Set task runs to Crashed; those that have ended meanwhile stay as they are."""
        for task_run_id in task_run_ids:
            async with prefect_call(self._timeout, "ending a task run"):
                await self._client.set_task_run_state(task_run_id, Crashed(message=_message(message)))

    async def _task_runs(self, of: FlowRunFilter) -> list[TaskRun]:
        kinds = [StateType.PENDING, StateType.RUNNING]
        state = TaskRunFilterState(type=TaskRunFilterStateType(any_=kinds))
        async with prefect_call(self._timeout, "reading task runs"):
            return await self._client.read_task_runs(
                flow_filter=_OURS, flow_run_filter=of, task_run_filter=TaskRunFilter(state=state), limit=PAGE
            )


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
