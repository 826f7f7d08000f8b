"""Answers while PostgreSQL refuses to write: what is said, what is promised, and that nobody waits."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.states import Failed, Running
from sqlalchemy import select

from flows.config.settings import Settings
from flows.store.database import Database
from flows.store.models import Execution
from tests.api.conftest import SetState, make_settings, running_api
from tests.refusals import DISK_FULL, PROGRAM_LIMIT, WORDS, refused_rows
from tests.servers import free_port
from tests.waiting import eventually

PATIENCE = 30.0
"""Seconds within which an answer comes that waits for nothing."""


async def rows(database: Database) -> list[Execution]:
    """All executions."""
    return await database.run(lambda session: list(session.scalars(select(Execution))))


@pytest.mark.parametrize(
    ("code", "status"), [(DISK_FULL, 503), ("57014", 503), (PROGRAM_LIMIT, 500), ("22001", 500)]
)
async def test_a_run_that_cannot_be_written_is_not_taken(
    api: httpx.AsyncClient,
    workflow: dict[str, Any],
    database: Database,
    database_url: str,
    code: str,
    status: int,
) -> None:
    """503 where somebody will make room for it, 500 where the same would be refused again; no row is left."""
    with refused_rows(database_url, "INSERT", "executions", code=code):
        response = await api.post(f"/workflows/{workflow['id']}/execute", headers={"X-Request-ID": "find-me"})
    assert response.status_code == response.json()["status_code"] == status
    assert ("Retry-After" in response.headers) is (status == 503)
    assert ("find-me" in response.json()["error"]) is (status == 500)
    assert WORDS not in response.text
    assert await rows(database) == []


async def test_a_change_that_is_refused_is_told(
    api: httpx.AsyncClient, workflow: dict[str, Any], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets a sentence, and the log what PostgreSQL said."""
    with refused_rows(database_url, "UPDATE", "workflows"):
        response = await api.put(f"/workflows/{workflow['id']}", json={"description": "New words"})
    assert response.status_code == 503
    assert response.json()["error"].startswith("The database cannot do this now: it is short of space")
    assert f"PostgreSQL refused this ({DISK_FULL}): {WORDS}." in caplog.text
    assert (await api.get(f"/workflows/{workflow['id']}")).json()["description"] is None


async def test_a_run_that_cannot_be_given_up_is_not_promised_away(
    workflow: dict[str, Any], settings: Settings, encryption_key: str, database: Database
) -> None:
    """Prefect is away and the row cannot be closed: no 503, for it may start yet, nor waiting for ever."""
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    lonely = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(lonely) as api:
        with refused_rows(settings.database_url, "UPDATE", "executions"):
            request = api.post(f"/workflows/{workflow['id']}/execute")
            response = await asyncio.wait_for(request, PATIENCE)
    assert response.status_code == 500
    assert "not known whether the run will start" in response.json()["error"]
    (row,) = await rows(database)
    assert row.status == "pending"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "order-7"}])
async def test_a_confirmation_that_is_refused(
    api: httpx.AsyncClient,
    workflow: dict[str, Any],
    database: Database,
    database_url: str,
    headers: dict[str, str],
) -> None:
    """Prefect has the run, and its flow will find the row: 202."""
    with refused_rows(database_url, "UPDATE", "executions"):
        request = api.post(f"/workflows/{workflow['id']}/execute", headers=headers)
        response = await asyncio.wait_for(request, PATIENCE)
    assert response.status_code == 202
    (row,) = await rows(database)
    assert (row.status, row.flow_run_id) == ("pending", None)
    body = (await api.get(f"/tasks/{response.json()['task_id']}")).json()
    assert body["status"] == "PENDING"


async def test_a_poll_that_cannot_close_its_row_says_so(
    api: httpx.AsyncClient, start: Any, set_state: SetState, database_url: str
) -> None:
    """The run is over in Prefect, and nobody is told before it is so in the row."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    await set_state(task_id, Failed(message="PostgreSQL refused this."))
    with refused_rows(database_url, "UPDATE", "executions", "NEW.status = 'failed'"):
        await eventually(lambda: api.get(f"/tasks/{task_id}"), lambda answer: answer.status_code == 503)
    body = (await api.get(f"/tasks/{UUID(task_id)}")).json()
    assert (body["status"], body["error"]) == ("FAILURE", "PostgreSQL refused this.")
