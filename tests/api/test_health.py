"""Health and figures, with everything there and with parts missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from api.version import VERSION
from flows.config.settings import Settings
from flows.graphs.lifecycle import Status
from flows.store import circuit_breaker
from flows.store.database import Database
from tests.api.conftest import WORK_POOL, make_settings, running_api
from tests.api.relay import Relay
from tests.servers import free_port

Wire = Callable[[], AbstractAsyncContextManager[tuple[Relay, str]]]


async def test_the_root_says_what_this_is(api: httpx.AsyncClient) -> None:
    """Exactly the contract's five fields; both documentations are there."""
    body = (await api.get("/")).json()
    assert body == {
        "name": "NOVA",
        "version": VERSION,
        "status": "running",
        "docs": "/docs",
        "redoc": "/redoc",
    }
    assert (await api.get(body["docs"])).status_code == 200
    assert (await api.get(body["redoc"])).status_code == 200


async def test_a_healthy_nova(api: httpx.AsyncClient, workflow: dict[str, Any]) -> None:
    """`prefect` and `workers` stand where the old build had celery and redis."""
    response = await api.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "healthy",
        "database": "connected",
        "e2b": "not_configured",
        "prefect": "connected",
        "workers": 0,
    }
    for path in ("/", "/health"):
        head = await api.head(path)
        assert head.status_code == 200


async def test_workers_are_counted(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """A worker that has sent its heartbeat is online."""
    await prefect.send_worker_heartbeat(work_pool_name=WORK_POOL, worker_name="a-worker")
    assert (await api.get("/health")).json()["workers"] == 1


async def test_e2b_is_configured_by_its_key(settings: Settings) -> None:
    """The key alone decides."""
    with_key = settings.model_copy(update={"e2b_api_key": type(settings.e2b_api_key)("e2b_key")})
    async with running_api(with_key) as api:
        assert (await api.get("/health")).json()["e2b"] == "configured"


async def test_health_without_prefect_is_503(settings: Settings, encryption_key: str) -> None:
    """The same body, with what is missing, and when to come back."""
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    lonely = make_settings(settings.database_url, nowhere, encryption_key, NOVA_PREFECT_TIMEOUT=1)
    async with running_api(lonely) as api:
        response = await api.get("/health")
        detailed = await api.get("/health/detailed")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
    assert (response.json()["prefect"], response.json()["database"]) == ("disconnected", "connected")
    assert response.headers["Retry-After"]
    assert (detailed.status_code, detailed.json()["healthy"]) == (503, False)
    assert any("Prefect" in issue for issue in detailed.json()["issues"])


async def test_health_without_the_database_is_503(
    wire: Wire, prefect_server: str, encryption_key: str, workflow: dict[str, Any]
) -> None:
    """And healthy again when it is back, without a restart."""
    async with wire() as (relay, url), running_api(make_settings(url, prefect_server, encryption_key)) as api:
        assert (await api.get("/health")).status_code == 200
        await relay.cut()
        response = await api.get("/health")
        detailed = await api.get("/health/detailed")
        figures = await api.get("/metrics")
        await relay.restore()
        assert (await api.get("/health")).status_code == 200
    assert (response.status_code, response.json()["database"]) == (503, "disconnected")
    assert (detailed.status_code, detailed.json()["components"]["database"]["healthy"]) == (503, False)
    assert (figures.status_code, figures.json()["status_code"]) == (503, 503)
    assert figures.headers["Retry-After"]


async def test_detailed_health_names_each_part(api: httpx.AsyncClient, workflow: dict[str, Any]) -> None:
    """`{healthy, components, issues, metrics}`; that no worker is online is an issue."""
    body = (await api.get("/health/detailed")).json()
    assert list(body) == ["healthy", "components", "issues", "metrics"]
    assert set(body["components"]) >= {"database", "executor", "error_rate", "prefect", "workers"}
    assert all(isinstance(part["healthy"], bool) for part in body["components"].values())
    assert body["components"]["executor"]["mode"] == "local"
    assert body["healthy"] is (body["issues"] == [])
    assert set(body["metrics"]) == {"executions", "error_rate", "workflows"}


async def test_metrics_count_what_happened(
    api: httpx.AsyncClient, start: Callable[..., Any], workflow: dict[str, Any]
) -> None:
    """The contract's figures, from the runs of the last day and hour."""
    for status in (Status.COMPLETED, Status.COMPLETED, Status.FAILED):
        _, run = await start()
        await run.begin()
        await run.finish(status)
    await start()
    body = (await api.get("/metrics")).json()
    assert body["executions"] == {
        "total": 4,
        "completed": 2,
        "failed": 1,
        "pending": 1,
        "success_rate": 66.67,
    }
    assert body["error_rate"] == {
        "period_hours": 1,
        "total_executions": 4,
        "failed_executions": 1,
        "error_rate": 25.0,
    }
    assert body["workflows"] == {"total_workflows": 1, "active_workflows": 1}
    assert body["database"]["connected"] is True
    assert body["database"]["response_time_ms"] > 0


@pytest.mark.parametrize(("failures", "state"), [(0, "closed"), (2, "closed"), (3, "open")])
async def test_the_circuit_breaker_is_the_one_of_the_workers(
    settings: Settings, database: Database, failures: int, state: str
) -> None:
    """Both figures and health tell what stands in the database, where all workers keep it."""
    for _ in range(failures):
        await database.run(lambda session: circuit_breaker.failed(session, 3, 60.0))
    async with running_api(settings.model_copy(update={"breaker_threshold": 3})) as api:
        told = (await api.get("/metrics")).json()["circuit_breaker"]
        health = (await api.get("/health/detailed")).json()
    assert told == {
        "state": state,
        "failure_count": failures,
        "failure_threshold": 3,
        "is_healthy": state == "closed",
    }
    assert health["components"]["executor"]["circuit_breaker"] == told
    assert any("E2B" in issue for issue in health["issues"]) is (state == "open")


async def test_a_breaker_that_lets_one_run_try_is_half_open(
    api: httpx.AsyncClient, database: Database
) -> None:
    """Its pause is over; whether E2B works is not known yet."""
    await database.run(lambda session: circuit_breaker.failed(session, 1, 0.0))
    assert (await database.run(circuit_breaker.admit)).allowed
    told = (await api.get("/metrics")).json()["circuit_breaker"]
    assert (told["state"], told["is_healthy"]) == ("half_open", False)


async def test_what_fails_in_a_run_is_not_the_breakers(
    api: httpx.AsyncClient, start: Callable[..., Any]
) -> None:
    """Runs that failed are no failures of E2B."""
    for _ in range(6):
        _, run = await start()
        await run.begin()
        await run.finish(Status.FAILED, error="KeyError")
    assert (await api.get("/metrics")).json()["circuit_breaker"]["failure_count"] == 0
