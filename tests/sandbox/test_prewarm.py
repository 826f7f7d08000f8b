"""A run's sandbox is made ahead of the run, used by it or not, and ended once."""

from __future__ import annotations

import asyncio
import gc
from uuid import uuid4

import pytest

from flows.graphs.errors import SandboxError
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.port import SandboxProvider, SandboxSpec
from flows.sandbox.prewarm import RunSandboxes
from tests.e2b_server.fixture import E2BServer
from tests.sandbox.conftest import Bench
from tests.waiting import eventually


def fresh() -> SandboxSpec:
    """What the sandbox of another run is made for."""
    return SandboxSpec(uuid4(), "invoices #8", 600)


async def test_what_was_begun_is_what_the_run_gets(provider: SandboxProvider) -> None:
    """Worker and flow both begin, and there is one sandbox; a run that is taken anew gets a new one."""
    run, sandboxes = fresh(), RunSandboxes(provider)
    begun = sandboxes.begin(run)
    assert sandboxes.begin(run) is begun
    first = await begun.ready()
    assert await Bench(first).changes("context['a'] = 1") == {"a": 1}
    await begun.end()
    with pytest.raises(SandboxError):
        await Bench(first).run("pass")
    second = await sandboxes.begin(run).ready()
    assert second.id != first.id
    await sandboxes.end(run.flow_run)
    await sandboxes.end(run.flow_run)
    with pytest.raises(SandboxError):
        await Bench(second).run("pass")


async def test_a_run_that_never_comes_leaves_no_sandbox(e2b_server: E2BServer) -> None:
    """Ended while E2B is still at it: what comes of it is killed."""
    e2b_server.hold()
    run, sandboxes = fresh(), RunSandboxes(E2BProvider())
    begun = sandboxes.begin(run)

    async def asked() -> int:
        return e2b_server.places.asked

    await eventually(asked, lambda number: number == 1)
    ending = asyncio.create_task(sandboxes.end(run.flow_run))
    await asyncio.sleep(0)
    e2b_server.release()
    await ending
    assert [place.killed for place in e2b_server.sandboxes] == [True]
    with pytest.raises(asyncio.CancelledError):
        await begun.ready()


async def test_who_stops_waiting_for_it_can_still_end_it(e2b_server: E2BServer) -> None:
    """A run that is cancelled while its sandbox is made ends it, as always."""
    e2b_server.hold()
    begun = RunSandboxes(E2BProvider()).begin(fresh())
    waiting = asyncio.create_task(begun.ready())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    e2b_server.release()
    await begun.end()
    assert all(place.killed for place in e2b_server.sandboxes)


async def test_a_failure_that_nobody_asks_for_is_no_noise(
    e2b_server: E2BServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The run that would have said why there is no sandbox was stopped before."""
    e2b_server.places.refuse_with = (401, "unauthorized")
    run, sandboxes = fresh(), RunSandboxes(E2BProvider())
    begun = sandboxes.begin(run)
    with pytest.raises(SandboxError):
        await begun.ready()
    other = fresh()
    sandboxes.begin(other)

    async def refused() -> int:
        return e2b_server.places.refused

    await eventually(refused, lambda number: number == 2)
    for each in (run, other):
        await sandboxes.end(each.flow_run)
    del begun
    gc.collect()
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []
