"""The work pool, or a queue, is deleted in Prefect under a worker and the runs that wait."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound

from deployments.worker.stop_requests import POLL_WITH_EVENTS
from flows.runs.deployment_specs import deployment_spec
from flows.store.models import Workflow
from tests.builders import action, line
from tests.servers import wait_until
from tests.waiting import eventually
from tests.worker.site import WAIT, Site

ONE_ACTION = line(action("a", "context['a'] = 1"))
UNTIL_TOLD = line(action("wait", WAIT, timeout=60))
FOR_EVER = line(action("sleep", "import time; time.sleep(50)", timeout=60))
QUICK = {"NOVA_RECOVERY_INTERVAL": "0.5", "PREFECT_WORKER_HEARTBEAT_SECONDS": "1"}


async def heal(site: Site, workflow: Workflow) -> None:
    """Make the pool and the deployment again, as an API does that finds them gone."""
    spec = await site.database.run(lambda session: deployment_spec(session, workflow.id))
    await site.gateway.deployments.apply(spec)


async def from_the_ui(site: Site, workflow: Workflow) -> UUID:
    """Start a run as the UI does: there is no row."""
    assert workflow.deployment_id is not None
    return (await site.prefect.create_flow_run_from_deployment(workflow.deployment_id)).id


async def test_runs_that_waited_in_a_deleted_pool_are_run(site: Site, folder: Path) -> None:
    """Prefect has no way to put a run into another queue: a worker finds them by themselves."""
    workflow = await site.workflow(ONE_ACTION)
    waiting = [await site.submit(workflow), await from_the_ui(site, workflow)]
    await site.prefect.delete_work_pool(site.pool)
    waiting.append(await from_the_ui(site, workflow))  # its deployment was in no queue at that moment
    await heal(site, workflow)
    assert {run.work_pool_name for run in await site.flow_runs(waiting)} == {None}
    with site.worker(folder, limit=2, **QUICK):
        await site.until_all(waiting, "Completed")


async def test_runs_that_waited_in_a_deleted_queue_are_run(site: Site, folder: Path) -> None:
    """The pool is the same, and its worker need not be started again."""
    workflow = await site.workflow(ONE_ACTION, priority="high")
    with site.worker(folder, limit=2, **QUICK):
        await site.until_state(await site.submit(workflow, priority="high"), "Completed")
        queue = await site.prefect.read_work_queue_by_name("high", work_pool_name=site.pool)
        await site.prefect.update_work_queue(queue.id, is_paused=True)
        waiting = await site.submit(workflow, priority="high")
        await site.prefect.delete_work_queue_by_id(queue.id)
        await heal(site, workflow)
        await site.until_state(waiting, "Completed")


async def test_a_worker_outlives_its_pool(site: Site, folder: Path) -> None:
    """What runs goes on, what waits is run, and the worker hears of the new pool's runs at once."""
    workflow, long = await site.workflow(UNTIL_TOLD), await site.workflow(FOR_EVER)
    told = folder / "told"
    with site.worker(folder, limit=1, **QUICK) as worker:
        running = await site.submit(workflow, told=str(told))
        await site.until_state(running, "Running")
        waiting = await site.submit(workflow, told=str(told))
        old = await site.prefect.read_work_pool(site.pool)
        await site.prefect.delete_work_pool(site.pool)

        async def pool() -> WorkPool | None:
            try:
                return await site.prefect.read_work_pool(site.pool)
            except ObjectNotFound:
                return None

        await eventually(pool, lambda found: found is not None and found.id != old.id)
        await heal(site, workflow)
        await heal(site, long)
        told.touch()
        await site.until_all([running, waiting], "Completed")
        wait_until(lambda: "the new one's events" in worker.log.read_text(), 30, "the new subscription")
        stopped = await site.submit(long)
        await site.until_step(stopped, "sleep")
        asked = time.monotonic()
        await site.gateway.runs.cancel(stopped)
        await site.until_state(stopped, "Cancelled")
        assert time.monotonic() - asked < POLL_WITH_EVENTS / 2
        assert worker.process.poll() is None


async def test_runs_of_a_deployment_that_is_not_in_the_pool_are_left_alone(site: Site, folder: Path) -> None:
    """Somebody took it out of the pool, or it is another installation's: nobody knows where they belong."""
    workflow, detached = await site.workflow(ONE_ACTION), await site.workflow(ONE_ACTION)
    assert detached.deployment_id is not None
    await site.prefect.update_deployment(detached.deployment_id, DeploymentUpdate(work_pool_name=None))
    left = await from_the_ui(site, detached)
    lost = await site.submit(workflow)
    await site.prefect.delete_work_pool(site.pool)
    await heal(site, workflow)
    with site.worker(folder, limit=2, **QUICK):
        await site.until_state(lost, "Completed")
        await site.until_state(await site.submit(workflow), "Completed")
    assert (await site.prefect.read_flow_run(left)).state_name in ("Scheduled", "Late")
