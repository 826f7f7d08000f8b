"""What is done to runs in Prefect, where their flow does not see it: their rows follow, or lead."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
)
from sqlalchemy import delete, update

from flows.graphs.lifecycle import Status
from flows.recovery.actions import Report
from flows.store import executions
from flows.store.models import Execution, Workflow
from flows.store.transitions import interventions, submissions
from tests.recovery.scene import GRAPH, NOTHING, Scene
from tests.waiting import eventually


@pytest.mark.parametrize(
    ("state", "status", "error"),
    [
        (Cancelled(message="An operator did it"), "cancelled", "An operator did it"),
        (Failed(message="By hand"), "failed", "By hand"),
        (
            Completed(),
            "failed",
            "The flow run was marked as completed in Prefect before it had run to its end.",
        ),
    ],
)
@pytest.mark.parametrize("moment", ["queued", "begun"])
async def test_a_run_that_was_ended_in_prefect_is_closed(
    scene: Scene, state: State[Any], status: str, error: str, moment: str
) -> None:
    """Cancelled or marked by hand, in its queue or with a dead worker: the next look closes its row."""
    flow_run_id = await scene.submitted()
    if moment == "begun":
        await scene.begun(flow_run_id)
    await scene.set_state(flow_run_id, state, force=True)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(closed=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.error, row.lease_owner) == (status, error, None)
    assert row.completed_at is not None
    assert await scene.look_again_after(1000) == NOTHING
    assert await scene.state(flow_run_id) == state.name


async def test_the_nodes_of_a_run_that_was_ended_in_prefect_run_no_more(scene: Scene) -> None:
    """Prefect ends the run alone: its task run would be shown as running for ever."""
    flow_run_id = await scene.submitted()
    await scene.begun(flow_run_id)
    node = await scene.task_run(flow_run_id, Running())
    await scene.set_state(flow_run_id, Cancelled(), force=True)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(closed=1, task_runs=1)
    assert (await scene.prefect.read_task_run(node.id)).state_name == "Crashed"


@pytest.mark.parametrize("moment", ["queued", "begun"])
async def test_a_run_that_was_deleted_in_prefect_is_closed(scene: Scene, moment: str) -> None:
    """Nobody will ever run it, and who polls it is told so."""
    flow_run_id = await scene.submitted()
    if moment == "begun":
        await scene.begun(flow_run_id)
    # Prefect writes its events down a moment later, and by them it is known that it had the run.
    await eventually(lambda: scene.runs.last_heard(flow_run_id), lambda heard: heard is not None)
    await scene.prefect.delete_flow_run(flow_run_id)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(closed=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.error) == ("cancelled", "The flow run was deleted in Prefect.")
    assert await scene.look() == NOTHING


async def test_a_run_that_is_being_cancelled_and_has_no_worker_any_more(scene: Scene) -> None:
    """Prefect would wait five minutes for the dead worker; the row is closed, and Prefect's state set."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    await scene.set_state(flow_run_id, Cancelling())
    assert await scene.look_again_after(1000) == NOTHING  # its worker still gives signs of life
    await scene.died(flow_run_id)
    assert await scene.look() == Report(closed=1)
    assert (await scene.row(flow_run_id)).status == "cancelled"
    assert await scene.state(flow_run_id) == "Cancelled"


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_run_that_was_told_cancelled_does_not_go_on(scene: Scene, crashed: bool) -> None:
    """The API told its client so and died before Prefect heard of it; now its worker is dead, too."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    seen = await scene.snapshot(flow_run_id)
    assert await scene.database.run(lambda session: interventions.revoke(session, seen))
    if crashed:
        await scene.set_state(flow_run_id, Crashed())
    await scene.died(flow_run_id)
    assert await scene.look() == Report(closed=1)
    assert (await scene.row(flow_run_id)).status == "cancelled"
    assert await scene.state(flow_run_id) == "Cancelled"


async def test_a_cancellation_that_nobody_takes_up(scene: Scene) -> None:
    """Of a run without a lease, whose worker of Prefect's own died: closed after ten seconds."""
    flow_run_id = await scene.submitted()
    await scene.set_state(flow_run_id, Pending())
    await scene.set_state(flow_run_id, Cancelling())
    assert await scene.look_again_after(10) == Report(closed=1)
    assert (await scene.row(flow_run_id)).status == "cancelled"
    assert await scene.state(flow_run_id) == "Cancelled"


@pytest.mark.parametrize("state", [Running(), Cancelling()])
@pytest.mark.parametrize(
    ("status", "name"),
    [(Status.COMPLETED, "Completed"), (Status.FAILED, "Failed"), (Status.CANCELLED, "Cancelled")],
)
async def test_a_run_that_is_over_is_over_in_prefect_too(
    scene: Scene, state: State[Any], status: Status, name: str
) -> None:
    """Its worker died between closing the row and telling Prefect: the row decides."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    open_task = await scene.task_run(flow_run_id, Running())
    await scene.set_state(flow_run_id, state)
    await scene.finished(lease, status)
    assert await scene.look() == NOTHING
    scene.clock.now += 9
    assert await scene.look() == NOTHING  # a worker that lives tells Prefect within seconds
    scene.clock.now += 1
    assert await scene.look() == Report(ended=1, task_runs=1)
    assert await scene.state(flow_run_id) == name
    assert (await scene.prefect.read_task_run(open_task.id)).state_name == "Crashed"
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner) == (status, None)
    assert await scene.look_again_after(1000) == NOTHING


async def test_a_worker_that_died_over_its_last_word_leaves_a_lease_that_runs_out(scene: Scene) -> None:
    """Until then nobody says in Prefect what it may be about to say; then the row decides, at once."""
    flow_run_id = await scene.submitted()
    await scene.ended(await scene.stepping(flow_run_id), Status.FAILED)
    assert await scene.look_again_after(1000) == NOTHING
    await scene.died(flow_run_id)
    assert await scene.look() == Report(ended=1)
    assert await scene.state(flow_run_id) == "Failed"
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner) == ("failed", None)


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_a_run_that_is_retried_in_the_ui_is_open_again(scene: Scene, status: Status) -> None:
    """Who polls it is told so while it waits in its queue, and it has all its attempts again."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.finished(lease, status)
    await scene.set_state(flow_run_id, Failed())
    assert await scene.look_again_after(1000) == NOTHING
    # As the UI does it.
    await scene.set_state(flow_run_id, AwaitingRetry(message="Retry from the UI"), force=True)
    assert await scene.look_again_after(10) == Report(reopened=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.crashes) == ("running", None, 0)
    assert row.next_attempt_at is not None
    assert await scene.look_again_after(1000) == NOTHING
    await scene.stepping(flow_run_id)


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_a_retry_that_prefect_did_not_hear_of(scene: Scene, status: Status) -> None:
    """The API died between opening the row and telling Prefect: the run goes on, it is not closed again."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), status)
    await scene.set_state(flow_run_id, Failed())
    await scene.reopened(flow_run_id)
    assert await scene.look_again_after(1000) == NOTHING  # that API may still be about to tell Prefect
    await scene.died(flow_run_id)
    assert await scene.look() == Report(reopened=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.lost_starts) == ("running", None, 0)
    assert await scene.look_again_after(1000) == NOTHING
    await scene.stepping(flow_run_id)


async def test_a_retry_that_is_cancelled_before_it_begins(scene: Scene) -> None:
    """What is done in Prefect after the retry counts: the row is closed."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    await scene.released(await scene.reopened(flow_run_id))
    assert await scene.look() == Report(reopened=1)
    await scene.set_state(flow_run_id, Cancelled())
    assert await scene.look() == Report(closed=1)
    assert (await scene.row(flow_run_id)).status == "cancelled"


async def test_what_cannot_be_retried_stays_closed(scene: Scene) -> None:
    """A run that succeeded, and one that its client was told was never started: their flow says so itself."""
    done = await scene.submitted()
    await scene.finished(await scene.stepping(done))
    never = await scene.submitted()
    row = await scene.row(never)
    not_noted = update(Execution).where(Execution.id == row.id).values(flow_run_id=None, task_id=None)
    await scene.database.run(lambda session: session.execute(not_noted))
    await scene.database.run(lambda session: submissions.refuse(session, row.id, "Prefect was away."))
    for flow_run_id in (done, never):
        await scene.set_state(flow_run_id, AwaitingRetry(), force=True)
    assert await scene.look_again_after(1000) == NOTHING
    assert (await scene.row(done)).status == "completed"
    rejected = await scene.database.run(lambda session: executions.get(session, row.id))
    assert (rejected.status, rejected.error_kind) == ("cancelled", "not_started")


async def test_a_retry_that_dies_before_it_begins_can_be_made_again(scene: Scene) -> None:
    """The worker that had taken it died before Prefect gave it: the row is open, and the run waits again."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    await scene.set_state(flow_run_id, Scheduled(), force=True)
    await scene.taken(flow_run_id, await scene.runs.retry_request(flow_run_id))
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.lost_starts) == ("running", None, 1)


async def test_a_run_of_a_workflow_that_is_gone_is_ended(scene: Scene) -> None:
    """There is no row to bring it into line with, and nobody to run it."""
    workflow = await scene.site.workflow(GRAPH)
    flow_run_id = await scene.ui_run(workflow)
    await scene.set_state(flow_run_id, Pending())
    await scene.set_state(flow_run_id, Running())
    gone = delete(Workflow).where(Workflow.id == workflow.id)
    await scene.database.run(lambda session: session.execute(gone))
    assert await scene.look_again_after(30) == NOTHING
    assert await scene.state(flow_run_id) == "Failed"


async def test_a_cleanup_whose_worker_died_is_ended(scene: Scene) -> None:
    """It has neither row nor lease: it gets as long as a run may take, and its slot is free for the next."""
    await scene.site.gateway.deployments.ensure_cleanup()
    deployment = await scene.prefect.read_deployment_by_name(f"cleanup/{scene.site.pool}")
    flow_run_id = (await scene.prefect.create_flow_run_from_deployment(deployment.id)).id
    await scene.set_state(flow_run_id, Pending())
    await scene.set_state(flow_run_id, Running())
    assert await scene.look_again_after(599) == NOTHING
    assert await scene.state(flow_run_id) == "Running"
    scene.clock.now += 1
    await scene.look()
    assert await scene.state(flow_run_id) == "Failed"
    following = (await scene.prefect.create_flow_run_from_deployment(deployment.id)).id
    assert await scene.set_state(following, Pending()) == "Pending"


async def test_runs_of_another_pool_are_another_installations(scene: Scene) -> None:
    """Two databases may share a Prefect server: what this one does not know is not its to end."""
    flow_run_id = await scene.ui_run(await scene.site.workflow(GRAPH))
    await scene.set_state(flow_run_id, Pending())
    scene.site.settings = scene.site.settings.model_copy(update={"work_pool": "another"})
    scene.reconciler = scene.another()
    assert await scene.look_again_after(1000) == NOTHING
    assert await scene.state(flow_run_id) == "Pending"
