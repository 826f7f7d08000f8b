"""The reconciler: whatever dies, a run goes on or ends, and its row and Prefect say the same in the end.

It runs in every NOVA worker and in the API, of which one at a time looks. Each round looks for leases that
ran out, for what Prefect has beside the rows, for rows that Prefect knows better, and for runs that Prefect
was never told of. Before it acts it seizes the execution's lease and looks again: what it saw may be old.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from uuid import UUID

import anyio
from sqlalchemy.orm import Session

from flows.config import times
from flows.config.log_once import FaultLog
from flows.config.settings import Settings
from flows.graphs.errors import (
    DatabaseUnavailableError,
    LeaseError,
    NovaError,
    PrefectUnavailableError,
)
from flows.prefect_gateway.flow_runs import PAGE, FlowRuns, FlowRunState, closure_for
from flows.recovery.actions import RecoveryActions, Report
from flows.recovery.rounds import keep_looking
from flows.recovery.sweeps import Sweep
from flows.store import leases, orphans, transitions
from flows.store.database import Database
from flows.store.orphans import RecoveryLease, RunSnapshot
from flows.store.sweep_lock import SweepLock

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Runs handed to Prefect in one round at most."""

SWEEPS = (Sweep.RUNS, Sweep.SUBMISSIONS)

Resubmit = Callable[[int], Awaitable[UUID]]
"""Hands the execution of that id to Prefect, once more perhaps, and returns its flow run's id."""


class Reconciler:
    """Looks after the executions that nobody runs; what it knows from round to round is when it saw what.

    `resubmit` is given by the API, which knows the deployments; without it rows that Prefect was never told
    of are left alone. `clock` counts seconds. How long something may stand as it is does not depend on any
    other machine's clock: it is measured from the first round that saw it.
    """

    def __init__(
        self,
        database: Database,
        runs: FlowRuns,
        settings: Settings,
        resubmit: Resubmit | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._runs = runs
        self._settings = settings
        self._resubmit = resubmit
        self._clock = clock
        self._first_seen: dict[Hashable, float] = {}
        self._seen_now: dict[Hashable, float] = {}
        self._failures = 0
        self._cursor = 0
        self._calm_until = 0.0
        self._faults = FaultLog(log)

    async def run_forever(self, locks: Mapping[Sweep, SweepLock] | None = None) -> None:
        """Look every `recovery_interval` seconds, until cancelled.

        A sweep that has a lock among `locks` is left to the process that holds it.
        """

        async def look() -> None:
            try:
                await self.once([sweep for sweep in SWEEPS if await _is_ours(sweep, locks or {})])
            except DatabaseUnavailableError:
                # No lease could be renewed: those that live get time for it before they count as dead.
                self._calm_until = self._clock() + times.calm(self._settings.lease_seconds)
                raise

        await keep_looking(look, self._settings.recovery_interval, "Runs", log)

    async def once(self, sweeps: Collection[Sweep] = SWEEPS) -> Report:
        """Look once and set right what can be; calling it again changes nothing.

        Raises PrefectUnavailableError and DatabaseUnavailableError; the next round goes on where it ended.
        """
        report = Report()
        rescue = RecoveryActions(self._database, self._runs, self._settings, report)
        self._failures = 0
        self._seen_now = {}
        if Sweep.RUNS in sweeps:
            active = await self._runs.active(self._settings.work_pool)
            if self._clock() >= self._calm_until:
                await self._recover(rescue)
            await self._compare(rescue, active)
            await self._walk(rescue, {state.flow_run_id for state in active})
        if Sweep.SUBMISSIONS in sweeps:
            await self._submit_forgotten(report)
        if Sweep.RUNS in sweeps:
            await self._tidy(report)
        self._first_seen = self._seen_now
        return report

    async def _recover(self, rescue: RecoveryActions) -> None:
        """Look after the executions whose worker gives no sign of life any more."""
        done: list[int] = []
        while True:
            seized = await self._database.run(lambda session: orphans.seize_expired(session, done))
            if seized is None:
                return
            done.append(seized.row.id)
            await self._attend(seized, self._rescue_expired(rescue, seized))

    async def _rescue_expired(self, rescue: RecoveryActions, seized: RecoveryLease) -> None:
        flow_run_id = seized.row.flow_run_id
        if flow_run_id is None:  # whoever handed it to Prefect died at it
            await self._database.run(lambda session: leases.release(session, seized.lease))
            return
        await rescue.attend(seized, flow_run_id, await self._runs.find(flow_run_id))

    async def _compare(self, rescue: RecoveryActions, active: Collection[FlowRunState]) -> None:
        """Hold what Prefect takes for active against the rows."""
        runs = {state.flow_run_id: state.public_id for state in active}
        rows = (
            await self._database.run(lambda session: orphans.match_flow_runs(session, runs)) if runs else {}
        )
        for state in active:
            row = rows.get(state.flow_run_id)
            patience = self._patience(state, row)
            if patience is None or not self._lasted((row, state.state_id), patience):
                continue
            row = row or await self._adopt(state)
            if row is not None:
                await self._take_up(rescue, row, state.flow_run_id, state)

    def _patience(self, state: FlowRunState, row: RunSnapshot | None) -> float | None:
        """How many seconds a run and its row may stand like this; None: as long as they like."""
        lease = self._settings.lease_seconds
        if row is not None and row.leased:
            return None
        if state.kind == "scheduled":  # retried by a person, where the row is closed
            return lease / 3 if row is not None and row.may_be_retried else None
        if row is None and state.workflow_id is None and state.kind == "running":
            return self._settings.run_timeout  # the cleanup, which has neither row nor lease
        # Prefect's own workers take the lease when the flow begins, which in Pending may take a while.
        if state.kind == "pending":
            return 2 * lease
        return lease / 3 if state.kind == "cancelling" or (row is not None and not row.is_live) else lease

    async def _adopt(self, state: FlowRunState) -> RunSnapshot | None:
        """Make the row of a run that was started in Prefect and died before it had one, to look after it."""
        flow_run_id, workflow_id = state.flow_run_id, state.workflow_id
        if workflow_id is not None and state.public_id is None:
            row = await self._database.run(lambda session: orphans.adopt(session, flow_run_id, workflow_id))
            if row is not None:
                return row
        now = await self._runs.find(flow_run_id)
        if now is None or now.state_id != state.state_id:
            return None
        log.warning("Flow run %s has no execution and never will; it is ended.", flow_run_id)
        await self._runs.set_final(
            flow_run_id,
            "cancelled" if state.kind == "cancelling" else "failed",
            "Its worker died, and there is no such workflow or execution to go on with.",
        )
        return None

    async def _walk(self, rescue: RecoveryActions, known: Collection[UUID]) -> None:
        """Ask Prefect for the next page of runs that wait: some may be over, and nobody said so."""
        page = await self._database.run(lambda session: orphans.waiting(session, self._cursor, PAGE))
        self._cursor = page[-1].id if len(page) == PAGE else 0
        asked = {row.flow_run_id: row for row in page if row.flow_run_id and row.flow_run_id not in known}
        states = await self._runs.find_all(list(asked)) if asked else {}
        for flow_run_id, row in asked.items():
            state = states.get(flow_run_id)
            if closure_for(state) is not None or (state is not None and state.kind == "crashed"):
                await self._take_up(rescue, row, flow_run_id, state)

    async def _take_up(
        self, rescue: RecoveryActions, row: RunSnapshot, flow_run_id: UUID, seen: FlowRunState | None
    ) -> None:
        """Look after an execution, if neither it nor its flow run has changed since they were seen."""
        seized = await self._database.run(lambda session: orphans.seize(session, row, flow_run_id))
        if seized is not None:
            await self._attend(seized, self._rescue_seen(rescue, seized, flow_run_id, seen))

    async def _rescue_seen(
        self, rescue: RecoveryActions, seized: RecoveryLease, flow_run_id: UUID, seen: FlowRunState | None
    ) -> None:
        state = await self._runs.find(flow_run_id)
        if (state and state.state_id) == (seen and seen.state_id):
            await rescue.attend(seized, flow_run_id, state)
        else:
            await self._release(seized)

    async def _submit_forgotten(self, report: Report) -> None:
        """Hand the runs to Prefect that it was never told of: the API that had accepted them died."""
        if self._resubmit is None:
            return
        for row in await self._database.run(lambda session: orphans.unsubmitted(session, AT_ONCE)):
            if not self._lasted(row.id, times.UNSUBMITTED):
                continue
            seized = await self._database.run(functools.partial(orphans.seize, seen=row))
            if seized is not None:
                await self._attend(seized, self._submit(self._resubmit, seized, report))

    async def _submit(self, resubmit: Resubmit, seized: RecoveryLease, report: Report) -> None:
        flow_run_id = await resubmit(seized.row.id)

        def note(session: Session) -> None:
            transitions.confirm(session, seized.row.id, flow_run_id)
            leases.release(session, seized.lease)

        await self._database.run(note)
        report.resubmitted += 1
        log.warning("Execution %d had not reached Prefect and was handed to it.", seized.row.id)

    async def _tidy(self, report: Report) -> None:
        """End the task runs whose end nobody told: their flow run does not run any more."""
        late = [one for one in await self._runs.stray_task_runs() if self._lasted(one, times.STRAY)]
        await self._runs.crash_task_runs(late, "Its run ended, or goes on, without it.")
        report.task_runs += len(late)

    async def _attend(self, seized: RecoveryLease, work: Awaitable[None]) -> None:
        """Do the work on an execution in bounded time; where it fails the execution stands as before.

        What is wrong with one must not keep the others waiting; with two in a row, Prefect is what is wrong.
        """
        try:
            async with asyncio.timeout(times.LOOK_AFTER_ONE):
                await work
        except LeaseError as error:
            log.info("%s", error)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._release(seized)
            if not isinstance(error, Exception) or isinstance(error, DatabaseUnavailableError):
                raise
            if isinstance(error, PrefectUnavailableError | TimeoutError):
                self._failures += 1
                if self._failures > 1:
                    raise PrefectUnavailableError(f"Prefect fails again and again: {error}") from error
            if isinstance(error, NovaError | TimeoutError):
                log.warning("Execution %d: %r", seized.row.id, error)
            else:
                self._faults.note(error, "Execution %d was not looked after.", seized.row.id)
        else:
            self._failures = 0

    async def _release(self, seized: RecoveryLease) -> None:
        await self._database.run(lambda session: orphans.release_recovery(session, seized))

    def _lasted(self, what: Hashable, seconds: float) -> bool:
        """Whether this was seen for so long, in every round."""
        now = self._clock()
        first = self._seen_now[what] = self._first_seen.get(what, now)
        return now - first >= seconds


async def _is_ours(sweep: Sweep, locks: Mapping[Sweep, SweepLock]) -> bool:
    """Whether this process does a sweep; without a lock every process does."""
    lock = locks.get(sweep)
    return lock is None or await lock.hold()
