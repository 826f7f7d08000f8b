"""Runs under a real worker: `prefect worker start --type nova`."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Failed

from tests.access_log import AccessLog
from tests.builders import action, line
from tests.servers import free_port
from tests.waiting import eventually
from tests.worker.site import Site

TWO_ACTIONS = line(action("a", "context['a'] = 1"), action("b", "context['b'] = context['a'] + 1"))
ONE_ACTION = line(action("a", "context['a'] = 1"))
NO_ACTION = line()
HALF_A_SECOND = line(action("a", "import time; time.sleep(0.5)"))


def at_once(runs: Sequence[FlowRun]) -> int:
    """How many of these runs went on at the same time at most."""
    steps = sorted(
        step
        for run in runs
        if run.start_time and run.end_time
        for step in ((run.start_time, 1), (run.end_time, -1))
    )
    return max(itertools.accumulate(change for _, change in steps))


async def test_a_run_ends_completed_and_fast(site: Site, folder: Path) -> None:
    """A warm worker takes a run when it is made, not at its next poll; its healthcheck is Prefect's."""
    workflow = await site.workflow(TWO_ACTIONS)
    port = free_port()
    with site.worker(
        folder,
        "--with-healthcheck",
        PREFECT_WORKER_QUERY_SECONDS="300",
        PREFECT_WORKER_WEBSERVER_HOST="127.0.0.1",
        PREFECT_WORKER_WEBSERVER_PORT=str(port),
    ):
        await site.until_state(await site.submit(workflow), "Completed")  # it is up and warm
        run = await site.until_state(await site.submit(workflow), "Completed")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
    assert run.run_count == 1
    row = await site.execution(run.id)
    assert (row.status, row.attempt) == ("completed", 1)


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_run_whose_deployment_is_gone_fails(site: Site, folder: Path, warm: bool) -> None:
    """Prefect lets nobody begin it: retried after its deployment was deleted, it does not wait for ever."""
    workflow, other = await site.workflow(ONE_ACTION), await site.workflow(ONE_ACTION)
    assert workflow.deployment_id is not None
    adrift = await site.submit(workflow)
    await site.prefect.set_flow_run_state(adrift, Failed())  # of what waits, deleting would delete the runs
    await site.prefect.delete_deployment(workflow.deployment_id)
    with site.worker(folder):
        if warm:
            await site.until_state(await site.submit(other), "Completed")
        await site.prefect.set_flow_run_state(adrift, AwaitingRetry())
        run = await site.until_state(adrift, "Failed")
        await eventually(lambda: site.execution(adrift), lambda row: row.status == "failed")
    assert run.state is not None
    assert "deleted in Prefect" in (run.state.message or "")


@pytest.mark.parametrize("number", [24, pytest.param(60, marks=pytest.mark.long)])
async def test_runs_between_two_workers(site: Site, folder: Path, access_log: AccessLog, number: int) -> None:
    """No normal run starts before a queued high one, none runs twice, none costs more than 8 requests."""
    workflow = await site.workflow(NO_ACTION)
    priorities = ["high", "normal", "low"] * (number // 3)
    random.shuffle(priorities)
    ids = await asyncio.gather(*(site.submit(workflow, priority) for priority in priorities))
    # What is asked by the clock is asked the more often the slower the machine is.
    rarely = {"PREFECT_WORKER_QUERY_SECONDS": "15", "NOVA_RECOVERY_INTERVAL": "15"}
    with site.worker(folder, limit=1, **rarely), site.worker(folder, limit=1, **rarely):
        # The rows are asked, not Prefect: its requests are counted.
        await site.until_rows(ids, "completed")
    counted = access_log.requests()
    runs = await site.until_all(ids, "Completed")
    order = [run.work_queue_name for run in runs]
    for higher, lower in (("high", "normal"), ("high", "low"), ("normal", "low")):
        # The last of one kind may start beside the first of the next.
        assert order[order.index(lower) :].count(higher) <= 1, order
    assert {run.run_count for run in runs} == {1}
    assert {(await site.execution(each)).attempt for each in ids} == {1}
    assert counted.of_runs["POST /deployments/{id}/create_flow_run"] == number
    assert counted.of_runs["POST /flow_runs/{id}/set_state"] >= number * 3
    assert counted.total <= number * 8, counted


async def test_limits_of_the_pool_and_of_queues_hold(site: Site, folder: Path) -> None:
    """A worker with room for eight runs three at once where the pool says so, and one of a queue."""
    await site.prefect.update_work_pool(site.pool, WorkPoolUpdate(concurrency_limit=3))
    high = await site.prefect.read_work_queue_by_name("high", work_pool_name=site.pool)
    await site.prefect.update_work_queue(high.id, concurrency_limit=1)
    workflow = await site.workflow(HALF_A_SECOND)
    with site.worker(folder, limit=8):
        ids = [await site.submit(workflow, priority) for priority in ["high", "normal", "low"] * 3]
        runs = await site.until_all(ids, "Completed")
    assert at_once(runs) <= 3
    assert at_once([run for run in runs if run.work_queue_name == "high"]) == 1


async def test_the_cleanup_runs_there_too(site: Site, folder: Path) -> None:
    """A worker runs the maintenance flow of its pool beside the workflows."""
    await site.gateway.deployments.ensure_cleanup()
    deployment = await site.prefect.read_deployment_by_name(f"cleanup/{site.pool}")
    flow_run_id = (await site.prefect.create_flow_run_from_deployment(deployment.id)).id
    with site.worker(folder):
        run = await site.until_state(flow_run_id, "Completed")
    assert run.state is not None
    assert run.state.message == "0 sandboxes ended, 0 idempotency keys deleted"


async def test_the_stock_process_worker_runs_the_same_deployment(site: Site, folder: Path) -> None:
    """Nothing in a deployment knows its worker: type process runs it from the same pool."""
    workflow = await site.workflow(ONE_ACTION)
    flow_run_id = await site.submit(workflow)
    with site.worker(folder, kind="process"):
        await site.until_state(flow_run_id, "Completed")
    assert (await site.execution(flow_run_id)).status == "completed"
