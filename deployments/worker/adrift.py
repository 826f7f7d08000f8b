"""Runs that are in no queue. One worker at a time takes them, besides those of its pool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from flows.config.settings import get_settings
from flows.graphs.errors import ConfigurationError
from flows.prefect_gateway.adrift_runs import AdriftRuns
from flows.recovery.rounds import keep_looking
from flows.recovery.sweeps import Sweep, sweep_lock

log = logging.getLogger("prefect.nova.worker")

_AGAIN = 0.5
"""Seconds until the next look after some were found: there may be more."""


async def take_adrift_runs(
    client: PrefectClient,
    pool: str,
    room: Callable[[], int],
    take: Callable[[list[FlowRun]], Awaitable[int]],
) -> None:
    """Look for runs in no queue until cancelled, and take as many as there is room for.

    `take` claims the runs it is given and returns how many of them this worker got.
    """
    try:
        settings = get_settings().model_copy(update={"work_pool": pool})
        lock = sweep_lock(settings, Sweep.ADRIFT)
    except ConfigurationError as error:
        log.error("Runs in no queue are not looked for here: %s", error)
        return
    runs = AdriftRuns(client, pool, settings.prefect_timeout)

    async def look() -> None:
        while room() > 0 and await lock.hold():
            taken = await take(await runs.due())
            if not taken:
                return
            log.warning("%d run(s) were in no queue, because it was deleted; they are run here.", taken)
            await asyncio.sleep(_AGAIN)
        await lock.release()  # another worker may have room

    try:
        interval = settings.recovery_interval
        await keep_looking(look, interval, "Runs in no queue", log, tells_outages=False)
    finally:
        await lock.close()
