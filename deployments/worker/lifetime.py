"""One run in a worker, from its claim to the end of all that it held."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.flows import Flow

from deployments.worker import prefect_engine
from deployments.worker.active_run import Run
from deployments.worker.claims import AWAY_PAUSE, Claim, claim
from deployments.worker.flow_loader import Catalog, FlowNotLoadedError
from flows.config.log_once import FaultLog
from flows.config.settings import get_settings
from flows.graphs.errors import NovaError
from flows.prefect_gateway.prefect_errors import is_prefects
from flows.runs.process import process

log = logging.getLogger("prefect.nova.worker")
_faults = FaultLog(log)


async def claim_and_execute(
    run: Run, client: PrefectClient, catalog: Catalog, answer: Callable[[Claim], None]
) -> None:
    """Claim a run and, if it is ours, execute it; leave neither a lease nor a sandbox behind.

    `answer` is told whether it is ours, as soon as that is decided.
    """
    try:
        flow = await _find(run, client, catalog)
        if flow is None:
            answer(Claim(False, AWAY_PAUSE))
            return
        is_nova = catalog.knows_as_nova(run.flow_run)
        claimed = await claim(run, client, has_execution=is_nova)
        answer(claimed)
        if claimed.ours:
            await _execute(run, flow, client, is_nova)
    finally:
        run.let_end()
        await run.release_lease()
        await _end_sandbox(run)


async def _find(
    run: Run, client: PrefectClient, catalog: Catalog
) -> Flow[..., Any] | FlowNotLoadedError | None:
    """The flow of a run, or why it cannot be run here; None while nobody can say."""
    try:
        return await catalog.find(run.flow_run, client)
    except FlowNotLoadedError as error:
        return error
    except Exception as error:
        if not is_prefects(error):
            raise
        log.warning("Flow run %s is not taken, since its deployment cannot be read: %r", run.id, error)
        return None


async def _execute(
    run: Run, flow: Flow[..., Any] | FlowNotLoadedError, client: PrefectClient, is_nova: bool
) -> None:
    if isinstance(flow, FlowNotLoadedError):
        log.error("Flow run %s cannot be run here: %s", run.id, flow)
        await prefect_engine.refuse(client, run.flow_run, str(flow))
        return
    if is_nova:
        _begin_sandbox(run)
    run.task = asyncio.current_task()
    await prefect_engine.execute(run, flow, client)


def _begin_sandbox(run: Run) -> None:
    """Have a run's sandbox made while the run itself starts."""
    from flows.execute_workflow import sandbox_spec  # imported by the catalog, in its own time

    try:
        settings = get_settings()
        process(settings).sandboxes.begin(sandbox_spec(settings, run.flow_run))
    except NovaError as error:
        log.debug("The flow will say why no sandbox is made: %s", error)
    except Exception as error:  # noqa: BLE001 - the flow begins one itself
        _faults.note(error, "The sandbox of flow run %s was not prewarmed.", run.id)


async def _end_sandbox(run: Run) -> None:
    """End what a run left, if it ever had a sandbox."""
    try:
        sandboxes = process(get_settings()).sandboxes
    except NovaError as error:
        log.debug("There is nothing to end: %s", error)
        return
    await sandboxes.end(run.id)
