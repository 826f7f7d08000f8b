"""When to look for runs: Prefect's event stream, and when to look again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from typing import Any
from uuid import UUID

from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

from flows.config.log_once import FaultLog, OutageLog

log = logging.getLogger("prefect.nova.worker")

DUE = frozenset(f"prefect.flow-run.{name}" for name in ("Scheduled", "AwaitingRetry", "Resuming"))
"""Events of a run that may be taken."""
STOP = frozenset(f"prefect.flow-run.{name}" for name in ("Cancelling", "Suspended"))
"""Events of a run that is to stop."""

LOOK_AGAIN = (0.0, 0.05, 0.2, 0.5)
"""Seconds after an event: it comes before the server has committed what it tells of."""

_BACKOFF = (0.2, 0.5, 1.0, 2.0)
_LOOK_AT_POOL = 1.0
"""Seconds between two looks whether the pool is another one, as the worker's heartbeat has it."""


class WakeupSignal:
    """Rings when there may be something to take; owns no connection.

    A run that was announced rings several times, until a look-up has shown it.
    """

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._unseen: dict[UUID, list[asyncio.TimerHandle]] = {}

    def ring(self) -> None:
        """Have it looked up now."""
        self._rung.set()

    def announce(self, flow_run_id: UUID) -> None:
        """Ring now and again for a run that an event told of."""
        self.seen([flow_run_id])
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(delay, self.ring) for delay in LOOK_AGAIN]
        timers.append(loop.call_later(LOOK_AGAIN[-1], self._unseen.pop, flow_run_id, None))
        self._unseen[flow_run_id] = timers

    def seen(self, flow_run_ids: Iterable[UUID]) -> None:
        """Do not ring any more for these."""
        for flow_run_id in flow_run_ids:
            for timer in self._unseen.pop(flow_run_id, ()):
                timer.cancel()

    async def wait(self) -> None:
        """Return at the next ring; rings that came meanwhile count as one."""
        await self._rung.wait()
        self._rung.clear()


class Stream:
    """A subscription to the events of one work pool that outlives every outage of the server."""

    def __init__(
        self, pool_id: Callable[[], UUID], handle: Callable[[Event, UUID], None], opened: Callable[[], None]
    ) -> None:
        self._pool_id = pool_id  # may raise RuntimeError until Prefect was reached
        self._handle = handle
        self._opened = opened
        self._faults = FaultLog(log)
        self.connected = False
        """Whether events come in at the moment; if not, polls alone tell of anything."""

    async def listen(self) -> None:
        """Listen until cancelled. Each new connection replays the last minute."""
        failures, outage = 0, OutageLog(log)
        while True:
            try:
                pool_id = self._pool_id()
                # Attempts of its own would hide from us that nothing comes in.
                subscriber = get_events_subscriber(filter=_filter(pool_id), reconnection_attempts=0)
                async with subscriber:
                    self.connected, failures = True, 0
                    outage.ended("Prefect's event stream is back.")
                    self._opened()
                    await _first(self._receive(subscriber), self._moved(pool_id))
            except Exception as error:  # noqa: BLE001 - the server's every way to be away
                outage.began("Prefect's event stream is gone (%r); polling meanwhile.", error)
            finally:
                self.connected = False
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
            failures += 1

    async def _receive(self, subscriber: AsyncIterable[Event]) -> None:
        async for event in subscriber:
            if (flow_run_id := _flow_run_id(event)) is None:
                continue
            try:
                self._handle(event, flow_run_id)
            except Exception as error:  # noqa: BLE001 - the stream is well
                self._faults.note(error, "An event of flow run %s was not answered.", flow_run_id)

    async def _moved(self, pool_id: UUID) -> None:
        """Return when the work pool is another one: it was deleted in Prefect and made again."""
        while True:
            await asyncio.sleep(_LOOK_AT_POOL)
            if self._pool_id() != pool_id:
                log.warning("The work pool was made again in Prefect: the new one's events are listened to.")
                return


def _filter(pool_id: UUID) -> EventFilter:
    return EventFilter(
        event=EventNameFilter(name=sorted(DUE | STOP)),
        any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}"]),
    )


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Do these at the same time until one has ended; raises what that raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _flow_run_id(event: Event) -> UUID | None:
    with contextlib.suppress(ValueError):
        return UUID(event.resource.id.removeprefix("prefect.flow-run."))
    return None


async def until(ask: Callable[[], Awaitable[bool]]) -> bool:
    """Ask at the times of LOOK_AGAIN until the answer is yes."""
    waited = 0.0
    for at in LOOK_AGAIN:
        await asyncio.sleep(at - waited)
        waited = at
        if await ask():
            return True
    return False
