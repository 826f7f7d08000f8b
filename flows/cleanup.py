"""The flow that tidies up: sandboxes of runs that are over, idempotency keys of yesterday."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.config.settings import get_settings
from flows.graphs.errors import SandboxError
from flows.sandbox.factory import provider
from flows.sandbox.port import SandboxProvider
from flows.store.database import Database
from flows.store.retention import forget_keys, going_on

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

UNNOTED = timedelta(minutes=5)
"""How long a run may have a sandbox that its row does not name: until its runner has started, a minute at
most, and the run's earlier one is dead, three at most. The rest is for clocks that differ."""


@flow(name="cleanup", persist_result=False, log_prints=False, timeout_seconds=300)
async def cleanup() -> State[Any]:
    """End the sandboxes whose run is over or unknown, and forget idempotency keys that are out of date.

    Raises SandboxError and DatabaseUnavailableError, which the next time may not.
    """
    settings, log = get_settings(), get_run_logger()
    database = Database(settings.sqlalchemy_url, pool_size=1)
    try:
        keys = await database.run(forget_keys)
        sandboxes = await sweep(provider(settings), database, log)
    finally:
        await asyncio.to_thread(database.close)
    return Completed(message=f"{sandboxes} sandboxes ended, {keys} idempotency keys forgotten")


async def sweep(places: SandboxProvider, database: Database, log: Log) -> int:
    """End the sandboxes that no run needs any more and return how many they were.

    A run that goes on needs the one that it has noted, and may be about to note a young one. First the
    sandboxes, then the rows: a run's row is leased or live before it has a sandbox. Raises SandboxError and
    DatabaseUnavailableError.
    """
    found = await places.list()
    runs = {one.flow_run for one in found if one.flow_run is not None}
    noted = await database.run(lambda session: going_on(session, runs))
    young = datetime.now(UTC) - UNNOTED
    ended = 0
    for one in found:
        if one.flow_run in noted and (one.id == noted[one.flow_run] or one.started > young):
            continue
        log.warning("Sandbox %s of flow run %s is left over and is ended.", one.id, one.flow_run)
        try:
            await places.kill(one.id)
        except SandboxError as error:
            log.warning("%s", error)
        else:
            ended += 1
    return ended
