"""How the reconciler goes about it: runs that never reached Prefect, who is first, outages, faults."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from prefect.states import Cancelled, Completed, Crashed
from sqlalchemy.orm import Session

from flows.execute_workflow import execute_workflow
from flows.graphs.errors import InfrastructureError, LeaseLostError, PrefectUnavailableError
from flows.graphs.lifecycle import RunSnapshot, closure_for
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery import reconciler as rounds
from flows.recovery.actions import Report
from flows.recovery.reconciler import Reconciler
from flows.store import executions, leases, orphans
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions, recoveries, submissions
from tests.api.relay import Relay
from tests.recovery.scene import GRAPH, NOTHING, Scene
from tests.waiting import eventually
from tests.wires import to_database


async def forgotten(scene: Scene, workflow: Workflow) -> Execution:
    """Make the row of a run that Prefect was never told of."""
    return await scene.database.run(
        lambda session: submissions.create(
            session, workflow_id=workflow.id, client=None, priority="normal", initial={}
        )
    )


async def test_a_run_that_never_reached_prefect_is_handed_to_it_once(scene: Scene) -> None:
    """By the reconcilers of two APIs at once; those of workers leave it to them."""
    workflow = await scene.site.workflow(GRAPH)
    row = await forgotten(scene, workflow)
    handed: list[int] = []

    async def resubmit(execution_id: int) -> UUID:
        handed.append(execution_id)
        assert workflow.deployment_id is not None
        state = await scene.runs.submit(
            deployment_id=workflow.deployment_id,
            public_id=row.public_id,
            name="again",
            tags=[],
            priority="normal",
        )
        return state.flow_run_id

    reconcilers = [scene.another(resubmit), scene.another(resubmit), scene.another()]
    for reconciler in reconcilers:
        assert await reconciler.once() == NOTHING
    scene.clock.now += 30
    reports = await asyncio.gather(*(reconciler.once() for reconciler in reconcilers))
    assert sum(report.resubmitted for report in reports) == 1
    assert handed == [row.id]
    found = await scene.database.run(lambda session: executions.get(session, row.id))
    assert (found.status, found.lease_owner) == ("pending", None)
    assert found.flow_run_id is not None
    assert await scene.state(found.flow_run_id) == "Scheduled"
    scene.clock.now += 1000
    assert [await reconciler.once() for reconciler in reconcilers] == [NOTHING] * 3


async def test_a_run_that_cannot_be_handed_over_stands_as_before(scene: Scene) -> None:
    """It is tried again in the next round, and the API may still say that it was never started."""
    workflow = await scene.site.workflow(GRAPH)
    row = await forgotten(scene, workflow)

    async def resubmit(execution_id: int) -> UUID:
        raise PrefectUnavailableError("Not now.")

    reconciler = scene.another(resubmit)
    await reconciler.once()
    scene.clock.now += 30
    assert await reconciler.once() == NOTHING
    found = await scene.database.run(lambda session: executions.get(session, row.id))
    assert (found.lease_owner, found.lease_until) == (None, None)
    assert await scene.database.run(lambda session: submissions.refuse(session, row.id, "Given up."))


@pytest.fixture
async def seen(scene: Scene) -> RunSnapshot:
    """A run that nobody runs, as it was seen."""
    flow_run_id = await scene.submitted()
    lease = await scene.begun(flow_run_id)
    await scene.database.run(lambda session: attempts.release(session, lease))
    [found] = await scene.database.run(lambda session: orphans.waiting(session, 0, 10))
    return found


async def test_the_lease_of_an_execution_that_changed_is_not_taken(scene: Scene, seen: RunSnapshot) -> None:
    """Taken since it was seen; begun and released since; closed since: an old look counts nothing."""
    assert seen.flow_run_id is not None

    async def take() -> orphans.RecoveryLease | None:
        return await scene.database.run(lambda session: orphans.take_as_seen(session, seen))

    lease = await scene.taken(seen.flow_run_id)
    assert await take() is None
    await scene.released(lease)
    taken = await take()
    assert taken is not None
    assert await take() is None
    await scene.database.run(lambda session: orphans.release(session, taken))
    await scene.released(await scene.begun(seen.flow_run_id))
    assert await take() is None  # another attempt
    now = await scene.snapshot(seen.flow_run_id)
    closure = closure_for(now, None)
    assert await scene.database.run(lambda session: interventions.close_as_seen(session, now, closure))
    assert await take() is None


async def test_a_lease_that_was_taken_over_comes_back_as_it_was(scene: Scene, seen: RunSnapshot) -> None:
    """To its old owner, who may still renew it if it was only slow."""
    assert seen.flow_run_id is not None
    lease = await scene.taken(seen.flow_run_id)
    await scene.died(seen.flow_run_id)
    taken = await scene.database.run(lambda session: orphans.take_expired(session, []))
    assert taken is not None
    assert await scene.database.run(lambda session: orphans.take_expired(session, [])) is None
    assert not await scene.database.run(lambda session: leases.renew(session, [lease.owner], 30))
    await scene.database.run(lambda session: orphans.release(session, taken))
    assert await scene.database.run(lambda session: leases.renew(session, [lease.owner], 30))


async def test_a_reconciler_that_lost_its_lease_writes_nothing(scene: Scene, seen: RunSnapshot) -> None:
    """It took so long that a worker has the run by now."""
    assert seen.flow_run_id is not None
    taken = await scene.database.run(lambda session: orphans.take_as_seen(session, seen))
    assert taken is not None
    await scene.died(seen.flow_run_id)
    lease = await scene.taken(seen.flow_run_id)
    writes: list[Callable[[Session], None]] = [
        lambda session: recoveries.requeue(session, taken.lease, {"lost_starts": 1}, "Late."),
        lambda session: recoveries.close_recovered(session, taken.lease, closure_for(seen, None)),
        lambda session: recoveries.resubmit(session, taken.lease),
        lambda session: interventions.reopen_recovered(session, taken.lease, uuid4()),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            await scene.database.run(write)
    await scene.database.run(lambda session: orphans.release(session, taken))
    row = await scene.row(seen.flow_run_id)
    assert (row.status, row.lease_owner, row.lost_starts) == ("running", lease.owner, 0)


async def test_runs_that_are_run_are_never_put_back(scene: Scene) -> None:
    """Three reconcilers without any patience look all the time while runs begin, go on and end."""
    scene.site.settings = scene.site.settings.model_copy(update={"lease_seconds": -1.0})
    ids = [await scene.submitted() for _ in range(8)]
    reports: list[Report] = []

    async def look() -> None:
        reconciler = scene.another()
        while True:
            reports.append(await reconciler.once())

    async def work(flow_run_id: UUID) -> None:
        lease = await scene.stepping(flow_run_id)
        for step in range(3):
            await scene.step(lease, step, "a")
        await scene.ended(lease)
        await scene.set_state(flow_run_id, Completed())
        await scene.released(lease)

    looking = [asyncio.create_task(look()) for _ in range(3)]
    for flow_run_id in ids:
        await work(flow_run_id)
    for task in looking:
        task.cancel()
    outcomes = await asyncio.gather(*looking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    assert reports
    assert not sum(report.requeued + report.failed + report.closed + report.reopened for report in reports)
    for flow_run_id in ids:
        assert (await scene.row(flow_run_id)).status == "completed"


async def test_a_reconciler_that_is_ended_leaves_the_execution_as_it_was(scene: Scene) -> None:
    """Its process ends while Prefect is asked for the run: the next one need not wait for its lease."""
    row = await forgotten(scene, await scene.site.workflow(GRAPH))
    asked = asyncio.Event()

    async def resubmit(execution_id: int) -> UUID:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("Prefect never answers.")

    reconciler = scene.another(resubmit)
    assert await reconciler.once() == NOTHING
    scene.clock.now += 30
    async with anyio.create_task_group() as group:
        group.start_soon(reconciler.once)
        await asked.wait()
        taken = await scene.database.run(lambda session: executions.get(session, row.id))
        group.cancel_scope.cancel()
    found = await scene.database.run(lambda session: executions.get(session, row.id))
    assert taken.lease_owner is not None
    assert (found.status, found.lease_owner) == ("pending", None)


async def test_more_runs_than_a_page_are_looked_at_in_turn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round asks Prefect for the next page, and begins anew after the last."""
    monkeypatch.setattr(rounds, "PAGE", 2)
    ids = [await scene.submitted() for _ in range(5)]
    for flow_run_id in (ids[0], ids[4]):
        await scene.set_state(flow_run_id, Cancelled())
    assert [await scene.look() for _ in range(3)] == [Report(closed=1), NOTHING, Report(closed=1)]
    await scene.set_state(ids[1], Cancelled())
    assert await scene.look() == Report(closed=1)


async def test_a_run_that_can_never_be_put_back_is_closed(scene: Scene) -> None:
    """Prefect has no queue for a run without a deployment; the next one's turn comes all the same."""
    workflow = await scene.site.workflow(GRAPH)
    row = await forgotten(scene, workflow)
    adrift = (await scene.prefect.create_flow_run(execute_workflow)).id
    await scene.database.run(lambda session: submissions.confirm(session, row.id, adrift))
    well = await scene.submitted()
    for flow_run_id in (adrift, well):
        await scene.stepping(flow_run_id)
        await scene.set_state(flow_run_id, Crashed())
    await scene.died(adrift, well)
    assert await scene.look() == Report(requeued=1, failed=1)
    error = (await scene.row(adrift)).error
    assert error is not None
    assert "without an associated deployment" in error


async def test_an_outage_of_prefect_is_waited_out(
    scene: Scene, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says that it began, one that it is over, and the run is put back as soon as it is."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    await scene.died(flow_run_id)
    caplog.set_level(logging.INFO, logger=rounds.__name__)
    url = httpx.URL(scene.site.settings.prefect_api_url)
    async with Relay((url.host, url.port or 80)) as relay:
        changes = {"prefect_timeout": 5.0, "recovery_interval": 0.05}
        settings = scene.site.settings.model_copy(
            update=changes | {"prefect_api_url": str(url.copy_with(port=relay.port))}
        )
        async with PrefectGateway(settings) as gateway:
            await relay.cut()
            reconciler = Reconciler(database, gateway.runs, settings)
            looking = asyncio.create_task(reconciler.run_forever())
            await eventually(lambda: _said(caplog), lambda lines: bool(lines))
            first = await scene.row(flow_run_id)
            await relay.restore()
            await eventually(lambda: scene.state(flow_run_id), lambda name: name == "AwaitingRetry")
            lines = await eventually(lambda: _said(caplog), lambda lines: "again" in lines[-1])
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    assert first.crashes == 0
    assert len(lines) == 2
    assert lines[0].startswith("Runs are not looked after at the moment: Prefect")


async def test_after_an_outage_of_the_database_living_workers_keep_their_runs(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """No lease could be renewed meanwhile: only one that is not renewed afterwards either has run out."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.died(flow_run_id)
    caplog.set_level(logging.INFO, logger=rounds.__name__)
    async with to_database(scene.site.settings.database_url) as (wire, url):
        far = Database(url)
        settings = scene.site.settings.model_copy(update={"recovery_interval": 0.05})
        reconciler = Reconciler(far, scene.runs, settings, clock=scene.clock)
        try:
            await wire.cut()
            looking = asyncio.create_task(reconciler.run_forever())
            await eventually(lambda: _said(caplog), lambda lines: len(lines) == 1)
            await wire.restore()
            await eventually(lambda: _said(caplog), lambda lines: len(lines) == 2)
            assert (await scene.row(flow_run_id)).lease_owner == lease.owner
            scene.clock.now += settings.lease_seconds / 2
            await eventually(lambda: scene.state(flow_run_id), lambda name: name == "AwaitingRetry")
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            far.close()


async def test_a_run_that_cannot_be_helped_does_not_keep_others_waiting(scene: Scene) -> None:
    """What went wrong goes to the end of the line of those whose lease ran out."""
    bad, well = await scene.submitted(), await scene.submitted()
    for flow_run_id in (bad, well):
        await scene.stepping(flow_run_id)
        await scene.died(flow_run_id)

    def fail_with_the_first(session: Session) -> list[UUID | None]:
        first = orphans.take_expired(session, ())
        assert first is not None
        orphans.release(session, first)
        second = orphans.take_expired(session, ())
        assert second is not None
        return [first.row.flow_run_id, second.row.flow_run_id]

    assert await scene.database.run(fail_with_the_first) == [bad, well]


async def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "looked after" in one.getMessage()]


async def test_an_outage_of_the_database_is_one_of_infrastructure(scene: Scene) -> None:
    """The loop waits for the end of it; a single look says what is wrong."""
    await scene.submitted()
    away = Database("postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    try:
        with pytest.raises(InfrastructureError, match="PostgreSQL does not answer"):
            await Reconciler(away, scene.runs, scene.site.settings).once()
    finally:
        away.close()


async def test_a_reconciler_that_is_stopped_leaves_no_lease_behind(scene: Scene, seen: RunSnapshot) -> None:
    """Its process ends in the middle of a look: the run is as it was, and others need not wait."""
    flow_run_id = seen.flow_run_id
    assert flow_run_id is not None
    old = await scene.taken(flow_run_id)
    await scene.died(flow_run_id)
    looking = asyncio.create_task(scene.look())
    await eventually(lambda: scene.row(flow_run_id), lambda row: row.lease_owner != old.owner)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert (await scene.row(flow_run_id)).lease_owner in (old.owner, None)
