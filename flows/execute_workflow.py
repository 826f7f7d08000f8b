"""The flow that every workflow's deployment runs: take the execution over, walk the graph, finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import anyio
from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from sqlalchemy.orm import Session

from flows.config.prefect_logs import correct_prefect_logs
from flows.config.settings import Settings, get_settings
from flows.graphs.errors import (
    BreakerOpenError,
    ExecutionClosedError,
    LeaseError,
    NodeError,
    NovaError,
    PrefectUnavailableError,
    RunTimeoutError,
)
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.text import printable
from flows.runs import outcomes
from flows.runs.lease_keeper import HeldLease
from flows.runs.loading import LoadedRun, RunRequest, load_run
from flows.runs.node_executor import NodeExecutor
from flows.runs.prefect_task import MESSAGE_LIMIT, walk
from flows.runs.process import process
from flows.runs.retry_policy import retry_until_database, run_until_committed
from flows.runs.sandbox_session import SandboxSession
from flows.sandbox import prewarm
from flows.sandbox.factory import provider
from flows.sandbox.port import SandboxSpec
from flows.store import executions, transitions

correct_prefect_logs()

T = TypeVar("T")
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


async def close_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Close the row of a run that was cancelled and end its sandbox: its process did not live to do it."""
    settings, message = get_settings(), state.message or "The run was cancelled."

    def write(session: Session) -> str | None:
        row = executions.by_task(session, flow_run.id)
        if row is None or not transitions.finish(
            session, row.id, status="cancelled", error=message, error_kind="cancelled"
        ):
            return None
        return row.sandbox_id

    if sandbox_id := await process(settings).database.run(write):
        await provider(settings).kill(sandbox_id)


@flow(name="execute-workflow", persist_result=False, log_prints=False, on_cancellation=[close_cancelled])
async def execute_workflow(
    workflow_id: int,
    client_slug: str | None = None,
    initial_context: dict[str, Any] | None = None,
    execution: UUID | None = None,
) -> State[Any]:
    """Run a workflow for a client.

    `execution` is given by the API, whose row holds everything else; a run that was started in the UI, by
    the CLI or by a schedule has no row yet and gets one here, under its flow run's id.

    `initial_context` is visible to everybody who can see Prefect: keep it small and free of secrets.
    """
    flow_run, log = _flow_run(), get_run_logger()
    attempt = _Attempt(
        get_settings(),
        flow_run,
        RunRequest(flow_run.id, execution, workflow_id, client_slug, initial_context or {}),
        log,
    )
    try:
        held, refusal = await attempt.take()
        with held.watched() if held is not None else nullcontext():
            return await attempt.make(held, refusal)
    except (LeaseError, PrefectUnavailableError) as error:
        log.info("The run is left, and another process goes on with it: %s", error)
        raise Abort(str(error)) from None
    finally:
        with anyio.CancelScope(shield=True):
            await attempt.leave()


def begin_sandbox(flow_run: FlowRun) -> None:
    """Begin to make the sandbox of a run; a worker may call it before the flow does.

    Whoever does must end it (`flows.sandbox.prewarm.end`): the flow may never come to its start.
    """
    settings = get_settings()
    prewarm.begin(provider(settings), _spec(settings, flow_run))


class _Attempt:
    """One attempt of a run, from its lease to whatever ends it."""

    def __init__(self, settings: Settings, flow_run: FlowRun, request: RunRequest, log: Log) -> None:
        self._settings = settings
        self._flow_run = flow_run
        self._request = request
        self._log = log
        shared = process(settings)
        self._database, self._cipher, self._leases = shared.database, shared.cipher, shared.leases
        self._took_lease = False

    async def take(self) -> tuple[HeldLease | None, BreakerOpenError | None]:
        """The lease that NOVA's worker took for this run, else one of its own; and why it may not use E2B.

        Raises LeaseHeldError, and PrefectUnavailableError.
        """
        if (held := self._leases.held(self._request.flow_run_id)) is not None:
            return held, None
        self._took_lease = True
        async with get_client() as client:
            runs, asks = FlowRuns(client, self._settings.prefect_timeout), self._settings.uses_e2b

            def take(ask_breaker: bool) -> Awaitable[HeldLease | None]:
                return self._leases.take_for(self._request, runs, ask_breaker=ask_breaker)

            try:
                return await retry_until_database(lambda: take(asks)), None
            except BreakerOpenError as refusal:
                return await retry_until_database(lambda: take(False)), refusal

    async def leave(self) -> None:
        """Leave no sandbox, and no lease of its own that who goes on with the run would have to wait out.

        NOVA's worker keeps its lease until Prefect has heard how the run ended, which is after this.
        """
        await prewarm.end(self._flow_run.id)
        if self._took_lease:
            await self._leases.release(self._flow_run.id)

    async def make(self, held: HeldLease | None, refusal: BreakerOpenError | None) -> State[Any]:
        """Load the run, walk it, and end it in its row; return how it ends in Prefect.

        Raises LeaseError, and Abort where the run was put off.
        """
        lease = held.lease if held is not None else None
        if held is not None and refusal is None:
            begin_sandbox(self._flow_run)
        try:
            run = await run_until_committed(
                self._database,
                lambda session: load_run(session, self._request, lease, self._cipher, self._settings),
            )
        except ExecutionClosedError as error:
            self._log.warning("Nothing is run: %s", error)
            return await self._as_closed(str(error))
        except LeaseError:
            raise
        except NovaError as error:
            failure = error
            if held is not None:
                await self._end(held, lambda session: outcomes.fail(session, held.lease, failure))
            return _failed(failure)
        if held is None:
            raise RuntimeError("A run was loaded without its lease.")
        if self._request.public_id is None:
            await self._label(run)
        return await self._execute(run, held, refusal)

    async def _as_closed(self, message: str) -> State[Any]:
        """The state of a run that is over: what its row says."""
        row = await run_until_committed(
            self._database, lambda session: executions.by_task(session, self._request.flow_run_id)
        )
        if row is None or row.error_kind == "not_started" or row.status == "cancelled":
            return Cancelled(message=message)
        return Completed(message=message) if row.status == "completed" else Failed(message=message)

    async def _execute(self, run: LoadedRun, held: HeldLease, refusal: BreakerOpenError | None) -> State[Any]:
        """Walk the run to its end, or to where it breaks off."""
        settings = self._settings
        place = SandboxSession(
            settings, self._database, self._cipher, run, _spec(settings, self._flow_run), self._log
        )
        nodes = NodeExecutor(settings, self._database, self._cipher, run, place, self._log)
        try:
            if refusal is not None:
                raise refusal
            await place.open()  # its turn may be long in coming: that is none of the run's time
            steps = await self._walk_in_time(run, nodes, held)
        except LeaseError:
            raise
        except NovaError as error:
            return await self._break_off(run, held, error, nodes.at)
        except Exception as error:  # noqa: BLE001
            # A fault of NOVA's own must not leave an open row either; Prefect's log has its traceback.
            self._log.exception("NOVA itself failed")
            fault = NovaError(f"NOVA itself failed: {type(error).__name__}: {error}")
            return await self._break_off(run, held, fault, None)
        await self._end(held, lambda session: outcomes.complete(session, held.lease))
        return Completed(message=f"{steps} nodes executed")

    async def _break_off(
        self, run: LoadedRun, held: HeldLease, error: NovaError, node: str | None
    ) -> State[Any]:
        """Put the run off where that may help, else close it as failed."""

        def write(session: Session) -> datetime | None:
            due = outcomes.schedule_retry(session, self._settings, run, error, node)
            if due is None:
                outcomes.fail(session, run.lease, error, node)
            return due

        due = await self._end(held, write)
        if due is None:
            return _failed(error)
        message = f"{str(error).rstrip('.')}. The next attempt is at {due:%H:%M:%S} UTC."
        self._log.warning("%s", message)
        if await self._put_back(message, due):
            raise Abort(message)
        return Cancelled(message="The run was cancelled.")

    async def _put_back(self, message: str, due: datetime) -> bool:
        """Put the flow run back in its queue until its next attempt; False where it is being cancelled.

        Proposed here and not returned as the flow's state: Prefect's own worker takes a flow that returns
        what is not final for crashed.
        """
        try:
            async with get_client() as client:
                if await FlowRuns(client, self._settings.prefect_timeout).requeue(
                    self._flow_run.id, message, due
                ):
                    return True
        except NovaError as error:  # the row says when it is due: whoever looks after it tells Prefect
            self._log.warning("The run could not be put back in its queue yet: %s", error)
            return True
        await self._leases.release(self._flow_run.id)
        await close_cancelled(execute_workflow, self._flow_run, Cancelled(message="The run was cancelled."))
        return False

    async def _end(self, held: HeldLease, write: Callable[[Session], T]) -> T:
        """Write the run's last word of this attempt, and end the sandbox meanwhile."""
        held.end()
        written, _ = await asyncio.gather(
            run_until_committed(self._database, write), prewarm.end(self._flow_run.id)
        )
        return written

    async def _walk_in_time(self, run: LoadedRun, nodes: NodeExecutor, held: HeldLease) -> int:
        """Walk within the time that a run may take; return how many steps the whole run has."""
        limit, warning = self._settings.run_timeout, self._settings.run_warning
        said = "The run has taken %g s; at %g s it is stopped."
        watch = asyncio.get_running_loop().call_later(warning, self._log.warning, said, warning, limit)
        try:
            async with asyncio.timeout(limit) as timeout:
                return await walk(run, nodes, held, self._log)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise RunTimeoutError(f"The run took longer than {limit:g} s and was stopped.") from None
        finally:
            watch.cancel()

    async def _label(self, run: LoadedRun) -> None:
        """Give a run that the API did not make its readable name and tags; it may go without."""
        tags = sorted({*self._flow_run.tags, *run.tags})
        try:
            async with get_client() as client:  # the one that this process or flow run has already
                await FlowRuns(client, self._settings.prefect_timeout).label(
                    self._flow_run.id, name=run.name, tags=tags
                )
        except NovaError as error:
            self._log.warning("The flow run could not be named: %s", error)


def _spec(settings: Settings, flow_run: FlowRun) -> SandboxSpec:
    return SandboxSpec(flow_run.id, flow_run.name, settings.run_timeout, settings.output_limit)


def _failed(error: NovaError) -> State[Any]:
    message = str(error)
    if isinstance(error, NodeError) and error.node_id:
        message = f"Node {error.node_id!r} failed: {message}"
    return Failed(message=printable(message)[:MESSAGE_LIMIT])


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("execute_workflow needs a flow run")
    return context.flow_run
