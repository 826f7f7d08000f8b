"""The processes of the simulation: workers and APIs, made of the production code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import anyio
from prefect.context import AsyncClientContext

from api import submission
from api.services import Services
from deployments.worker.claim_backoff import ClaimBackoff
from deployments.worker.events import WakeupSignal
from deployments.worker.flow_loader import Catalog
from deployments.worker.flow_thread import FlowThread
from deployments.worker.stop_requests import StopWatch
from deployments.worker.worker import NovaWorker
from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.reconciler import Reconciler
from flows.runs.lease_keeper import LeaseKeeper
from flows.runs.process import Process as Shared
from flows.runs.process import pretended
from flows.sandbox.prewarm import RunSandboxes
from tests.simulation.database import GatedDatabase, Tables
from tests.simulation.gates import Gate, Process
from tests.simulation.loop import VirtualLoop, owner
from tests.simulation.prefect import GatedTransport
from tests.simulation.sandboxes import Cloud, CloudProvider
from tests.stand_in.transport import Transport, httpx_settings


class Surroundings:
    """What all processes of one simulation share."""

    def __init__(
        self, loop: VirtualLoop, gate: Gate, tables: Tables, transport: Transport, cloud: Cloud, settings: Settings
    ) -> None:
        self.loop = loop
        self.gate = gate
        self.tables = tables
        self.transport = transport
        self.cloud = cloud
        self.settings = settings
        self.cipher = Cipher(settings.encryption_key.get_secret_value())
        self.catalog = Catalog()
        self.catalog.warm_up()


class NovaProcess(Process):
    """A process of NOVA's, with its own connections."""

    reconciler: Reconciler

    def __init__(self, name: str, around: Surroundings) -> None:
        super().__init__(name, around.loop)
        self.around = around
        self.context.run(owner.set, self)
        self.database = GatedDatabase(around.tables, around.gate, self)
        self.transport = GatedTransport(around.transport, around.gate, self)
        self.client = self.context.run(self._clients)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Have it do something."""
        return self.loop.create_task(work, context=self.context.copy())

    def _clients(self) -> Any:
        settings = httpx_settings(self.transport)
        context = AsyncClientContext(httpx_settings=settings)
        context._httpx_settings = None  # so that `get_client()` finds it
        self._client_context = context
        return context.client

    def open(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what comes before its first step, all at once."""

        async def enter() -> None:
            await self._client_context.__aenter__()
            await work

        task = self.loop.create_task(enter(), context=self.context)
        self.loop.settle()
        task.result()
        self.transport.is_open = False


class WorkerProcess(NovaProcess):
    """A worker."""

    def __init__(self, name: str, around: Surroundings) -> None:
        super().__init__(name, around)
        settings, clock = around.settings, around.loop.time
        self.leases = LeaseKeeper(self.database, self.database, settings.lease_seconds, clock=clock)
        sandboxes = RunSandboxes(CloudProvider(around.cloud, self))
        self.context.run(pretended.set, Shared(self.database, around.cipher, self.leases, sandboxes))
        self.worker = self.context.run(Worker, self)
        runs = FlowRuns(self.client, settings.prefect_timeout)
        self.reconciler = Reconciler(self.database, runs, settings, clock=clock)
        self.open(self.worker.setup())


class Worker(NovaWorker):
    """NOVA's worker without threads of its own and without a stream of events."""

    def __init__(self, process: WorkerProcess) -> None:
        super().__init__(process.around.settings.work_pool, name=process.name, limit=3)
        self._process = process

    async def setup(self) -> None:
        """Begin as the worker does, but for what would wait for the world outside."""
        self._client = self._process.client
        self._limiter = anyio.CapacityLimiter(3)
        self._wakeup = WakeupSignal()
        self._waits = ClaimBackoff(over=self._wakeup.ring)
        self._flows = Flows(self._process)
        self._stops = StopWatch(
            self.client, held=self._held.keys, connected=lambda: True, stop=self._stop
        )

    def now(self) -> datetime:
        """The simulation's time."""
        return self._process.around.tables.now


class Flows(FlowThread):
    """The flows of a worker in the worker's own loop."""

    def __init__(self, process: WorkerProcess) -> None:
        self._main = self._loop = process.loop
        self._client, self._context = process.client, process.context
        self._catalog = process.around.catalog
        self.answered = 0.0

    def stop(self, timeout: float) -> None:
        """There is no thread to end."""


class ApiProcess(NovaProcess):
    """An API."""

    def __init__(self, name: str, around: Surroundings) -> None:
        super().__init__(name, around)
        settings, clock = around.settings, around.loop.time
        gateway = PrefectGateway(settings, self.client, clock=clock)
        self.services = Services(settings, self.database, gateway, around.cipher)
        resubmit = partial(submission.resubmit, self.services)
        self.reconciler = Reconciler(self.database, gateway.runs, settings, resubmit, clock=clock)
        self.open(_nothing())


async def _nothing() -> None: ...
