"""The processes of the simulation: workers and APIs, made of the production code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.events import Event

from api import submission
from api.services import Services
from deployments.worker.claim_backoff import ClaimBackoff
from deployments.worker.events import WakeupSignal
from deployments.worker.flow_loader import Catalog
from deployments.worker.flow_thread import FlowThread
from deployments.worker.stop_requests import StopWatch
from deployments.worker.worker import NovaWorker
from flows.code_check.checker import GraphChecker
from flows.code_check.compiler_process import Limits
from flows.config.log_once import FaultLog
from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.graphs.errors import DatabaseUnavailableError, InfrastructureError
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.gateway import PrefectGateway
from flows.recovery.reconciler import Reconciler
from flows.runs.lease_keeper import LeaseKeeper
from flows.runs.process import Process as Shared
from flows.runs.process import pretended
from flows.sandbox.prewarm import RunSandboxes
from tests.simulation.database import GatedDatabase, Tables
from tests.simulation.gates import Gate, Process, role
from tests.simulation.loop import VirtualLoop, owner
from tests.simulation.prefect import GatedTransport
from tests.simulation.sandboxes import Cloud, CloudProvider
from tests.stand_in.transport import Transport, httpx_settings

log = logging.getLogger(__name__)


class Surroundings:
    """What all processes of one simulation share."""

    def __init__(
        self,
        loop: VirtualLoop,
        gate: Gate,
        tables: Tables,
        transport: Transport,
        cloud: Cloud,
        settings: Settings,
    ) -> None:
        self.loop = loop
        self.gate = gate
        self.tables = tables
        self.transport = transport
        self.cloud = cloud
        self.settings = settings
        self.cipher = Cipher(settings.encryption_key.get_secret_value())
        self.note: Callable[[str], None] = print
        """Writes down what is worth knowing."""
        self.fault: Callable[[str], None] = print
        """Takes a fault of NOVA's own."""
        self.catalog = Catalog()
        self.catalog.warm_up()


class NovaProcess(Process):
    """A process of NOVA's, with its own connections."""

    reconciler: Reconciler
    looking: asyncio.Task[Any] | None = None
    """The round of its reconciler that is under way, or was."""

    def __init__(self, name: str, around: Surroundings) -> None:
        super().__init__(name, around.loop)
        self.around = around
        self.context.run(owner.set, self)
        self.database = GatedDatabase(around.tables, around.gate, self)
        self.transport = GatedTransport(around.transport, around.gate, self)
        self.client = self.context.run(self._clients)

    def look(self) -> None:
        """Have its reconciler make a round."""

        async def look() -> None:
            try:
                await self.reconciler.once()
            except InfrastructureError as error:
                self.around.note(f"{self} could not look after runs: {error}")
            except Exception as error:  # noqa: BLE001 - a fault of NOVA's own
                self.around.fault(f"{self} fails to look after runs: {error!r}")

        self.looking = self.spawn(look(), "reconciler")

    def spawn(self, work: Coroutine[Any, Any, Any], part: str = "run") -> asyncio.Task[Any]:
        """Have a part of it do something."""
        context = self.context.copy()
        context.run(role.set, part)
        return self.loop.create_task(work, context=context)

    def _clients(self) -> PrefectClient:
        """The clients that all code below this context uses."""
        self._async = AsyncClientContext(httpx_settings=httpx_settings(self.transport))
        self._sync = SyncClientContext(httpx_settings=httpx_settings(self.around.transport))
        # As if they had been made without settings: `get_client()` takes only such from the context.
        self._async._httpx_settings = self._sync._httpx_settings = None
        return self._async.client

    def open(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what comes before its first step, all at once."""

        async def enter() -> None:
            await self._async.__aenter__()
            self._sync.__enter__()
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
        self.spawn(self.worker.watch_stops())
        self.spawn(self._renew())
        self.polling: asyncio.Task[Any] | None = None

    def poll(self) -> None:
        """Have it look for runs that are due."""

        async def poll() -> None:
            try:
                await self.worker.get_and_submit_flow_runs()
            except Exception as error:  # noqa: BLE001 - a fault of NOVA's own
                self.around.fault(f"{self} fails to look for runs: {error!r}")

        self.polling = self.spawn(poll())

    def hear(self, event: str, flow_run_id: UUID) -> None:
        """Have it hear of an event in Prefect."""
        self.spawn(self.worker.hear(event, flow_run_id))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.around.settings.lease_seconds / 3)
            with contextlib.suppress(DatabaseUnavailableError):
                self.leases.renew()


class Worker(NovaWorker):
    """NOVA's worker without threads of its own and without a stream of events."""

    type = "simulated"

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
        self._stops = StopWatch(self.client, held=self._held.keys, connected=lambda: True, stop=self._stop)

    async def watch_stops(self) -> None:
        """Look now and then which runs are to stop."""
        await self._stops.poll()

    async def hear(self, name: str, flow_run_id: UUID) -> None:
        """Hear of an event."""
        self._heard(cast(Event, SimpleNamespace(event=name)), flow_run_id)

    @property
    def is_idle(self) -> bool:
        """Whether it has no run."""
        return not self._held

    def now(self) -> datetime:
        """The simulation's time."""
        return self._process.around.tables.now


class Flows(FlowThread):
    """The flows of a worker in the worker's own loop."""

    def __init__(self, process: WorkerProcess) -> None:
        self._main = self._loop = process.loop
        self._client, self._context = process.client, process.context
        self._catalog = process.around.catalog
        self._faults = FaultLog(log)
        self.answered = 0.0

    def stop(self, timeout: float) -> None:
        """There is no thread to end."""


class ApiProcess(NovaProcess):
    """An API."""

    def __init__(self, name: str, around: Surroundings) -> None:
        super().__init__(name, around)
        settings, clock = around.settings, around.loop.time
        gateway = PrefectGateway(settings, self.client, clock=clock)
        self.services = Services(
            settings, self.database, gateway, around.cipher, GraphChecker(Limits(settings.node_code_limit))
        )
        resubmit = partial(submission.resubmit, self.services)
        self.reconciler = Reconciler(self.database, gateway.runs, settings, resubmit, clock=clock)
        self.open(_nothing())


async def _nothing() -> None: ...
