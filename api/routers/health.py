"""Whether NOVA is healthy, and its figures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from api import health_schemas as schemas
from api.dependencies import ServicesDep
from api.documentation import documented
from api.errors import RETRY_AFTER
from api.responses import JsonResponse
from api.services import Services
from api.version import VERSION
from flows.config import times
from flows.graphs.errors import DatabaseRefusedError, DatabaseUnavailableError, PrefectUnavailableError
from flows.store import circuit_breaker
from flows.store.metrics import metrics as read_metrics

router = APIRouter(tags=["health"])

_ERROR_RATE = 50.0
"""Percent of failed runs in the last hour from which the error rate is an issue."""


@router.head("/", include_in_schema=False)
@router.get("/", **documented(200, schemas.Root))
async def root() -> JsonResponse:
    """What this is, and where its documentation is."""
    return JsonResponse(
        {"name": "NOVA", "version": VERSION, "status": "running", "docs": "/docs", "redoc": "/redoc"}
    )


@router.head("/health", include_in_schema=False)
@router.get("/health", **documented(200, schemas.Health))
async def health(services: ServicesDep) -> JsonResponse:
    """Tell whether runs can be accepted and found; 503 with the same body if the database or Prefect is down.

    It is also 503 while the work pool is missing (deleted in Prefect); it is made again soon.
    """
    look = await _look(services)
    return _answer(
        {
            "status": "healthy" if look.well else "unhealthy",
            "database": "connected" if look.response_time is not None else "disconnected",
            "e2b": "configured" if services.settings.uses_e2b else "not_configured",
            "prefect": "connected" if look.prefect else "disconnected",
            "workers": look.workers,
        },
        look.well,
    )


@router.get("/health/detailed", **documented(200, schemas.DetailedHealth))
async def detailed_health(services: ServicesDep) -> JsonResponse:
    """Tell the state of each part, and what is wrong; 503 with the same body if `/health` is 503."""
    look = await _look(services)
    response_time = look.response_time
    figures: dict[str, Any] = {}
    circuit: dict[str, Any] | None = None
    if response_time is not None:
        try:
            figures, circuit = await asyncio.wait_for(_figures(services), times.PREFECT_LOOK)
        except (DatabaseUnavailableError, DatabaseRefusedError, TimeoutError):
            response_time = None
    rate = figures.get("error_rate", {}).get("error_rate", 0.0)
    works = circuit is None or circuit["is_healthy"]
    mode = "e2b" if services.settings.uses_e2b else "local"
    components: dict[str, dict[str, Any]] = {
        "database": {"healthy": response_time is not None, "response_time_ms": response_time},
        "executor": {"healthy": works, "mode": mode, "circuit_breaker": circuit},
        "error_rate": {"healthy": rate < _ERROR_RATE, "error_rate": rate},
        "prefect": {"healthy": look.prefect},
        "work_pool": {"healthy": look.has_pool},
        "workers": {"healthy": look.workers > 0, "online": look.workers},
    }
    sentences = {
        "database": "The database does not answer.",
        "executor": "E2B fails again and again: runs wait until it works.",
        "error_rate": f"{rate:g} % of the last hour's runs failed.",
        "prefect": "Prefect's server does not answer.",
        "work_pool": f"Prefect has no work pool {services.settings.work_pool}: it is made again.",
        "workers": "No worker is online: runs wait.",
    }
    issues = [sentences[name] for name, part in components.items() if not part["healthy"]]
    body = {"healthy": not issues, "components": components, "issues": issues, "metrics": figures}
    return _answer(body, look.well and response_time is not None)


@router.get("/metrics", **documented(200, schemas.Metrics))
async def metrics(services: ServicesDep) -> JsonResponse:
    """Return figures of the last day and hour, and the circuit breaker of E2B, which all workers share.

    While it is `open`, runs wait instead of failing; while it is `half_open`, one run tries E2B.
    """
    response_time = await services.database.ping()
    figures, circuit = await _figures(services)
    return JsonResponse(
        {
            "executions": figures["executions"],
            "error_rate": figures["error_rate"],
            "circuit_breaker": circuit,
            "workflows": figures["workflows"],
            "database": {"connected": True, "response_time_ms": round(response_time, 2)},
        }
    )


@dataclass(frozen=True)
class _Look:
    """The state of the parts at one moment."""

    response_time: float | None
    """The database's response time in milliseconds; None if it is down."""
    prefect: bool
    """Whether Prefect answers."""
    has_pool: bool
    """Whether the work pool exists; True if Prefect does not answer."""
    workers: int
    """How many workers are online."""

    @property
    def well(self) -> bool:
        """Return whether runs can be accepted, and are found by workers."""
        return self.response_time is not None and self.prefect and self.has_pool


async def _look(services: Services) -> _Look:
    response_time, prefect, workers = await asyncio.gather(
        _database(services), services.gateway.healthy(), _workers(services)
    )
    return _Look(response_time, prefect, workers is not None, workers or 0)


async def _database(services: Services) -> float | None:
    try:
        return round(await asyncio.wait_for(services.database.ping(), times.PREFECT_LOOK), 2)
    except (DatabaseUnavailableError, DatabaseRefusedError, TimeoutError):
        return None


async def _workers(services: Services) -> int | None:
    """Return how many workers are online: 0 if Prefect is down, None if it has no work pool."""
    try:
        return await asyncio.wait_for(services.gateway.workers(), times.PREFECT_LOOK)
    except (PrefectUnavailableError, TimeoutError):
        return 0


async def _figures(services: Services) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the figures and the circuit breaker from the database."""
    figures, circuit = await services.database.run(
        lambda session: (read_metrics(session), circuit_breaker.read(session))
    )
    return figures, {
        "state": circuit["state"],
        "failure_count": circuit["failure_count"],
        "failure_threshold": services.settings.breaker_threshold,
        "is_healthy": circuit["state"] == "closed",
    }


def _answer(body: dict[str, Any], well: bool) -> JsonResponse:
    return JsonResponse(body) if well else JsonResponse(body, 503, {"Retry-After": str(RETRY_AFTER)})
