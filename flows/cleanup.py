"""The cleanup flow: it ends left-over sandboxes and deletes expired idempotency keys."""

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
"""Age below which a sandbox is kept even if its run's row does not name it yet.

The row names it when its runner has started (at most a minute) and the run's earlier sandbox has ended (at
most three). The rest allows for clocks that differ."""


@flow(name="cleanup", persist_result=False, log_prints=False, timeout_seconds=300)
async def cleanup() -> State[Any]:
    """End sandboxes whose run has ended or is unknown, and delete expired idempotency keys.

    Raises SandboxError and DatabaseUnavailableError; the next run may succeed.
    """
    settings, log = get_settings(), get_run_logger()
    database = Database(settings.sqlalchemy_url, pool_size=1)
    try:
        keys = await database.run(forget_keys)
        sandboxes = await sweep(provider(settings), database, log)
    finally:
        await asyncio.to_thread(database.close)
    return Completed(message=f"{sandboxes} sandboxes ended, {keys} idempotency keys deleted")


async def sweep(sandboxes: SandboxProvider, database: Database, log: Log) -> int:
    """End the sandboxes that no run needs any more and return how many.

    A live run needs the sandbox that its row names; a young one (see UNNOTED) may be named soon. The
    sandboxes are listed before the rows are read: a run's row is leased or live before it has a sandbox.
    Raises SandboxError and DatabaseUnavailableError.
    """
    found = await sandboxes.list()
    runs = {one.flow_run for one in found if one.flow_run is not None}
    noted = await database.run(lambda session: going_on(session, runs))
    young = datetime.now(UTC) - UNNOTED
    ended = 0
    for one in found:
        if one.flow_run in noted and (one.id == noted[one.flow_run] or one.started > young):
            continue
        log.warning("Ending sandbox %s: flow run %s no longer needs it.", one.id, one.flow_run)
        try:
            await sandboxes.kill(one.id)
        except SandboxError as error:
            log.warning("%s", error)
        else:
            ended += 1
    return ended
