"""Looking again and again: outages and faults of NOVA's own end no loop, and are said once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from flows.graphs.errors import PrefectUnavailableError
from flows.recovery.rounds import keep_looking
from tests.waiting import eventually

log = logging.getLogger("flows.tests.looking")


async def said(caplog: pytest.LogCaptureFixture, errors: list[Exception]) -> list[str]:
    """Look until each of these was raised in turn and two looks were well; what was logged, by level."""
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks <= len(errors):
            raise errors[looks - 1]

    async def count() -> int:
        return looks

    caplog.set_level(logging.INFO, logger=log.name)
    looking = asyncio.create_task(keep_looking(look, 0.001, "Runs", log))
    await eventually(count, lambda found: found > len(errors) + 1)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    return [f"{record.levelname}: {record.getMessage()}" for record in caplog.records]


async def test_an_outage_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    """One when it begins, one when it is over."""
    away = PrefectUnavailableError("Prefect does not answer.")
    assert await said(caplog, [away] * 3) == [
        "WARNING: Runs are not looked after at the moment: Prefect does not answer.",
        "INFO: Runs are looked after again.",
    ]


async def test_a_fault_of_novas_own_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    """It is shown once, with its traceback, and the next look comes all the same."""
    [line] = await said(caplog, [TypeError("no")] * 3)
    assert line == "ERROR: Runs were not looked after in this round. It is a fault of NOVA's own: TypeError."
    assert caplog.records[0].exc_info is not None
