"""Work that goes on though the request that began it is gone."""

from __future__ import annotations

import asyncio
import logging

import pytest

from api.services import Background
from flows.graphs.errors import NovaError, PrefectUnavailableError


@pytest.mark.parametrize(
    ("error", "shown"),
    [(TypeError("no"), True), (PrefectUnavailableError("Prefect does not answer."), False)],
    ids=["fault", "outage"],
)
async def test_a_fault_of_which_no_caller_hears_is_shown(
    caplog: pytest.LogCaptureFixture, error: Exception, shown: bool
) -> None:
    """The caller hung up before it came: without the log nobody would know of it."""
    caplog.set_level(logging.INFO)
    background, go_on = Background(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise error

    caller = asyncio.create_task(background.finish(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    go_on.set()
    await background.drain(10)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"] * shown


async def test_a_fault_that_its_caller_gets_is_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    """It is shown where the request is answered, and not twice."""

    async def work() -> None:
        raise NovaError("A fault.")

    with pytest.raises(NovaError):
        await Background().finish(work())
    assert caplog.records == []
