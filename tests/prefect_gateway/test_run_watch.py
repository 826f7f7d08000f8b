"""The watch over flow runs, on a real Prefect server behind a wire that tells what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.states import Cancelled, Scheduled

from flows.config.settings import Settings
from flows.graphs.errors import PrefectUnavailableError
from flows.prefect_gateway.flow_runs import state_of
from flows.prefect_gateway.gateway import PrefectGateway
from tests.api.relay import Relay
from tests.waiting import eventually

pytestmark = pytest.mark.real_prefect

LOOK_UP = "POST /api/flow_runs/filter"


@flow(name="watched")
async def watched() -> None:
    """Never runs: only its runs' states matter here."""


@pytest.fixture
async def prefect(prefect_server: str) -> AsyncIterator[PrefectClient]:
    """Prefect's own client."""
    async with PrefectClient(prefect_server) as client:
        yield client


@pytest.fixture
async def relay(prefect_server: str) -> AsyncIterator[Relay]:
    """The wire between the watch and Prefect."""
    url = httpx.URL(prefect_server)
    async with Relay((url.host, url.port or 80)) as wire:
        yield wire


@pytest.fixture
async def gateway(relay: Relay) -> AsyncIterator[PrefectGateway]:
    """NOVA's connection to Prefect, over the wire."""
    settings = Settings(PREFECT_API_URL=f"http://127.0.0.1:{relay.port}/api")
    async with PrefectGateway(settings) as connection:
        yield connection


async def test_all_who_ask_at_once_share_one_look_up(
    gateway: PrefectGateway, relay: Relay, prefect: PrefectClient
) -> None:
    """Ten askers for each of two runs and an unknown one: one request, and each has its answer."""
    runs = [await prefect.create_flow_run(watched, state=Scheduled()) for _ in range(2)]
    ids = [run.id for run in runs] + [uuid4()]
    states = await asyncio.gather(*(gateway.watch.state(one) for one in ids * 10))
    assert [state and (state.flow_run_id, state.status) for state in states[:3]] == [
        (ids[0], "PENDING"),
        (ids[1], "PENDING"),
        None,
    ]
    assert states == states[:3] * 10
    assert len(relay.requests(LOOK_UP)) == 1


async def test_more_runs_than_prefect_gives_at_once(gateway: PrefectGateway, relay: Relay) -> None:
    """Two hundred are a page of Prefect's: four hundred and one take three requests."""
    states = await asyncio.gather(*(gateway.watch.state(uuid4()) for _ in range(401)))
    assert states == [None] * 401
    assert len(relay.requests(LOOK_UP)) == 3


async def test_what_happens_in_prefect_is_seen(gateway: PrefectGateway, prefect: PrefectClient) -> None:
    """A run that is cancelled, then deleted, is known to be so soon afterwards."""
    run = await prefect.create_flow_run(watched, state=Scheduled())

    async def status() -> str | None:
        state = await gateway.watch.state(run.id)
        return state.status if state else None

    assert await status() == "PENDING"
    await prefect.set_flow_run_state(run.id, Cancelled(), force=True)
    await eventually(status, lambda told: told == "REVOKED")
    await prefect.delete_flow_run(run.id)
    await eventually(status, lambda told: told is None)


async def test_a_fresh_answer_is_not_from_memory(gateway: PrefectGateway, prefect: PrefectClient) -> None:
    """What was just done in Prefect is known at once to who asks anew, and then to all."""
    run = await prefect.create_flow_run(watched, state=Scheduled())
    await gateway.watch.state(run.id)
    await prefect.set_flow_run_state(run.id, Cancelled(), force=True)
    fresh = await gateway.watch.fresh(run.id)
    assert fresh is not None
    assert fresh.status == "REVOKED"
    assert await gateway.watch.state(run.id) == fresh


async def test_an_older_answer_does_not_replace_a_newer_one(
    gateway: PrefectGateway, relay: Relay, prefect: PrefectClient
) -> None:
    """A look-up was under way when somebody learned more: its answer comes too late."""
    run = await prefect.create_flow_run(watched, state=Scheduled())
    await gateway.watch.state(uuid4())  # Prefect's client asks for a token before its first one
    relay.open.clear()
    asker = asyncio.create_task(gateway.watch.state(run.id))
    await eventually(lambda: asyncio.to_thread(relay.requests, LOOK_UP), lambda asked: len(asked) == 2)
    newer = replace(state_of(run), status="RUNNING")
    gateway.watch.expect(newer)
    relay.open.set()
    assert await asker == newer
    assert await gateway.watch.state(run.id) == newer


async def test_a_failure_is_told_to_all_and_soon_forgotten(gateway: PrefectGateway, relay: Relay) -> None:
    """Nobody waits for a Prefect that has just failed; when it is back it is asked again."""
    unknown = uuid4()
    await relay.cut()
    answers = await asyncio.gather(*(gateway.watch.state(unknown) for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {PrefectUnavailableError}
    await relay.restore()

    async def answered() -> bool:
        try:
            return await gateway.watch.state(unknown) is None
        except PrefectUnavailableError:
            return False

    await eventually(answered, bool)


async def test_runs_that_nobody_asks_for_are_forgotten(
    gateway: PrefectGateway, relay: Relay, prefect: PrefectClient
) -> None:
    """Unknown ids go soon: later look-ups are for the runs alone that somebody still waits for."""
    run = await prefect.create_flow_run(watched, state=Scheduled())
    forgotten = uuid4()
    await asyncio.gather(gateway.watch.state(run.id), gateway.watch.state(forgotten))
    assert str(forgotten) in relay.requests(LOOK_UP)[0]

    async def last_look_up(asked: UUID = run.id) -> str:
        await gateway.watch.state(asked)
        return relay.requests(LOOK_UP)[-1]

    last = await eventually(last_look_up, lambda text: str(forgotten) not in text)
    assert str(run.id) in last
