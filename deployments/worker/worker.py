"""The worker type `nova`: claims due runs of its pool and runs them in one warm process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from flows.config import times
from flows.config.log_once import FaultLog, OutageLog

# Prefect imports this module only to list worker types, so everything heavy is imported later.
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus
    from prefect.events import Event

    from deployments.worker.active_run import ActiveRun
    from deployments.worker.claim_backoff import ClaimBackoff
    from deployments.worker.claims import Claim
    from deployments.worker.events import EventStream, WakeupSignal
    from deployments.worker.flow_thread import FlowThread
    from deployments.worker.stop_requests import StopRequests

log = logging.getLogger("prefect.nova.worker")

RESTART_PAUSE = 5.0
"""Seconds until a chore begins again that a fault in NOVA's own code has ended."""
HEALTHY_INTERVALS = 30
"""A worker that has not polled for this many poll intervals is unhealthy, as with Prefect's own."""


class NovaWorkerResult(BaseWorkerResult):
    """The result type that Prefect's base class asks for; `run` never returns one."""


class NovaWorker(BaseWorker[BaseJobConfiguration, BaseVariables, NovaWorkerResult]):
    """Runs flows as asyncio tasks of one process.

    It is made for NOVA's own flow, whose untrusted code runs in sandboxes. It also runs any other deployment
    whose entry point is the module path of an async flow. Job variables have no effect: there is one
    environment. It looks for due runs after each event of Prefect's stream, after each run, and at every poll
    (`PREFECT_WORKER_QUERY_SECONDS`). Runs are not fetched before they are due: priorities would not hold.
    """

    type = "nova"
    job_configuration = BaseJobConfiguration
    _description = (
        "Runs NOVA's workflows in one warm process: a run starts within a fraction of a second. "
        "Node code runs in sandboxes."
    )

    def __init__(
        self,
        work_pool_name: str,
        work_queues: list[str] | None = None,
        name: str | None = None,
        *,
        limit: int | None = None,
        **options: Any,
    ) -> None:
        from deployments.worker.worker_settings import WorkerSettings

        settings = WorkerSettings()
        super().__init__(work_pool_name, work_queues, name, limit=limit or settings.limit, **options)
        self._grace = settings.grace
        self._pool_name = work_pool_name
        self._queue_names = list(work_queues or [])
        self._held: dict[UUID, ActiveRun] = {}
        self._taking = asyncio.Lock()
        self._empty = asyncio.Event()
        self._stopping = False
        self._hurry = asyncio.Event()
        self._polled = time.monotonic()
        self._chores: list[asyncio.Task[None]] = []
        self._faults = FaultLog(log)
        self._outage = OutageLog(log)
        self._wakeup: WakeupSignal
        self._flows: FlowThread
        self._stream: EventStream | None = None
        self._stops: StopRequests
        self._waits: ClaimBackoff

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Return a template without variables: none would have an effect.

        It is not quite empty: Prefect refuses that, and workers of type process use it, too.
        """
        return {"job_configuration": {"env": {}}, "variables": {"type": "object", "properties": {}}}

    async def setup(self) -> None:
        """Connect to Prefect, start the flows' thread and the chores."""
        from deployments.worker.adrift import take_adrift_runs
        from deployments.worker.claim_backoff import ClaimBackoff
        from deployments.worker.events import WakeupSignal
        from deployments.worker.flow_thread import FlowThread
        from deployments.worker.reconciling import look_after_runs
        from deployments.worker.stop_requests import StopRequests

        self._catch_signals()
        # Prefect shows only warnings of loggers that are not its own.
        logging.getLogger("flows").setLevel(log.getEffectiveLevel())
        await super().setup()
        self._wakeup = WakeupSignal()
        self._waits = ClaimBackoff(over=self._wakeup.ring)
        self._flows = FlowThread(asyncio.get_running_loop(), opened=self._wakeup.ring)
        self._flows.start()
        self._stops = StopRequests(
            self.client,
            held=lambda: self._held.keys(),
            connected=lambda: self._stream is not None and self._stream.connected,
            stop=self._stop,
        )
        chores: dict[str, Callable[[], Awaitable[None]]] = {
            "Listening to events": self._listen,
            "Answering events": self._answer_wakeups,
            "Looking for runs that are to stop": self._stops.poll,
            "Looking after runs": lambda: look_after_runs(self.client, self._pool_name),
            "Looking for runs in no queue": lambda: take_adrift_runs(
                self.client, self._pool_name, self._room, self._take_these
            ),
        }
        self._chores = [asyncio.create_task(self._keep_up(*chore)) for chore in chores.items()]

    async def teardown(self, *exc_info: Any) -> None:
        """Claim no more runs, let runs finish in the grace time, and requeue the rest.

        In the second half of the grace time runs are requeued before their next node; at its end, at once.
        """
        from flows.graphs.lifecycle import Ending

        self._stopping = True
        if self._held:
            log.info("Stopping: %d run(s) may go on for %g s.", len(self._held), self._grace)
            await self._wait_for_runs(self._grace / 2, self._hurry)
            for run in self._held.values():
                self._flows.request_leave(run)
            await self._wait_for_runs(self._grace / 2, self._hurry)
        for run in self._held.values():
            log.info("Flow run %s is handed back.", run.id)
            self._flows.stop_run(run, Ending.REQUEUED)
        await self._wait_for_runs(times.REQUEUE)
        await asyncio.gather(*(self._requeue_from_outside(run) for run in self._held.values()))
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await asyncio.to_thread(self._flows.stop, 0.0 if self._held else times.CLOSING / 2)
        await super().teardown(*exc_info)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll once and return the claimed runs; errors are logged, and the next poll tries again."""
        self._flows.beat()
        try:
            return await self._take()
        except Exception as error:  # noqa: BLE001 - it would end Prefect's worker
            self._faults.note(error, "No runs were claimed; the next poll tries again.")
            return []

    def is_worker_still_polling(self, query_interval_seconds: float) -> bool:
        """Return whether polls succeed and the flows' thread answers; Prefect's health check asks this."""
        latest = min(self._polled, self._flows.answered if self._chores else self._polled)
        quiet = time.monotonic() - latest
        if quiet <= query_interval_seconds * HEALTHY_INTERVALS:
            return True
        log.error("No poll succeeded, or the flows' thread hangs, for %.0f s: restart this worker.", quiet)
        return False

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> NovaWorkerResult:
        """Raise RuntimeError: only ad-hoc submissions get here, which bring code instead of a deployment."""
        raise RuntimeError("Worker type nova runs deployments only.")

    def now(self) -> datetime:
        """Return the time until which runs count as due."""
        return datetime.now(UTC)

    async def _take(self) -> list[FlowRun]:
        """Claim due runs while there is room. One call at a time, so that pool and queue limits hold."""
        async with self._taking:
            taken: list[FlowRun] = []
            while self._may_take():
                room = self._room()
                if room <= 0:
                    self._polled = time.monotonic()  # a full worker is healthy
                    break
                # Prefect shows paused runs again each time, perhaps before others.
                shown = room + self._waits.number
                found = await self._look_up(shown)
                self._wakeup.seen(flow_run.id for flow_run in found)
                claims = await self._claim(found)
                taken += [flow_run for flow_run in found if flow_run.id in self._held]
                # Other workers got some of these, so there may be more due runs behind them.
                if not claims or len(found) < shown or all(claim.ours for claim in claims):
                    break
            return taken

    async def _take_these(self, found: list[FlowRun]) -> int:
        """Claim runs that the pool does not show, while there is room; return how many are ours."""
        async with self._taking:
            claims = await self._claim(found) if self._may_take() else []
            return sum(claim.ours for claim in claims)

    async def _claim(self, found: list[FlowRun]) -> list[Claim]:
        """Claim those of these runs that have no pause, as many as there is room for."""
        due = [each for each in found if each.id not in self._held and self._waits.allow(each.id)]
        claims = await asyncio.gather(*(self._submit(flow_run) for flow_run in due[: self._room()]))
        for flow_run, claim in zip(due, claims, strict=False):
            self._waits.note(flow_run.id, claim)
        return claims

    def _room(self) -> int:
        """Return how many more runs may be claimed."""
        return int(self.limiter.available_tokens)

    def _may_take(self) -> bool:
        return not self._stopping and self._flows.ready and not self._waits.all_wait

    async def _look_up(self, room: int) -> list[FlowRun]:
        from deployments.worker import prefect_engine

        try:
            async with asyncio.timeout(times.PREFECT_LOOK):  # its client would try on for a minute
                found = await prefect_engine.due_runs(
                    self.client, self._pool_name, self._queue_names, self.now(), room
                )
        except ObjectNotFound:
            return []  # the pool was deleted; the next heartbeat makes it again, or says why not
        except (httpx.HTTPError, TimeoutError) as error:
            self._outage.began("Prefect does not tell what is due: %r", error)
            return []
        self._outage.ended("Prefect tells what is due again.")
        self._polled = time.monotonic()
        return found

    def _submit(self, flow_run: FlowRun) -> asyncio.Future[Claim]:
        from deployments.worker.active_run import ActiveRun

        run = self._held[flow_run.id] = ActiveRun(flow_run)
        self._empty.clear()
        self.limiter.acquire_on_behalf_of_nowait(flow_run.id)
        return self._flows.submit(run, ended=lambda: self._ended(flow_run.id))

    def _ended(self, flow_run_id: UUID) -> None:
        del self._held[flow_run_id]
        self.limiter.release_on_behalf_of(flow_run_id)
        if not self._held:
            self._empty.set()
        self._wakeup.ring()

    def _stop(self, flow_run: FlowRun) -> None:
        """Stop a run that was cancelled or suspended in Prefect."""
        from deployments.worker import prefect_engine
        from flows.graphs.lifecycle import Ending

        run = self._held.get(flow_run.id)
        if run is None or flow_run.state is None:
            return
        if flow_run.state.is_cancelling():
            self._flows.stop_run(run, Ending.CANCELLED)
        else:
            prefect_engine.suspend(flow_run.id, flow_run.state)

    async def _listen(self) -> None:
        from deployments.worker.events import EventStream

        self._stream = EventStream(lambda: self.work_pool.id, self._heard, opened=self._wakeup.ring)
        await self._stream.listen()

    def _heard(self, event: Event, flow_run_id: UUID) -> None:
        from deployments.worker.events import DUE

        if event.event not in DUE:
            self._stops.heard(flow_run_id)
        elif self.limiter.available_tokens > 0:  # without room, the next run that ends rings
            self._wakeup.announce(flow_run_id)

    async def _answer_wakeups(self) -> None:
        while True:
            await self._wakeup.wait()
            await self.get_and_submit_flow_runs()

    async def _keep_up(self, name: str, chore: Callable[[], Awaitable[None]]) -> None:
        """Run a chore until cancelled, and again after each fault in NOVA's own code."""
        while True:
            try:
                await chore()
            except Exception as error:  # noqa: BLE001 - else nobody would see that it ended
                self._faults.note(error, "%s ended; it begins again.", name)
            else:
                return
            await asyncio.sleep(RESTART_PAUSE)

    async def _wait_for_runs(self, seconds: float, unless: asyncio.Event | None = None) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._empty, unless) if event]
        try:
            if self._held:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _requeue_from_outside(self, run: ActiveRun) -> None:
        """Requeue a run whose flow does not return. The process, and the flow with it, ends right after."""
        from deployments.worker import prefect_engine

        log.error("Flow run %s hangs; it is requeued all the same.", run.id)
        try:
            async with asyncio.timeout(times.REQUEUE_HUNG):
                # If its end may be written to the row, the reconciler tells Prefect of it.
                if await run.release_lease() and not run.is_ending:
                    await prefect_engine.requeue(
                        self.client, run.id, "Its worker was stopped while its flow hung."
                    )
        except Exception as error:  # noqa: BLE001 - the other runs are requeued, too
            log.error("Flow run %s could not be requeued: %r", run.id, error)

    def _catch_signals(self) -> None:
        """End on SIGTERM and SIGINT; a second one ends the grace time.

        Prefect turns SIGTERM into SIGINT, which a process that a shell started in the background ignores.
        """
        task = asyncio.current_task()
        signals = 0

        def end() -> None:
            nonlocal signals
            signals += 1
            if signals > 1:
                self._hurry.set()
            elif task is not None:
                task.cancel()

        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, end)
        except (NotImplementedError, RuntimeError, ValueError):
            log.debug("The signal handlers stay Prefect's: this is not the main thread.")
