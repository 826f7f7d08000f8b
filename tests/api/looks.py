"""How a run stands, as its row, the API and Prefect have it."""

from __future__ import annotations

from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient

from flows.store import executions
from flows.store.database import Database
from flows.store.models import Execution

SET_STATE = "POST /api/flow_runs/"
"""How a request begins that proposes a state to Prefect."""


async def status(api: httpx.AsyncClient, task_id: str) -> str:
    """What a client that polls the task reads."""
    return str((await api.get(f"/tasks/{task_id}")).json()["status"])


async def row_of(database: Database, task_id: str) -> Execution:
    """The row of a task, as it is now."""
    row = await database.run(lambda session: executions.by_task(session, UUID(task_id)))
    assert row is not None
    return row


async def in_prefect(prefect: PrefectClient, task_id: str) -> str | None:
    """The name of the state that Prefect has."""
    return (await prefect.read_flow_run(UUID(task_id))).state_name
