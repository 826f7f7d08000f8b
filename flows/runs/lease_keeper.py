"""The leases that this process holds: taken, renewed by a thread of their own, released.

Whoever runs an execution asks its `HeldLease` before it tells Prefect how the run stands, and releases the
lease when Prefect has heard it. Every write in the database is fenced besides (see `flows.store.leases`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from flows.config import times
from flows.config.log_once import FaultLog, OutageLog
from flows.graphs.errors import BreakerOpenError, DatabaseUnavailableError, LeaseLostError
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.runs.loading import RunRequest
from flows.runs.retry_policy import run_until_committed
from flows.store import circuit_breaker, leases
from flows.store.database import Database
from flows.store.leases import Lease

log = logging.getLogger(__name__)


class HeldLease:
    """One lease of this process, until it is given back or lost."""

    def __init__(self, keeper: LeaseKeeper, flow_run_id: UUID, lease: Lease, asked_at: float) -> None:
        self.lease = lease
        self._keeper = keeper
        self._flow_run_id = flow_run_id
        self._sure_until = asked_at + lease.seconds
        self._is_lost = self._is_released = self._is_ending = self._is_leave_requested = False
        self._on_loss: Callable[[], None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the execution is known to be somebody else's, or closed from outside."""
        return self._is_lost

    @property
    def is_ending(self) -> bool:
        """Whether the run's last word of this attempt is written, or on its way: nothing is to stop that."""
        return self._is_ending

    @property
    def is_leave_requested(self) -> bool:
        """Whether this process is about to end: the run is to leave before its next node."""
        return self._is_leave_requested

    def request_leave(self) -> None:
        """Have the run leave before its next node, where nothing of it gets lost."""
        self._is_leave_requested = True

    def end(self) -> None:
        """Let what follows be the run's last word of this attempt."""
        self._is_ending = True

    async def confirm(self) -> None:
        """Raise LeaseLostError unless the execution is ours, or was until we gave it back ourselves.

        Asks the database only where the lease might have run out since it was last renewed.
        """
        if time.monotonic() >= self._sure_until:
            await self.look()
        self.check()

    async def look(self) -> None:
        """As `confirm`, but ask the database in any case: the run may have been closed from outside."""
        if not self._is_lost and not self._is_released:
            await self._keeper.look_at(self)
        self.check()

    async def release(self) -> bool:
        """Free it for whoever goes on with the run; False when it was not ours any more."""
        return await self._keeper.release(self._flow_run_id)

    def check(self) -> None:
        """Raise LeaseLostError when the lease is known to be lost."""
        if self._is_lost:
            raise LeaseLostError(f"Execution {self.lease.execution_id} is not this process's any more.")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it the task is cancelled as soon as the lease is lost, and LeaseLostError comes out."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        if task is None:
            raise RuntimeError("Only a task can be told that its lease is lost.")

        def cancel() -> None:
            if self._on_loss is not None:  # the block may have ended meanwhile
                task.cancel()

        def tell() -> None:
            loop.call_soon_threadsafe(cancel)

        self._on_loss = tell
        try:
            self.check()
            yield
        except asyncio.CancelledError:
            if self._is_lost:
                task.uncancel()
            self.check()
            raise
        finally:
            self._on_loss = None

    def note_released(self) -> None:
        """Take note that from now on its row may have no lease: that is no loss."""
        self._is_released = True

    def note(self, is_ours: bool, asked_at: float) -> None:
        """Take note of what the database said; called in the keeper's thread, too."""
        if is_ours:
            self._sure_until = max(self._sure_until, asked_at + self.lease.seconds)
        elif not self._is_released and not self._is_lost:
            self._is_lost = True
            log.warning("Execution %d is not this process's any more.", self.lease.execution_id)
            if (tell := self._on_loss) is not None:
                tell()


class LeaseKeeper:
    """Takes leases and renews all that are held, in one statement, every third of their time.

    The renewals have a thread and a connection of their own: neither an event loop that hangs nor a pool
    that is used up lets a lease run out.
    """

    def __init__(self, database: Database, renewals: Database, seconds: float) -> None:
        self._database = database
        self._renewals = renewals
        self._seconds = seconds
        self._held: dict[UUID, HeldLease] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._breaker = OutageLog(log)

    async def take_for(
        self, request: RunRequest, runs: FlowRuns, *, ask_breaker: bool = False
    ) -> HeldLease | None:
        """As `take`, for the start of a flow run, which opens an execution again that a person retried.

        Raises PrefectUnavailableError besides: where there is nothing to run, Prefect says who wants it to.
        """
        held = await self.take(request, ask_breaker=ask_breaker)
        if held is None and await runs.retried(request.flow_run_id):
            held = await self.take(request, ask_breaker=ask_breaker, reopens=True)
        return held

    async def take(
        self, request: RunRequest, *, ask_breaker: bool = False, reopens: bool = False
    ) -> HeldLease | None:
        """Take the lease of a run that is about to start, or return it where this process has it already.

        None: there is nothing to run, and `load_run` says why. Raises LeaseHeldError, BreakerOpenError where
        the breaker is asked and lets nobody through, and DatabaseUnavailableError; nothing is taken then.
        """
        if (known := self.held(request.flow_run_id)) is not None:
            return known
        asked_at = time.monotonic()

        def take(session: Session) -> Lease | None:
            lease = leases.take(
                session,
                flow_run_id=request.flow_run_id,
                public_id=request.public_id,
                workflow_id=request.workflow_id,
                owner=uuid4(),
                seconds=self._seconds,
                reopens=reopens,
            )
            if lease is not None and ask_breaker:
                self._check_breaker(session)
            return lease

        lease = await self._database.run(take)
        if lease is None:
            return None
        held = HeldLease(self, request.flow_run_id, lease, asked_at)
        with self._lock:
            self._held[request.flow_run_id] = held
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_for_ever, name="nova-leases", daemon=True)
                self._thread.start()
        return held

    def held(self, flow_run_id: UUID) -> HeldLease | None:
        """The lease that this process has for a flow run."""
        return self._held.get(flow_run_id)

    async def release(self, flow_run_id: UUID) -> bool:
        """Free a run's lease for whoever goes on with it; without the database it runs out by itself.

        False when it was not ours any more: lost, or given back before.
        """
        with self._lock:
            held = self._held.pop(flow_run_id, None)
        if held is None or held.is_lost:
            return False
        held.note_released()
        try:
            return await self._database.run(lambda session: leases.release(session, held.lease))
        except DatabaseUnavailableError as error:
            log.warning("The lease of execution %d runs out by itself: %s", held.lease.execution_id, error)
            return False

    async def look_at(self, held: HeldLease) -> None:
        """Ask the database whether a lease is still ours; waits for as long as it does not answer."""
        asked_at = time.monotonic()
        ours = await run_until_committed(
            self._renewals, lambda session: leases.renew(session, [held.lease.owner], self._seconds)
        )
        held.note(held.lease.owner in ours, asked_at)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _check_breaker(self, session: Session) -> None:
        """Raise BreakerOpenError unless a sandbox may be made now; who may reports what comes of it."""
        admission = circuit_breaker.admit(session)
        if not admission.allowed:
            self._breaker.began("E2B fails again and again: runs wait until it works.")
            raise BreakerOpenError("E2B fails at the moment: runs wait.", retry_at=admission.retry_at)
        if not admission.is_probe:
            self._breaker.ended("E2B works again: runs go on.")

    def _renew_for_ever(self) -> None:
        pause = times.renewal(self._seconds)
        faults, outage = FaultLog(log), OutageLog(log)
        while not self._closed.wait(pause):
            try:
                self._renew()
            except DatabaseUnavailableError as error:
                outage.began("Leases cannot be renewed: %s", error)
                pause = times.renewal_again(self._seconds)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it is
                faults.note(error, "Leases were not renewed.")
                pause = times.renewal_again(self._seconds)
            else:
                outage.ended("Leases are renewed again.")
                pause = times.renewal(self._seconds)

    def _renew(self) -> None:
        with self._lock:
            holding = list(self._held.values())
        if not holding:
            return
        asked_at = time.monotonic()
        owners = [held.lease.owner for held in holding]
        ours = self._renewals.run_sync(lambda session: leases.renew(session, owners, self._seconds))
        for held in holding:
            held.note(held.lease.owner in ours, asked_at)
