"""The API looks after runs too: what it accepted reaches Prefect, even if it died in between."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from flows.config import times
from flows.config.settings import Settings
from flows.store import executions
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import submissions
from tests.api.conftest import running_api
from tests.waiting import eventually


async def test_a_run_that_the_api_died_over_is_handed_to_prefect(
    api: httpx.AsyncClient,
    workflow: dict[str, Any],
    settings: Settings,
    database: Database,
    prefect: PrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its row was written and its flow run never made: the next API makes it, deployment and all."""
    row = await database.run(
        lambda session: submissions.create(
            session, workflow_id=workflow["id"], client=None, priority="high", initial={}
        )
    )
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    await prefect.delete_deployment(deployment.id)
    monkeypatch.setattr(times, "UNSUBMITTED", 0.0)
    quick = settings.model_copy(update={"recovery_interval": 0.05})

    async def read() -> Execution:
        return await database.run(lambda session: executions.get(session, row.id))

    async with running_api(quick):
        found = await eventually(read, lambda row: row.flow_run_id is not None)
    assert found.flow_run_id is not None
    flow_run = await prefect.read_flow_run(found.flow_run_id)
    assert flow_run.parameters["execution"] == str(row.public_id)
    assert (flow_run.work_queue_name, flow_run.name) == ("high", f"{workflow['slug']} #{row.id}")
    assert (found.status, found.lease_owner) == ("pending", None)
