"""Workers that die, at whichever moment: their runs go on, unless they came to nothing too often."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from prefect.states import AwaitingRetry, Completed, Crashed, Pending, Running

from flows.graphs.lost_attempts import LOST_STARTS
from flows.recovery.actions import Report
from flows.recovery.reconciler import PROVISIONING
from flows.store.base import utcnow
from flows.store.transitions import attempts
from tests.recovery.scene import GRAPH, NOTHING, Scene, ago
from tests.waiting import eventually


async def test_a_run_whose_worker_works_is_left_alone(scene: Scene) -> None:
    """A lease that has not run out says that somebody is at it, whatever Prefect shows."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    assert await scene.look_again_after(1000) == NOTHING
    assert await scene.state(flow_run_id) == "Running"
    assert (await scene.row(flow_run_id)).lease_owner == lease.owner


async def test_a_worker_that_dies_in_a_node_loses_no_run(scene: Scene) -> None:
    """Its run waits in its queue again, due at once, and says why; the crash is counted at its step."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.step(lease, 0, "start")
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner, row.stepping) == ("running", None, False)
    assert (row.crashes, row.crash_step, row.lost_starts) == (1, 1, 0)
    assert row.error == "The worker of this run died."
    assert row.next_attempt_at is not None
    assert row.next_attempt_at <= utcnow() + timedelta(seconds=5)
    assert await scene.look_again_after(1000) == NOTHING


@pytest.mark.parametrize("moment", ["taken", "claimed", "begun"])
async def test_a_worker_that_dies_before_a_node_loses_no_run(scene: Scene, moment: str) -> None:
    """Taken but not yet Pending, Pending but not yet Running, Running without a node: a lost start."""
    flow_run_id = await scene.submitted()
    await getattr(scene, moment)(flow_run_id)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    assert await scene.state(flow_run_id) == ("Scheduled" if moment == "taken" else "AwaitingRetry")
    row = await scene.row(flow_run_id)
    assert (row.crashes, row.lost_starts, row.lease_owner) == (0, 1, None)
    assert row.status == ("running" if moment == "begun" else "pending")
    assert await scene.look_again_after(1000) == NOTHING


async def test_a_run_that_was_handed_back_and_is_taken_has_no_node_yet(scene: Scene) -> None:
    """Its next worker dies before the flow begins: a lost start, whatever the attempt before had started."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.database.run(lambda session: attempts.release(session, lease))
    await scene.set_state(flow_run_id, AwaitingRetry())
    await scene.taken(flow_run_id)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    row = await scene.row(flow_run_id)
    assert (row.crashes, row.lost_starts) == (0, 1)


async def test_a_run_that_is_put_back_can_be_taken_at_once(scene: Scene) -> None:
    """The next worker gets its lease, and Prefect gives it Pending."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    await scene.died(flow_run_id)
    await scene.look()
    await scene.taken(flow_run_id)
    assert await scene.set_state(flow_run_id, Pending()) == "Pending"


async def test_crashes_in_a_row_at_one_step_end_a_run(scene: Scene) -> None:
    """Three by default: FAILURE, in Prefect too, with a sentence that says how often and where."""
    flow_run_id = await scene.submitted()
    for _ in range(2):
        await scene.stepping(flow_run_id)
        await scene.died(flow_run_id)
        assert await scene.look() == Report(requeued=1)
    await scene.stepping(flow_run_id)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(failed=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.error_kind, row.failed_at_node) == ("failed", "crashed", "a")
    assert row.error == "The run's worker died 3 times in a row at step 0, node 'a'."
    flow_run = await scene.prefect.read_flow_run(flow_run_id)
    assert flow_run.state is not None
    assert (flow_run.state.name, flow_run.state.message) == ("Failed", row.error)
    assert await scene.look_again_after(1000) == NOTHING


async def test_crashes_with_progress_between_them_end_nothing(scene: Scene) -> None:
    """A run that gets on, one step with each crash, is put back as often as it takes."""
    flow_run_id = await scene.submitted()
    for step in range(5):
        lease = await scene.stepping(flow_run_id)
        await scene.step(lease, step, "a")
        await scene.died(flow_run_id)
        assert await scene.look() == Report(requeued=1)
        assert (await scene.row(flow_run_id)).crashes == 1


async def test_ten_lost_starts_end_a_run(scene: Scene) -> None:
    """It is never run at all, and nobody waits for it for ever."""
    flow_run_id = await scene.submitted()
    for _ in range(LOST_STARTS - 1):
        await scene.taken(flow_run_id)
        await scene.died(flow_run_id)
        assert await scene.look() == Report(requeued=1)
    await scene.taken(flow_run_id)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(failed=1)
    row = await scene.row(flow_run_id)
    assert row.status == "failed"
    assert row.error is not None
    assert "taken 10 times in a row" in row.error
    assert await scene.state(flow_run_id) == "Failed"


async def test_a_run_that_crashed_in_prefect_goes_on(scene: Scene) -> None:
    """Its flow gave its lease back at its end (`on_crashed`), so that nobody waits until it runs out."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.set_state(flow_run_id, Crashed())
    await scene.database.run(lambda session: attempts.release(session, lease))
    assert await scene.look() == Report(requeued=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    assert (await scene.row(flow_run_id)).crashes == 1


@pytest.mark.parametrize(("state", "seconds"), [("Running", 30), ("Pending", PROVISIONING)])
async def test_a_run_that_nobody_leased_is_put_back_after_a_while(
    scene: Scene, state: str, seconds: float
) -> None:
    """A worker of Prefect's own takes the lease at the flow's start: it gets time, and may die before."""
    flow_run_id = await scene.submitted()
    await scene.set_state(flow_run_id, Pending())
    if state == "Running":
        await scene.set_state(flow_run_id, Running())
    assert await scene.look() == NOTHING
    scene.clock.now += seconds - 1
    assert await scene.look() == NOTHING
    scene.clock.now += 1
    assert await scene.look() == Report(requeued=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    assert (await scene.row(flow_run_id)).lost_starts == 1


async def test_a_run_that_was_put_off_keeps_its_time(scene: Scene) -> None:
    """Its worker died between the row, which says when, and Prefect: that was no crash."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    due = await scene.retry_scheduled(lease, 500)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    flow_run = await scene.prefect.read_flow_run(flow_run_id)
    assert flow_run.state is not None
    assert (flow_run.state.name, flow_run.state.state_details.scheduled_time) == ("AwaitingRetry", due)
    row = await scene.row(flow_run_id)
    assert (row.next_attempt_at, row.error, row.crashes, row.lost_starts) == (due, "E2B is away.", 0, 0)


async def test_a_run_from_the_ui_that_died_before_it_had_a_row_goes_on(scene: Scene) -> None:
    """It gets its row then, for it to be counted like any other."""
    flow_run_id = await scene.ui_run(await scene.site.workflow(GRAPH))
    await scene.set_state(flow_run_id, Pending())
    assert await scene.look_again_after(PROVISIONING) == Report(requeued=1)
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    row = await scene.row(flow_run_id)
    assert (row.status, row.lost_starts) == ("pending", 1)


async def test_a_killed_run_gives_its_slot_back(scene: Scene) -> None:
    """Of a workflow that may run once at a time, the next run gets its turn when the dead one is put back."""
    workflow = await scene.site.workflow(GRAPH, max_concurrent_runs=1)
    first, second = [await scene.site.submit(workflow) for _ in range(2)]
    await scene.stepping(first)
    assert await scene.set_state(second, Pending()) == "AwaitingConcurrencySlot"
    await scene.died(first)
    assert await scene.look() == Report(requeued=1)
    assert await scene.set_state(second, Pending()) == "Pending"
    assert await scene.set_state(first, Pending()) == "AwaitingConcurrencySlot"
    await scene.set_state(second, Running())
    await scene.set_state(second, Completed())
    assert await scene.set_state(first, Pending()) == "Pending"


async def test_of_many_reconcilers_one_puts_a_run_back(scene: Scene) -> None:
    """They look at the same moment: a run is put back once, and its crash counted once."""
    for _ in range(3):
        flow_run_id = await scene.submitted()
        await scene.stepping(flow_run_id)
        await scene.died(flow_run_id)
        reports = await asyncio.gather(*(scene.another().once() for _ in range(4)))
        assert sum(report.requeued for report in reports) == 1
        assert (await scene.row(flow_run_id)).crashes == 1
        states = await scene.prefect.read_flow_run_states(flow_run_id)
        assert [state.name for state in states].count("AwaitingRetry") == 1


async def test_the_task_runs_of_a_dead_worker_do_not_run_any_more(scene: Scene) -> None:
    """In the graph of the run they are Crashed; one that had ended stays as it was."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    done = await scene.task_run(flow_run_id, Completed())
    lost = [await scene.task_run(flow_run_id, Running()), await scene.task_run(flow_run_id, Pending())]
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1, task_runs=2)
    assert (await scene.prefect.read_task_run(done.id)).state_name == "Completed"
    for one in lost:
        assert (await scene.prefect.read_task_run(one.id)).state_name == "Crashed"


async def test_a_task_run_that_comes_to_light_late_is_ended_too(scene: Scene) -> None:
    """Prefect writes task runs down late: one that shows when its run is over had no chance before."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.finished(lease)
    await scene.set_state(flow_run_id, Completed())
    late = await scene.task_run(flow_run_id, Running())
    assert await scene.look_again_after(29) == NOTHING
    scene.clock.now += 1
    assert await scene.look() == Report(task_runs=1)
    assert (await scene.prefect.read_task_run(late.id)).state_name == "Crashed"


async def test_a_late_event_brings_no_task_run_back(scene: Scene) -> None:
    """The event of a start that is written down after the crash is older than that, and changes nothing."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    lost = await scene.task_run(flow_run_id, Running())
    other = await scene.task_run(flow_run_id, Completed())
    before = ago(0)
    await scene.died(flow_run_id)
    assert (await scene.look()).task_runs == 1
    await scene.task_event(lost, Running(), before)
    # Behind it, one that does count: when it is written down, so is the other.
    await scene.task_event(other, Running(), ago(-60))
    await eventually(lambda: scene.prefect.read_task_run(other.id), lambda run: run.state_name == "Running")
    assert (await scene.prefect.read_task_run(lost.id)).state_name == "Crashed"
