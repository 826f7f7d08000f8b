"""The API in this process, on a real database and a real Prefect server; no worker takes its runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import Any, Protocol
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Failed

from api.app import create_app
from flows.config.settings import Settings
from flows.credentials.cipher import Cipher, generate_key
from flows.graphs.lifecycle import Status
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.reconciler import Reconciler
from flows.store.database import Database
from tests.api.conformance import Conformance
from tests.api.relay import Relay
from tests.api.runs import Run
from tests.builders import action, decision, fork, fresh_name
from tests.servers import free_port
from tests.wires import to_database

WORK_POOL = "api-tests"


@pytest.fixture(scope="session")
def encryption_key() -> str:
    """One key for all of these tests."""
    return generate_key()


@pytest.fixture
def cipher(encryption_key: str) -> Cipher:
    """What the API encrypts with."""
    return Cipher(encryption_key)


@pytest.fixture
def settings(database_url: str, prefect_server: str, encryption_key: str) -> Settings:
    """Settings for the test's database and Prefect server."""
    return make_settings(database_url, prefect_server, encryption_key)


def make_settings(database_url: str, prefect_url: str, encryption_key: str, **extra: Any) -> Settings:
    """Settings of an API for tests."""
    return Settings(
        DATABASE_URL=database_url,
        PREFECT_API_URL=prefect_url,
        NOVA_ENCRYPTION_KEY=encryption_key,
        NOVA_WORK_POOL=WORK_POOL,
        E2B_API_KEY="",
        # These tests drive runs by hand: what looks after runs must not, unless a test is about it.
        **{"NOVA_RECOVERY_INTERVAL": 3600.0, "NOVA_PREFECT_TIMEOUT": 30.0} | extra,
    )


@cache
def _first_app() -> FastAPI:
    """An application whose routes serve all others: FastAPI prepares them for each, for 0.4 s of CPU."""
    return create_app()


@cache
def _conformance() -> Conformance:
    """Made once: the document is the same for every application."""
    return Conformance(_first_app())


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that runs in this process; every answer is held against the OpenAPI document."""
    app = create_app(settings)
    app.router.routes[:] = _first_app().router.routes
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://nova",
            event_hooks={"response": [_conformance().check]},
            timeout=60,
        ) as client,
    ):
        yield client


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API."""
    async with running_api(settings) as client:
        yield client


@pytest.fixture
async def prefect(prefect_server: str) -> AsyncIterator[PrefectClient]:
    """Prefect's own client, to see what its server holds and to do there what an operator would."""
    async with PrefectClient(prefect_server) as client:
        yield client


@pytest.fixture
async def reconciler(database: Database, settings: Settings) -> AsyncIterator[Reconciler]:
    """What looks after runs in every worker and in the API; here it looks when it is told to."""
    async with PrefectGateway(settings) as gateway:
        yield Reconciler(database, gateway.runs, settings)


class SetState(Protocol):
    """Sets a flow run's state in Prefect, whatever it was."""

    async def __call__(self, task_id: str, state: State[Any]) -> None:
        """Set it."""
        ...


@pytest.fixture
def set_state(prefect: PrefectClient) -> SetState:
    """Do to a flow run in Prefect what a worker or an operator would."""

    async def set_it(task_id: str, state: State[Any]) -> None:
        await prefect.set_flow_run_state(UUID(task_id), state, force=True)

    return set_it


@pytest.fixture
def invoices() -> dict[str, Any]:
    """The graph of an invoice workflow: read, decide, then approve or file."""
    return fork(
        action("read", "context['amount'] = 1200", label="Read the invoice"),
        decision("high", "context['branch_decision'] = context['amount'] > 1000"),
        true=action("approve", "context['approved'] = False"),
        false=action("file", "context['filed'] = True"),
    )


@pytest.fixture
async def workflow(api: httpx.AsyncClient, invoices: dict[str, Any]) -> dict[str, Any]:
    """A workflow that exists, as the API answers it."""
    response = await api.post(
        "/workflows", json={"name": fresh_name("Invoices"), "graph_definition": invoices}
    )
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


@pytest.fixture
async def idom(api: httpx.AsyncClient) -> dict[str, Any]:
    """The client idom."""
    response = await api.post("/clients", json={"slug": "idom", "name": "IDOM"})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


@pytest.fixture
def start(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database, cipher: Cipher
) -> Callable[..., Any]:
    """Execute the workflow; gives the task's id and a Run to drive it by hand."""

    async def execute(**body: Any) -> tuple[str, Run]:
        response = await api.post(f"/workflows/{workflow['id']}/execute", json=body)
        assert response.status_code == 202, response.text
        task_id = response.json()["task_id"]
        return task_id, Run(database, cipher, task_id)

    return execute


@pytest.fixture
def wire(database_url: str) -> Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]:
    """A way to the database that can be cut: the relay, and the URL through it."""
    return partial(to_database, database_url)


@pytest.fixture
def prefect_wire(prefect_server: str) -> Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]:
    """A way to Prefect that can be cut: the relay, and the API's URL through it."""

    @asynccontextmanager
    async def lay() -> AsyncIterator[tuple[Relay, str]]:
        url = httpx.URL(prefect_server)
        async with Relay((url.host, url.port or 80)) as relay:
            yield relay, str(url.copy_with(port=relay.port))

    return lay


@pytest.fixture
def failed(start: Callable[..., Any], set_state: SetState) -> Callable[..., Any]:
    """A run that failed at its node `read`, in its row and in Prefect."""

    async def make(**body: Any) -> tuple[str, Run]:
        task_id, run = await start(**body)
        await run.begin()
        await run.step("start", "start")
        await run.step("read", status="failed", error_message="no", error_type="OSError")
        await run.finish(Status.FAILED, error="OSError: no", node="read")
        await set_state(task_id, Failed())
        return task_id, run

    return make


@pytest.fixture
async def lonely(settings: Settings, encryption_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """An API whose Prefect server does not exist."""
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    own = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(own) as client:
        yield client
