"""`Idempotency-Key`: whatever becomes of a request, the client may simply send it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.credentials.cipher import Cipher, generate_key
from flows.graphs.errors import ExecutionClosedError
from flows.graphs.lifecycle import Status
from flows.store.database import Database, now
from flows.store.models import Execution, IdempotencyKey
from flows.store.transitions import submissions
from tests.api.conftest import make_settings, running_api
from tests.api.relay import Relay
from tests.api.runs import Run
from tests.api.test_execute import flow_runs
from tests.builders import fresh_name
from tests.leasing import begin
from tests.waiting import eventually

Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]
BODY = {"initial_context": {"b": 1, "a": {"y": 2, "x": "é\0"}}, "priority": "low"}


async def rows(database: Database) -> list[Execution]:
    """All executions, oldest first."""
    return await database.run(lambda session: list(session.scalars(select(Execution).order_by(Execution.id))))


async def post(
    api: httpx.AsyncClient, workflow: dict[str, Any], key: str = "order 7", body: Any = BODY
) -> httpx.Response:
    """Execute with a key."""
    return await api.post(
        f"/workflows/{workflow['id']}/execute", json=body, headers={b"Idempotency-Key": key.encode()}
    )


async def test_the_same_request_is_the_same_task(
    api: httpx.AsyncClient, workflow: dict[str, Any], prefect: PrefectClient, database: Database
) -> None:
    """202 with the same answer, in whatever order the fields stand; one execution, one flow run."""
    first = await post(api, workflow)
    turned = {"priority": "low", "initial_context": {"a": {"x": "é\0", "y": 2}, "b": 1}}
    again = [await post(api, workflow), await post(api, workflow, body=turned)]
    assert first.status_code == 202
    assert [(one.status_code, one.json()) for one in again] == [(202, first.json())] * 2
    assert len(await rows(database)) == len(await flow_runs(prefect, workflow["slug"])) == 1


async def test_another_key_is_another_task(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database
) -> None:
    """And no key is none: each such request is a run of its own."""
    answers = [await post(api, workflow), await post(api, workflow, "order 8")]
    answers += [await api.post(f"/workflows/{workflow['id']}/execute", json=BODY) for _ in range(2)]
    assert len({answer.json()["task_id"] for answer in answers}) == 4


async def test_a_run_that_is_over_is_still_the_same_task(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, cipher: Cipher
) -> None:
    """A client that had no answer learns the id of what it has started, whatever became of it."""
    first = await post(api, workflow)
    run = Run(database, cipher, first.json()["task_id"])
    await run.begin()
    await run.finish(Status.FAILED)
    assert (await post(api, workflow)).json() == first.json()


@pytest.mark.parametrize(
    "other", [{}, None, {**BODY, "priority": "high"}, {**BODY, "initial_context": {"b": 1}}]
)
async def test_a_key_stands_for_one_request(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, other: Any
) -> None:
    """409 for another body; what is running does not change."""
    await post(api, workflow)
    refused = await post(api, workflow, body=other)
    assert (refused.status_code, refused.json()["status_code"]) == (409, 409)
    assert "Idempotency-Key" in refused.json()["error"]
    assert len(await rows(database)) == 1


async def test_a_key_stands_for_one_workflow(
    api: httpx.AsyncClient, workflow: dict[str, Any], invoices: dict[str, Any]
) -> None:
    """The same body for another workflow is another request."""
    other = await api.post("/workflows", json={"name": fresh_name(), "graph_definition": invoices})
    await post(api, workflow)
    assert (await post(api, other.json())).status_code == 409


async def test_requests_at_once_are_one_task(
    api: httpx.AsyncClient, workflow: dict[str, Any], prefect: PrefectClient, database: Database
) -> None:
    """Ten of them while none has been answered yet."""
    answers = await asyncio.gather(*(post(api, workflow) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert len(await rows(database)) == len(await flow_runs(prefect, workflow["slug"])) == 1


async def test_a_key_is_free_after_a_day(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database
) -> None:
    """Then it may stand for another request."""
    first = await post(api, workflow)
    aged = update(IdempotencyKey).values(created_at=now() - timedelta(hours=25))
    await database.run(lambda session: session.execute(aged))
    again = await post(api, workflow, body={})
    assert again.status_code == 202
    assert again.json()["task_id"] != first.json()["task_id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x7fb", "señor", "€"])
async def test_a_key_must_be_plain(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, key: str
) -> None:
    """422 that names the header; nothing is started."""
    refused = await post(api, workflow, key)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "Idempotency-Key"
    assert key.isascii() or "ASCII" in refused.json()["error"]
    assert await rows(database) == []


async def test_a_request_that_was_refused_takes_no_key(
    api: httpx.AsyncClient, workflow: dict[str, Any], idom: dict[str, Any]
) -> None:
    """It named an unknown client; corrected, it may have the same key."""
    assert (await post(api, workflow, body={"client_slug": "idon"})).status_code == 404
    assert (await post(api, workflow, body={"client_slug": "idom"})).status_code == 202


async def test_an_encryption_key_may_be_put_first(
    api: httpx.AsyncClient, workflow: dict[str, Any], settings: Settings, encryption_key: str
) -> None:
    """What is kept of a request cannot be tried without the key; a new one before it changes nothing."""
    first = await post(api, workflow)
    both = f"{generate_key()},{encryption_key}"
    url, prefect_url = settings.database_url, settings.prefect_api_url
    async with running_api(make_settings(url, prefect_url, both)) as rotated:
        assert (await post(rotated, workflow)).json() == first.json()
    async with running_api(make_settings(url, prefect_url, generate_key())) as other:
        assert (await post(other, workflow)).status_code == 409


async def test_after_a_503_the_client_simply_asks_again(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    prefect_wire: Wire,
    settings: Settings,
    encryption_key: str,
    database: Database,
) -> None:
    """Prefect's answer was lost: the flow run that it had made never starts, a second one does, once."""
    async with prefect_wire() as (relay, url):
        own = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=5)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            relay.deaf = True
            assert (await post(api, workflow)).status_code == 503
            (late,) = await eventually(lambda: flow_runs(prefect, workflow["slug"]), bool)
            relay.deaf = False
            await relay.cut()
            await relay.restore()

            async def ask() -> httpx.Response:
                return await post(api, workflow)

            answer = await eventually(ask, lambda answer: answer.status_code == 202)
            answers = await asyncio.gather(ask(), ask(), ask())
    task_id = UUID(answer.json()["task_id"])
    assert {one.json()["task_id"] for one in answers} == {str(task_id)}
    *given_up, row = await rows(database)
    assert (row.status, row.flow_run_id) == ("pending", task_id)
    assert {one.error_kind for one in given_up} == {"not_started"}
    assert late.id != task_id
    with pytest.raises(ExecutionClosedError):
        await database.run(
            lambda session: begin(
                session,
                flow_run_id=late.id,
                public_id=given_up[0].public_id,
                workflow_id=workflow["id"],
            )
        )


async def test_a_request_that_died_with_the_api_is_taken_up(
    api: httpx.AsyncClient, workflow: dict[str, Any], prefect: PrefectClient, database: Database
) -> None:
    """Its row waits for a flow run, or has one that was not noted: the same execution is handed over."""
    first = await post(api, workflow)
    before = (await rows(database))[0]
    not_noted = update(Execution).values(flow_run_id=None, task_id=None)
    await database.run(lambda session: session.execute(not_noted))
    assert (await post(api, workflow)).json() == first.json()
    await database.run(lambda session: session.execute(not_noted))
    await prefect.delete_flow_run(UUID(first.json()["task_id"]))
    again = await post(api, workflow)
    assert again.status_code == 202
    (row,) = await rows(database)
    assert (row.public_id, str(row.flow_run_id)) == (before.public_id, again.json()["task_id"])
    (flow_run,) = await flow_runs(prefect, workflow["slug"])
    assert (flow_run.id, flow_run.idempotency_key) == (row.flow_run_id, str(row.public_id))


async def test_a_run_that_was_made_anew_keeps_its_key_for_a_day(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database
) -> None:
    """Counted from its own start, not from the request that was answered with 503."""
    await post(api, workflow)

    def age(session: Session) -> None:
        session.execute(update(Execution).values(flow_run_id=None, task_id=None))
        assert submissions.refuse(session, 1, "Prefect was away.")
        session.execute(update(IdempotencyKey).values(created_at=now() - timedelta(hours=23)))

    await database.run(age)
    again = await post(api, workflow)
    await database.run(
        lambda session: session.execute(
            update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - timedelta(hours=23))
        )
    )
    assert (await post(api, workflow)).json() == again.json()


async def test_a_run_whose_flow_run_is_not_noted_is_not_promised(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    wire: Wire,
    prefect_wire: Wire,
    encryption_key: str,
    database: Database,
) -> None:
    """The database went away after Prefect made it, and another request with the key gave the row up: 503."""
    async with wire() as (relay, url), prefect_wire() as (slow, prefect_url):
        own = make_settings(url, prefect_url, encryption_key, NOVA_PREFECT_TIMEOUT=20)
        async with running_api(own) as api:
            assert (await api.get("/health")).status_code == 200
            slow.open.clear()
            request = asyncio.create_task(post(api, workflow))
            await eventually(lambda: flow_runs(prefect, workflow["slug"]), bool)
            await relay.cut()
            slow.open.set()
            await asyncio.wait({request}, timeout=2)
            assert not request.done()
            (row,) = await rows(database)
            assert await database.run(lambda session: submissions.refuse(session, row.id, "No answer."))
            await relay.restore()
            assert (await request).status_code == 503


async def test_of_two_that_wait_the_one_without_answer_gives_nothing_up(
    workflow: dict[str, Any],
    prefect: PrefectClient,
    prefect_wire: Wire,
    api: httpx.AsyncClient,
    settings: Settings,
    encryption_key: str,
    database: Database,
) -> None:
    """One API hears nothing of Prefect, another one does: both answer with the run that there is."""
    async with prefect_wire() as (relay, url):
        deaf = make_settings(settings.database_url, url, encryption_key, NOVA_PREFECT_TIMEOUT=15)
        async with running_api(deaf) as deaf_api:
            assert (await deaf_api.get("/health")).status_code == 200
            relay.deaf = True
            waiting = asyncio.create_task(post(deaf_api, workflow))
            await eventually(lambda: flow_runs(prefect, workflow["slug"]), bool)
            told = await post(api, workflow)
            assert told.status_code == 202
            late = await waiting
    assert (late.status_code, late.json()) == (202, told.json())
    (row,) = await rows(database)
    assert (row.status, str(row.flow_run_id)) == ("pending", told.json()["task_id"])
