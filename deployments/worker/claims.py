"""Claiming a run: first the lease of its execution, then the state Pending in Prefect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from deployments.worker import prefect_engine
from deployments.worker.active_run import ActiveRun
from flows.config import times
from flows.config.log_once import OutageLog
from flows.config.settings import get_settings
from flows.graphs.errors import (
    BreakerOpenError,
    ConfigurationError,
    DatabaseRefusedError,
    InfrastructureError,
    LeaseHeldError,
    NovaError,
)
from flows.graphs.flow_run_state import PrefectState
from flows.graphs.lifecycle import Action, Asker, decide
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.prefect_errors import is_prefects
from flows.recovery.actions import FULL, FULL_SECONDS
from flows.runs.lease_keeper import HeldLease
from flows.runs.loading import RunRequest
from flows.runs.process import process
from flows.store import orphans

log = logging.getLogger("prefect.nova.worker")
_outage = OutageLog(log)

HELD_PAUSE = 0.3
"""Seconds until a run whose lease another process holds is tried again: it may be released at any moment."""
REFUSED_PAUSE = 1.0
"""Seconds until a run that Prefect refuses is tried again: meanwhile others behind it are tried."""
AWAY_PAUSE = 1.0
"""Seconds until the database or Prefect is tried again after it did not answer."""
UNWRITTEN_PAUSE = 10.0
"""Seconds until a run whose row PostgreSQL refuses to change is tried again. Other runs do not wait."""
LOOK_PAUSES = (0.0, 0.5, 1.0)
"""Seconds before each look at a run whose claim was not answered."""
FAULT_PAUSE = 10.0
"""Seconds until a run is tried again after a fault in NOVA's own code. Other runs do not wait."""


@dataclass(frozen=True)
class Claim:
    """Whether a run is ours. If not, it waits for `pause` seconds; with `for_all`, so do all others."""

    ours: bool
    pause: float = 0.0
    for_all: bool = False


OURS, GONE, REFUSED = Claim(True), Claim(False), Claim(False, REFUSED_PAUSE)


async def claim(run: ActiveRun, client: PrefectClient, *, has_execution: bool) -> Claim:
    """Claim a run and return whether that worked. The caller must release the run's lease at the end.

    Raises only what is a fault in NOVA's own code.
    """
    if has_execution and (refusal := await _take_lease(run, client)) is not None:
        return refusal
    if has_execution and run.held is None and (left := await _look_before(run, client)) is not None:
        return left
    try:
        if await prefect_engine.claim(client, run.flow_run):
            return OURS
    except Exception as error:
        if not (is_prefects(error) or isinstance(error, InfrastructureError)):
            raise
        return await _check_unanswered(run, client, error)
    if run.held is not None and run.flow_run.state is not None and run.flow_run.state.is_cancelled():
        await _requeue_over_limit(run, run.held, client)
    return REFUSED


async def _look_before(run: ActiveRun, client: PrefectClient) -> Claim | None:
    """Return GONE for a run that has nothing to do and does not wait any more; None: it may be started.

    Its flow then says why there is nothing to do. Prefect would give the run though another worker has had it
    fail since it was found in its queue.
    """
    try:
        state = await FlowRuns(client, get_settings().prefect_timeout).find(run.id)
    except InfrastructureError as error:
        log.warning("Flow run %s could not be looked at: %s", run.id, error)
        return REFUSED
    return None if state is not None and state.kind is PrefectState.SCHEDULED else GONE


async def _check_unanswered(run: ActiveRun, client: PrefectClient, error: Exception) -> Claim:
    """Return whether Prefect gave us a run although its answer to the claim was lost.

    Without the lease the run counts as refused: Pending may then be another worker's claim.
    """
    log.warning("Flow run %s could not be claimed: %r", run.id, error)
    if run.held is None:
        return REFUSED
    answered = False
    for pause in LOOK_PAUSES:  # the first may go over a connection that has died
        await asyncio.sleep(pause)
        try:
            state = (await client.read_flow_run(run.id)).state
        except Exception as again:  # noqa: BLE001 - Prefect is still out of reach
            log.debug("Its state could not be read either: %r", again)
            continue
        answered = True
        if state is not None and state.is_pending():
            flow_run = run.flow_run
            flow_run.state, flow_run.state_type, flow_run.state_name = state, state.type, state.name
            return OURS
        if state is None or not state.is_scheduled():
            return REFUSED
        # Prefect may still be at work on the claim: look again.
    if not answered:
        run.abandon_lease()
    return REFUSED


async def _requeue_over_limit(run: ActiveRun, held: HeldLease, client: PrefectClient) -> None:
    """Requeue a begun run that Prefect cancelled because too many runs of its workflow are going on."""
    settings = get_settings()
    runs, database = FlowRuns(client, settings.prefect_timeout), process(settings).database
    try:
        state = await runs.find(run.id)
        if state is None or not state.is_over_limit:
            return
        rows = await database.run(lambda session: orphans.match_flow_runs(session, {run.id: None}))
        row = rows.get(run.id)
        # We hold the lease, so we may decide as the reconciler does.
        if row is None or decide(replace(row, leased=False), state, Asker.RECONCILER) is not Action.REQUEUE:
            return
        due = datetime.now(UTC) + timedelta(seconds=FULL_SECONDS)
        await held.confirm()
        await runs.requeue(run.id, FULL, due)
    except NovaError as error:  # the reconciler does it later
        log.warning("Flow run %s could not be requeued yet: %s", run.id, error)


async def _take_lease(run: ActiveRun, client: PrefectClient) -> Claim | None:
    """Take the lease of a run. Return None if the run may be started, else the refusal.

    A run that is started without a lease fails in its flow, which says why.
    """
    request = _request(run.id, run.flow_run.parameters)
    if request is None:
        return None
    try:
        settings = get_settings()
        runs = FlowRuns(client, settings.prefect_timeout)
        run.held = await process(settings).leases.take_for(
            request, runs, runs.retry_request, ask_breaker=settings.uses_e2b
        )
    except LeaseHeldError as error:
        log.debug("Flow run %s is left alone: %s", run.id, error)
        return Claim(False, HELD_PAUSE)
    except BreakerOpenError as error:
        left = (error.retry_at - datetime.now(UTC)).total_seconds() if error.retry_at else times.BREAKER_LOOK
        pause = min(times.BREAKER_LOOK, max(AWAY_PAUSE, left))
        return Claim(False, pause, for_all=True)
    except DatabaseRefusedError as error:
        log.warning("Flow run %s is left alone: %s", run.id, error)
        return Claim(False, UNWRITTEN_PAUSE)
    except ConfigurationError as error:
        log.debug("The flow will say what is wrong: %s", error)
    except InfrastructureError as error:
        _outage.began("No run is taken: %s", error)
        return Claim(False, AWAY_PAUSE, for_all=True)
    else:
        _outage.ended("Runs are taken again.")
    return None


def _request(flow_run_id: UUID, parameters: Mapping[str, Any]) -> RunRequest | None:
    """Return what the lease needs to know of a run; None if the parameters are not valid."""
    workflow_id, execution = parameters.get("workflow_id"), parameters.get("execution")
    try:
        return RunRequest(flow_run_id, UUID(str(execution)) if execution else None, int(str(workflow_id)))
    except ValueError:
        return None
