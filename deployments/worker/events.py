"""When to look for due runs: Prefect's event stream, and the signal that it gives."""

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
"""Events of a run that may have become due."""
STOP = frozenset(f"prefect.flow-run.{name}" for name in ("Cancelling", "Suspended"))
"""Events of a run that is to stop."""

LOOK_AGAIN = (0.0, 0.05, 0.2, 0.5)
"""When to look, in seconds after an event: events come before the server has committed the change."""

_BACKOFF = (0.2, 0.5, 1.0, 2.0)
_POOL_CHECK = 1.0
"""Seconds between two checks whether the worker's heartbeat has found another pool."""


class WakeupSignal:
    """Wakes the worker when a run may be due; owns no connection.

    An announced run rings several times (LOOK_AGAIN), until a look-up has found it.
    """

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._unseen: dict[UUID, list[asyncio.TimerHandle]] = {}

    def ring(self) -> None:
        """Wake the worker now."""
        self._rung.set()

    def announce(self, flow_run_id: UUID) -> None:
        """Ring at the times of LOOK_AGAIN for a run that an event named."""
        self.seen([flow_run_id])
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(delay, self.ring) for delay in LOOK_AGAIN]
        timers.append(loop.call_later(LOOK_AGAIN[-1], self._unseen.pop, flow_run_id, None))
        self._unseen[flow_run_id] = timers

    def seen(self, flow_run_ids: Iterable[UUID]) -> None:
        """Stop ringing for these runs."""
        for flow_run_id in flow_run_ids:
            for timer in self._unseen.pop(flow_run_id, ()):
                timer.cancel()

    async def wait(self) -> None:
        """Wait until the next ring. Rings since the last call count as one."""
        await self._rung.wait()
        self._rung.clear()


class EventStream:
    """Subscribes to the events of one work pool, again and again if the server goes away."""

    def __init__(
        self, pool_id: Callable[[], UUID], handle: Callable[[Event, UUID], None], opened: Callable[[], None]
    ) -> None:
        self._pool_id = pool_id  # may raise RuntimeError before Prefect was reached
        self._handle = handle
        self._opened = opened
        self._faults = FaultLog(log)
        self.connected = False
        """Whether events come in now; if not, only polls find runs."""

    async def listen(self) -> None:
        """Listen until cancelled. Each new connection replays the last minute of events."""
        failures, outage = 0, OutageLog(log)
        while True:
            try:
                pool_id = self._pool_id()
                # Without its own reconnections: they would hide from us that no events come in.
                subscriber = get_events_subscriber(filter=_filter(pool_id), reconnection_attempts=0)
                async with subscriber:
                    self.connected, failures = True, 0
                    outage.ended("Prefect's event stream is back.")
                    self._opened()
                    await _first(self._receive(subscriber), self._moved(pool_id))
            except Exception as error:  # noqa: BLE001 - a server that is away shows in many ways
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
            except Exception as error:  # noqa: BLE001 - the stream itself works
                self._faults.note(error, "An event of flow run %s was not handled.", flow_run_id)

    async def _moved(self, pool_id: UUID) -> None:
        """Wait until the work pool is another one: it was deleted in Prefect and made again."""
        while True:
            await asyncio.sleep(_POOL_CHECK)
            if self._pool_id() != pool_id:
                log.warning("The work pool was made again in Prefect: listening to the new one's events.")
                return


def _filter(pool_id: UUID) -> EventFilter:
    return EventFilter(
        event=EventNameFilter(name=sorted(DUE | STOP)),
        any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}"]),
    )


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Run these together until one has ended, cancel the others, and raise what that one raised."""
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
    """Ask at the times of LOOK_AGAIN until the answer is yes; return the last answer."""
    waited = 0.0
    for at in LOOK_AGAIN:
        await asyncio.sleep(at - waited)
        waited = at
        if await ask():
            return True
    return False
