"""All that NOVA's worker uses of Prefect beside its promised interface, in one place, with the reason why.

Prefect's own way to run a flow is a process per run that makes some thirty calls to the API and starts two
threads. Nearly all of that can go when the process is warm and knows its runs. `tests/worker/
test_private.py` checks that every name used here is still what it was in Prefect 3.8.8.

- `prefect.flow_engine.AsyncFlowRunEngine` with `client`, `handle_crash`, `set_state`, `call_hooks`,
  `setup_flow_run_suspension_request`, `_client`, `_is_started`, `_raised`: calling a flow makes a new run,
  only the engine runs one that exists, and only an override ends a stopped run as Cancelled or
  AwaitingRetry where Prefect's says Crashed.
- `prefect._flow_run_suspension`: the stock observer opens a thread and a websocket per run (130 ms); here one
  subscription feeds all runs.
- `AsyncClientContext`, `SyncClientContext`: one client per process, not one per run and task.
- `prefect.utilities.engine.propose_state`: fails a run that cannot be started, as Prefect's own workers do.
- `prefect.utilities.callables`: a flow run's parameters as its function's arguments, as the engine does it.
- `PrefectClient.__dict__` with `_context_stack`: a client for one run on the connections of the process.
- `PrefectClient.request`: the look-up of due runs with a `limit`, which the public method lacks.
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

from deployments.worker.active_run import Run
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
"""Seconds between two such attempts; the client makes some of its own in each."""
DEPLOYMENT_GONE = "Its deployment was deleted in Prefect. Start its workflow anew."


@asynccontextmanager
async def shared_clients() -> AsyncIterator[PrefectClient]:
    """Open the one client of each kind that all flows and tasks below this context use."""
    async with AsyncClientContext() as context:
        with SyncClientContext():
            yield context.client


async def due_runs(
    client: PrefectClient, pool: str, queues: Sequence[str], before: datetime, limit: int
) -> list[FlowRun]:
    """Ask for the runs that are due, highest priority first, oldest first; at most `limit` of them.

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
    """Make a run ours by moving it to Pending, which works for one worker only.

    One whose deployment is gone is closed as Failed: Prefect would show it for ever, and let nobody have it.
    """
    state = await FlowRuns(client, get_settings().prefect_timeout).claim(flow_run.id)
    if state is None:
        log.debug("Prefect does not give flow run %s.", flow_run.id)
        if await _is_adrift(client, flow_run):
            log.error("Flow run %s is closed: %s", flow_run.id, DEPLOYMENT_GONE)
            await refuse(client, flow_run, DEPLOYMENT_GONE)
        return False
    flow_run.state, flow_run.state_type, flow_run.state_name = state, state.type, state.name
    return state.is_pending()


async def _is_adrift(client: PrefectClient, flow_run: FlowRun) -> bool:
    """Whether its deployment was deleted."""
    try:
        if flow_run.deployment_id is not None:
            await client.read_deployment(flow_run.deployment_id)
    except ObjectNotFound:
        return True
    return False


async def refuse(client: PrefectClient, flow_run: FlowRun, reason: str) -> None:
    """Close a run that cannot be started at all as Failed."""
    try:
        await propose_state(client, Failed(message=reason), flow_run_id=flow_run.id)
    except (Abort, Pause) as refusal:
        log.debug("Flow run %s could not be failed: %s", flow_run.id, refusal)


async def requeue(client: PrefectClient, flow_run_id: UUID, message: str) -> None:
    """Put a run that cannot be stopped back into its queue, from outside."""
    try:
        await FlowRuns(client, get_settings().prefect_timeout).requeue(flow_run_id, message)
    except (ConflictError, NotFoundError) as refusal:
        log.debug("Flow run %s could not be requeued: %s", flow_run_id, refusal)


def suspend(flow_run_id: UUID, state: State[Any]) -> None:
    """Have a run of this process leave at its next task boundary, as Prefect's own observer would."""
    mark_flow_run_suspension_requested(flow_run_id, state)


async def execute(run: Run, flow: Flow[..., Any], client: PrefectClient) -> None:
    """Run a claimed run to its end; its failures are its own and never raised.

    When the task is cancelled `run.ending` says how the run ends in Prefect.
    """
    try:
        args, kwargs = parameters_to_args_kwargs(flow.fn, run.flow_run.parameters)
        parameters = get_call_parameters(flow.fn, args, kwargs)
    except Exception as error:  # noqa: BLE001 - whatever a caller wrote into the parameters
        await refuse(client, run.flow_run, f"The parameters do not fit the flow: {error}")
        return
    engine = WarmEngine(flow=flow, parameters=parameters, flow_run=run.flow_run)
    engine.run = run
    try:
        await _execute(engine, client)
    except (Abort, Pause) as stop:
        log.debug("Flow run %s left: %s %s", run.flow_run.id, type(stop).__name__, stop)
    except Exception as error:  # noqa: BLE001 - a flow's own errors do not get here
        if is_prefects(error):
            log.warning("Flow run %s lost Prefect: %r", run.flow_run.id, error)
        else:
            _faults.note(error, "Flow run %s broke off.", run.flow_run.id)
        await engine.settle(client, error)
    except BaseException as error:  # noqa: BLE001 - SystemExit and the like end the run, not the worker
        log.error("Flow run %s crashed: %r", run.flow_run.id, error)


async def _execute(engine: WarmEngine, client: PrefectClient) -> None:
    """Run it, and tell Prefect how it ended; raises what Prefect's engine does."""
    run = engine.run
    try:
        if run.ending is None:  # else it was told to stop before it had begun
            async with engine.start():
                while engine.is_running():
                    async with engine.run_context():
                        await cast(Awaitable[Any], engine.call_flow_fn())
    except asyncio.CancelledError:
        if run.ending is None:
            log.warning("Flow run %s was cancelled by its own code.", run.flow_run.id)
            return
    if engine.state.is_cancelling():  # asked for in the moment in which the flow began or ended
        await engine.end_cancelled(client)
    elif run.ending is not None and not (engine.state.is_final() or engine.state.is_scheduled()):
        await engine.end_unstarted(client)


class WarmEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's engine without the calls that a warm worker does not need."""

    run: Run

    _intended: State[Any] | None = None
    """The last state that was proposed, whether or not Prefect took it."""
    _memory: RunClient | None = None

    @property
    def client(self) -> PrefectClient:
        """The shared client, except that what the engine knows of its own run is not asked for."""
        shared = super().client
        if self._memory is None:
            self._memory = RunClient(shared, self)
        return self._memory

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        """Register for suspension without an observer: the worker's subscription feeds it."""
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.run.flow_run.id, request):
            request.raise_if_requested()
            yield request

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Propose a state; remembers it for `settle`, and counts the start that the re-read would show.

        A proposal is never interrupted: half sent, it could overtake the state that ends the run. A stop
        that comes meanwhile takes effect after it; after the last state there is nothing left to stop. Had
        Prefect been asked to cancel the run before that, it answers Cancelling.

        Prefect does not fence: a run whose lease is lost proposes nothing any more.
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
            self.run.flow_run.run_count += 1
        return accepted

    async def handle_crash(self, exc: BaseException) -> None:
        """End a run that the worker stopped as it was asked for, and all others as Crashed."""
        self.run.let_end()
        if self.run.ending is None:
            await super().handle_crash(exc)
            return
        with CancelScope(shield=True):
            self._raised = exc  # type: ignore[assignment]
            await self._end()

    async def end_unstarted(self, client: PrefectClient) -> None:
        """End a run that was claimed and not begun."""
        self._take_over(client)
        await self._end()

    async def end_cancelled(self, client: PrefectClient) -> None:
        """Close a run that Prefect wants cancelled."""
        self._take_over(client)
        await self._close_cancelled()

    def _take_over(self, client: PrefectClient) -> None:
        """Speak for a run that the engine has left or not begun; nothing interrupts that any more."""
        self.run.let_end()
        self._client, self._is_started = client, True

    async def _end(self) -> None:
        if self.run.ending is Ending.CANCELLED:
            await self._close_cancelled()
            return
        if self.run.held is not None:
            try:
                await self.run.held.look()
            except LeaseLostError as lost:  # what its row says now is not ours to undo
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
        """Take note of the state that the run has in Prefect."""
        if self.flow_run is not None:
            self.flow_run.state, self.flow_run.state_type = state, state.type
            self.flow_run.state_name = state.name

    async def _close_cancelled(self) -> None:
        """Call the flow's hooks, which close the execution's row, then tell Prefect."""
        if not self.state.is_cancelling():
            await self.call_hooks(Cancelling())
        await self.set_state(Cancelled(message=CANCELLED))

    async def settle(self, client: PrefectClient, error: Exception) -> None:
        """Bring a run whose state Prefect did not take to its end: the state it had, or Crashed.

        Nobody waits for that: who finds the run meanwhile does with it what its row says, and is not undone.
        """
        self._take_over(client)
        await self.run.release_lease()  # the flow does not run any more
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
            except Exception as again:  # noqa: BLE001 - it is tried once more
                if is_prefects(again):
                    log.debug("Prefect still does not take the end of %s: %r", self.run.flow_run.id, again)
                else:
                    _faults.note(
                        again, "The end of flow run %s was not told to Prefect.", self.run.flow_run.id
                    )
            else:
                return
        log.error("Flow run %s keeps a state in Prefect that is not true.", self.run.flow_run.id)


class RunClient(PrefectClient):
    """The process's client as one run's engine sees it: of that run it answers from memory."""

    def __init__(self, shared: PrefectClient, engine: WarmEngine) -> None:
        # The same connections: never opened here, and never closed, since the count of its users is copied.
        self.__dict__.update(shared.__dict__)
        self._engine = engine

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        """Return the run as the engine knows it; it is the only one that changes its state."""
        known = self._engine.flow_run
        if known is not None and known.id == flow_run_id:
            return known
        return await super().read_flow_run(flow_run_id)

    async def update_flow_run(self, flow_run_id: UUID, *args: Any, **changes: Any) -> Any:
        """Leave out what the engine writes at a start: without retries of Prefect's it says nothing new."""
        if (
            not args
            and set(changes) == {"flow_version", "empirical_policy"}
            and not self._engine.flow.retries
        ):
            return None
        return await super().update_flow_run(flow_run_id, *args, **changes)


def suspended_state(state_id: UUID, occurred: datetime) -> State[Any]:
    """Rebuild the Suspended state that an event tells of; its id is the event's."""
    return State(id=state_id, type=StateType.PAUSED, name="Suspended", timestamp=occurred)
