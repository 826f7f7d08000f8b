"""The worker's reconciler, which looks after runs that no worker runs; the API has one, too."""

from __future__ import annotations

import logging

from prefect.client.orchestration import PrefectClient

from flows.config.settings import get_settings
from flows.graphs.errors import ConfigurationError
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.recovery.reconciler import Reconciler
from flows.recovery.sweeps import Sweep, sweep_lock
from flows.runs.process import process

log = logging.getLogger("prefect.nova.worker")


async def look_after_runs(client: PrefectClient, pool: str) -> None:
    """Look after the runs of a pool until cancelled, while no other process does."""
    try:
        settings = get_settings().model_copy(update={"work_pool": pool})
        database = process(get_settings()).database
    except ConfigurationError as error:
        log.error("Runs whose worker dies are not looked after here: %s", error)
        return
    lock = sweep_lock(settings, Sweep.RUNS)
    try:
        runs = FlowRuns(client, settings.prefect_timeout)
        await Reconciler(database, runs, settings).run_forever({Sweep.RUNS: lock})
    finally:
        await lock.close()
