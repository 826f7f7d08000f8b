"""All private parts of Prefect that NOVA's worker uses, in one place, each with the reason.

Prefect itself starts a process per run, which makes some thirty calls to the API and starts two threads. A
warm process that knows its runs needs almost none of that. `tests/worker/test_private.py` checks that every
name used here is still what it was in Prefect 3.8.8.

- `prefect.flow_engine.AsyncFlowRunEngine` with `client`, `handle_crash`, `set_state`, `call_hooks`,
  `setup_flow_run_suspension_request`, `_client`, `_is_started`, `_raised`: calling a flow makes a new
  run, so only the engine can run one that exists; and only an override can end a stopped run as Cancelled or
  AwaitingRetry, where Prefect says Crashed.
- `prefect._flow_run_suspension`: Prefect's observer opens a thread and a websocket per run (130 ms); here one
  subscription serves all runs.
- `AsyncClientContext`, `SyncClientContext`: one client per process instead of one per run and task.
- `prefect.utilities.engine.propose_state`: fails a run that cannot be started, as Prefect's own workers do.
- `prefect.utilities.callables`: turns a flow run's parameters into arguments, as the engine does.
- `PrefectClient.__dict__` with `_context_stack`: a client for one run that shares the process's connections.
- `PrefectClient.request`: looks up due runs with a `limit`, which the public method lacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from anyio import CancelScope
from prefect._flow_run_suspension import (
    FlowRunSuspensionRequest,
    mark_flow_run_suspension_requested,
    register_flow_run_suspension_request,
)
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.flows import Flow
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Failed
from prefect.utilities.callables import get_call_parameters, parameters_to_args_kwargs
from prefect.utilities.engine import propose_state

from deployments.worker.active_run import ActiveRun
from flows.config.log_once import FaultLog
from flows.config.settings import get_settings
from flows.graphs.errors import ConflictError, LeaseLostError, NotFoundError
from flows.graphs.lifecycle import CANCELLED, Ending
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.prefect_errors import is_prefects

log = logging.getLogger("prefect.nova.worker")
_faults = FaultLog(log)

SETTLE_TRIES = 120
"""How often a run's last state is sent again while Prefect does not answer."""
SETTLE_PAUSE = 5.0
"""Seconds between two such attempts; in each, Prefect's client tries several times itself."""
DEPLOYMENT_GONE = "Its deployment was deleted in Prefect. Start its workflow anew."


@asynccontextmanager
async def shared_clients() -> AsyncIterator[PrefectClient]:
    """Open the two clients, async and sync, that all flows and tasks in this context share."""
    async with AsyncClientContext() as context:
        with SyncClientContext():
            yield context.client


async def due_runs(
    client: PrefectClient, pool: str, queues: Sequence[str], before: datetime, limit: int
) -> list[FlowRun]:
    """Return at most `limit` due runs: highest priority first, then oldest first.

    Raises httpx.HTTPError.
    """
    response = await client.request(
        "POST",
        "/work_pools/{name}/get_scheduled_flow_runs",
        path_params={"name": pool},
        json={"work_queue_names": list(queues), "scheduled_before": before.isoformat(), "limit": limit},
    )
    return [entry.flow_run for entry in WorkerFlowRunResponse.model_validate_list(response.json())]


async def claim(client: PrefectClient, flow_run: FlowRun) -> bool:
    """Move a run to Pending, which works for one worker only; return whether it was this one.

    A run whose deployment is gone is set to Failed: Prefect would show it for ever, but refuse each claim.
    """
    state = await FlowRuns(client, get_settings().prefect_timeout).claim(flow_run.id)
    if state is None:
        log.debug("Prefect refuses the claim of flow run %s.", flow_run.id)
        if await _has_lost_deployment(client, flow_run):
            log.error("Flow run %s is closed: %s", flow_run.id, DEPLOYMENT_GONE)
            await refuse(client, flow_run, DEPLOYMENT_GONE)
        return False
    flow_run.state, flow_run.state_type, flow_run.state_name = state, state.type, state.name
    return state.is_pending()


async def _has_lost_deployment(client: PrefectClient, flow_run: FlowRun) -> bool:
    """Return whether the run's deployment was deleted."""
    try:
        if flow_run.deployment_id is not None:
            await client.read_deployment(flow_run.deployment_id)
    except ObjectNotFound:
        return True
    return False


async def refuse(client: PrefectClient, flow_run: FlowRun, reason: str) -> None:
    """Set a run that cannot be started to Failed."""
    try:
        await propose_state(client, Failed(message=reason), flow_run_id=flow_run.id)
    except (Abort, Pause) as refusal:
        log.debug("Flow run %s could not be set to Failed: %s", flow_run.id, refusal)


async def requeue(client: PrefectClient, flow_run_id: UUID, message: str) -> None:
    """Requeue a run from outside, because its flow cannot be stopped."""
    try:
        await FlowRuns(client, get_settings().prefect_timeout).requeue(flow_run_id, message)
    except (ConflictError, NotFoundError) as refusal:
        log.debug("Flow run %s could not be requeued: %s", flow_run_id, refusal)


def suspend(flow_run_id: UUID, state: State[Any]) -> None:
    """Suspend a run of this process at its next task, as Prefect's own observer would."""
    mark_flow_run_suspension_requested(flow_run_id, state)


async def execute(run: ActiveRun, flow: Flow[..., Any], client: PrefectClient) -> None:
    """Run a claimed run to its end. Failures of the run are not raised.

    If the task is cancelled, `run.ending` says how the run ends in Prefect.
    """
    try:
        args, kwargs = parameters_to_args_kwargs(flow.fn, run.flow_run.parameters)
        parameters = get_call_parameters(flow.fn, args, kwargs)
    except Exception as error:  # noqa: BLE001 - callers may write anything into the parameters
        await refuse(client, run.flow_run, f"The parameters do not fit the flow: {error}")
        return
    engine = WarmEngine(flow=flow, parameters=parameters, flow_run=run.flow_run)
    engine.run = run
    try:
        await _execute(engine, client)
    except (Abort, Pause) as stop:
        log.debug("Flow run %s was left: %s %s", run.flow_run.id, type(stop).__name__, stop)
    except Exception as error:  # noqa: BLE001 - the engine keeps the flow's own errors
        if is_prefects(error):
            log.warning("Flow run %s lost Prefect: %r", run.flow_run.id, error)
        else:
            _faults.note(error, "Flow run %s was interrupted.", run.flow_run.id)
        await engine.settle(client, error)
    except BaseException as error:  # noqa: BLE001 - SystemExit and the like end the run, not the worker
        log.error("Flow run %s crashed: %r", run.flow_run.id, error)


async def _execute(engine: WarmEngine, client: PrefectClient) -> None:
    """Run the flow and tell Prefect how it ended; raises what Prefect's engine raises."""
    run = engine.run
    try:
        if run.ending is None:  # else it was stopped before it began
            async with engine.start():
                while engine.is_running():
                    async with engine.run_context():
                        await cast(Awaitable[Any], engine.call_flow_fn())
    except asyncio.CancelledError:
        if run.ending is None:
            log.warning("Flow run %s was cancelled by its own code.", run.flow_run.id)
            return
    if engine.state.is_cancelling():  # it was cancelled at the moment when the flow began or ended
        await engine.end_cancelled(client)
    elif run.ending is not None and not (engine.state.is_final() or engine.state.is_scheduled()):
        await engine.end_unstarted(client)


class WarmEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's engine without the calls that a warm worker does not need."""

    run: ActiveRun

    _intended: State[Any] | None = None
    """The last state that was proposed, whether Prefect accepted it or not."""
    _memory: RunClient | None = None

    @property
    def client(self) -> PrefectClient:
        """Return the shared client, which answers from memory what the engine knows of its own run."""
        shared = super().client
        if self._memory is None:
            self._memory = RunClient(shared, self)
        return self._memory

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        """Register for suspension without an observer: the worker's subscription reports it."""
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.run.flow_run.id, request):
            request.raise_if_requested()
            yield request

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Propose a state and return the run's state; remember the proposal for `settle`.

        No stop interrupts a proposal: half sent, it could arrive after the state that ends the run. A stop
        that comes meanwhile takes effect afterwards. After a final state there is nothing to stop; if
        Prefect was asked to cancel the run before, it answers Cancelling.

        A run that has lost its lease proposes nothing (raises Abort): Prefect would accept it.
        """
        if self.run.held is not None:
            try:
                await self.run.held.confirm()
            except LeaseLostError as lost:
                raise Abort(str(lost)) from None
        self._intended = state
        with self.run.uninterrupted(to_the_end=state.is_final()):
            accepted = await super().set_state(state, force=force)
        if accepted is state and state.is_running():
            # Prefect counts this start, and the run is not read again.
            self.run.flow_run.run_count += 1
        return accepted

    async def handle_crash(self, exc: BaseException) -> None:
        """End a stopped run as `run.ending` says, and any other as Crashed."""
        self.run.forbid_interruption()
        if self.run.ending is None:
            await super().handle_crash(exc)
            return
        with CancelScope(shield=True):
            self._raised = exc  # type: ignore[assignment]
            await self._end()

    async def end_unstarted(self, client: PrefectClient) -> None:
        """End a run that was claimed but not begun."""
        self._take_over(client)
        await self._end()

    async def end_cancelled(self, client: PrefectClient) -> None:
        """End a run as Cancelled."""
        self._take_over(client)
        await self._close_cancelled()

    def _take_over(self, client: PrefectClient) -> None:
        """Prepare to end a run that the engine has left or not begun, without interruption."""
        self.run.forbid_interruption()
        self._client, self._is_started = client, True

    async def _end(self) -> None:
        if self.run.ending is Ending.CANCELLED:
            await self._close_cancelled()
            return
        if self.run.held is not None:
            try:
                await self.run.held.look()
            except LeaseLostError as lost:  # another process owns the row now
                raise Abort(str(lost)) from None
        runs = FlowRuns(super().client, get_settings().prefect_timeout)
        try:
            requeued = await runs.requeue(self.run.id, "Its worker was stopped; another one goes on.")
        except (ConflictError, NotFoundError) as refusal:
            raise Abort(str(refusal)) from None
        if requeued:
            self._know(AwaitingRetry())
            return
        found = await super().client.read_flow_run(self.run.id)
        if found.state is not None:
            self._know(found.state)
        if self.state.is_cancelling():
            await self._close_cancelled()

    def _know(self, state: State[Any]) -> None:
        """Note the state that the run has in Prefect."""
        if self.flow_run is not None:
            self.flow_run.state, self.flow_run.state_type = state, state.type
            self.flow_run.state_name = state.name

    async def _close_cancelled(self) -> None:
        """Call the flow's hooks, which close the execution's row, then tell Prefect."""
        if not self.state.is_cancelling():
            await self.call_hooks(Cancelling())
        await self.set_state(Cancelled(message=CANCELLED))

    async def settle(self, client: PrefectClient, error: Exception) -> None:
        """Send the end of a run again until Prefect accepts it: its intended final state, or Crashed.

        The lease is released before. If somebody else changes the run's state meanwhile, this stops.
        """
        self._take_over(client)
        await self.run.release_lease()  # the flow has ended
        wanted, known = self._intended, self.state.id
        for _ in range(SETTLE_TRIES):
            await asyncio.sleep(SETTLE_PAUSE)
            try:
                now = await client.read_flow_run(self.run.id)
                if now.state is None or now.state.id != known:
                    return
                if wanted is not None and wanted.is_final():
                    await self.set_state(wanted)
                elif self.run.ending is not None:
                    await self._end()
                else:
                    await super().handle_crash(error)
            except (Abort, Pause, ObjectNotFound):
                return
            except Exception as again:  # noqa: BLE001 - the loop tries again
                if is_prefects(again):
                    log.debug("Prefect still does not accept the end of %s: %r", self.run.flow_run.id, again)
                else:
                    _faults.note(
                        again, "Prefect was not told of the end of flow run %s.", self.run.flow_run.id
                    )
            else:
                return
        log.error(
            "Flow run %s keeps a wrong state in Prefect: its end was not accepted.", self.run.flow_run.id
        )


class RunClient(PrefectClient):
    """The shared client as one run's engine uses it: reads of that run are answered from memory."""

    def __init__(self, shared: PrefectClient, engine: WarmEngine) -> None:
        # It shares the connections, and the count of their users: so it never opens or closes them.
        self.__dict__.update(shared.__dict__)
        self._engine = engine

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        """Return the run as the engine knows it: only the engine changes its state."""
        known = self._engine.flow_run
        if known is not None and known.id == flow_run_id:
            return known
        return await super().read_flow_run(flow_run_id)

    async def update_flow_run(self, flow_run_id: UUID, *args: Any, **changes: Any) -> Any:
        """Update a run; skip what the engine writes at a start, unless Prefect's retries need it."""
        if (
            not args
            and set(changes) == {"flow_version", "empirical_policy"}
            and not self._engine.flow.retries
        ):
            return None
        return await super().update_flow_run(flow_run_id, *args, **changes)


def suspended_state(state_id: UUID, occurred: datetime) -> State[Any]:
    """Return the Suspended state that an event reports; its id is the event's."""
    return State(id=state_id, type=StateType.PAUSED, name="Suspended", timestamp=occurred)
