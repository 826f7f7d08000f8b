"""What many simulations stand on: PostgreSQL's tables, a workflow and its deployment in a stand-in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import prefect.events.utilities
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)

from flows.config.log_once import FaultLog
from flows.config.settings import Settings, get_settings
from flows.credentials.cipher import generate_key
from flows.prefect_gateway.gateway import PrefectGateway
from flows.runs.deployment_specs import deployment_spec
from flows.store import workflows
from tests.builders import action, line
from tests.simulation.database import Tables
from tests.simulation.gates import KilledError
from tests.simulation.loop import VirtualLoop
from tests.stand_in.prefect import StandIn
from tests.stand_in.transport import API, client

UNREPEATABLE = frozenset({"mail"})
"""Nodes that say `on_interrupt: fail`."""
GRAPH: dict[str, Any] = line(action("read", "pass"), action("mail", "pass", on_interrupt="fail"))

_ENVIRONMENT = {
    "NOVA_LEASE_SECONDS": "30",
    "NOVA_RETRIES": "2",
    "NOVA_RETRY_DELAY": "20",
    "NOVA_RETRY_DELAY_MAX": "40",
    "NOVA_NODE_RETRY_DELAY": "0.5",
    "NOVA_CRASH_LIMIT": "3",
    "PREFECT_API_URL": API,
}
_PREFECT: dict[Any, Any] = {
    PREFECT_API_URL: API,
    PREFECT_LOGGING_TO_API_ENABLED: False,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
}


faults: list[str] = []
"""The faults of NOVA's own since they were taken last."""


def _note(self: FaultLog, error: BaseException, message: str, *values: object) -> None:
    if not isinstance(error, KilledError):  # a process that was killed notes nothing any more
        faults.append(f"{message % values} {error!r}")


class Site:
    """The tables and the stand-in as each simulation finds them."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.settings = settings
        self.loop = VirtualLoop()
        self.tables = Tables(url, self.loop)
        stand_in = StandIn(lambda: self.tables.now)
        self.workflow_id, self.deployment_id = self.loop.complete(self._prepare(stand_in))
        self._backup = stand_in.snapshot()
        self._began = self.loop.time()

    def fresh(self, seed: int) -> StandIn:
        """Empty the tables but for the workflow, and return a stand-in that knows its deployment."""
        self.tables.empty()
        self.loop.restart(self._began)
        stand_in = StandIn(lambda: self.tables.now, seed)
        stand_in.restore(self._backup)
        return stand_in

    async def _prepare(self, stand_in: StandIn) -> tuple[int, UUID]:
        database = self.tables.database
        made = database.run_sync(lambda session: workflows.create(session, name="Invoices", graph=GRAPH))
        spec = database.run_sync(lambda session: deployment_spec(session, made.id))
        async with PrefectGateway(self.settings, client(stand_in)) as gateway:
            await gateway.deployments.ensure_pool()
            deployment_id = await gateway.deployments.apply(spec)
        database.run_sync(lambda session: workflows.set_deployment(session, made.id, deployment_id))
        return made.id, deployment_id

    def close(self) -> None:
        """Close the connections."""
        self.tables.close()
        self.loop.close()


@contextmanager
def site(url: str) -> Iterator[Site]:
    """Open a site on a database with NOVA's tables; within it this process has the site's settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("NOVA_", "PREFECT_", "E2B_"))]:
            patch.delenv(name)
        for name, value in {**_ENVIRONMENT, "DATABASE_URL": url}.items():
            patch.setenv(name, value)
        patch.setenv("NOVA_ENCRYPTION_KEY", generate_key())
        # Events of tasks would go over a thread and a websocket of their own.
        patch.setattr(prefect.events.utilities, "should_emit_events", lambda: False)
        patch.setattr(FaultLog, "note", _note)
        get_settings.cache_clear()
        logging.disable()
        with temporary_settings(_PREFECT):
            opened = Site(url, get_settings())
            try:
                yield opened
            finally:
                opened.close()
                logging.disable(logging.NOTSET)
                get_settings.cache_clear()
