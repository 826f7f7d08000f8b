"""Runs that Prefect cancels because too many of their workflow go on: what has begun waits."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Crashed, Pending
from sqlalchemy.orm import Session

from flows.execute_workflow import execute_workflow
from flows.graphs.flow_run_state import CONCURRENCY_LIMIT, SLOT_LOST
from flows.graphs.lifecycle import Status
from flows.recovery.actions import FULL, Report
from flows.store.transitions import attempts, interventions, submissions
from tests.recovery.scene import GRAPH, NOTHING, Scene


async def test_a_run_that_prefect_marks_late_waits_as_well(scene: Scene) -> None:
    """A person retried it by the CLI: it waits as Scheduled, and Prefect cancels that when it is late."""
    flow_run_id = await scene.submitted(max_concurrent_runs=1, overlap="skip")
    await scene.released(await scene.stepping(flow_run_id))
    await scene.set_state(flow_run_id, Cancelled(message=CONCURRENCY_LIMIT), force=True)
    assert await scene.look() == Report(requeued=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    assert await scene.look_again_after(1000) == NOTHING
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.crashes, row.lost_starts) == ("running", None, 0, 0)


async def test_a_run_whose_worker_died_when_prefect_cancelled_it_waits(scene: Scene) -> None:
    """Its lease runs out, and that counts neither as a crash nor as a lost start."""
    flow_run_id = await scene.submitted()
    await scene.released(await scene.stepping(flow_run_id))
    await scene.taken(flow_run_id)
    await scene.set_state(flow_run_id, Cancelled(message=CONCURRENCY_LIMIT), force=True)
    assert await scene.look() == NOTHING  # the worker may be about to put it back
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.crashes, row.lost_starts) == ("running", None, 0, 0)


async def test_a_new_run_is_skipped(scene: Scene) -> None:
    """Its client reads why."""
    flow_run_id = await scene.submitted()
    await scene.set_state(flow_run_id, Cancelled(message=CONCURRENCY_LIMIT), force=True)
    assert await scene.look() == Report(closed=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.error) == ("cancelled", CONCURRENCY_LIMIT)


async def test_a_run_whose_machine_was_minutes_in_coming_waits(scene: Scene) -> None:
    """Prefect had given it its place, and then to another one: it was accepted, begun or not."""
    flow_run_id = await scene.submitted(max_concurrent_runs=1)
    await scene.set_state(flow_run_id, Pending())
    lost = f"{SLOT_LOST} - no slots available to continue execution"
    await scene.set_state(flow_run_id, Cancelled(message=lost), force=True)
    assert await scene.look() == Report(requeued=1)
    state = (await scene.prefect.read_flow_run(flow_run_id)).state
    assert state is not None
    assert (state.name, state.message) == ("AwaitingRetry", FULL)
    assert (await scene.row(flow_run_id)).status == "pending"


async def test_a_run_that_was_told_cancelled_does_not_wait(scene: Scene) -> None:
    """Whatever else Prefect cancelled it for."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    seen = await scene.snapshot(flow_run_id)
    assert await scene.database.run(lambda session: interventions.revoke(session, seen))
    await scene.released(lease)
    await scene.set_state(flow_run_id, Cancelled(message=CONCURRENCY_LIMIT), force=True)
    assert await scene.look() == Report(closed=1)
    assert (await scene.row(flow_run_id)).status == "cancelled"


@pytest.mark.parametrize("state", [Cancelled(message=CONCURRENCY_LIMIT), Crashed()])
async def test_a_run_that_has_no_queue_any_more_waits_for_nothing(scene: Scene, state: State[Any]) -> None:
    """Prefect lets nothing wait that has no deployment: it fails, and says so."""
    workflow = await scene.site.workflow(GRAPH)
    flow_run_id = (await scene.prefect.create_flow_run(execute_workflow)).id

    def write(session: Session) -> None:
        row = submissions.create(session, workflow_id=workflow.id, client=None, priority="normal", initial={})
        submissions.confirm(session, row.id, flow_run_id)

    await scene.database.run(write)
    lease = await scene.stepping(flow_run_id)
    await scene.database.run(lambda session: attempts.release(session, lease))
    await scene.set_state(flow_run_id, state, force=True)
    assert await scene.look() == Report(failed=1)
    row = await scene.row(flow_run_id)
    assert row.status == Status.FAILED
    assert "without an associated deployment" in (row.error or "")
    assert await scene.look_again_after(1000) == NOTHING
