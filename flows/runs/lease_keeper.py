"""The leases that this process holds: taken, renewed by a thread of their own, released.

Whoever runs an execution asks its `HeldLease` before it tells Prefect how the run stands, and releases the
lease when Prefect has heard it. Every write in the database is fenced besides (see `flows.store.leases`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from flows.config import times
from flows.config.log_once import FaultLog, OutageLog
from flows.graphs.errors import (
    BreakerOpenError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseLostError,
)
from flows.graphs.lifecycle import Action, Asker, decide
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.runs.loading import RunRequest
from flows.runs.retry_policy import run_until_committed
from flows.store import circuit_breaker, leases, orphans
from flows.store.database import Database
from flows.store.leases import Lease, LeaseClaim
from flows.store.transitions import attempts

log = logging.getLogger(__name__)

AskRequest = Callable[[UUID], Awaitable[UUID | None]]
"""Asks Prefect by which state a person wants a flow run to go on."""


class HeldLease:
    """One lease of this process, until it is released or lost."""

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
        """Whether the end of this attempt is written, or is being written: nothing may stop that."""
        return self._is_ending

    @property
    def is_leave_requested(self) -> bool:
        """Whether this process is about to end: the run is to leave before its next node."""
        return self._is_leave_requested

    def request_leave(self) -> None:
        """Ask the run to leave before its next node: there nothing of it is lost."""
        self._is_leave_requested = True

    def end(self) -> None:
        """Note that from here on the end of this attempt is written."""
        self._is_ending = True

    async def confirm(self) -> None:
        """Raise LeaseLostError unless the execution is ours, or was until we released it ourselves.

        Asks the database only where the lease might have run out since it was last renewed.
        """
        if self._keeper.clock() >= self._sure_until:
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

    def abandon(self) -> None:
        """Let it run out; the reconciler then sees how the run stands."""
        self._keeper.forget(self._flow_run_id)

    def check(self) -> None:
        """Raise LeaseLostError when the lease is known to be lost."""
        if self._is_lost:
            raise LeaseLostError(f"Execution {self.lease.execution_id} is not this process's any more.")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Cancel the current task as soon as the lease is lost, and raise LeaseLostError then."""
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
        """Note that the lease is being released: that it is gone is no loss then."""
        self._is_released = True

    def note(self, is_ours: bool, asked_at: float) -> None:
        """Note what the database said about the lease; the keeper's thread calls this, too."""
        if is_ours:
            self._sure_until = max(self._sure_until, asked_at + self.lease.seconds)
        elif not self._is_released and not self._is_lost:
            self._is_lost = True
            log.warning("Execution %d is not this process's any more.", self.lease.execution_id)
            if (tell := self._on_loss) is not None:
                tell()


class LeaseKeeper:
    """Takes leases and renews all that are held, in one statement, every third of their time.

    Once started, the renewals have a thread and a connection of their own: neither an event loop that hangs
    nor a pool that is used up lets a lease run out. `clock` counts seconds.
    """

    def __init__(
        self,
        database: Database,
        renewals: Database,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._database = database
        self._renewals = renewals
        self._seconds = seconds
        self._held: dict[UUID, HeldLease] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._breaker = OutageLog(log)

    def start(self) -> None:
        """Start the thread, which renews until `close`."""
        self._thread = threading.Thread(target=self._renew_for_ever, name="nova-leases", daemon=True)
        self._thread.start()

    async def take_for(
        self, request: RunRequest, runs: FlowRuns, ask: AskRequest, *, ask_breaker: bool = False
    ) -> HeldLease | None:
        """As `take`, and open a run that is over where a person retried it in Prefect.

        `ask` tells by which state: `FlowRuns.retry_request` for a run that waits in its queue,
        `FlowRuns.request_of_start` for one that has started. Raises PrefectUnavailableError besides.
        """
        held = await self.take(request, ask_breaker=ask_breaker)
        if held is not None:
            return held
        flow_run_id = request.flow_run_id
        key = {flow_run_id: request.public_id}
        # The row first: what Prefect says of it later is not older than what is to be opened.
        rows = await self._database.run(lambda session: orphans.match_flow_runs(session, key))
        row = rows.get(flow_run_id)
        state, asked = await runs.find(flow_run_id), await ask(flow_run_id)
        if row is None or asked is None:
            return None
        if decide(row, state, Asker.WORKER, request=asked) is not Action.REOPEN:
            return None
        return await self._take(
            request, lambda session, claim: attempts.take_retried(session, claim, asked, row), ask_breaker
        )

    async def take(self, request: RunRequest, *, ask_breaker: bool = False) -> HeldLease | None:
        """Take the lease of a run that is about to start, or return it where this process has it already.

        None: there is nothing to run, and `load_run` says why. Raises LeaseHeldError, BreakerOpenError where
        the breaker is asked and lets nobody through, and DatabaseUnavailableError; nothing is taken then.
        """
        if (known := self.held(request.flow_run_id)) is not None:
            return known
        return await self._take(request, attempts.take, ask_breaker)

    async def _take(
        self,
        request: RunRequest,
        way: Callable[[Session, LeaseClaim], Lease | None],
        ask_breaker: bool,
    ) -> HeldLease | None:
        claim = LeaseClaim(
            request.flow_run_id, request.public_id, request.workflow_id, uuid4(), self._seconds
        )
        asked_at = self.clock()

        def take(session: Session) -> Lease | None:
            lease = way(session, claim)
            if lease is not None and ask_breaker:
                self._check_breaker(session)
            return lease

        lease = await self._database.run(take)
        if lease is None:
            return None
        held = HeldLease(self, request.flow_run_id, lease, asked_at)
        with self._lock:
            self._held[request.flow_run_id] = held
        return held

    def held(self, flow_run_id: UUID) -> HeldLease | None:
        """The lease that this process has for a flow run."""
        return self._held.get(flow_run_id)

    async def release(self, flow_run_id: UUID) -> bool:
        """Free a run's lease for whoever goes on with it; without the database it runs out by itself.

        False when it was not ours any more: lost, or released before.
        """
        with self._lock:
            held = self._held.pop(flow_run_id, None)
        if held is None or held.is_lost:
            return False
        held.note_released()
        try:
            return await self._database.run(lambda session: attempts.release(session, held.lease))
        except (DatabaseUnavailableError, DatabaseRefusedError) as error:
            log.warning("The lease of execution %d runs out by itself: %s", held.lease.execution_id, error)
            return False

    def forget(self, flow_run_id: UUID) -> None:
        """Stop renewing a run's lease, so that it runs out."""
        with self._lock:
            self._held.pop(flow_run_id, None)

    async def look_at(self, held: HeldLease) -> None:
        """Ask the database whether a lease is still ours; waits for as long as it does not answer.

        Raises LeaseLostError where it refuses to say so: nobody must speak for the run then.
        """
        asked_at = self.clock()
        try:
            ours = await run_until_committed(
                self._renewals, lambda session: leases.renew(session, [held.lease.owner], self._seconds)
            )
        except DatabaseRefusedError as error:
            raise LeaseLostError(
                f"Whether execution {held.lease.execution_id} is still this process's is not known: {error}"
            ) from error
        held.note(held.lease.owner in ours, asked_at)

    def close(self) -> None:
        """End the thread, if it was started."""
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
                self.renew()
            except DatabaseUnavailableError as error:
                outage.began("Leases cannot be renewed: %s", error)
                pause = times.renewal_again(self._seconds)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it is
                faults.note(error, "Leases were not renewed.")
                pause = times.renewal_again(self._seconds)
            else:
                outage.ended("Leases are renewed again.")
                pause = times.renewal(self._seconds)

    def renew(self) -> None:
        """Renew all that are held, and take note of those that are lost. Raises DatabaseUnavailableError."""
        with self._lock:
            holding = list(self._held.values())
        if not holding:
            return
        try:
            self._renew_together(holding)
        except DatabaseRefusedError:
            # One row that cannot be written must not cost the others their leases.
            for held in holding:
                try:
                    self._renew_together([held])
                except DatabaseRefusedError as error:
                    log.warning("The lease of execution %d runs out: %s", held.lease.execution_id, error)

    def _renew_together(self, holding: Sequence[HeldLease]) -> None:
        asked_at = self.clock()
        owners = [held.lease.owner for held in holding]
        ours = self._renewals.run_sync(lambda session: leases.renew(session, owners, self._seconds))
        for held in holding:
            held.note(held.lease.owner in ours, asked_at)
