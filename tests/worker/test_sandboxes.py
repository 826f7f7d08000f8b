"""A worker makes the sandbox of a run while the run starts, and leaves none behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from deployments.worker.stop_requests import POLL_WITH_EVENTS
from tests.builders import action, line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.waiting import eventually
from tests.worker.proxy import HeldProposals
from tests.worker.site import Site

__all__ = ["e2b_server", "e2b_session_server"]

ONE_ACTION = line(action("a", "context['a'] = 1"))
FOR_EVER = line(action("sleep", "import time; time.sleep(50)", timeout=60))


async def until_asked(e2b_server: E2BServer, number: int) -> None:
    """Wait until E2B was asked for this many sandboxes."""

    async def asked() -> int:
        return e2b_server.cloud.asked

    await eventually(asked, lambda found: found >= number)


async def until_killed(e2b_server: E2BServer) -> None:
    """Wait until there is no sandbox any more."""

    async def alive() -> int:
        return sum(not place.killed for place in e2b_server.sandboxes)

    await eventually(alive, lambda number: number == 0)


async def test_a_sandbox_is_asked_for_before_its_run_is_running(
    site: Site, folder: Path, e2b_server: E2BServer
) -> None:
    """Neither waits for the other: not E2B for Prefect's Running, not Running for E2B."""
    workflow = await site.workflow(ONE_ACTION)
    async with HeldProposals(site.settings.prefect_api_url, "RUNNING") as proxy:
        with site.worker(folder, limit=2, api_url=proxy.api_url, **e2b_server.environment) as worker:
            await site.until_state(await site.submit(workflow), "Completed")  # it is up and knows the flow
            proxy.hold()
            flow_run_id = await site.submit(workflow)
            await proxy.held.wait()
            await until_asked(e2b_server, 2)
            assert (await site.prefect.read_flow_run(flow_run_id)).state_name == "Pending"
            proxy.release()
            await site.until_state(flow_run_id, "Completed")
            e2b_server.hold()
            flow_run_id = await site.submit(workflow)
            await site.until_state(flow_run_id, "Running")
            await until_asked(e2b_server, 3)
            e2b_server.release()
            await site.until_state(flow_run_id, "Completed")
            await asyncio.to_thread(worker.stop)  # the proxy is in this loop: it must go on meanwhile
    assert [place.ended_by for place in e2b_server.sandboxes] == ["kill"] * 3


async def test_a_run_that_never_starts_leaves_no_sandbox(
    site: Site, folder: Path, e2b_server: E2BServer
) -> None:
    """Cancelled between its claim and its start: the sandbox that was made for it is ended."""
    workflow = await site.workflow(ONE_ACTION)
    async with HeldProposals(site.settings.prefect_api_url, "RUNNING") as proxy:
        with site.worker(folder, limit=2, api_url=proxy.api_url, **e2b_server.environment) as worker:
            await site.until_state(await site.submit(workflow), "Completed")
            proxy.hold()
            flow_run_id = await site.submit(workflow)
            await proxy.held.wait()
            await until_asked(e2b_server, 2)
            await site.gateway.runs.cancel(flow_run_id)
            proxy.release()
            await site.until_state(flow_run_id, "Cancelled")
            await until_killed(e2b_server)
            await site.until_state(await site.submit(workflow), "Completed")
            await asyncio.to_thread(worker.stop)  # as above
    assert (await site.execution(flow_run_id)).sandbox_id is None
    assert len(e2b_server.sandboxes) == 3


async def test_a_run_that_waits_for_its_sandbox_can_be_cancelled(
    site: Site, folder: Path, e2b_server: E2BServer
) -> None:
    """It leaves at once, E2B was never asked for it, and it holds no place."""
    workflow, short = await site.workflow(FOR_EVER), await site.workflow(ONE_ACTION)
    with site.worker(folder, limit=3, NOVA_E2B_SANDBOXES="1", **e2b_server.environment):
        first = await site.submit(workflow)
        await site.until_step(first, "sleep")
        second = await site.submit(short)
        await site.until_state(second, "Running")
        asked = time.monotonic()
        await site.gateway.runs.cancel(second)
        await site.until_state(second, "Cancelled")
        assert time.monotonic() - asked < POLL_WITH_EVENTS / 2
        assert e2b_server.cloud.asked == 1
        third = await site.submit(short)
        await site.until_state(third, "Running")
        await site.gateway.runs.cancel(first)
        await site.until_state(third, "Completed")
    assert [place.ended_by for place in e2b_server.sandboxes] == ["kill"] * 2


async def test_a_worker_that_goes_leaves_no_sandbox(site: Site, folder: Path, e2b_server: E2BServer) -> None:
    """Runs in all phases, from the wait for a sandbox to its use, are handed back without one."""
    workflow = await site.workflow(FOR_EVER)
    settings = {"NOVA_WORKER_GRACE": "0", "NOVA_E2B_SANDBOXES": "2"}
    with site.worker(folder, limit=4, **settings, **e2b_server.environment) as worker:
        first = await site.submit(workflow)
        await site.until_step(first, "sleep")
        e2b_server.cloud.start_delay = 0.5
        ids = [first, *[await site.submit(workflow) for _ in range(3)]]
        await until_asked(e2b_server, 2)
        await site.until_all(ids, "Running")
        worker.process.terminate()
        await site.until_all(ids, "AwaitingRetry")
        await until_killed(e2b_server)
    assert e2b_server.cloud.asked == 2
