"""What the API holds while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from starlette.applications import Starlette

from flows.code_check.checker import GraphChecker
from flows.config.log_once import FaultLog
from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.graphs.errors import NovaError
from flows.prefect_gateway.gateway import PrefectGateway
from flows.store.database import Database

log = logging.getLogger(__name__)
T = TypeVar("T")

_AT_ONCE = 8
"""Flow runs created at the same time: Prefect's server only queues more, until our calls time out."""


class Background:
    """Work that must be finished even if the request that began it is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._faults = FaultLog(log)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work and return its result; if the caller is cancelled, the work goes on."""
        task = self.start(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._note_unheard)
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the work as a task, and keep the task until it has ended."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen, if nobody waits any more

    def _note_unheard(self, task: asyncio.Task[Any]) -> None:
        """Log a fault that nobody sees, because the caller was cancelled."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, NovaError):
            self._faults.note(error, "Work failed after its caller had hung up.")

    async def drain(self, timeout: float) -> None:
        """Wait for all work, at most `timeout` seconds, then cancel what is left."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout)
        for task in late:
            log.warning("Work that did not end in %g s is cancelled: %s", timeout, task.get_coro())
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


@dataclass(frozen=True)
class Services:
    """The settings and the two connections of a running API, and what its requests share."""

    settings: Settings
    database: Database
    gateway: PrefectGateway
    cipher: Cipher
    graphs: GraphChecker
    background: Background = field(default_factory=Background)
    submission_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    """Slots for runs that are being submitted to Prefect."""


def services_of(app: Starlette) -> Services:
    """Return what the application's lifespan opened."""
    return cast(Services, app.state.services)
