"""Looking again and again: what an outage and a fault of NOVA's own mean to it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from flows.config.log_once import FaultLog, OutageLog
from flows.graphs.errors import DatabaseRefusedError, InfrastructureError


async def keep_looking(
    look: Callable[[], Awaitable[object]],
    seconds: float,
    what: str,
    log: logging.Logger,
    *,
    tells_outages: bool = True,
) -> None:
    """Look every so many seconds, more or less, until cancelled; nothing that a look raises ends it.

    `what` is what is looked after, in the plural and for the log: "Runs". Of several loops of a process one
    `tells_outages`.
    """
    faults, outage = FaultLog(log), OutageLog(log)
    while True:
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
        try:
            await look()
        except (InfrastructureError, DatabaseRefusedError) as error:
            if tells_outages:
                outage.began("%s are not looked after at the moment: %s", what, error)
        except Exception as error:  # noqa: BLE001 - the next look is not to be lost by it
            faults.note(error, "%s were not looked after in this round.", what)
        else:
            outage.ended("%s are looked after again.", what)
