"""The flow run in the test process, against real PostgreSQL, a real Prefect server and real sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.config.settings import get_settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher, generate_key
from flows.execute_workflow import execute_workflow
from flows.graphs import json_values
from flows.store import chain, clients, executions, values, workflows
from flows.store.database import Database
from flows.store.models import ChainEntry, Execution, Workflow
from flows.store.transitions import submissions
from tests.builders import fresh_name

EMAIL = {
    "email_user": "invoices@idom.example",
    "imap_host": "127.0.0.1",
    "imap_port": 1143,
    "smtp_host": "127.0.0.1",
    "smtp_port": 1025,
    "sender_whitelist": "supplier@example.com",
}


class Nova:
    """NOVA without its API: what is needed to run a flow and look at what it left."""

    def __init__(self, database: Database, cipher: Cipher, prefect: PrefectClient) -> None:
        self.database = database
        self.cipher = cipher
        self.prefect = prefect

    async def workflow(self, graph: dict[str, Any], **fields: Any) -> Workflow:
        """Save a workflow under a fresh name."""
        return await self.database.run(
            lambda session: workflows.create(session, name=fresh_name(), graph=graph, **fields)
        )

    async def client(self, password: str = "s3cret-mail!") -> str:
        """Save a client with a mailbox and return its slug."""
        slug = f"idom-{uuid4().hex[:8]}"
        secret = vault.seal_credential(self.cipher, {"email_password": password})

        def write(session: Any) -> None:
            clients.create(session, slug=slug, name="Idom")
            clients.put_credential(
                session, slug, kind="email", label="main", primary=True, public=EMAIL, secret=secret
            )

        await self.database.run(write)
        return slug

    async def pending(
        self, workflow: Workflow, initial: Mapping[str, Any] = {}, client: str | None = None
    ) -> Execution:
        """Insert an execution as the API does before it asks Prefect for a flow run."""

        def write(session: Any) -> Execution:
            stored = vault.store_initial(self.cipher, json_values.to_fragments(initial))
            found = clients.active(session, client) if client else None
            return submissions.create(
                session, workflow_id=workflow.id, client=found, priority="normal", initial=stored
            )

        return await self.database.run(write)

    async def run(self, workflow: Workflow, **parameters: Any) -> State[Any]:
        """Run the flow here and now and return its final state."""
        state: State[Any] = await execute_workflow(workflow.id, return_state=True, **parameters)
        return state

    async def run_graph(self, graph: dict[str, Any], **initial: Any) -> Outcome:
        """Save a graph, run it with this initial context, and read what came of it."""
        workflow = await self.workflow(graph)
        execution = await self.pending(workflow, initial)
        state = await self.run(workflow, execution=execution.public_id)
        return await self.outcome(execution.id, state)

    async def outcome(self, execution_id: int, state: State[Any]) -> Outcome:
        """Read an execution, its chain and its last context."""

        def read(session: Any) -> Outcome:
            rows = chain.entries(session, execution_id, 0, 2000)
            digests = chain.state(session, execution_id)
            loaded = values.load(session, execution_id, digests.values())
            shown = {key: vault.show(loaded[digest]) for key, digest in digests.items()}
            return Outcome(
                executions.get(session, execution_id), rows, json_values.from_fragments(shown), state
            )

        return await self.database.run(read)


class Outcome:
    """What a run left behind."""

    def __init__(
        self, execution: Execution, entries: list[ChainEntry], final: dict[str, Any], state: State[Any]
    ) -> None:
        self.execution = execution
        self.entries = entries
        self.context = final
        self.state = state

    @property
    def path(self) -> list[str]:
        """Ids of the nodes that ran, in order."""
        return [entry.node_id for entry in self.entries]

    @property
    def flow_run_id(self) -> UUID:
        """The contract's task id."""
        assert self.execution.flow_run_id is not None
        return self.execution.flow_run_id


@pytest.fixture
async def nova(
    request: pytest.FixtureRequest,
    database: Database,
    database_url: str,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Nova]:
    """NOVA on this test's database, with local sandboxes."""
    key = generate_key()
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("NOVA_ENCRYPTION_KEY", key)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    # Logs sent to the server would still be on their way when the server ends with the session.
    prefect_settings = {PREFECT_API_URL: prefect_server, PREFECT_LOGGING_TO_API_ENABLED: False}
    with settings_reread(), temporary_settings(prefect_settings):
        if request.node.get_closest_marker("real_prefect"):  # events still go to an earlier test's server
            await EventsWorker.drain_all(timeout=2)  # type: ignore[misc]
        async with PrefectClient(prefect_server) as prefect:
            yield Nova(database, Cipher(key), prefect)


class settings_reread:  # noqa: N801 - used like a function
    """Within it NOVA's settings are read anew, and again when it ends."""

    def __enter__(self) -> None:
        get_settings.cache_clear()

    def __exit__(self, *_: object) -> None:
        get_settings.cache_clear()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Call it with settings (environment names) to run the next flow under them."""

    def change(**environment: str) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    yield change
    get_settings.cache_clear()
