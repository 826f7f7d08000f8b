"""Flows that misbehave hurt themselves alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tests.builders import action, line
from tests.waiting import eventually
from tests.worker.site import Site


async def heartbeat(site: Site) -> datetime:
    """When the pool's only worker was last heard of."""
    (worker,) = await site.prefect.read_workers_for_work_pool(site.pool)
    assert worker.last_heartbeat_time is not None
    return worker.last_heartbeat_time


async def test_a_flow_that_burns_the_cpu_does_not_stop_heartbeats(site: Site, folder: Path) -> None:
    """The worker is heard of while a flow never lets go of the flows' loop, and takes runs afterwards."""
    deployment_id = await site.deploy("tests.worker.burning.burn")
    workflow = await site.workflow(line(action("a", "context['a'] = 1")))
    with site.worker(folder, PREFECT_WORKER_HEARTBEAT_SECONDS="1"):
        enough = folder / "enough"
        parameters = {"until": str(enough)}
        burning = await site.prefect.create_flow_run_from_deployment(deployment_id, parameters=parameters)
        await site.until_state(burning.id, "Running")
        before = await heartbeat(site)
        await eventually(lambda: heartbeat(site), lambda at: (at - before).total_seconds() > 1.5)
        assert (await site.prefect.read_flow_run(burning.id)).state_name == "Running"
        enough.touch()
        await site.until_state(await site.submit(workflow), "Completed")
        await site.until_state(burning.id, "Completed")


async def test_a_flow_cannot_take_the_worker_along(site: Site, folder: Path) -> None:
    """SystemExit ends the run that raised it; a flow that would block the loop is refused and told why."""
    names = ("leave", "leave_from_task", "blocking", "not_there")
    ids = {name: await site.deploy(f"tests.worker.burning.{name}") for name in names}
    workflow = await site.workflow(line(action("a", "context['a'] = 1")))
    with site.worker(folder) as worker:
        runs = {name: await site.prefect.create_flow_run_from_deployment(each) for name, each in ids.items()}
        await site.until_state(runs["leave"].id, "Crashed")
        refused = await site.until_state(runs["blocking"].id, "Failed")
        assert "not an async function" in (refused.state.message or "" if refused.state else "")
        missing = await site.until_state(runs["not_there"].id, "Failed")
        assert "could not be imported" in (missing.state.message or "" if missing.state else "")
        await site.until_state(runs["leave_from_task"].id, "Completed", "Crashed", "Failed")
        await site.until_state(await site.submit(workflow), "Completed")
        assert worker.process.poll() is None
