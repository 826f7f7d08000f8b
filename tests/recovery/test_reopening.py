"""A run that is over is opened for a person alone, once each time; whoever comes late opens nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Failed, Pending, Running, Scheduled

from flows.graphs.errors import LeaseHeldError
from flows.graphs.lifecycle import Status
from flows.recovery.actions import Report
from flows.runs.lease_keeper import HeldLease, LeaseKeeper
from flows.runs.loading import RunRequest
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts
from tests.leasing import SECONDS
from tests.recovery.scene import NOTHING, Scene

BY_UI: State[Any] = AwaitingRetry(message="Retry from the UI")
"""As a person retries a run in Prefect's UI, by force."""
BY_CLI: State[Any] = Scheduled(message="Retried via CLI")
"""As `prefect flow-run retry` does."""
WAITS_ON = [
    [],
    pytest.param(["Late"], marks=pytest.mark.long),
    pytest.param(["AwaitingConcurrencySlot"], marks=pytest.mark.long),
    ["AwaitingConcurrencySlot", "Late"],
]
"""The states by which Prefect lets a run wait on."""

Claim = Callable[[Scene, UUID], Awaitable[HeldLease | None]]


async def by_worker(scene: Scene, flow_run_id: UUID) -> HeldLease | None:
    """Take a run as NOVA's worker does that has found it in its queue, a moment ago or long before."""
    row = await scene.row(flow_run_id)
    request = RunRequest(flow_run_id, row.public_id, row.workflow_id)
    return await _keeper(scene).take_for(request, scene.runs, scene.runs.retry_request)


async def by_flow(scene: Scene, flow_run_id: UUID) -> HeldLease | None:
    """Take a run as a flow does that Prefect's own worker has started."""
    row = await scene.row(flow_run_id)
    request = RunRequest(flow_run_id, row.public_id, row.workflow_id)
    return await _keeper(scene).take_for(request, scene.runs, scene.runs.request_of_start)


def _keeper(scene: Scene) -> LeaseKeeper:
    """The leases of another process."""
    return LeaseKeeper(scene.database, scene.database, SECONDS)


async def let_wait(scene: Scene, flow_run_id: UUID, names: list[str]) -> None:
    """Have Prefect let a run wait on."""
    for name in names:
        await scene.set_state(flow_run_id, Scheduled(name=name), force=True)


async def tried(scene: Scene, flow_run_id: UUID) -> Lease:
    """Have a worker run it to the node that must not start twice, which fails; Prefect has not heard."""
    lease = await scene.stepping(flow_run_id)
    await scene.database.run(lambda session: attempts.mark_unrepeatable(session, lease, 0))
    await scene.ended(lease, Status.FAILED)
    return lease


async def heard(scene: Scene, flow_run_id: UUID, lease: Lease) -> None:
    """Have Prefect hear that it failed."""
    await scene.set_state(flow_run_id, Failed())
    await scene.released(lease)


async def retried(scene: Scene, flow_run_id: UUID, by: State[Any]) -> None:
    """Have a person retry it in Prefect."""
    await scene.set_state(flow_run_id, by, force=by is BY_UI)


def columns(row: Execution) -> dict[str, object]:
    """All that a row says, but for its lease."""
    return {
        each.name: getattr(row, each.name) for each in row.__table__.c if not each.name.startswith("lease_")
    }


async def opens_nothing(scene: Scene, flow_run_id: UUID) -> None:
    """Whoever claims it gets nothing, however often, and the row stays as it is."""
    before = columns(await scene.row(flow_run_id))
    assert before["status"] == "failed"
    for claim in (by_worker, by_flow) * 2:
        try:
            assert await claim(scene, flow_run_id) is None
        except LeaseHeldError:
            assert (await scene.row(flow_run_id)).lease_owner is not None
    assert columns(await scene.row(flow_run_id)) == before


@pytest.mark.parametrize("waited", WAITS_ON)
async def test_a_claim_that_comes_late_opens_nothing(scene: Scene, waited: list[str]) -> None:
    """Another worker has run the run to failed meanwhile: before Prefect has heard, and afterwards."""
    flow_run_id = await scene.submitted()
    await let_wait(scene, flow_run_id, waited)
    lease = await tried(scene, flow_run_id)
    await opens_nothing(scene, flow_run_id)
    await scene.died(flow_run_id)  # it died over its last word
    await opens_nothing(scene, flow_run_id)
    await heard(scene, flow_run_id, lease)
    await opens_nothing(scene, flow_run_id)


@pytest.mark.parametrize(
    "by", [pytest.param(BY_UI, id="ui"), pytest.param(BY_CLI, id="cli", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("waited", WAITS_ON)
@pytest.mark.parametrize("claim", [by_worker, by_flow])
async def test_a_persons_retry_opens_a_run_once(
    scene: Scene, by: State[Any], waited: list[str], claim: Claim
) -> None:
    """By the UI or the CLI; that worker has it then, and a claim that comes late opens nothing any more."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    for _ in range(2):
        await retried(scene, flow_run_id, by)
        await let_wait(scene, flow_run_id, waited)
        if claim is by_flow:
            await scene.set_state(flow_run_id, Pending())
            await scene.set_state(flow_run_id, Running())
        held = await claim(scene, flow_run_id)
        assert held is not None
        row = await scene.row(flow_run_id)
        assert (row.status, row.lease_owner, row.unrepeatable_step) == ("running", held.lease.owner, None)
        with pytest.raises(LeaseHeldError):
            await by_worker(scene, flow_run_id)
        await scene.released(held.lease)
        lease = await tried(scene, flow_run_id)
        await opens_nothing(scene, flow_run_id)
        await scene.died(flow_run_id)
        await opens_nothing(scene, flow_run_id)
        await heard(scene, flow_run_id, lease)
        await opens_nothing(scene, flow_run_id)


@pytest.mark.parametrize("waited", WAITS_ON)
async def test_a_late_word_of_novas_opens_nothing(scene: Scene, waited: list[str]) -> None:
    """A worker was paused before it put the run back: it waits in its queue, and nobody asked for that."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    assert await scene.runs.requeue(flow_run_id, "Its worker was stopped.")
    await let_wait(scene, flow_run_id, waited)
    await opens_nothing(scene, flow_run_id)


@pytest.mark.parametrize("waited", WAITS_ON)
async def test_a_late_word_of_novas_undoes_no_persons_retry(scene: Scene, waited: list[str]) -> None:
    """It comes between the retry and the worker that follows it."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    await retried(scene, flow_run_id, BY_UI)
    await let_wait(scene, flow_run_id, waited)
    assert await scene.runs.requeue(flow_run_id, "Its worker was stopped.")
    held = await by_worker(scene, flow_run_id)
    assert held is not None
    await scene.released(held.lease)
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    await opens_nothing(scene, flow_run_id)


async def test_a_resumed_run_was_not_retried_by_that(scene: Scene) -> None:
    """A person suspends and resumes the run after its retry: that has it go on, and opens nothing later."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    await retried(scene, flow_run_id, BY_UI)
    held = await by_worker(scene, flow_run_id)
    assert held is not None
    await scene.released(held.lease)
    await scene.set_state(flow_run_id, Scheduled(name="Resuming"), force=True)
    await tried(scene, flow_run_id)
    await scene.died(flow_run_id)
    await opens_nothing(scene, flow_run_id)


async def test_the_reconciler_opens_for_a_person_once(scene: Scene) -> None:
    """Where no worker came for the run yet; a claim that comes late finds it followed already."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    assert await scene.look_again_after(1000) == NOTHING
    await retried(scene, flow_run_id, BY_UI)
    assert await scene.look_again_after(10) == Report(reopened=1)
    assert await scene.look_again_after(1000) == NOTHING
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    await opens_nothing(scene, flow_run_id)


async def test_of_two_that_follow_a_retry_at_once_one_opens_the_run(scene: Scene) -> None:
    """The other one is told that somebody has it."""
    flow_run_id = await scene.submitted()
    await heard(scene, flow_run_id, await tried(scene, flow_run_id))
    await retried(scene, flow_run_id, BY_CLI)
    claims = [by_worker(scene, flow_run_id) for _ in range(4)]
    got = await asyncio.gather(*claims, return_exceptions=True)
    held = [one for one in got if isinstance(one, HeldLease)]
    assert len(held) == 1
    assert all(one is held[0] or one is None or isinstance(one, LeaseHeldError) for one in got)
    assert (await scene.row(flow_run_id)).lease_owner == held[0].lease.owner
