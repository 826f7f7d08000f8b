"""One run in a worker, from its claim until its lease and sandbox are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.flows import Flow

from deployments.worker import prefect_engine
from deployments.worker.active_run import ActiveRun
from deployments.worker.claims import AWAY_PAUSE, Claim, claim
from deployments.worker.flow_loader import FlowLoader, FlowNotLoadedError
from flows.config.log_once import FaultLog
from flows.config.settings import get_settings
from flows.graphs.errors import NovaError
from flows.prefect_gateway.prefect_errors import is_prefects
from flows.runs.process import process

log = logging.getLogger("prefect.nova.worker")
_faults = FaultLog(log)


async def claim_and_execute(
    run: ActiveRun, client: PrefectClient, loader: FlowLoader, answer: Callable[[Claim], None]
) -> None:
    """Claim a run, execute it if it is ours, then release its lease and end its sandbox.

    `answer` is called with the claim as soon as it is decided.
    """
    try:
        flow = await _find(run, client, loader)
        if flow is None:
            answer(Claim(False, AWAY_PAUSE))
            return
        is_nova = loader.knows_as_nova(run.flow_run)
        claimed = await claim(run, client, has_execution=is_nova)
        answer(claimed)
        if claimed.ours:
            await _execute(run, flow, client, is_nova)
    finally:
        run.forbid_interruption()
        await run.release_lease()
        await _end_sandbox(run)


async def _find(
    run: ActiveRun, client: PrefectClient, loader: FlowLoader
) -> Flow[..., Any] | FlowNotLoadedError | None:
    """Return the flow of a run, or the error that says why it cannot be run here; None if Prefect is away."""
    try:
        return await loader.find(run.flow_run, client)
    except FlowNotLoadedError as error:
        return error
    except Exception as error:
        if not is_prefects(error):
            raise
        log.warning("Flow run %s is not claimed: its deployment cannot be read: %r", run.id, error)
        return None


async def _execute(
    run: ActiveRun, flow: Flow[..., Any] | FlowNotLoadedError, client: PrefectClient, is_nova: bool
) -> None:
    if isinstance(flow, FlowNotLoadedError):
        log.error("Flow run %s cannot be run here: %s", run.id, flow)
        await prefect_engine.refuse(client, run.flow_run, str(flow))
        return
    if is_nova:
        _begin_sandbox(run)
    run.task = asyncio.current_task()
    await prefect_engine.execute(run, flow, client)


def _begin_sandbox(run: ActiveRun) -> None:
    """Start to make a run's sandbox while the run itself starts."""
    from flows.execute_workflow import sandbox_spec  # the loader has imported it already

    try:
        settings = get_settings()
        process(settings).sandboxes.begin(sandbox_spec(settings, run.flow_run))
    except NovaError as error:
        log.debug("The flow will say why no sandbox is made: %s", error)
    except Exception as error:  # noqa: BLE001 - the flow makes one itself
        _faults.note(error, "The sandbox of flow run %s was not prewarmed.", run.id)


async def _end_sandbox(run: ActiveRun) -> None:
    """End the run's sandbox, if it has one."""
    try:
        sandboxes = process(get_settings()).sandboxes
    except NovaError as error:
        log.debug("There is no sandbox to end: %s", error)
        return
    await sandboxes.end(run.id)
