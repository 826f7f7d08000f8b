"""What is done about an execution that nobody runs: put back in its queue, closed, or opened again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.graphs.errors import ConflictError
from flows.prefect_gateway.flow_runs import Closure, FlowRuns, FlowRunState, closure_for
from flows.store import checks, leases, orphans, transitions
from flows.store.database import Database
from flows.store.orphans import RecoveryLease

log = logging.getLogger(__name__)

LOST_STARTS = 10
"""Attempts in a row that ended before a node was started, from which a run is given up."""

_DIED = "The worker of this run died."
RETRIED = "A person retried it."
"""What Prefect shows of a run that was retried over the API."""


@dataclass
class Report:
    """How many runs each thing was done to."""

    requeued: int = 0
    failed: int = 0
    """Given up, because they came to nothing too often."""
    closed: int = 0
    """Brought to what was done to them in Prefect."""
    ended: int = 0
    """Ended in Prefect as their row says."""
    reopened: int = 0
    resubmitted: int = 0
    task_runs: int = 0
    """Task runs, not runs, that are not Running any more."""


class RecoveryActions:
    """Acts on one execution at a time, whose lease was seized; gives it back, whatever it does.

    The row is changed first where a run ends, and Prefect first where it goes on: if what comes second fails,
    the next look finds a run that is over, or one that waits.
    """

    def __init__(self, database: Database, runs: FlowRuns, settings: Settings, report: Report) -> None:
        self._database = database
        self._runs = runs
        self._crash_limit = settings.crash_limit
        self._report = report

    async def attend(self, seized: RecoveryLease, flow_run_id: UUID, state: FlowRunState | None) -> None:
        """Bring a run to where it belongs, given Prefect's state of this moment.

        Raises PrefectUnavailableError, DatabaseUnavailableError, and LeaseLostError when it took so long that
        somebody else looks after it.
        """
        if seized.row.status not in checks.LIVE:
            await self._agree(seized, flow_run_id, state)
            return
        end: Closure | None = closure_for(state, seized.row.reopened_from)
        if state is not None and (state.kind == "cancelling" or seized.row.revoked):
            end = "cancelled", state.state_message or "The run was cancelled.", "cancelled"
        if end is not None:
            await self._close(seized, flow_run_id, state, end)
        elif state is not None and state.final and state.state_id == seized.row.reopened_from:
            await self._retry(seized, flow_run_id)
        elif state is None or state.kind == "paused":  # nobody has to run it
            await self._release(seized)
        else:
            await self._go_on(seized, flow_run_id, state)

    async def _go_on(self, seized: RecoveryLease, flow_run_id: UUID, state: FlowRunState) -> None:
        """Put a run back in its queue, unless that was done too often or cannot be done."""
        given_up = self._given_up(seized)
        if given_up is None and state.kind != "scheduled":
            # A last look: a run that somebody else has taken meanwhile is not ours to put back.
            await self._confirm(seized)
            try:
                await self._crash_task_runs(seized, flow_run_id)
                if not await self._runs.requeue(flow_run_id, f"{_DIED} Another one goes on.", seized.due):
                    await self._database.run(lambda session: orphans.release_recovery(session, seized))
                    return  # something was done to it in Prefect at this moment: the next look tells what
            except ConflictError as error:
                given_up = f"{_DIED} {error}"
        if given_up is not None:
            await self._fail(seized, flow_run_id, given_up)
            return
        await self._database.run(lambda session: orphans.put_back(session, seized, _DIED))
        self._report.requeued += 1
        log.warning("Execution %d lost its worker and is in its queue again.", seized.row.id)

    async def _retry(self, seized: RecoveryLease, flow_run_id: UUID) -> None:
        """Tell Prefect of a person's retry: the API that had opened the row did not come to it."""
        await self._confirm(seized)
        try:
            await self._runs.requeue(flow_run_id, RETRIED)
        except ConflictError as error:
            await self._fail(seized, flow_run_id, str(error))
            return
        await self._release(seized)
        self._report.reopened += 1
        log.info("Execution %d was retried and is in its queue.", seized.row.id)

    def _given_up(self, seized: RecoveryLease) -> str | None:
        """Why a run is not tried any more; None while it is."""
        counts, node = seized.counts, seized.row.current_node
        where = f"at step {seized.step}" + (f", node {node!r}" if node else "")
        if counts.get("crashes", 0) >= self._crash_limit:
            return f"The run's worker died {counts['crashes']} times in a row {where}."
        if counts.get("lost_starts", 0) >= LOST_STARTS:
            return (
                f"The run was taken {counts['lost_starts']} times in a row and never came to start {where}."
            )
        return None

    async def _fail(self, seized: RecoveryLease, flow_run_id: UUID, reason: str) -> None:
        await self._database.run(
            lambda session: transitions.finish(
                session,
                seized.row.id,
                status="failed",
                error=reason,
                error_kind="crashed",
                failed_at_node=seized.row.current_node,
                lease=seized.lease,
            )
        )
        self._report.failed += 1
        log.error("Execution %d is given up: %s", seized.row.id, reason)
        await self._end(seized, flow_run_id, "failed", reason)

    async def _close(
        self, seized: RecoveryLease, flow_run_id: UUID, state: FlowRunState | None, end: Closure
    ) -> None:
        """Close the row of a run that was ended, or is to be ended, in Prefect."""
        status, error, kind = end
        await self._database.run(
            lambda session: transitions.finish(
                session, seized.row.id, status=status, error=error, error_kind=kind, lease=seized.lease
            )
        )
        self._report.closed += 1
        log.warning("Execution %d is closed as %s: %s", seized.row.id, status, error)
        if state is not None and (not state.final or state.kind == "crashed"):
            await self._end(seized, flow_run_id, status, error)
        elif state is not None:
            await self._crash_task_runs(seized, flow_run_id)

    async def _agree(self, seized: RecoveryLease, flow_run_id: UUID, state: FlowRunState | None) -> None:
        """Bring a row that is closed and Prefect together: by what the row says, or by a person's retry."""
        row = seized.row
        if state is None:
            await self._release(seized)
            return
        may_go_on = row.status != "completed" and row.error_kind != "not_started"
        waits = state.kind == "scheduled" and may_go_on
        if waits and await self._runs.retried(flow_run_id):

            def reopen(session: Session) -> None:
                transitions.reopen(session, row.id, state.state_id)
                leases.release(session, seized.lease)

            await self._database.run(reopen)
            self._report.reopened += 1
            log.info("Execution %d was retried in Prefect and is open again.", row.id)
            return
        # It waits because of what a process of NOVA's sent late, or nobody runs it.
        if waits or state.kind in ("pending", "running", "cancelling"):
            await self._confirm(seized)
            await self._end(seized, flow_run_id, row.status, row.error)
            self._report.ended += 1
            log.warning("Execution %d is %s, and so is its flow run now.", row.id, row.status)
        await self._release(seized)

    async def _end(self, seized: RecoveryLease, flow_run_id: UUID, status: str, message: str | None) -> None:
        await self._runs.set_final(flow_run_id, status, message)
        await self._crash_task_runs(seized, flow_run_id)

    async def _crash_task_runs(self, seized: RecoveryLease, flow_run_id: UUID) -> None:
        """End what Prefect still shows as running of the attempt that died."""
        if seized.row.attempt == 0:
            return
        found = await self._runs.open_task_runs(flow_run_id)
        await self._runs.crash_task_runs(found, _DIED)
        self._report.task_runs += len(found)

    async def _confirm(self, seized: RecoveryLease) -> None:
        lease = seized.lease

        def renew(session: Session) -> None:
            if not leases.renew(session, [lease.owner], lease.seconds):
                raise leases.lost(session, lease)

        await self._database.run(renew)

    async def _release(self, seized: RecoveryLease) -> None:
        await self._database.run(lambda session: leases.release(session, seized.lease))
