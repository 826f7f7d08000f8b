"""What reaches Prefect late or twice: it does not fence, so NOVA knows its own words from a person's."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prefect.states import Failed, Pending, Scheduled

from flows.graphs.lifecycle import Status
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.actions import Report
from flows.recovery.reconciler import PROVISIONING
from tests.api.relay import Relay
from tests.recovery.scene import NOTHING, Scene
from tests.waiting import eventually


async def test_what_a_process_of_novas_sent_late_is_no_persons_retry(scene: Scene) -> None:
    """A worker was paused before it told Prefect that the run waits; meanwhile the run failed for good."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    assert await scene.runs.requeue(flow_run_id, "Its worker was stopped.")
    assert await scene.state(flow_run_id) == "AwaitingRetry"
    assert await scene.look_again_after(10) == Report(ended=1)
    assert await scene.state(flow_run_id) == "Failed"
    row = await scene.row(flow_run_id)
    assert (row.status, row.error, row.lease_owner) == ("failed", "Why.", None)


@pytest.mark.parametrize("name", ["AwaitingRetry", "Scheduled"])
@pytest.mark.parametrize("between", ["AwaitingConcurrencySlot", "Late"])
async def test_a_run_that_prefect_lets_wait_was_retried_by_whoever_queued_it(
    scene: Scene, name: str, between: str
) -> None:
    """Prefect's own word for a full deployment, or a late run, stands last and says nothing of persons."""
    flow_run_id = await scene.submitted()
    await scene.set_state(flow_run_id, Scheduled(name=between), force=True)
    assert await scene.runs.retry_request(flow_run_id) is None  # nobody retries a run that has not ended
    await scene.set_state(flow_run_id, Failed(), force=True)
    assert await scene.runs.requeue(flow_run_id, "Its worker died.")
    await scene.set_state(flow_run_id, Scheduled(name=between), force=True)
    assert await scene.runs.retry_request(flow_run_id) is None
    await scene.set_state(flow_run_id, Failed(), force=True)
    await scene.set_state(flow_run_id, Scheduled(name=name, message="Retry from the UI"), force=True)
    by_hand = (await scene.prefect.read_flow_run(flow_run_id)).state_id
    assert by_hand is not None
    await scene.set_state(flow_run_id, Scheduled(name=between), force=True)
    assert await scene.runs.retry_request(flow_run_id) == by_hand
    await scene.set_state(flow_run_id, Pending())
    assert await scene.runs.retry_request(flow_run_id) is None  # it does not wait any more
    assert await scene.runs.request_of_start(flow_run_id) == by_hand


async def test_a_persons_retry_is_followed_while_prefects_own_worker_starts(scene: Scene) -> None:
    """Its flow takes the lease minutes after Pending, perhaps: until then the row is open and free."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    await scene.set_state(flow_run_id, Scheduled(), force=True)
    await scene.set_state(flow_run_id, Pending())
    assert await scene.look_again_after(10) == Report(reopened=1)
    row = await scene.row(flow_run_id)
    assert (row.status, row.lease_owner) == ("running", None)
    assert await scene.look_again_after(PROVISIONING - 1) == NOTHING
    assert await scene.state(flow_run_id) == "Pending"


async def test_a_claim_that_nobody_asked_for_is_ended(scene: Scene) -> None:
    """Its worker looked before the run failed elsewhere, and Prefect lets it claim what has failed."""
    flow_run_id = await scene.submitted()
    await scene.finished(await scene.stepping(flow_run_id), Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    assert await scene.set_state(flow_run_id, Pending()) == "Pending"
    assert await scene.look_again_after(10) == Report(ended=1)
    assert await scene.state(flow_run_id) == "Failed"
    assert (await scene.row(flow_run_id)).status == "failed"


async def test_a_run_is_put_back_though_the_answer_was_lost(scene: Scene) -> None:
    """Prefect's client asks again, and is refused, since the run waits already: that is no cancellation."""
    flow_run_id = await scene.submitted()
    await scene.stepping(flow_run_id)
    url = httpx.URL(scene.site.settings.prefect_api_url)
    async with Relay((url.host, url.port or 80)) as relay:
        through = {"prefect_api_url": str(url.copy_with(port=relay.port))}
        async with PrefectGateway(scene.site.settings.model_copy(update=through)) as gateway:
            await gateway.runs.find(flow_run_id)
            relay.deaf_after = b"AwaitingRetry"
            asking = asyncio.create_task(gateway.runs.requeue(flow_run_id, "E2B does not answer."))
            await eventually(lambda: scene.state(flow_run_id), lambda name: name == "AwaitingRetry")
            relay.deaf_after, relay.deaf = b"", False
            await relay.cut()
            await relay.restore()
            assert await asking
    states = await scene.prefect.read_flow_run_states(flow_run_id)
    assert [state.name for state in states].count("AwaitingRetry") == 1


async def test_an_attempt_that_put_its_run_off_and_died_is_no_crash(scene: Scene) -> None:
    """It keeps its lease until Prefect has heard of it, and did not come to that."""
    flow_run_id = await scene.submitted()
    lease = await scene.stepping(flow_run_id)
    await scene.retry_scheduled(lease, -1)
    await scene.died(flow_run_id)
    assert await scene.look() == Report(requeued=1)
    row = await scene.row(flow_run_id)
    assert (row.crashes, row.retries, row.lease_owner) == (0, 1, None)
