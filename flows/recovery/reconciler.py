"""The reconciler: whatever dies, a run goes on or ends, and in the end its row and Prefect agree.

It runs in every NOVA worker and in the API, of which one at a time looks. Each round looks for leases that
ran out, for what Prefect has beside the rows, for rows that Prefect knows better, and for runs that Prefect
was never told of. Before it acts it takes the execution's lease and looks again: what it saw may be old.
"""

from __future__ import annotations

import asyncio
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
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseError,
    NovaError,
    PrefectUnavailableError,
)
from flows.graphs.flow_run_state import FlowRunState, PrefectState
from flows.graphs.lifecycle import Action, Asker, RunSnapshot, Status, decide
from flows.prefect_gateway.flow_runs import PAGE, FlowRuns
from flows.recovery.actions import RecoveryActions, Report, Resubmit
from flows.recovery.losses import Losses
from flows.recovery.rounds import keep_looking
from flows.recovery.sweeps import Sweep
from flows.store import orphans
from flows.store.database import Database
from flows.store.orphans import RecoveryLease
from flows.store.sweep_lock import SweepLock
from flows.store.transitions import attempts

log = logging.getLogger(__name__)

PROVISIONING = 3600.0
"""Seconds that Prefect's own workers may take from claiming a run to its flow's start."""
AT_ONCE = 50
"""Runs handed to Prefect in one round at most."""

SWEEPS = (Sweep.RUNS, Sweep.SUBMISSIONS)
"""What a round looks for unless it is told otherwise."""


class Reconciler:
    """Looks after the executions that nobody runs. From round to round it remembers when it first saw what.

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
        self._losses = Losses(database, runs)
        self._faults = FaultLog(log)

    async def run_forever(self, locks: Mapping[Sweep, SweepLock] | None = None) -> None:
        """Look every `recovery_interval` seconds, until cancelled.

        A sweep that has a lock among `locks` is left to the process that holds it.
        """

        async def look() -> None:
            try:
                await self.once([sweep for sweep in SWEEPS if await _is_ours(sweep, locks or {})])
            except (DatabaseUnavailableError, DatabaseRefusedError):
                # No lease could be renewed meanwhile: give living workers the time for it.
                self._calm_until = self._clock() + times.calm(self._settings.lease_seconds)
                raise

        await keep_looking(look, self._settings.recovery_interval, "Runs", log)

    async def once(self, sweeps: Collection[Sweep] = SWEEPS) -> Report:
        """Do one round of these sweeps. A second round at once changes nothing.

        Raises PrefectUnavailableError, DatabaseUnavailableError, and DatabaseRefusedError where PostgreSQL
        refuses more than to change one row; the next round goes on where it ended.
        """
        report = Report()
        actions = RecoveryActions(self._database, self._runs, self._settings, report, self._resubmit)
        self._failures = 0
        self._seen_now = {}
        self._losses = Losses(self._database, self._runs)
        if Sweep.RUNS in sweeps:
            active = await self._runs.active(self._settings.work_pool)
            if self._clock() >= self._calm_until:
                await self._recover(actions)
            else:
                await self._database.run(_try_to_take)
            await self._compare(actions, active)
            await self._walk(actions, {state.flow_run_id for state in active})
        if Sweep.SUBMISSIONS in sweeps:
            await self._submit_forgotten(actions)
        if Sweep.RUNS in sweeps:
            await self._end_stray_task_runs(report)
        self._first_seen = self._seen_now
        return report

    async def _recover(self, actions: RecoveryActions) -> None:
        """Look after the executions whose lease ran out: their worker died."""
        done: list[int] = []
        while True:
            found = await self._database.run(lambda session: orphans.take_expired(session, done))
            if found is None:
                return
            done.append(found.row.id)
            await self._attend(found, self._recover_one(actions, found))

    async def _recover_one(self, actions: RecoveryActions, found: RecoveryLease) -> None:
        flow_run_id = found.row.flow_run_id
        if flow_run_id is None:  # the API died while it handed the run to Prefect
            await self._database.run(lambda session: attempts.release(session, found.lease))
            return
        state = await self._runs.find(flow_run_id)
        lost = state is None and await self._losses.include(found.row.id, flow_run_id)
        await actions.act(found, flow_run_id, state, lost)

    async def _compare(self, actions: RecoveryActions, active: Collection[FlowRunState]) -> None:
        """Compare the runs that are active in Prefect with their rows."""
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
                await self._take_up(actions, row, state.flow_run_id, state)

    def _patience(self, state: FlowRunState, row: RunSnapshot | None) -> float | None:
        """Return for how many seconds a run and its row may stand like this; None: without limit."""
        lease = self._settings.lease_seconds
        if row is None and state.workflow_id is None and state.kind is PrefectState.RUNNING:
            return self._settings.run_timeout  # the cleanup, which has neither row nor lease
        if row is not None and row.leased:
            return None
        # A request of a person is looked up only for those that are taken up.
        if decide(row, state, Asker.RECONCILER) is Action.LEAVE:
            return None
        if state.kind is PrefectState.PENDING and (row is None or row.is_live):
            # NOVA's worker has the lease before that; Prefect's own take it when the flow starts.
            return 2 * lease if state.by_nova else max(PROVISIONING, 2 * lease)
        if state.kind in (PrefectState.CANCELLING, PrefectState.SCHEDULED) or not (
            row is None or row.is_live
        ):
            return lease / 3
        return lease

    async def _adopt(self, state: FlowRunState) -> RunSnapshot | None:
        """Make the row of a run that was started in Prefect and whose worker died before it made one."""
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
            Status.CANCELLED if state.kind is PrefectState.CANCELLING else Status.FAILED,
            "Its worker died, and there is no such workflow or execution to go on with.",
        )
        return None

    async def _walk(self, actions: RecoveryActions, known: Collection[UUID]) -> None:
        """Ask Prefect about the next page of runs that wait: some may have ended there unnoticed."""
        page = await self._database.run(lambda session: orphans.waiting(session, self._cursor, PAGE))
        self._cursor = page[-1].id if len(page) == PAGE else 0
        asked = {row.flow_run_id: row for row in page if row.flow_run_id and row.flow_run_id not in known}
        states = await self._runs.find_all(list(asked)) if asked else {}
        for flow_run_id, row in asked.items():
            state = states.get(flow_run_id)
            if state is not None and not state.final and not row.revoked:
                continue  # it waits, or is among those that `_compare` watches
            if decide(row, state, Asker.RECONCILER) is not Action.LEAVE:
                await self._take_up(actions, row, flow_run_id, state)

    async def _take_up(
        self, actions: RecoveryActions, row: RunSnapshot, flow_run_id: UUID, seen: FlowRunState | None
    ) -> None:
        """Look after an execution, if neither it nor its flow run has changed since they were seen."""
        found = await self._take(row, flow_run_id)
        if found is not None:
            await self._attend(found, self._act_as_seen(actions, found, flow_run_id, seen))

    async def _take(self, row: RunSnapshot, flow_run_id: UUID | None = None) -> RecoveryLease | None:
        """Take the lease of an execution that is as it was seen; None where it is not, or cannot be taken."""
        try:
            return await self._database.run(lambda session: orphans.take_as_seen(session, row, flow_run_id))
        except DatabaseRefusedError as error:
            log.warning("Execution %d is not looked after: %s", row.id, error)
            return None

    async def _act_as_seen(
        self, actions: RecoveryActions, found: RecoveryLease, flow_run_id: UUID, seen: FlowRunState | None
    ) -> None:
        state = await self._runs.find(flow_run_id)
        if (state and state.state_id) == (seen and seen.state_id):
            lost = state is None and await self._losses.include(found.row.id, flow_run_id)
            await actions.act(found, flow_run_id, state, lost)
        else:
            await self._put_down(found)

    async def _submit_forgotten(self, actions: RecoveryActions) -> None:
        """Hand the runs to Prefect that it was never told of: the API that had accepted them died."""
        if self._resubmit is None:
            return
        for row in await self._database.run(lambda session: orphans.unsubmitted(session, AT_ONCE)):
            if not self._lasted(row.id, times.UNSUBMITTED):
                continue
            found = await self._take(row)
            if found is not None:
                await self._attend(found, actions.resubmit(found))

    async def _end_stray_task_runs(self, report: Report) -> None:
        """End the task runs that stay open in Prefect though their flow run does not run any more."""
        stray = await self._runs.stray_task_runs(self._settings.work_pool)
        late = [one for one in stray if self._lasted(one, times.STRAY)]
        await self._runs.crash_task_runs(late, "Its run ended, or goes on, without it.")
        report.task_runs += len(late)

    async def _attend(self, found: RecoveryLease, work: Awaitable[None]) -> None:
        """Do the work on an execution in bounded time; where it fails, leave the execution as it was.

        One execution that fails must not stop the others. When two in a row fail, Prefect is at fault.
        """
        try:
            async with asyncio.timeout(times.LOOK_AFTER_ONE):
                await work
        except LeaseError as error:
            log.info("%s", error)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._put_down(found)
            if not isinstance(error, Exception) or isinstance(error, DatabaseUnavailableError):
                raise
            if isinstance(error, PrefectUnavailableError | TimeoutError):
                self._failures += 1
                if self._failures > 1:
                    raise PrefectUnavailableError(f"Prefect fails again and again: {error}") from error
            if isinstance(error, NovaError | TimeoutError):
                log.warning("Execution %d: %r", found.row.id, error)
            else:
                self._faults.note(error, "Execution %d was not looked after.", found.row.id)
        else:
            self._failures = 0

    async def _put_down(self, found: RecoveryLease) -> None:
        try:
            await self._database.run(lambda session: orphans.release(session, found))
        except DatabaseRefusedError as error:
            log.warning("The lease of execution %d runs out by itself: %s", found.row.id, error)

    def _lasted(self, what: Hashable, seconds: float) -> bool:
        """Whether every round of so many seconds has seen this."""
        now = self._clock()
        first = self._seen_now[what] = self._first_seen.get(what, now)
        return now - first >= seconds


def _try_to_take(session: Session) -> None:
    """Find out whether PostgreSQL takes leases, and take none: it may answer and have no room for one."""
    seized = orphans.take_expired(session, ())
    if seized is not None:
        orphans.release(session, seized)


async def _is_ours(sweep: Sweep, locks: Mapping[Sweep, SweepLock]) -> bool:
    """Whether this process does a sweep; without a lock every process does."""
    lock = locks.get(sweep)
    return lock is None or await lock.hold()
