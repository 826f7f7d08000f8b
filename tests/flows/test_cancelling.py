"""The hook of a cancelled run: it closes the row for the run's own process, or where nobody has the run."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from flows.config.settings import get_settings
from flows.execute_workflow import close_cancelled, execute_workflow
from flows.graphs.errors import LeaseLostError
from flows.graphs.lifecycle import Status
from flows.runs.lease_keeper import LeaseKeeper
from flows.runs.loading import RunRequest
from flows.runs.process import process
from flows.store import executions
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts, interventions
from tests.builders import line
from tests.flows.conftest import Nova
from tests.leasing import SECONDS, begin
from tests.recovery.scene import NOBODYS_SANDBOX
from tests.store import rows


class Story:
    """A run that this process has begun as a worker, and what becomes of it."""

    def __init__(self, nova: Nova, request: RunRequest) -> None:
        self.nova = nova
        self.request = request
        self.leases = process(get_settings()).leases
        self.others = LeaseKeeper(nova.database, nova.database, SECONDS)

    async def begins_here(self) -> Lease:
        """Take and begin it in this process."""
        return await self._begin(self.leases)

    async def begins_elsewhere(self) -> Lease:
        """Take and begin it in another process."""
        return await self._begin(self.others)

    async def _begin(self, keeper: LeaseKeeper) -> Lease:
        held = await keeper.take(self.request)
        assert held is not None
        await self.nova.database.run(
            lambda session: begin(
                session,
                flow_run_id=self.request.flow_run_id,
                workflow_id=self.request.workflow_id,
                public_id=self.request.public_id,
                owner=held.lease.owner,
            )
        )
        await self.nova.database.run(
            lambda session: attempts.note_sandbox(session, held.lease, NOBODYS_SANDBOX)
        )
        return held.lease

    async def is_retried(self) -> None:
        """Have it cancelled, as who looks after runs does whose worker is gone, and retried by a person."""
        row = await self.row()
        rows.expire(self.nova.database, row)
        assert await self.nova.database.run(
            lambda session: interventions.cancel_stopped(session, row.id, "The run was cancelled.")
        )
        opened = await self.nova.database.run(lambda session: interventions.reopen(session, row.id, uuid4()))
        await self.nova.database.run(lambda session: attempts.release(session, opened.lease))

    async def row(self) -> Execution:
        """The row as it is now."""
        found = await self.nova.database.run(
            lambda session: executions.by_task(session, self.request.flow_run_id)
        )
        assert found is not None
        return found

    async def hook(self) -> None:
        """Have this process hear that the run is cancelled."""
        flow_run = FlowRun(id=self.request.flow_run_id, flow_id=uuid4(), name="run")
        await close_cancelled(execute_workflow, flow_run, Cancelling())


@pytest.fixture
async def story(nova: Nova) -> Story:
    """A run that nobody has begun."""
    workflow = await nova.workflow(line())
    pending = await nova.pending(workflow)
    flow_run_id: UUID = uuid4()
    return Story(nova, RunRequest(flow_run_id, pending.public_id, workflow.id))


async def test_a_run_is_closed_by_the_process_that_has_it(story: Story) -> None:
    """Its lease stays until Prefect has heard; a second call changes nothing."""
    lease = await story.begins_here()
    for _ in range(2):
        await story.hook()
        row = await story.row()
        assert (row.status, row.lease_owner) == (Status.CANCELLED, lease.owner)


async def test_a_run_that_nobody_has_is_closed(story: Story) -> None:
    """Prefect's own worker calls the hook, when it has killed the process of the run."""
    lease = await story.begins_elsewhere()
    await story.hook()
    assert (await story.row()).status == Status.RUNNING  # that process may live, for all we know
    await story.nova.database.run(lambda session: attempts.release(session, lease))
    await story.hook()
    assert (await story.row()).status == Status.CANCELLED


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_process_that_was_paused_closes_no_run_that_was_retried(story: Story, goes_on: bool) -> None:
    """It wakes up and hears of the old cancellation: the run waits in its queue, or goes on elsewhere."""
    await story.begins_here()
    await story.is_retried()
    lease = await story.begins_elsewhere() if goes_on else None
    with pytest.raises(LeaseLostError):
        await story.hook()
    row = await story.row()
    assert (row.status, row.lease_owner) == (Status.RUNNING, lease.owner if lease else None)
    assert row.attempt == (2 if goes_on else 1)


async def test_a_process_that_was_paused_closes_no_run_that_was_taken_over(story: Story) -> None:
    """Its lease had run out; the other one works, and is not even disturbed."""
    await story.begins_here()
    rows.expire(story.nova.database, await story.row())
    lease = await story.begins_elsewhere()
    with pytest.raises(LeaseLostError):
        await story.hook()
    row = await story.row()
    assert (row.status, row.lease_owner, row.attempt) == (Status.RUNNING, lease.owner, 2)
