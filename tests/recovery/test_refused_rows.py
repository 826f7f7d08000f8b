"""One row that PostgreSQL refuses to change, and what becomes of the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import datetime
from uuid import uuid4

import pytest
from prefect.states import Cancelled

from flows.graphs.errors import LeaseLostError
from flows.recovery import reconciler as rounds
from flows.recovery.reconciler import Reconciler
from flows.runs.lease_keeper import HeldLease, LeaseKeeper
from flows.runs.loading import RunRequest
from flows.store import executions, workflows
from flows.store.database import Database
from tests.recovery.scene import GRAPH, Scene
from tests.refusals import refused_rows
from tests.waiting import eventually


@pytest.fixture
def keeper(database: Database, database_url: str) -> Iterator[LeaseKeeper]:
    """A keeper whose leases last a second and a half, and are renewed twice a second."""
    renewals = Database(database_url, 1)
    made = LeaseKeeper(database, renewals, 1.5)
    made.start()
    yield made
    made.close()
    renewals.close()


async def held(keeper: LeaseKeeper, database: Database, workflow_id: int) -> HeldLease:
    """The lease of a new run from elsewhere."""
    taken = await keeper.take(RunRequest(uuid4(), None, workflow_id))
    assert taken is not None
    return taken


async def lease_until(database: Database, held: HeldLease) -> datetime:
    """When a lease runs out, as its row says."""
    row = await database.run(lambda session: executions.get(session, held.lease.execution_id))
    assert row.lease_until is not None
    return row.lease_until


async def test_a_lease_that_cannot_be_renewed_costs_no_other(
    keeper: LeaseKeeper, database: Database, database_url: str
) -> None:
    """All are renewed in one statement, and one by one where PostgreSQL refuses that."""
    workflow = await database.run(lambda session: workflows.create(session, name="One", graph=GRAPH))
    refused, other = [await held(keeper, database, workflow.id) for _ in range(2)]
    with refused_rows(database_url, "UPDATE", "executions", f"NEW.id = {refused.lease.execution_id}"):
        before = await lease_until(database, refused), await lease_until(database, other)
        await eventually(lambda: lease_until(database, other), lambda until: until > before[1])
        renewed = await lease_until(database, other)
        await eventually(lambda: lease_until(database, other), lambda until: until > renewed)
        assert await lease_until(database, refused) == before[0]
        await other.look()
        with pytest.raises(LeaseLostError, match="is not known"):  # so nobody speaks for the run
            await refused.look()
        assert not await refused.release()
    assert await other.release()


async def test_a_run_that_cannot_be_closed_keeps_no_other_waiting(scene: Scene, database_url: str) -> None:
    """Two workers died: the round tries both, and the one that PostgreSQL takes is in its queue again."""
    stuck, other = await scene.submitted(), await scene.submitted()
    for flow_run_id in (stuck, other):
        await scene.stepping(flow_run_id)
    row = await scene.row(stuck)
    await scene.died(stuck)
    await scene.died(other)
    with refused_rows(
        database_url, "UPDATE", "executions", f"NEW.id = {row.id} AND NEW.next_attempt_at IS NOT NULL"
    ):
        report = await scene.look()
        assert report.requeued == 1
        assert (await scene.row(other)).next_attempt_at is not None
        assert (await scene.row(stuck)).next_attempt_at is None
    await scene.died(stuck)
    assert (await scene.look()).requeued == 1
    assert (await scene.row(stuck)).next_attempt_at is not None


async def test_a_run_that_cannot_be_looked_after_keeps_no_other_waiting(
    scene: Scene, database_url: str
) -> None:
    """Both were cancelled in Prefect before they began; the row that PostgreSQL takes is closed."""
    stuck, other = await scene.submitted(), await scene.submitted()
    row = await scene.row(stuck)

    for flow_run_id in (stuck, other):
        assert await scene.set_state(flow_run_id, Cancelled()) == "Cancelled"
    with refused_rows(database_url, "UPDATE", "executions", f"NEW.id = {row.id}"):
        assert (await scene.look()).closed == 1
    assert (await scene.row(other)).status == "cancelled"
    assert (await scene.look()).closed == 1
    assert (await scene.row(stuck)).status == "cancelled"


async def test_while_postgresql_has_no_room_living_workers_keep_their_runs(
    scene: Scene, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No lease could be renewed: as after an outage, only one that is not renewed afterwards has run out."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.died(flow_run_id)
    settings = scene.site.settings.model_copy(update={"recovery_interval": 0.05})
    reconciler = Reconciler(scene.database, scene.runs, settings, clock=scene.clock)
    caplog.set_level(logging.INFO, logger=rounds.__name__)

    async def said() -> list[str]:
        return [one.getMessage() for one in caplog.records if "looked after" in one.getMessage()]

    with refused_rows(database_url, "UPDATE", "executions") as count:
        looking = asyncio.create_task(reconciler.run_forever())

        async def refusals() -> int:
            return count()

        async def two_rounds() -> None:
            seen = count()
            await eventually(refusals, lambda number: number > seen + 1)

        # It is asked in each round, for the leases get their time from when there is room again.
        await two_rounds()
        scene.clock.now += settings.lease_seconds
        await two_rounds()
    try:
        lines = await eventually(said, lambda lines: len(lines) == 2)
        assert (await scene.row(flow_run_id)).lease_owner == lease.owner
        scene.clock.now += settings.lease_seconds / 2
        await eventually(lambda: scene.state(flow_run_id), lambda name: name == "AwaitingRetry")
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    assert "no room for this row" in lines[0]
    assert all(one.exc_info is None for one in caplog.records)
