"""The worker type `nova`: takes due runs of its pool and runs them in its own, warm process."""

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

# Prefect imports this module to see which worker types there are: everything heavy is imported in `setup`.
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus
    from prefect.events import Event

    from deployments.worker.active_run import Run
    from deployments.worker.claim_backoff import ClaimBackoff
    from deployments.worker.claims import Claim
    from deployments.worker.events import Stream, WakeupSignal
    from deployments.worker.flow_thread import FlowThread
    from deployments.worker.stop_requests import StopWatch

log = logging.getLogger("prefect.nova.worker")

AGAIN = 5.0
"""Seconds after which a chore begins again that a fault of NOVA's own has ended."""
WINDOW = 30
"""A worker is unhealthy when it did not poll for so many poll intervals, as Prefect's own."""


class NovaWorkerResult(BaseWorkerResult):
    """What `run` would return; runs are not handed out one by one here."""


class NovaWorker(BaseWorker[BaseJobConfiguration, BaseVariables, NovaWorkerResult]):
    """Runs flows as asyncio tasks of one process.

    Made for NOVA's own flow, whose untrusted code runs in sandboxes; any other deployment whose entry point
    is the module path of an async flow runs as well. Job variables have no effect: there is one environment.
    Work is looked for when Prefect's event stream tells of it, when a run ends, and at every poll
    (`PREFECT_WORKER_QUERY_SECONDS`). Nothing is fetched ahead of its time: priorities would not hold.
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
        self._held: dict[UUID, Run] = {}
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
        self._stream: Stream | None = None
        self._stops: StopWatch
        self._waits: ClaimBackoff

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Return a template without a single variable: none would have an effect.

        Not quite empty: Prefect refuses that, and workers of type process run from it, too.
        """
        return {"job_configuration": {"env": {}}, "variables": {"type": "object", "properties": {}}}

    async def setup(self) -> None:
        """Reach Prefect, start the flows' thread and listen."""
        from deployments.worker.adrift import take_adrift_runs
        from deployments.worker.claim_backoff import ClaimBackoff
        from deployments.worker.events import WakeupSignal
        from deployments.worker.flow_thread import FlowThread
        from deployments.worker.reconciling import look_after_runs
        from deployments.worker.stop_requests import StopWatch

        self._catch_signals()
        # Prefect shows of other loggers than its own no more than warnings.
        logging.getLogger("flows").setLevel(log.getEffectiveLevel())
        await super().setup()
        self._wakeup = WakeupSignal()
        self._waits = ClaimBackoff(over=self._wakeup.ring)
        self._flows = FlowThread(asyncio.get_running_loop(), opened=self._wakeup.ring)
        self._flows.start()
        self._stops = StopWatch(
            self.client,
            held=lambda: self._held.keys(),
            connected=lambda: self._stream is not None and self._stream.connected,
            stop=self._stop,
        )
        chores: dict[str, Callable[[], Awaitable[None]]] = {
            "Listening to events": self._listen,
            "Answering them": self._answer_wakeups,
            "Looking for runs that are to stop": self._stops.poll,
            "Looking after runs": lambda: look_after_runs(self.client, self._pool_name),
            "Looking for runs in no queue": lambda: take_adrift_runs(
                self.client, self._pool_name, self._room, self._take_these
            ),
        }
        self._chores = [asyncio.create_task(self._keep_up(*chore)) for chore in chores.items()]

    async def teardown(self, *exc_info: Any) -> None:
        """Take no more and let runs finish; hand back those that cannot in their grace time.

        In its second half they leave before their next node, and only at its end in the middle of one.
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
        """Poll once; an outage of Prefect is logged and waited out, however long it lasts."""
        self._flows.beat()
        try:
            return await self._take()
        except Exception as error:  # noqa: BLE001 - Prefect's worker would end with it
            self._faults.note(error, "No runs were taken; the next poll tries again.")
            return []

    def is_worker_still_polling(self, query_interval_seconds: float) -> bool:
        """Whether polls succeed and the thread of the flows answers: the healthcheck's question."""
        latest = min(self._polled, self._flows.answered if self._chores else self._polled)
        quiet = time.monotonic() - latest
        if quiet <= query_interval_seconds * WINDOW:
            return True
        log.error("No poll succeeded, or the flows' thread hangs, for %.0f s: restart this worker.", quiet)
        return False

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> NovaWorkerResult:
        """Refuse: only ad-hoc submissions get here, which bring code along instead of a deployment."""
        raise RuntimeError("Worker type nova runs deployments only.")

    def now(self) -> datetime:
        """The time by which a run is due."""
        return datetime.now(UTC)

    async def _take(self) -> list[FlowRun]:
        """Take what is due while there is room; one at a time, so that pool and queue limits are true."""
        async with self._taking:
            taken: list[FlowRun] = []
            while self._may_take():
                room = self._room()
                if room <= 0:
                    self._polled = time.monotonic()  # there is nothing to ask for, and that is well
                    break
                # Those that wait may stand before others, and are shown each time.
                shown = room + self._waits.number
                found = await self._look_up(shown)
                self._wakeup.seen(flow_run.id for flow_run in found)
                claims = await self._claim(found)
                taken += [flow_run for flow_run in found if flow_run.id in self._held]
                # Some that were shown went to another worker: there may be more behind them.
                if not claims or len(found) < shown or all(claim.ours for claim in claims):
                    break
            return taken

    async def _take_these(self, found: list[FlowRun]) -> int:
        """Take runs that the pool does not show, while there is room; how many are ours then."""
        async with self._taking:
            claims = await self._claim(found) if self._may_take() else []
            return sum(claim.ours for claim in claims)

    async def _claim(self, found: list[FlowRun]) -> list[Claim]:
        """Claim those that may be tried, as many as there is room for."""
        due = [each for each in found if each.id not in self._held and self._waits.allow(each.id)]
        claims = await asyncio.gather(*(self._submit(flow_run) for flow_run in due[: self._room()]))
        for flow_run, claim in zip(due, claims, strict=False):
            self._waits.note(flow_run.id, claim)
        return claims

    def _room(self) -> int:
        """How many more runs may be taken."""
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
            return []  # the pool was deleted: the next heartbeat makes it, or says why not
        except (httpx.HTTPError, TimeoutError) as error:
            self._outage.began("Prefect does not tell what is due: %r", error)
            return []
        self._outage.ended("Prefect tells what is due again.")
        self._polled = time.monotonic()
        return found

    def _submit(self, flow_run: FlowRun) -> asyncio.Future[Claim]:
        from deployments.worker.active_run import Run

        run = self._held[flow_run.id] = Run(flow_run)
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
        """Stop a run that Prefect wants stopped."""
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
        from deployments.worker.events import Stream

        self._stream = Stream(lambda: self.work_pool.id, self._heard, opened=self._wakeup.ring)
        await self._stream.listen()

    def _heard(self, event: Event, flow_run_id: UUID) -> None:
        from deployments.worker.events import DUE

        if event.event not in DUE:
            self._stops.heard(flow_run_id)
        elif self.limiter.available_tokens > 0:  # with no room the next run that ends rings
            self._wakeup.announce(flow_run_id)

    async def _answer_wakeups(self) -> None:
        while True:
            await self._wakeup.wait()
            await self.get_and_submit_flow_runs()

    async def _keep_up(self, name: str, chore: Callable[[], Awaitable[None]]) -> None:
        """Do a chore until cancelled, whatever fault of NOVA's own it ends with."""
        while True:
            try:
                await chore()
            except Exception as error:  # noqa: BLE001 - unseen, it would be missed only when it is needed
                self._faults.note(error, "%s ended; it begins again.", name)
            else:
                return
            await asyncio.sleep(AGAIN)

    async def _wait_for_runs(self, seconds: float, unless: asyncio.Event | None = None) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._empty, unless) if event]
        try:
            if self._held:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _requeue_from_outside(self, run: Run) -> None:
        """Hand a run back whose flow does not return; the process ends right after, and the flow with it."""
        from deployments.worker import prefect_engine

        log.error("Flow run %s hangs; it is handed back all the same.", run.id)
        try:
            async with asyncio.timeout(times.REQUEUE_HUNG):
                # One whose row may be closed has an end by now, and the reconciler tells Prefect which.
                if await run.release_lease() and not run.is_ending:
                    await prefect_engine.requeue(
                        self.client, run.id, "Its worker was stopped while its flow hung."
                    )
        except Exception as error:  # noqa: BLE001 - each of the others gets its chance
            log.error("Flow run %s could not be handed back: %r", run.id, error)

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
            log.debug("Signals stay as Prefect has set them: this is not the main thread.")
