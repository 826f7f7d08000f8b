"""NOVA's one connection to Prefect's API."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import WorkerStatus
from prefect.settings import get_current_settings

from flows.config import times
from flows.config.settings import Settings
from flows.graphs.errors import NotFoundError, PrefectUnavailableError
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.prefect_errors import prefect_call
from flows.prefect_gateway.run_watch import RunWatch
from flows.prefect_gateway.workflow_deployments import Deployments


class PrefectGateway:
    """One long-lived Prefect client, and what NOVA does with it; use it as an async context manager.

    Without `client`, one is made from the settings. `clock` returns seconds.
    """

    def __init__(
        self,
        settings: Settings,
        client: PrefectClient | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client or _client(settings)
        self._pool = settings.work_pool
        self._timeout = settings.prefect_timeout
        self.runs = FlowRuns(self._client, settings.prefect_timeout)
        self.watch = RunWatch(self.runs, clock=clock)
        self.deployments = Deployments(self._client, settings.work_pool, settings.prefect_timeout)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.watch.close()
        await self._client.__aexit__(kind, error, trace)

    async def healthy(self) -> bool:
        """Return whether Prefect's server answers and reaches its database."""
        try:
            async with prefect_call(min(self._timeout, times.PREFECT_LOOK), "asking for its health"):
                response = await self._client.request("GET", "/ready")
                return response.status_code == 200
        except (PrefectUnavailableError, NotFoundError):
            return False

    async def workers(self) -> int | None:
        """Return how many workers of the pool are online; None if there is no pool.

        Raises PrefectUnavailableError.
        """
        online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
        try:
            async with prefect_call(self._timeout, "counting the workers"):
                return len(await self._client.read_workers_for_work_pool(self._pool, worker_filter=online))
        except NotFoundError:
            return None


def _client(settings: Settings) -> PrefectClient:
    # Not `get_client()`: without PREFECT_API_URL it would start a server of its own.
    api = get_current_settings().api
    return PrefectClient(
        settings.prefect_api_url,
        auth_string=api.auth_string.get_secret_value() if api.auth_string else None,
        api_key=api.key.get_secret_value() if api.key else None,
    )
