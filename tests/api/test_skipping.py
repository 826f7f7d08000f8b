"""A person skips the node at which a run failed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.states import (
    Failed,
    Running,
    Scheduled,
)
from sqlalchemy import update

from flows.config.settings import Settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.graphs.lifecycle import Status
from flows.recovery.reconciler import Reconciler
from flows.store import chain, values
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import submissions
from tests.api.conftest import SetState, make_settings, running_api
from tests.api.looks import in_prefect, row_of, status
from tests.api.relay import Relay
from tests.store import rows

Start = Callable[..., Any]
Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]


async def test_a_run_goes_on_behind_a_node_that_is_skipped(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, database: Database
) -> None:
    """With the context that the person gives; the Chain of Work shows the attempt and the skip."""
    task_id, run = await failed(initial_context={"mailbox": "INBOX"})
    answer = await api.post(f"/executions/{run.execution_id}/nodes/1/skip", json={"context": {"amount": 7}})
    assert (answer.status_code, answer.json()["status"]) == (202, "RETRY")
    assert (answer.json()["task_id"], answer.json()["execution_id"]) == (task_id, run.execution_id)
    assert await status(api, task_id) == "RETRY"
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    entries = (await api.get(f"/executions/{run.execution_id}/chain")).json()["entries"]
    assert [(e["node_id"], e["attempt"], e["status"]) for e in entries[1:]] == [
        ("read", 1, "failed"),
        ("read", 2, "success"),
    ]
    assert entries[-1]["output_result"] == {"mailbox": "INBOX", "amount": 7}
    assert (await run.begin()).attempt == 2
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits == [("start", None), ("read", None)]


@pytest.mark.parametrize("branch", ["false", False])
async def test_a_decision_is_skipped_with_its_answer(
    api: httpx.AsyncClient, start: Start, set_state: SetState, database: Database, branch: object
) -> None:
    """As a string or as JSON's own; an answer that leads nowhere, or none, is refused by name."""
    task_id, run = await start()
    await run.begin()
    await run.step("start", "start")
    await run.step("read")
    await run.finish(Status.FAILED, error="no")
    await set_state(task_id, Failed())
    path = f"/executions/{run.execution_id}/nodes/2/skip"
    for wrong in ({"branch": "maybe"}, {}, {"branch": 7}):
        refused = await api.post(path, json=wrong)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "branch")
    assert (await api.post(path, json={"branch": branch})).status_code == 202
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits[-1] == ("high", "false")


async def test_secrets_in_the_context_are_sealed(
    api: httpx.AsyncClient, failed: Start, database: Database, cipher: Cipher
) -> None:
    """Passwords, and what contains one that the run had, are encrypted and shown as `***`."""
    _, run = await failed(initial_context={"email_password": "s3cret-pass"})
    given = {"db_password": "0ther-pass", "url": "imap://me:s3cret-pass@host", "both": ["0ther-pass"], "n": 1}
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    assert (await api.post(path, json={"context": given})).status_code == 202

    def read(session: Any) -> dict[str, values.Value]:
        state = chain.state(session, run.execution_id)
        held = values.load(session, run.execution_id, state.values())
        return {key: held[digest] for key, digest in state.items() if key in given}

    stored = await database.run(read)
    sealed = {key: value.sealed for key, value in stored.items()}
    assert sealed == {"db_password": True, "url": True, "both": True, "n": False}
    assert vault.open_values(cipher, stored)["db_password"] == b'"0ther-pass"'
    shown = (await api.get(f"/executions/{run.execution_id}/chain")).json()["entries"][-1]["output_result"]
    assert (shown["url"], shown["n"]) == ("***", 1)


async def test_a_clients_credentials_are_not_a_persons_to_give(
    api: httpx.AsyncClient, failed: Start, idom: dict[str, Any], database: Database
) -> None:
    """As for a node: what lies over the context anyway is left out, and its password is sealed elsewhere."""
    fields = {
        "email_user": "invoices@idom.example",
        "email_password": "client-pass",
        "imap_host": "imap.idom.example",
    }
    credential = {"kind": "email", "label": "invoices", "fields": fields}
    assert (await api.post("/clients/idom/credentials", json=credential)).status_code in (200, 201)
    _, run = await failed(client_slug="idom")
    given = {"email_user": "me", "note": "it is client-pass"}
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    assert (await api.post(path, json={"context": given})).status_code == 202
    entry = (await api.get(f"/executions/{run.execution_id}/chain?contexts=changes")).json()["entries"][-1]
    assert entry["output_result"] == {"note": "***"}


async def test_a_context_that_no_attempt_could_load_is_refused(
    failed: Start, prefect: PrefectClient, settings: Settings, encryption_key: str, prefect_server: str
) -> None:
    """The run's context counts, less what is replaced; nothing happens."""
    task_id, run = await failed(initial_context={"kept": "x" * 1200, "replaced": "x" * 600})
    own = make_settings(settings.database_url, prefect_server, encryption_key, NOVA_CONTEXT_LIMIT=2000)
    path = f"/executions/{run.execution_id}/nodes/1/skip"
    async with running_api(own) as api:
        refused = await api.post(path, json={"context": {"given": "x" * 400}})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "context")
        assert await in_prefect(prefect, task_id) == "Failed"
        assert (await api.post(path, json={"context": {"replaced": "x" * 400}})).status_code == 202


@pytest.mark.parametrize("step", [0, 2])
async def test_only_the_node_at_which_it_failed_is_skipped(
    api: httpx.AsyncClient, failed: Start, prefect: PrefectClient, step: int
) -> None:
    """409 says which one that is; nothing happens."""
    task_id, run = await failed()
    answer = await api.post(f"/executions/{run.execution_id}/nodes/{step}/skip")
    assert (answer.status_code, "step 1, node 'read'" in answer.json()["error"]) == (409, True)
    assert await status(api, task_id) == "FAILURE"
    assert await in_prefect(prefect, task_id) == "Failed"


async def test_a_node_of_a_run_that_goes_on_is_not_skipped(
    api: httpx.AsyncClient, start: Start, set_state: SetState
) -> None:
    """Nor of one that there is not; nor with a context that is none."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    path = f"/executions/{run.execution_id}/nodes/0/skip"
    assert (await api.post(path)).status_code == 409
    assert (await api.post("/executions/99/nodes/0/skip")).status_code == 404
    assert (await api.post(f"/executions/{run.execution_id}/nodes/-1/skip")).status_code == 422
    for context in ("x", 7):
        refused = await api.post(path, json={"context": context})
        assert refused.json()["errors"][0]["field"] == "context"


async def test_a_skip_is_not_lost_and_the_node_does_not_run(
    api: httpx.AsyncClient,
    failed: Start,
    prefect: PrefectClient,
    database: Database,
    reconciler: Reconciler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API died after the row was written: when its lease has run out, the run is put in its queue."""
    task_id, run = await failed()

    async def died(*_: object) -> None:
        """Prefect never hears of it."""

    with monkeypatch.context() as patch:
        patch.setattr("api.interventions._put_in_queue", died)
        assert (await api.post(f"/executions/{run.execution_id}/nodes/1/skip")).status_code == 202
    await reconciler.once()
    assert await in_prefect(prefect, task_id) == "Failed"
    assert await status(api, task_id) == "RETRY"
    rows.expire(database, await row_of(database, task_id))
    await reconciler.once()
    assert await in_prefect(prefect, task_id) == "AwaitingRetry"
    assert (await row_of(database, task_id)).lease_owner is None
    visits = await database.run(lambda session: chain.visits(session, run.execution_id))
    assert visits[-1] == ("read", None)


async def test_a_run_that_was_never_started_is_neither_retried_nor_skipped(
    api: httpx.AsyncClient, workflow: dict[str, Any], prefect: PrefectClient, database: Database
) -> None:
    """Its client was told so (503): a flow run that turned up late does not change that."""
    task_id = (await api.post(f"/workflows/{workflow['id']}/execute")).json()["task_id"]
    row = await row_of(database, task_id)
    not_noted = update(Execution).values(flow_run_id=None, task_id=None)
    await database.run(lambda session: session.execute(not_noted))
    assert await database.run(lambda session: submissions.refuse(session, row.id, "Prefect was away."))
    await prefect.set_flow_run_state(UUID(task_id), Scheduled(), force=True)
    for path in (f"/tasks/{task_id}/retry", f"/executions/{row.id}/nodes/0/skip"):
        answer = await api.post(path)
        assert (answer.status_code, "never started" in answer.json()["error"]) == (409, True)
    refused = (await api.get(f"/executions/{row.id}")).json()
    assert (refused["status"], refused["error"]) == ("cancelled", "Prefect was away.")
