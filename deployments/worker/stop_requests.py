"""Runs that are to stop: they were cancelled or suspended in Prefect while this worker runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from deployments.worker.events import until
from flows.config import times
from flows.config.log_once import FaultLog

log = logging.getLogger("prefect.nova.worker")

NAMES = ["Cancelling", "Suspended"]
POLL_WITHOUT_EVENTS = 1.0
"""Seconds between two looks at this worker's runs while the event stream is down."""
POLL_WITH_EVENTS = 10.0
"""Seconds between two looks while events come in: one may get lost if several servers share no broker."""


class StopRequests:
    """Finds which of the worker's runs are to stop, and calls `stop` with each.

    An event alone is no proof: a new subscription replays the last minute, and the run may have been
    retried since. So the run's state is read after each event.
    """

    def __init__(
        self,
        client: PrefectClient,
        held: Callable[[], Collection[UUID]],
        connected: Callable[[], bool],
        stop: Callable[[FlowRun], None],
    ) -> None:
        self._client = client
        self._held = held
        self._connected = connected
        self._stop = stop
        self._checks: set[asyncio.Task[None]] = set()
        self._faults = FaultLog(log)

    def heard(self, flow_run_id: UUID) -> None:
        """Read the state of a run that an event named, if this worker runs it."""
        if flow_run_id in self._held():
            task = asyncio.get_running_loop().create_task(self._check(flow_run_id))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _check(self, flow_run_id: UUID) -> None:
        async def ask() -> bool:
            flow_run = await self._client.read_flow_run(flow_run_id)
            if flow_run.state_name in NAMES:
                self._stop(flow_run)
                return True
            return flow_run_id not in self._held()

        try:
            async with asyncio.timeout(times.PREFECT_LOOK):
                await until(ask)
        except (httpx.HTTPError, ObjectNotFound, TimeoutError) as error:
            log.warning(
                "Flow run %s could not be read: %r; the next poll tries again.",
                flow_run_id,
                error,
            )
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            self._faults.note(error, "Flow run %s was not read; the next poll tries again.", flow_run_id)

    async def poll(self) -> None:
        """Look at all runs of this worker again and again, until cancelled."""
        since = 0.0
        while True:
            await asyncio.sleep(POLL_WITHOUT_EVENTS)
            since += POLL_WITHOUT_EVENTS
            held = list(self._held())
            if not held or (self._connected() and since < POLL_WITH_EVENTS):
                continue
            since = 0.0
            wanted = FlowRunFilter(
                id=FlowRunFilterId(any_=held),
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=NAMES)),
            )
            try:
                async with asyncio.timeout(times.PREFECT_LOOK):
                    stopping = await self._client.read_flow_runs(flow_run_filter=wanted)
                for flow_run in stopping:
                    self._stop(flow_run)
            except (httpx.HTTPError, TimeoutError) as error:
                log.debug("The states of this worker's runs could not be read: %r", error)
