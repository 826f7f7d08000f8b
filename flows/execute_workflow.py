"""The flow that every workflow's deployment runs: what the end of a run's attempt is in Prefect."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
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
from flows.graphs.errors import DatabaseRefusedError, LeaseError, PrefectUnavailableError
from flows.graphs.lifecycle import CANCELLED, LIVE, Ending
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.text import printable
from flows.runs.attempt import Attempt, AttemptEnd
from flows.runs.loading import RunRequest
from flows.runs.prefect_task import MESSAGE_LIMIT, walk
from flows.runs.process import process
from flows.sandbox.port import SandboxSpec
from flows.store import executions
from flows.store.transitions import attempts, interventions

correct_prefect_logs()

_STATES = {Ending.COMPLETED: Completed, Ending.FAILED: Failed, Ending.CANCELLED: Cancelled}


async def close_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Close the row of a run that was cancelled and end its sandbox: its flow did not come to do it.

    Raises LeaseLostError where this process ran it and somebody else goes on with it.
    """
    shared, message = process(get_settings()), state.message or CANCELLED
    held = shared.leases.held(flow_run.id)

    def write(session: Session) -> str | None:
        row = executions.by_task(session, flow_run.id)
        if row is None or row.status not in LIVE:
            return None
        if held is not None:
            attempts.cancel(session, held.lease, message)
            return row.sandbox_id
        return row.sandbox_id if interventions.cancel_stopped(session, row.id, message) else None

    if sandbox_id := await shared.database.run(write):
        await shared.sandboxes.provider.kill(sandbox_id)


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
    settings, flow_run, log = get_settings(), _flow_run(), get_run_logger()
    request = RunRequest(flow_run.id, execution, workflow_id, client_slug, initial_context or {})
    async with get_client() as client:  # the one that this process or flow run has already
        attempt = Attempt(
            settings,
            process(settings),
            FlowRuns(client, settings.prefect_timeout),
            request,
            sandbox_spec(settings, flow_run),
            walk,
            log,
        )
        try:
            held, refusal = await attempt.take()
            with held.watched() if held is not None else nullcontext():
                return _state(await attempt.make(held, refusal, flow_run.tags))
        except (LeaseError, PrefectUnavailableError) as error:
            log.info("The run is left, and another process goes on with it: %s", error)
            raise Abort(str(error)) from None
        except DatabaseRefusedError as error:
            return _state(attempt.unwritten(error, error))
        finally:
            with anyio.CancelScope(shield=True):
                await attempt.leave()


def sandbox_spec(settings: Settings, flow_run: FlowRun) -> SandboxSpec:
    """What the sandbox of a flow run is made for; NOVA's worker has it made before the flow begins."""
    return SandboxSpec(flow_run.id, flow_run.name, settings.run_timeout, settings.output_limit)


def _state(end: AttemptEnd) -> State[Any]:
    """How an attempt ends in Prefect. Raises Abort where the next one is scheduled.

    That was proposed to Prefect before: its own worker takes a flow that returns what is not final for
    crashed.
    """
    if end.ending not in _STATES:
        raise Abort(end.message)
    return _STATES[end.ending](message=printable(end.message)[:MESSAGE_LIMIT])


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("execute_workflow needs a flow run")
    return context.flow_run
