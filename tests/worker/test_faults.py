"""Faults of NOVA's own in a worker: shown as such, once, and no other run suffers from them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from sqlalchemy.orm import Session

from deployments.worker import prefect_engine
from deployments.worker.active_run import ActiveRun
from deployments.worker.claims import FAULT_PAUSE, Claim
from deployments.worker.events import EventStream
from deployments.worker.flow_loader import FlowLoader
from deployments.worker.flow_thread import FlowThread
from flows import execute_workflow
from flows.config.settings import get_settings
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.run_watch import RunWatch
from flows.runs.lease_keeper import LeaseKeeper
from flows.runs.loading import RunRequest
from flows.store import leases
from tests.builders import action, line
from tests.waiting import eventually
from tests.worker.site import Site

ONE_ACTION = line(action("a", "context['a'] = 1"))


def fault(*_: Any, **__: Any) -> NoReturn:
    """Do what a mistake in NOVA's code does."""
    raise TypeError("'NoneType' object is not iterable")


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[logging.LogRecord]]]:
    """What was logged with a traceback; call it when all is over."""
    # Whether Prefect's loggers hand their records on depends on who has set logging up in this process.
    logger = logging.getLogger("prefect.nova.worker")
    logger.addHandler(caplog.handler)
    yield lambda: list({id(record): record for record in caplog.records if record.exc_info}.values())
    logger.removeHandler(caplog.handler)


class Flows:
    """The thread of a worker's flows, without the worker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._opened = asyncio.Event()
        self.thread = FlowThread(asyncio.get_running_loop(), self._opened.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Flows]:
        """Start it, and end it after the block."""
        self.thread.start()
        await self._opened.wait()
        yield self
        await asyncio.to_thread(self.thread.stop, 10.0)

    async def offer(self, flow_run_id: UUID) -> Claim:
        """Have a run be claimed and executed; return what came of the claim when all of it is over."""
        run = ActiveRun(await self._site.prefect.read_flow_run(flow_run_id))
        ended = asyncio.Event()
        claimed = self.thread.submit(run, ended.set)
        await ended.wait()
        return await claimed


@pytest.fixture
async def flows(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Flows]:
    """Where runs are claimed and executed, in this process."""
    monkeypatch.setenv("DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("NOVA_ENCRYPTION_KEY", site.settings.encryption_key.get_secret_value())
    get_settings.cache_clear()
    api = {PREFECT_API_URL: site.settings.prefect_api_url, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(api):
        async with Flows(site).running() as running:
            yield running
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("where", "name"),
    [(LeaseKeeper, "take_for"), (prefect_engine, "claim"), (FlowLoader, "find")],
    ids=["lease", "claim", "load"],
)
async def test_a_fault_in_taking_a_run_is_shown_once(
    site: Site,
    flows: Flows,
    shown: Callable[[], list[logging.LogRecord]],
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
) -> None:
    """With its traceback, and as what it is; the run waits, the others need not, and later it is run."""
    flow_run_id = await site.submit(await site.workflow(ONE_ACTION))
    with monkeypatch.context() as broken:
        broken.setattr(where, name, fault)
        claims = [await flows.offer(flow_run_id) for _ in range(3)]
    assert claims == [Claim(False, FAULT_PAUSE)] * 3
    (record,) = shown()
    assert record.exc_info is not None
    assert record.exc_info[0] is TypeError
    assert "fault of NOVA's own" in record.getMessage()
    assert (await site.execution(flow_run_id)).lease_owner is None
    assert (await flows.offer(flow_run_id)).ours
    assert (await site.execution(flow_run_id)).status == "completed"


async def test_a_fault_in_beginning_a_sandbox_costs_no_run(
    site: Site,
    flows: Flows,
    shown: Callable[[], list[logging.LogRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker only begins it ahead of the flow, which begins one itself."""
    flow_run_id = await site.submit(await site.workflow(ONE_ACTION))
    whole = execute_workflow.sandbox_spec

    def broken_once(*_: object) -> NoReturn:
        monkeypatch.setattr(execute_workflow, "sandbox_spec", whole)
        fault()

    monkeypatch.setattr(execute_workflow, "sandbox_spec", broken_once)
    assert (await flows.offer(flow_run_id)).ours
    assert (await site.execution(flow_run_id)).status == "completed"
    (record,) = shown()
    assert "sandbox" in record.getMessage()


async def test_a_fault_in_renewing_leases_is_no_outage(
    site: Site, shown: Callable[[], list[logging.LogRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown once, and the next try may do."""
    workflow = await site.workflow(ONE_ACTION)
    flow_run_id = await site.submit(workflow)
    row = await site.execution(flow_run_id)
    keeper = LeaseKeeper(site.database, site.database, 1.0)
    tries = 0
    whole = leases.renew

    def broken(session: Session, *arguments: Any) -> set[UUID]:
        nonlocal tries
        tries += 1
        if tries <= 3:
            fault()
        return whole(session, *arguments)

    async def tried() -> int:
        return tries

    monkeypatch.setattr(leases, "renew", broken)
    keeper.start()
    await keeper.take(RunRequest(flow_run_id, row.public_id, workflow.id))
    try:
        await eventually(tried, lambda found: found > 4)
    finally:
        await asyncio.to_thread(keeper.close)
    (record,) = shown()
    assert "Leases were not renewed" in record.getMessage()


async def test_a_fault_in_answering_an_event_does_not_end_the_stream(
    site: Site, shown: Callable[[], list[logging.LogRecord]]
) -> None:
    """The events after it are heard all the same."""
    workflow = await site.workflow(ONE_ACTION)
    pool = await site.prefect.read_work_pool(site.pool)
    heard: list[UUID] = []

    def handle(event: Any, flow_run_id: UUID) -> None:
        heard.append(flow_run_id)
        if len(heard) == 1:
            fault()

    async def all_heard() -> list[UUID]:
        return heard

    opened = asyncio.Event()
    stream = EventStream(lambda: pool.id, handle, opened=opened.set)
    with temporary_settings({PREFECT_API_URL: site.settings.prefect_api_url}):
        listening = asyncio.create_task(stream.listen())
        await opened.wait()
        ids = [await site.submit(workflow) for _ in range(3)]
        await eventually(all_heard, lambda found: set(ids) <= set(found))
        assert stream.connected
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    (record,) = shown()
    assert "event" in record.getMessage()


async def test_a_fault_in_looking_states_up_is_shown_once(
    site: Site, shown: Callable[[], list[logging.LogRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not somebody waits for the answer; who waits gets the fault."""
    flow_run_id = await site.submit(await site.workflow(ONE_ACTION))
    watch = RunWatch(site.gateway.runs)
    monkeypatch.setattr(FlowRuns, "find_all", fault)
    for _ in range(2):
        with pytest.raises(TypeError):
            await watch.state(flow_run_id)
        watch._silent_until = 0.0
    await watch.close()
    (record,) = shown()
    assert "not looked up" in record.getMessage()
