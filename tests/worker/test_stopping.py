"""Runs that are stopped: cancelled, suspended, or left by a worker that has to go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import psutil
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Suspended

from deployments.worker import prefect_engine
from deployments.worker.active_run import ActiveRun
from deployments.worker.stop_requests import POLL_WITH_EVENTS
from flows.graphs.lifecycle import Ending
from flows.runs.lease_keeper import HeldLease, LeaseKeeper
from flows.store import chain
from flows.store.leases import Lease
from tests.access_log import AccessLog
from tests.builders import action, line
from tests.servers import wait_until
from tests.worker.proxy import NoEvents
from tests.worker.site import WAIT, Site, until_begun

FOR_EVER = line(
    action("first", "context['a'] = 1"), action("sleep", "import time; time.sleep(50)", timeout=60)
)
FOR_EVER_ONCE = line(
    action("first", "context['firsts'] = context.get('firsts', 0) + 1"),
    action(
        "sleep",
        "import os, time\n"
        "if not os.path.exists(context['marker']):\n"
        "    open(context['marker'], 'w').close()\n"
        "    time.sleep(50)\n",
        timeout=60,
    ),
)
QUICK = line(action("a", "import time; time.sleep(0.1)"), action("b", "pass"))
A_SECOND = line(action("sleep", "import time; time.sleep(1)"))
UNTIL_TOLD = line(action("wait", WAIT, timeout=60))


def alive(sandbox_id: str | None) -> bool:
    """Whether the process of a local sandbox is there; its id is `local-<process id>-<token>`."""
    assert sandbox_id is not None
    return psutil.pid_exists(int(sandbox_id.split("-")[1]))


async def test_a_cancelled_run_is_over_at_once(site: Site, folder: Path) -> None:
    """Its node stops, its sandbox is gone, its row and Prefect say cancelled; the worker goes on."""
    workflow, short = await site.workflow(FOR_EVER), await site.workflow(A_SECOND)
    with site.worker(folder):
        flow_run_id = await site.submit(workflow)
        sandbox = (await site.until_step(flow_run_id, "sleep")).sandbox_id
        assert alive(sandbox)
        asked = time.monotonic()
        await site.gateway.runs.cancel(flow_run_id)
        await site.until_state(flow_run_id, "Cancelled")
        wait_until(lambda: not alive(sandbox), 30, "the sandbox's process to end")
        assert time.monotonic() - asked < POLL_WITH_EVENTS / 2
        row = await site.execution(flow_run_id)
        assert (row.status, row.error_kind) == ("cancelled", "cancelled")
        await site.until_state(await site.submit(short), "Completed")


async def test_a_run_can_be_cancelled_at_any_moment(site: Site, folder: Path) -> None:
    """Between its making and its end there is no moment in which cancelling leaves a run hanging."""
    workflow = await site.workflow(QUICK)

    async def cancel_after(seconds: float) -> None:
        flow_run_id = await site.submit(workflow)
        await asyncio.sleep(seconds)
        await site.gateway.runs.cancel(flow_run_id)
        run = await site.until_state(flow_run_id, "Cancelled", "Completed")
        row = await site.execution(flow_run_id)
        assert row.status != "running", (seconds, run.state_name)
        if row.sandbox_id:
            assert not alive(row.sandbox_id)

    with site.worker(folder, limit=4):
        await site.until_state(await site.submit(workflow), "Completed")
        await asyncio.gather(*(cancel_after(number * 0.04) for number in range(16)))


async def test_a_stop_cannot_break_off_the_end_of_a_cancelled_run(site: Site) -> None:
    """Prefect refuses Running, since it is to be cancelled; the worker hears so while it is ending it."""

    @flow
    async def nothing(workflow_id: int, execution: str) -> None:
        """Never begins."""

    class GivenBackLate(HeldLease):
        async def release(self) -> bool:
            run.stop(Ending.CANCELLED)
            await asyncio.sleep(0)
            return True

    async def live() -> None:
        async with prefect_engine.shared_clients() as client:
            run.task = asyncio.current_task()
            await prefect_engine.execute(run, nothing, client)

    flow_run_id = await site.submit(await site.workflow(QUICK))
    await site.prefect.set_flow_run_state(flow_run_id, Pending())
    run = ActiveRun(await site.prefect.read_flow_run(flow_run_id))
    keeper = LeaseKeeper(site.database, site.database, 30)
    run.held = GivenBackLate(keeper, flow_run_id, Lease(1, uuid4(), 30), time.monotonic())
    await site.gateway.runs.cancel(flow_run_id)
    with temporary_settings({PREFECT_API_URL: site.settings.prefect_api_url}):
        await asyncio.create_task(live())
    assert (await site.prefect.read_flow_run(flow_run_id)).state_name == "Cancelled"


async def test_without_the_event_stream_polls_do_it(site: Site, folder: Path) -> None:
    """Runs are found and cancelled all the same when no event comes through."""
    workflow, short = await site.workflow(FOR_EVER), await site.workflow(A_SECOND)
    async with NoEvents(site.settings.prefect_api_url) as proxy:
        with site.worker(folder, api_url=proxy.api_url) as worker:
            flow_run_id = await site.submit(workflow)
            await site.until_step(flow_run_id, "sleep")
            await site.until_state(await site.submit(short), "Completed")
            await site.gateway.runs.cancel(flow_run_id)
            await site.until_state(flow_run_id, "Cancelled")
            await asyncio.to_thread(worker.stop)  # the proxy is in this loop: it must go on meanwhile
    assert (await site.execution(flow_run_id)).status == "cancelled"


async def test_a_worker_that_is_told_to_go_hands_back_what_it_cannot_finish(site: Site, folder: Path) -> None:
    """SIGTERM: a short run ends within the grace time, a long one goes on elsewhere, a queued one waits."""
    short, long = await site.workflow(UNTIL_TOLD), await site.workflow(FOR_EVER_ONCE)
    told = folder / "told"
    with site.worker(folder, limit=2, NOVA_WORKER_GRACE="6") as first:
        long_id = await site.submit(long, marker=str(folder / "marker"))
        await site.until_step(long_id, "sleep")
        short_id = await site.submit(short, told=str(told))
        await site.until_step(short_id, "wait")
        sandbox = (await site.execution(long_id)).sandbox_id
        queued_id = await site.submit(short, told=str(told))
        first.process.terminate()
        told.touch()
        await site.until_state(long_id, "AwaitingRetry")
        assert (await site.prefect.read_flow_run(short_id)).state_name == "Completed"
        assert (await site.prefect.read_flow_run(queued_id)).state_name in ("Scheduled", "Late")
        wait_until(lambda: first.process.poll() is not None, 30, "the worker to end")
    assert not alive(sandbox)
    assert (await site.execution(long_id)).status == "running"
    quick = await site.workflow(QUICK)
    with site.worker(folder, limit=8, NOVA_WORKER_GRACE="0") as second:
        await site.until_state(long_id, "Completed")
        await site.until_state(queued_id, "Completed")
        caught = [await site.submit(quick) for _ in range(8)]  # in all phases from the claim to the end
        second.process.terminate()
        wait_until(lambda: second.process.poll() is not None, 30, "the second worker to end")
    with site.worker(folder, limit=8):
        await site.until_all(caught, "Completed")
    row = await site.execution(long_id)
    assert (row.status, row.attempt) == ("completed", 2)
    visits = await site.database.run(lambda session: chain.visits(session, row.id))
    assert [node for node, _ in visits] == ["start", "first", "sleep", "end"]


async def test_a_suspended_run_leaves_at_its_next_node_and_goes_on_when_resumed(
    site: Site, folder: Path, access_log: AccessLog
) -> None:
    """Suspending takes effect between two nodes; resuming starts behind the last one that succeeded."""
    graph = line(
        action("slow", WAIT + "context['runs'] = context.get('runs', 0) + 1", timeout=60),
        action("after", "context['after'] = True"),
    )
    workflow, told = await site.workflow(graph), folder / "told"

    with site.worker(folder):
        flow_run_id = await site.submit(workflow, told=str(told))
        await site.until_step(flow_run_id, "slow")
        await until_begun(told)  # before that the run would leave in front of the node
        access_log.mark()
        await site.prefect.set_flow_run_state(flow_run_id, Suspended(timeout_seconds=300))
        await access_log.until_told()
        told.touch()
        row = await site.until_step(flow_run_id, "after")
        wait_until(lambda: not alive(row.sandbox_id), 30, "the sandbox's process to end")
        assert (await site.prefect.read_flow_run(flow_run_id)).state_name == "Suspended"
        await site.prefect.resume_flow_run(flow_run_id)
        await site.until_state(flow_run_id, "Completed")
    row = await site.execution(flow_run_id)
    assert (row.status, row.attempt) == ("completed", 2)
