"""A run's sandbox is created early, whether or not the run uses it, and ended once."""

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
    """Return the spec for a new run."""
    return SandboxSpec(uuid4(), "invoices #8", 600)


async def test_worker_and_flow_get_the_same_sandbox(provider: SandboxProvider) -> None:
    """Worker and flow both begin, and get one sandbox; a run that begins again gets a new one."""
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


async def test_an_unused_sandbox_is_ended(e2b_server: E2BServer) -> None:
    """A sandbox that is ended during its creation is killed once E2B has created it."""
    e2b_server.hold()
    run, sandboxes = fresh(), RunSandboxes(E2BProvider())
    begun = sandboxes.begin(run)

    async def asked() -> int:
        return e2b_server.cloud.asked

    await eventually(asked, lambda number: number == 1)
    ending = asyncio.create_task(sandboxes.end(run.flow_run))
    await asyncio.sleep(0)
    e2b_server.release()
    await ending
    assert [remote.killed for remote in e2b_server.sandboxes] == [True]
    with pytest.raises(asyncio.CancelledError):
        await begun.ready()


async def test_a_sandbox_can_be_ended_after_a_cancelled_wait(e2b_server: E2BServer) -> None:
    """A run that is cancelled during its sandbox's creation can still end the sandbox."""
    e2b_server.hold()
    begun = RunSandboxes(E2BProvider()).begin(fresh())
    waiting = asyncio.create_task(begun.ready())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    e2b_server.release()
    await begun.end()
    assert all(remote.killed for remote in e2b_server.sandboxes)


async def test_a_failure_that_nobody_awaits_is_not_logged(
    e2b_server: E2BServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When a run stops before it awaits its sandbox, the sandbox's failure is logged only at DEBUG."""
    e2b_server.cloud.refuse_with = (401, "unauthorized")
    run, sandboxes = fresh(), RunSandboxes(E2BProvider())
    begun = sandboxes.begin(run)
    with pytest.raises(SandboxError):
        await begun.ready()
    other = fresh()
    sandboxes.begin(other)

    async def refused() -> int:
        return e2b_server.cloud.refused

    await eventually(refused, lambda number: number == 2)
    for each in (run, other):
        await sandboxes.end(each.flow_run)
    del begun
    gc.collect()
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []
