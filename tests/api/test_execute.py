"""Running a workflow over HTTP: 202 when Prefect has confirmed the run, and nothing promised before."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import select

from flows.config.settings import Settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.store import values
from flows.store.database import Database
from flows.store.models import Execution
from tests.api.conftest import make_settings, running_api
from tests.builders import fresh_name
from tests.waiting import eventually


async def flow_runs(prefect: PrefectClient, slug: str) -> list[FlowRun]:
    """All flow runs that Prefect has for a workflow."""
    tags = FlowRunFilterTags(all_=[f"workflow:{slug}"])
    return await prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tags))


async def rows(database: Database) -> list[Execution]:
    """All executions, oldest first."""
    return await database.run(lambda session: list(session.scalars(select(Execution).order_by(Execution.id))))


async def initial_context(database: Database, row: Execution, cipher: Cipher) -> dict[str, bytes]:
    """The stored context that a run starts with, opened as for its sandbox."""
    stored = await database.run(lambda session: values.load(session, row.id, row.initial.values()))
    return vault.open_values(cipher, {key: stored[digest] for key, digest in row.initial.items()})


async def test_execute_answers_as_the_old_build_did(
    api: httpx.AsyncClient, workflow: dict[str, Any], idom: dict[str, Any]
) -> None:
    """202 with exactly the contract's five fields."""
    response = await api.post(
        f"/workflows/{workflow['id']}/execute", json={"client_slug": "idom", "initial_context": {}}
    )
    task_id = response.json()["task_id"]
    assert response.status_code == 202
    assert response.json() == {
        "task_id": str(UUID(task_id)),
        "status": "queued",
        "workflow_id": workflow["id"],
        "workflow_name": workflow["name"],
        "message": f"Workflow queued for execution. Use GET /tasks/{task_id} to check status.",
    }


async def test_the_task_id_is_the_flow_runs(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], idom: dict[str, Any]
) -> None:
    """The same id opens in Prefect: with a readable name, tags, and nothing of the context in it."""
    response = await api.post(
        f"/workflows/{workflow['id']}/execute",
        json={"client_slug": "idom", "initial_context": {"note": "quite private"}},
    )
    flow_run = await prefect.read_flow_run(UUID(response.json()["task_id"]))
    execution = (await api.get("/executions")).json()["executions"][0]
    assert flow_run.name == f"{workflow['slug']} #{execution['id']} idom"
    assert {f"workflow:{workflow['slug']}", "client:idom"} <= set(flow_run.tags)
    assert flow_run.work_queue_name == "normal"
    assert set(flow_run.parameters) <= {"workflow_id", "execution", "client_slug", "initial_context"}
    assert "quite private" not in str(flow_run.parameters)
    assert (execution["task_id"], execution["status"]) == (response.json()["task_id"], "pending")
    assert (execution["client_slug"], execution["workflow_id"]) == ("idom", workflow["id"])


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"content": b""},
        {"json": {}},
        {"json": None},
        {"json": {"initial_context": None, "client_slug": None, "priority": None}},
        {"json": {"unknown": 1}},
        {"content": b"{}"},
    ],
    ids=["none", "empty", "object", "null", "nulls", "unknown", "no-content-type"],
)
async def test_the_body_may_be_left_out(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Without a client the name and tags are without one, too."""
    response = await api.post(f"/workflows/{workflow['id']}/execute", **sent)
    assert response.status_code == 202
    flow_run = await prefect.read_flow_run(UUID(response.json()["task_id"]))
    assert flow_run.name == f"{workflow['slug']} #1"
    assert not any(tag.startswith("client:") for tag in flow_run.tags)


async def test_an_unknown_or_inactive_client_is_404(
    api: httpx.AsyncClient, workflow: dict[str, Any], idom: dict[str, Any], database: Database
) -> None:
    """And nothing was started."""
    address = f"/workflows/{workflow['id']}/execute"
    for slug in ("acme", "", "ID OM", "\0", "\ud800", "x" * 10_000):
        assert (await post_ascii(api, address, {"client_slug": slug})).status_code == 404
    await api.put("/clients/idom", json={"active": False})
    assert (await api.post(address, json={"client_slug": "idom"})).status_code == 404
    assert await rows(database) == []


async def post_ascii(api: httpx.AsyncClient, address: str, body: object) -> httpx.Response:
    """Post JSON as Python's json writes it, which httpx does not: it breaks on lone surrogates."""
    return await api.post(
        address, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )


@pytest.mark.parametrize("priority", ["high", "low"])
async def test_a_run_may_have_its_own_priority(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], priority: str
) -> None:
    """`execute` overrides the workflow's priority: the run waits in that queue."""
    response = await api.post(f"/workflows/{workflow['id']}/execute", json={"priority": priority})
    flow_run = await prefect.read_flow_run(UUID(response.json()["task_id"]))
    assert flow_run.work_queue_name == priority


async def test_the_workflows_priority_is_the_default(
    api: httpx.AsyncClient, prefect: PrefectClient, invoices: dict[str, Any]
) -> None:
    """A workflow of high priority has its runs in the queue high."""
    body = {"name": fresh_name(), "graph_definition": invoices, "priority": "high"}
    made = (await api.post("/workflows", json=body)).json()
    task_id = (await api.post(f"/workflows/{made['id']}/execute")).json()["task_id"]
    assert (await prefect.read_flow_run(UUID(task_id))).work_queue_name == "high"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"initial_context": []}, "initial_context"),
        ({"initial_context": "x"}, "initial_context"),
        ({"client_slug": 5}, "client_slug"),
        ({"priority": "urgent"}, "priority"),
        ([], "body"),
        ("text", "body"),
        (7, "body"),
    ],
)
async def test_bad_fields_are_named(
    api: httpx.AsyncClient, workflow: dict[str, Any], body: object, field: str
) -> None:
    """422 says which, and no row is left behind."""
    response = await api.post(f"/workflows/{workflow['id']}/execute", json=body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]
    assert (await api.get("/executions")).json()["total"] == 0


async def test_any_json_value_is_carried(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, cipher: Cipher
) -> None:
    """NUL, lone surrogates, quotes, 100 levels, 1,000 digits: stored as they were sent."""
    deep: list[Any] = []
    for _ in range(99):
        deep = [deep]
    context = {
        "nul\0key\ud800": 'a\0b"\\\n\ud83d',
        "deep": deep,
        "long": 10**999,
        "float": 1e308,
        "": None,
        "list": [True, {"x": []}],
    }
    response = await post_ascii(api, f"/workflows/{workflow['id']}/execute", {"initial_context": context})
    assert response.status_code == 202, response.text
    stored = await initial_context(database, (await rows(database))[0], cipher)
    assert {key: json.loads(text) for key, text in stored.items()} == context


async def test_ten_megabytes_are_carried(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, cipher: Cipher
) -> None:
    """A large context goes to the database, not to Prefect."""
    big = "0123456789" * 1024 * 1024
    response = await api.post(f"/workflows/{workflow['id']}/execute", json={"initial_context": {"big": big}})
    assert response.status_code == 202
    stored = await initial_context(database, (await rows(database))[0], cipher)
    assert stored["big"] == b'"' + big.encode() + b'"'


async def test_secrets_in_a_context_are_sealed(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, cipher: Cipher
) -> None:
    """Passwords that a caller gives are encrypted at rest, and opened for the sandbox alone."""
    context = {"email_password": "s3cret-pass", "db_password": "0ther-pass", "open": "read me"}
    await api.post(f"/workflows/{workflow['id']}/execute", json={"initial_context": context})
    row = (await rows(database))[0]
    stored = await database.run(lambda session: values.load(session, row.id, row.initial.values()))
    assert {key: stored[digest].sealed for key, digest in row.initial.items()} == {
        "email_password": True,
        "db_password": True,
        "open": False,
    }
    assert (await initial_context(database, row, cipher))["db_password"] == b'"0ther-pass"'


async def test_a_deployment_that_is_gone_is_made_again(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """Somebody deleted it in Prefect: the run goes through all the same, with one flow run."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    await prefect.delete_deployment(deployment.id)
    for _ in range(2):
        assert (await api.post(f"/workflows/{workflow['id']}/execute")).status_code == 202
    again = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    assert again.id != deployment.id
    assert len(await flow_runs(prefect, workflow["slug"])) == 2


async def test_many_at_once_are_each_run_once(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """Twenty requests at the same time: twenty executions, twenty flow runs, each its own."""
    address = f"/workflows/{workflow['id']}/execute"
    answers = await asyncio.gather(*(api.post(address) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    ids = {answer.json()["task_id"] for answer in answers}
    assert len(ids) == 20
    assert {str(run.id) for run in await flow_runs(prefect, workflow["slug"])} == ids


async def test_a_burst_is_taken_in_one_after_the_other(
    workflow: dict[str, Any], settings: Settings, encryption_key: str
) -> None:
    """A hundred and fifty at once take Prefect longer than we wait for one answer: none is refused for it."""
    own = make_settings(
        settings.database_url, settings.prefect_api_url, encryption_key, NOVA_PREFECT_TIMEOUT=4
    )
    address = f"/workflows/{workflow['id']}/execute"
    async with running_api(own) as api:
        answers = await asyncio.gather(*(api.post(address) for _ in range(150)))
    assert {answer.status_code for answer in answers} == {202}


async def test_a_caller_that_hangs_up_leaves_no_half_run(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], database: Database
) -> None:
    """A request that is cancelled while Prefect is asked comes to its end all the same."""
    request = asyncio.create_task(api.post(f"/workflows/{workflow['id']}/execute"))
    await eventually(lambda: rows(database), bool)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await eventually(lambda: rows(database), lambda found: found[0].flow_run_id is not None)
    runs = await flow_runs(prefect, workflow["slug"])
    assert [run.id for run in runs] == [(await rows(database))[0].flow_run_id]


async def test_a_slug_without_end_is_not_sent_back_whole(
    api: httpx.AsyncClient, workflow: dict[str, Any]
) -> None:
    """404 with its beginning."""
    answer = await api.post(f"/workflows/{workflow['id']}/execute", json={"client_slug": "x" * 100_000})
    assert answer.status_code == 404
    assert len(answer.text) < 1000
