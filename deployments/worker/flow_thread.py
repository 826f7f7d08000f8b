"""The thread in which flows run, with one event loop for all of them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from prefect.client.orchestration import PrefectClient

from deployments.worker import prefect_engine
from deployments.worker.active_run import ActiveRun
from deployments.worker.claims import FAULT_PAUSE, GONE, Claim
from deployments.worker.flow_loader import FlowLoader
from deployments.worker.lifetime import claim_and_execute
from flows.config.log_once import FaultLog, OutageLog
from flows.graphs.errors import NovaError
from flows.graphs.lifecycle import Ending
from flows.prefect_gateway.prefect_errors import is_prefects

log = logging.getLogger("prefect.nova.worker")

RETRY = 2.0
"""Seconds between two attempts to reach Prefect."""


class FlowThread:
    """Owns the thread, its loop and the Prefect clients of all flows.

    Flows do not run on the main thread: there Prefect's engine takes over SIGTERM, and a flow that blocks the
    loop would stop the worker's heartbeats. It would still stop all other flows: flows must not block.
    """

    def __init__(self, main: asyncio.AbstractEventLoop, opened: Callable[[], None]) -> None:
        self._main = main
        self._opened = opened
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._context: contextvars.Context | None = None
        self._client: PrefectClient | None = None
        self._loader = FlowLoader()
        self._faults = FaultLog(log)
        self.answered = time.monotonic()
        """When the loop last answered `beat` (monotonic seconds). A loop that hangs does not answer."""
        # A daemon thread, so that a flow that never returns cannot keep the process from ending.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._serve,), name="nova-flows", daemon=True
        )

    @property
    def ready(self) -> bool:
        """Return whether the thread has reached Prefect and takes runs."""
        return self._context is not None

    def start(self) -> None:
        """Start the thread. Once it is `ready`, it calls `opened` on the main loop."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the loop and wait at most `timeout` seconds for the thread to end."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(timeout)

    def beat(self) -> None:
        """Ask the loop to note in `answered` that it works."""
        self._loop.call_soon_threadsafe(self._note)

    def _note(self) -> None:
        self.answered = time.monotonic()

    def submit(self, run: ActiveRun, ended: Callable[[], None]) -> asyncio.Future[Claim]:
        """Claim a run and execute it; return a future of the claim, which is known before the run ends.

        `ended` is called on the main loop when everything is over, whether the run was claimed or not.
        """
        claimed: asyncio.Future[Claim] = self._main.create_future()

        def answer(claim: Claim) -> None:
            if not claimed.done():
                claimed.set_result(claim)

        async def live() -> None:
            try:
                if self._client is None:
                    raise RuntimeError("The thread of the flows is not ready.")
                await claim_and_execute(
                    run, self._client, self._loader, lambda claim: self._to_main(answer, claim)
                )
            except NovaError as error:
                log.warning("Flow run %s is not claimed: %s", run.id, error)
                self._to_main(answer, Claim(False, FAULT_PAUSE))
            except Exception as error:  # noqa: BLE001 - the fault is NOVA's own
                self._faults.note(error, "Flow run %s could not be claimed or not be ended.", run.id)
                self._to_main(answer, Claim(False, FAULT_PAUSE))
            finally:
                self._to_main(answer, GONE)
                self._to_main(ended)

        self._spawn(live())
        return claimed

    def request_leave(self, run: ActiveRun) -> None:
        """Ask for a run to be requeued before its next node."""
        self._loop.call_soon_threadsafe(run.request_leave)

    def stop_run(self, run: ActiveRun, ending: Ending) -> None:
        """End a run now."""
        self._loop.call_soon_threadsafe(run.stop, ending)

    def _to_main(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._main.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the main loop is closed: the process is ending
            log.debug("The worker had ended before its run.")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task in the loop, with a copy of the context that holds the shared clients."""
        context = self._context

        def create() -> None:
            task = self._loop.create_task(work, context=context.copy() if context else None)
            _keep.add(task)
            task.add_done_callback(_keep.discard)

        self._loop.call_soon_threadsafe(create)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._keep_clients())
        while not main.done():
            try:
                self._loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio raises these out of the loop even when a flow raised them: the worker goes on.
                log.error("A flow raised %r outside of its run; the worker goes on.", error)
            except Exception:
                log.exception("The thread of the flows ended")
                return

    async def _keep_clients(self) -> None:
        await asyncio.to_thread(self._loader.warm_up)
        outage = OutageLog(log)
        while not self._stopped.is_set():
            try:
                async with prefect_engine.shared_clients() as client:
                    self._client, self._context = client, contextvars.copy_context()
                    self._to_main(self._opened)
                    outage.ended("Prefect answers the flows.")
                    await self._stopped.wait()
            except Exception as error:  # noqa: BLE001 - an unreachable server shows in many ways
                self._context = self._client = None
                if is_prefects(error):
                    outage.began("Prefect does not answer the flows yet: %s", error)
                else:
                    self._faults.note(error, "The flows have no Prefect client.")
                await asyncio.sleep(RETRY)


_keep: set[asyncio.Task[None]] = set()
"""The running tasks: asyncio keeps only weak references to them."""
