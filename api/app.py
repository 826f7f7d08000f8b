"""The application: `uvicorn api.app:create_app --factory`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from api import errors, submission
from api.documentation import with_examples
from api.middleware import BodyLimitMiddleware, RequestIdMiddleware
from api.responses import JsonResponse
from api.routers import clients, executions, health, schedules, tasks, workflows
from api.services import Services
from api.version import VERSION
from flows.code_check.checker import GraphChecker
from flows.code_check.compiler_process import Limits
from flows.config import times
from flows.config.logging import setup_logging
from flows.config.settings import Settings, get_settings
from flows.credentials.cipher import Cipher
from flows.graphs.errors import ConfigurationError, DatabaseRefusedError, DatabaseUnavailableError
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.deployment_healer import DeploymentHealer
from flows.recovery.reconciler import Reconciler
from flows.recovery.rounds import keep_looking
from flows.recovery.sweeps import Sweep, sweep_lock
from flows.store import migrations
from flows.store.database import Database

log = logging.getLogger(__name__)

_DESCRIPTION = """
NOVA runs workflows: graphs of small Python programs, on Prefect and E2B.

Make a workflow, `POST /workflows/{id}/execute` it, poll `GET /tasks/{task_id}` until it is `SUCCESS`,
`FAILURE` or `REVOKED`, and read what each node did at `GET /executions/{id}/chain`. The task's id is the flow
run's in Prefect.

Every error has the same body; a 503 says in `Retry-After` when to come back. Fields that are not known are
ignored.
"""


class NovaApi(FastAPI):
    """FastAPI, but a wrong setting is reported in a sentence, and examples keep their nulls."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; it is made once."""
        return with_examples(super().openapi())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, or the application's start and end."""
        if scope["type"] != "lifespan":
            await super().__call__(scope, receive, send)
            return
        reason: ConfigurationError | None = None

        async def send_sentence(message: Message) -> None:
            nonlocal reason
            reason = getattr(self.state, "refusal", None)
            if reason is not None and message["type"] == "lifespan.startup.failed":
                message = {"type": message["type"], "message": str(reason)}
            await send(message)

        try:
            await super().__call__(scope, receive, send_sentence)
        except ConfigurationError:
            if reason is None:
                raise


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; it opens its connections when it starts.

    It does not start if a setting is missing or wrong, or if the database's tables are not up to date: the
    log has ConfigurationError's sentence then.
    """
    app = NovaApi(
        title="NOVA",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=_lifespan(settings),
        default_response_class=JsonResponse,
        generate_unique_id_function=_operation_id,
        strict_content_type=False,  # api/body.py checks it more closely
    )
    errors.install(app)
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(RequestIdMiddleware)
    for module in (health, workflows, schedules, tasks, executions, clients):
        app.include_router(module.router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _lifespan(settings: Settings | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            chosen = settings or get_settings()
            setup_logging(chosen.log_level)
            cipher = Cipher(chosen.encryption_key.get_secret_value())
            await _check_tables(chosen.sqlalchemy_url)
        except ConfigurationError as error:
            app.state.refusal = error
            raise
        database = Database(chosen.sqlalchemy_url, chosen.database_pool_size)
        try:
            async with PrefectGateway(chosen) as gateway:
                graphs = GraphChecker(Limits(chosen.node_code_limit))
                services = Services(chosen, database, gateway, cipher, graphs)
                app.state.services = services
                async with _recovery(services):
                    yield
                await services.background.drain(times.API_DRAIN)
        finally:
            await asyncio.to_thread(database.close)

    return lifespan


@asynccontextmanager
async def _recovery(services: Services) -> AsyncIterator[None]:
    """Look after runs that no worker runs, and deployments that Prefect has lost, until the block ends."""
    settings = services.settings
    locks = {sweep: sweep_lock(settings, sweep) for sweep in (Sweep.RUNS, Sweep.SUBMISSIONS)}
    reconciler = Reconciler(
        services.database, services.gateway.runs, settings, partial(submission.resubmit, services)
    )
    healer = DeploymentHealer(
        services.database, services.gateway.deployments, partial(submission.deploy, services)
    )

    async def heal() -> None:
        if await locks[Sweep.SUBMISSIONS].hold():
            await healer.once()

    tasks = {
        asyncio.create_task(reconciler.run_forever(locks)),
        asyncio.create_task(
            keep_looking(heal, settings.recovery_interval, "Deployments", log, tells_outages=False)
        ),
    }
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for lock in locks.values():
            await lock.close()


async def _check_tables(url: str) -> None:
    """Raise ConfigurationError if the tables are older than this code. Without a database, only log that."""
    try:
        await asyncio.to_thread(migrations.check, url)
    except (DatabaseUnavailableError, DatabaseRefusedError) as error:
        log.warning("Starting without the database: %s", error)
