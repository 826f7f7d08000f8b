"""Fixtures of the worker's tests: a Prefect server whose requests are logged, and a pool per test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient

from flows.config.settings import Settings
from flows.credentials.cipher import generate_key
from flows.prefect_gateway.gateway import PrefectGateway
from flows.store.database import Database
from tests.access_log import AccessLog
from tests.servers import PrefectServer
from tests.shared import is_on_real_prefect
from tests.stand_in.server import StandInServer
from tests.worker.site import Site


@pytest.fixture
def access_log(request: pytest.FixtureRequest) -> AccessLog:
    """The server's requests, counted from now."""
    name = "private_server" if is_on_real_prefect(request) else "stand_in_server"
    server: PrefectServer | StandInServer = request.getfixturevalue(name)
    log = AccessLog(server.log)
    log.mark()
    return log


@pytest.fixture
def prefect_url(request: pytest.FixtureRequest) -> str:
    """The Prefect server of a test: the one that all share, unless its requests are counted."""
    if "access_log" in request.fixturenames and is_on_real_prefect(request):
        server: PrefectServer = request.getfixturevalue("private_server")
        return server.api_url
    return str(request.getfixturevalue("prefect_server"))


@pytest.fixture
async def site(
    database: Database, database_url: str, prefect_url: str, fork_server: Path
) -> AsyncIterator[Site]:
    """A work pool of type nova of this test's own, on an empty database."""
    settings = Settings(
        DATABASE_URL=database_url,
        NOVA_ENCRYPTION_KEY=generate_key(),
        PREFECT_API_URL=prefect_url,
        NOVA_WORK_POOL=f"nova-{uuid4().hex[:8]}",
        NOVA_PREFECT_TIMEOUT=60,  # sixty runs at once, on a machine that does other things as well
    )
    async with PrefectGateway(settings) as gateway, PrefectClient(prefect_url) as prefect:
        made = Site(database, settings, gateway, prefect, fork_server)
        await made.prepare()
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers of a test put their logs and homes."""
    return tmp_path
