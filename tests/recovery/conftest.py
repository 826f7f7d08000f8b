"""Fixtures of the reconciler's tests: a pool of the test's own on real servers, and no worker there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient

from flows.config.settings import Settings
from flows.credentials.cipher import generate_key
from flows.prefect_gateway.gateway import PrefectGateway
from flows.store.database import Database
from tests.recovery.scene import Scene
from tests.worker.site import Site


@pytest.fixture
async def scene(database: Database, database_url: str, prefect_server: str) -> AsyncIterator[Scene]:
    """A work pool on an empty database."""
    settings = Settings(
        DATABASE_URL=database_url,
        NOVA_ENCRYPTION_KEY=generate_key(),
        PREFECT_API_URL=prefect_server,
        NOVA_WORK_POOL=f"nova-{uuid4().hex[:8]}",
        NOVA_PREFECT_TIMEOUT=60,
    )
    async with PrefectGateway(settings) as gateway, PrefectClient(prefect_server) as prefect:
        site = Site(database, settings, gateway, prefect)
        await site.prepare()
        yield Scene(site)
