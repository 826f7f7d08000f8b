"""Making a run ours: first the lease of its execution, then Pending in Prefect."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from deployments.worker import prefect_engine
from deployments.worker.active_run import Run
from flows.config import times
from flows.config.log_once import OutageLog
from flows.config.settings import get_settings
from flows.graphs.errors import BreakerOpenError, ConfigurationError, InfrastructureError, LeaseHeldError
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.prefect_errors import is_prefects
from flows.runs.loading import RunRequest
from flows.runs.process import process

log = logging.getLogger("prefect.nova.worker")
_outage = OutageLog(log)

HELD_PAUSE = 0.3
"""Seconds after which a run is tried again whose lease another process has: it may just have handed it on."""
REFUSED_PAUSE = 1.0
"""Seconds after which a run is tried again that Prefect does not give: there may be others behind it."""
AWAY_PAUSE = 1.0
"""Seconds after which the database, or Prefect, is tried again."""
FAULT_PAUSE = 10.0
"""Seconds after which a run is tried again at which NOVA itself failed: others need not wait for it."""


@dataclass(frozen=True)
class Claim:
    """Whether a run is ours. If not, it is left alone for `pause` seconds; so are all others, `for_all`."""

    ours: bool
    pause: float = 0.0
    for_all: bool = False


OURS, GONE, REFUSED = Claim(True), Claim(False), Claim(False, REFUSED_PAUSE)


async def claim(run: Run, client: PrefectClient, *, has_execution: bool) -> Claim:
    """Make a run ours, if nothing and nobody is against it. Who gets the lease must give it back.

    A fault of NOVA's own is raised.
    """
    if has_execution and (refusal := await _take_lease(run, client)) is not None:
        return refusal
    try:
        return OURS if await prefect_engine.claim(client, run.flow_run) else REFUSED
    except Exception as error:
        if not is_prefects(error):
            raise
        log.warning("Flow run %s could not be taken: %r", run.id, error)
        return REFUSED


async def _take_lease(run: Run, client: PrefectClient) -> Claim | None:
    """Take the lease of a run; None: it may be started, and where it has no lease the flow says why."""
    request = _request(run.id, run.flow_run.parameters)
    if request is None:
        return None
    try:
        settings = get_settings()
        run.held = await process(settings).leases.take_for(
            request, FlowRuns(client, settings.prefect_timeout), ask_breaker=settings.uses_e2b
        )
    except LeaseHeldError as error:
        log.debug("Flow run %s is left alone: %s", run.id, error)
        return Claim(False, HELD_PAUSE)
    except BreakerOpenError as error:
        left = (error.retry_at - datetime.now(UTC)).total_seconds() if error.retry_at else times.BREAKER_LOOK
        pause = min(times.BREAKER_LOOK, max(AWAY_PAUSE, left))
        return Claim(False, pause, for_all=True)
    except ConfigurationError as error:
        log.debug("The flow will say what is wrong: %s", error)
    except InfrastructureError as error:
        _outage.began("No run is taken: %s", error)
        return Claim(False, AWAY_PAUSE, for_all=True)
    else:
        _outage.ended("Runs are taken again.")
    return None


def _request(flow_run_id: UUID, parameters: Mapping[str, Any]) -> RunRequest | None:
    """What a run asks for, as far as its lease needs it; None where the parameters make no sense."""
    workflow_id, execution = parameters.get("workflow_id"), parameters.get("execution")
    try:
        return RunRequest(flow_run_id, UUID(str(execution)) if execution else None, int(str(workflow_id)))
    except ValueError:
        return None
