"""The commands that production runs one by one: `nova api`, `worker`, `deploy`, `migrate` and `key`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.environment import with_dotenv
from flows.graphs.errors import ConfigurationError, NotFoundError

if TYPE_CHECKING:
    from flows.config.settings import Settings
    from flows.prefect_gateway.gateway import PrefectGateway
    from flows.prefect_gateway.workflow_deployments import DeploymentSpec, SyncReport


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(api)
    app.command()(worker)
    app.command()(deploy)
    app.command()(migrate)
    app.command()(key)


def api(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", min=0, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve the HTTP API. Needs DATABASE_URL, NOVA_ENCRYPTION_KEY and PREFECT_API_URL."""
    # Before Prefect is imported. Its client tries six times, over a minute: an API answers 503 before that.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    import uvicorn

    from flows.config import times

    settings = _settings()
    # By name: deployments do not import the API.
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=host,
        port=port,
        log_level=settings.log_level.lower(),
        access_log=False,  # the API writes its own, with the request's id
        proxy_headers=True,
        timeout_graceful_shutdown=int(times.API_REQUESTS),
        timeout_keep_alive=75,  # longer than clients pause between two polls, which reuse the connection
    )


def worker(
    limit: Annotated[int, typer.Option(min=1, help="Runs that it does at once.")] = 2,
    name: Annotated[str | None, typer.Option(help="Name of this worker; made up when not given.")] = None,
    type_: Annotated[
        str,
        typer.Option(
            "--type", help="nova: all runs in one warm process. process: a process per run, slower."
        ),
    ] = "nova",
    with_healthcheck: Annotated[
        bool,
        typer.Option("--with-healthcheck", help="Serve Prefect's health check of workers, on port 8080."),
    ] = False,
) -> None:
    """Run workflows: take due runs from NOVA's work pool, the high queue first.

    Needs DATABASE_URL, NOVA_ENCRYPTION_KEY and PREFECT_API_URL. Start as many workers, on as many machines,
    as the queues need. SIGTERM lets runs finish for NOVA_WORKER_GRACE seconds (30) and requeues the rest.
    """
    settings = _settings()
    # A `.env` is passed on: runs have their own folders and do not see it.
    environment = with_dotenv() | {"PREFECT_API_URL": settings.prefect_api_url}
    environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1")  # Prefect's own 10 s are a long wait
    environment.setdefault("PREFECT_WORKER_PREFETCH_SECONDS", "0")
    # A line for every task that ended well says what the run's own lines say.
    environment.setdefault("PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL", "WARNING")
    # Contexts pass through many threads, and glibc keeps the memory of each: 10 MB a time.
    environment.setdefault("MALLOC_ARENA_MAX", "2")
    command = ["-m", "prefect", "worker", "start", "--pool", settings.work_pool, "--type", type_]
    command += ["--limit", str(limit), "--install-policy", "never", *(["--name", name] if name else [])]
    command += ["--with-healthcheck"] if with_healthcheck else []
    sys.stdout.flush()
    # In place of this process, so that signals reach the worker itself.
    os.execve(sys.executable, [sys.executable, *command], environment)


def deploy(
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for Prefect's server to answer.")] = 0,
) -> None:
    """Make Prefect match the database: the work pool, its queues, one deployment per workflow.

    May be run at any time, and twice. Schedules made in Prefect's UI, and deployments that are not of a
    workflow, are left alone. Needs DATABASE_URL and PREFECT_API_URL.
    """
    settings = _settings(key=False)
    # Prefect reads its own variable when it is imported: it may stand in `.env` alone.
    os.environ.setdefault("PREFECT_API_URL", settings.prefect_api_url)
    from flows.store import migrations

    migrations.check(settings.sqlalchemy_url)
    report = asyncio.run(_deploy(settings, wait))
    for word, slugs in (
        ("created", report.created),
        ("updated", report.updated),
        ("removed", report.removed),
    ):
        for slug in slugs:
            print(f"{word} {slug}")
    print(f"{len(report.deployment_ids)} deployment(s) match the database; work pool: {settings.work_pool}")


async def _deploy(settings: Settings, wait: float) -> SyncReport:
    from flows.prefect_gateway.gateway import PrefectGateway
    from flows.runs.deployment_specs import deployment_spec
    from flows.store import workflows
    from flows.store.database import Database

    database = Database(settings.sqlalchemy_url, pool_size=2)

    async def specs() -> AsyncIterator[DeploymentSpec]:
        # Each is read right before it is deployed: the API may change or delete workflows meanwhile.
        for workflow_id in await database.run(workflows.ids):
            with contextlib.suppress(NotFoundError):
                yield await database.run(partial(deployment_spec, workflow_id=workflow_id))

    try:
        async with PrefectGateway(settings) as gateway:
            await _wait_for(gateway, wait)
            await gateway.deployments.ensure_pool()
            await gateway.deployments.ensure_cleanup()
            before = await gateway.deployments.of_workflows()
            report = await gateway.deployments.sync(specs(), before)
            for found in report.deployment_ids.items():
                note = partial(workflows.set_deployment, workflow_id=found[0], deployment_id=found[1])
                try:
                    await database.run(note)
                except NotFoundError:  # the workflow was deleted while its deployment was made
                    await gateway.deployments.remove(found[1])
    finally:
        database.close()
    return report


async def _wait_for(gateway: PrefectGateway, seconds: float) -> None:
    """Wait until Prefect's server is healthy or the time is over: the first call then says what is wrong."""
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if await gateway.healthy():
            return
        await asyncio.sleep(0.2)


def migrate() -> None:
    """Bring the tables of NOVA's database to this version's. Safe to run at any time, and twice."""
    from flows.store import migrations

    url = _settings(key=False).sqlalchemy_url
    before = migrations.current(url)
    migrations.upgrade(url)
    after = migrations.current(url)
    print(f"The tables are at version {after}" + (", as before." if before == after else "."))


def key() -> None:
    """Print a new encryption key for NOVA_ENCRYPTION_KEY.

    To change keys put the new one before the old, with a comma: the first encrypts, all of them decrypt.
    """
    from flows.credentials.cipher import generate_key

    print(generate_key())


def _settings(key: bool = True) -> Settings:
    """Return the settings; raises ConfigurationError if one that the command needs is missing."""
    from flows.config.settings import get_settings

    settings = get_settings()
    _ = settings.sqlalchemy_url  # raises if it is missing
    if key and not settings.encryption_key.get_secret_value():
        raise ConfigurationError(
            "NOVA_ENCRYPTION_KEY is not set. Make a key with `nova key`, keep it safe, and give the same one "
            "to the API and all workers (nova up keeps one in its data folder)."
        )
    return settings
