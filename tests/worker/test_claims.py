"""How a worker takes a run: late, without an answer, or where too many runs of its workflow go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Completed, Failed, Pending, Running

from deployments.worker import claims
from deployments.worker.active_run import ActiveRun
from flows.config.settings import get_settings
from flows.graphs.lifecycle import Status
from flows.recovery.actions import FULL
from flows.store.leases import Lease
from flows.store.models import Workflow
from flows.store.transitions import attempts
from tests.api.conftest import running_api
from tests.builders import action, line
from tests.recovery.scene import Scene
from tests.waiting import eventually
from tests.worker.proxy import LostAnswers
from tests.worker.site import WAIT, Site
from tests.worker.test_survival import states_of

Begin = Callable[[Scene, UUID, httpx.AsyncClient], Awaitable[None]]


@pytest.fixture
def in_this_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a worker of the site."""
    monkeypatch.setenv("DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("NOVA_ENCRYPTION_KEY", site.settings.encryption_key.get_secret_value())
    monkeypatch.setenv("PREFECT_API_URL", site.settings.prefect_api_url)
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
async def api(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """The API, which leaves it to others to look after runs."""
    async with running_api(site.settings.model_copy(update={"recovery_interval": 3600.0})) as client:
        yield client


async def poll(api: httpx.AsyncClient, task_id: UUID) -> str:
    """What a client reads."""
    return str((await api.get(f"/tasks/{task_id}")).json()["status"])


async def is_given(site: Site, seen: FlowRun) -> bool:
    """Whether a worker gets a run that it has found in its queue, as it was then; it is left alone again."""
    run = ActiveRun(seen)
    try:
        return (await claims.claim(run, site.prefect, has_execution=True)).ours
    finally:
        await run.release_lease()


# -- late --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [False, True])
async def test_a_worker_that_comes_late_for_a_run_that_failed_starts_nothing(
    site: Site, in_this_process: None, heard: bool
) -> None:
    """Another one was faster: its row and Prefect's states are as that one left them."""
    scene = Scene(site)
    flow_run_id = await scene.submitted()
    seen = await site.prefect.read_flow_run(flow_run_id)
    lease = await scene.stepping(flow_run_id)
    await scene.database.run(lambda session: attempts.mark_unrepeatable(session, lease, 0))
    await scene.ended(lease, Status.FAILED)
    if heard:
        await scene.set_state(flow_run_id, Failed())
    for released in (False, True):
        if released:
            await scene.released(lease)
        before = await states_of(site, flow_run_id)
        assert not await is_given(site, seen.model_copy())
        assert await states_of(site, flow_run_id) == before
        row = await site.execution(flow_run_id)
        assert (row.status, row.attempt, row.unrepeatable_step) == (Status.FAILED, 1, 0)
    await site.prefect.set_flow_run_state(flow_run_id, Failed(), force=True)
    await site.prefect.set_flow_run_state(flow_run_id, AwaitingRetry(message="Retry from the UI"), force=True)
    assert await is_given(site, seen.model_copy())


@pytest.mark.parametrize("retries", ["0", "3"])
async def test_a_run_whose_claim_was_not_answered_is_run_at_once(
    site: Site, folder: Path, retries: str
) -> None:
    """Prefect gave it, and its answer was lost: the worker sees that the run is its own."""
    workflow = await site.workflow(line(action("a", "context['a'] = 1")))
    async with LostAnswers(site.settings.prefect_api_url, "PENDING") as proxy:
        with site.worker(
            folder,
            api_url=proxy.api_url,
            PREFECT_CLIENT_MAX_RETRIES=retries,
            NOVA_RECOVERY_INTERVAL="1000",
        ) as worker:
            flow_run_id = await site.submit(workflow)
            await site.until_state(flow_run_id, "Completed")
            assert proxy.lost == 1
            await asyncio.to_thread(worker.stop)  # the proxy is in this loop: it must go on meanwhile
    states = await states_of(site, flow_run_id)
    assert (states.count("Pending"), states.count("Running")) == (1, 1)
    row = await site.execution(flow_run_id)
    assert (row.status, row.attempt, row.lost_starts) == (Status.COMPLETED, 1, 0)


# -- too many ----------------------------------------------------------------------------------------


async def waits_for_its_retry(scene: Scene, flow_run_id: UUID, _: httpx.AsyncClient) -> None:
    """Infrastructure broke behind its first node."""
    lease = await begun(scene, flow_run_id)
    await scene.retry_scheduled(lease, -1)
    await scene.runs.requeue(flow_run_id, "E2B is away.")
    await scene.released(lease)


async def was_requeued(scene: Scene, flow_run_id: UUID, _: httpx.AsyncClient) -> None:
    """Its worker had to go."""
    lease = await begun(scene, flow_run_id)
    await scene.runs.requeue(flow_run_id, "Its worker was stopped.")
    await scene.released(lease)


async def was_retried(scene: Scene, flow_run_id: UUID, api: httpx.AsyncClient) -> None:
    """It failed, and a person was told that it goes on."""
    lease = await begun(scene, flow_run_id)
    await scene.ended(lease, Status.FAILED)
    await scene.set_state(flow_run_id, Failed())
    await scene.released(lease)
    assert (await api.post(f"/tasks/{flow_run_id}/retry")).status_code == 202


async def begun(scene: Scene, flow_run_id: UUID) -> Lease:
    """A worker has done its first node."""
    lease = await scene.stepping(flow_run_id)
    await scene.step(lease, 0, "start")
    return lease


@pytest.mark.parametrize("way", [waits_for_its_retry, was_requeued, was_retried])
@pytest.mark.parametrize("by_nova", [True, False], ids=["nova", "stock"])
async def test_a_run_that_has_begun_waits_beside_another_one(
    site: Site, in_this_process: None, api: httpx.AsyncClient, way: Begin, by_nova: bool
) -> None:
    """One run at a time, others are skipped: that is meant for new ones. It goes on when there is room.

    Prefect cancels all alike. NOVA's worker requeues what has begun, or else the reconciler.
    """
    scene = Scene(site)
    workflow = await one_at_a_time(site)
    first, other = await site.submit(workflow), await site.submit(workflow)
    await way(scene, first, api)
    lease = await scene.stepping(other)

    for _ in range(2):
        if by_nova:
            assert not await is_given(site, await site.prefect.read_flow_run(first))
        else:
            assert await scene.set_state(first, Pending()) == "Cancelled"
            assert await poll(api, first) in ("RETRY", "RUNNING")
            assert (await scene.look()).requeued == 1
        state = (await site.prefect.read_flow_run(first)).state
        assert state is not None
        assert (state.name, state.message) == ("AwaitingRetry", FULL)
        row = await site.execution(first)
        assert (row.status, row.lease_owner, row.attempt) == (Status.RUNNING, None, 1)
        assert await poll(api, first) == "RETRY"

    new = await site.submit(workflow)
    if by_nova:
        assert not await is_given(site, await site.prefect.read_flow_run(new))
    else:
        assert await scene.set_state(new, Pending()) == "Cancelled"
    assert await eventually(lambda: poll(api, new), lambda status: status != "PENDING") == "REVOKED"
    assert (await site.execution(new)).status == Status.CANCELLED

    await scene.ended(lease)
    await scene.set_state(other, Completed())
    await scene.released(lease)
    assert await is_given(site, await site.prefect.read_flow_run(first))
    await scene.set_state(first, Running())


async def test_a_run_that_has_begun_goes_on_when_the_other_has_ended(
    site: Site, folder: Path, api: httpx.AsyncClient
) -> None:
    """With a worker: it did a node and was put off, another began and a third was skipped meanwhile."""
    breaks = (
        "import os, time\nif os.path.exists(context['broken']): os.kill(os.getppid(), 9); time.sleep(60)\n"
        "open(context['ledger'], 'a').write('x')\n"
    )
    note = "open(context['ledger'], 'a').write('1')\n"
    graph = line(action("one", note), action("two", breaks), action("three", WAIT, timeout=60))
    workflow = await site.workflow(graph, max_concurrent_runs=1, overlap="skip")
    broken, told, ledger = folder / "broken", folder / "told", folder / "ledger"
    broken.touch()
    polls: list[str] = []

    async def polled() -> str:
        polls.append(await poll(api, first))
        return polls[-1]

    with site.worker(folder, limit=3, NOVA_NODE_RETRY_DELAY="0.01", NOVA_RETRY_DELAY="600"):
        context = {"broken": str(broken), "told": str(told), "ledger": str(ledger)}
        first = await site.submit(workflow, **context)
        await site.until_state(first, "AwaitingRetry")
        other = await site.submit(workflow, **context | {"broken": "none", "ledger": str(folder / "other")})
        await site.until_step(other, "three")
        await site.gateway.runs.requeue(first, "It is due now.")

        async def names() -> list[str]:
            await polled()
            return await states_of(site, first)

        await eventually(names, lambda found: found[-2:] == ["Cancelled", "AwaitingRetry"])
        skipped = await site.submit(workflow, **context)
        await site.until_state(skipped, "Cancelled")
        assert await eventually(lambda: poll(api, skipped), lambda status: status != "PENDING") == "REVOKED"
        told.touch()
        broken.unlink()
        await site.until_state(other, "Completed")
        await site.gateway.runs.requeue(first, "It is due now.")
        await eventually(polled, lambda status: status == "SUCCESS")
    assert set(polls) <= {"RETRY", "PENDING", "RUNNING", "SUCCESS"}
    assert ledger.read_text() == "1x"
    assert (await site.execution(skipped)).attempt == 0


async def one_at_a_time(site: Site) -> Workflow:
    """A workflow of which one run goes on at a time; new ones beside it are skipped."""
    graph = line(action("a", "context['a'] = 1"), action("b", "context['b'] = 2"))
    return await site.workflow(graph, max_concurrent_runs=1, overlap="skip")
