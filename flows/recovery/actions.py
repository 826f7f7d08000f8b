"""What is done about an execution that nobody runs: it is requeued, closed, reopened or resubmitted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.graphs.errors import ConflictError
from flows.graphs.flow_run_state import FlowRunState, PrefectState
from flows.graphs.lifecycle import (
    Action,
    Asker,
    Closure,
    ErrorKind,
    Status,
    closure_for,
    decide,
    needs_request,
)
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.store import leases, orphans
from flows.store.database import Database
from flows.store.orphans import RecoveryLease
from flows.store.transitions import attempts, interventions, recoveries, submissions

log = logging.getLogger(__name__)

DIED = "The worker of this run died."
RETRIED = "A person retried it."
"""What Prefect shows of a run that was retried over the API."""
FULL = "Too many runs of its workflow go on; it waits for one of them to end."
FULL_SECONDS = 30.0
"""Seconds after which a run that has begun asks Prefect again for a place among its workflow's runs."""

Resubmit = Callable[[int], Awaitable[UUID]]
"""Hands the execution of that id to Prefect, once more perhaps, and returns its flow run's id."""


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
    """Acts on one execution at a time, whose lease its caller took, and releases it, whatever it does.

    The row is changed first where a run ends, and Prefect first where it goes on: if what comes second fails,
    the next round finds a run that is over, or one that waits.
    """

    def __init__(
        self,
        database: Database,
        runs: FlowRuns,
        settings: Settings,
        report: Report,
        resubmit: Resubmit | None = None,
    ) -> None:
        self._database = database
        self._runs = runs
        self._crash_limit = settings.crash_limit
        self._report = report
        self._resubmit = resubmit

    async def act(
        self, found: RecoveryLease, flow_run_id: UUID, state: FlowRunState | None, lost: bool
    ) -> None:
        """Do what the lifecycle decides about a run, given Prefect's state of this moment.

        Raises PrefectUnavailableError, DatabaseUnavailableError, and LeaseLostError when it took so long that
        somebody else looks after it.
        """
        row = found.snapshot
        request = await self._runs.request_of_start(flow_run_id) if needs_request(row, state) else None
        action = decide(row, state, Asker.RECONCILER, request=request, lost=lost)
        if action is Action.CLOSE:
            await self._close(found, flow_run_id, state, closure_for(row, state))
        elif action is Action.TELL_RETRY:
            await self._tell_retry(found, flow_run_id)
        elif action is Action.REQUEUE and state is not None:
            await self._requeue(found, flow_run_id, state)
        elif action is Action.REOPEN and request is not None:
            await self._reopen(found, request)
        elif action is Action.END_FLOW_RUN:
            await self._confirm(found)
            await self._end(found, flow_run_id, row.status, found.row.error)
            await self._release(found)
            self._report.ended += 1
            log.warning("Execution %d is %s, and so is its flow run now.", row.id, row.status)
        elif action is Action.RESUBMIT:
            await self.resubmit(found)
        else:
            await self._release(found)

    async def resubmit(self, found: RecoveryLease) -> None:
        """Hand a run to Prefect, which was never told of it or has lost it.

        Only the API can: others note that Prefect has lost it, and the API finds it among those that were
        never submitted.
        """
        if found.row.flow_run_id is not None:
            await self._database.run(lambda session: recoveries.resubmit(session, found.lease))
        if self._resubmit is None:
            await self._release(found)
            return
        try:
            flow_run_id = await self._resubmit(found.row.id)
        except ConflictError as error:
            await self._close_as_failed(found, str(error))
            return

        def note(session: Session) -> None:
            submissions.confirm(session, found.row.id, flow_run_id)
            attempts.release(session, found.lease)

        await self._database.run(note)
        self._report.resubmitted += 1
        log.warning("Execution %d was missing in Prefect and was handed to it.", found.row.id)

    async def _requeue(self, found: RecoveryLease, flow_run_id: UUID, state: FlowRunState) -> None:
        """Put a run in its queue again, unless that was done too often or cannot be done."""
        if state.is_over_limit:
            try:
                await self._let_wait(found, flow_run_id)
            except ConflictError as error:
                await self._give_up(found, flow_run_id, f"{FULL} {error}")
            return
        attempt = found.lost_attempt
        given_up = attempt.why_given_up(self._crash_limit) if attempt is not None else None
        if given_up is None and state.kind is not PrefectState.SCHEDULED:
            # Look once more: somebody else may have taken the run meanwhile.
            await self._confirm(found)
            try:
                await self._crash_task_runs(found, flow_run_id)
                if not await self._runs.requeue(flow_run_id, f"{DIED} Another one goes on.", found.due):
                    await self._put_down(found)
                    return  # a person did something to it in Prefect at this moment: the next round sees what
            except ConflictError as error:
                given_up = f"{DIED} {error}"
        if given_up is not None:
            await self._give_up(found, flow_run_id, given_up)
            return
        counts = attempt.counters() if attempt is not None else {}
        why = DIED if found.due is None else None
        await self._database.run(lambda session: recoveries.requeue(session, found.lease, counts, why))
        self._report.requeued += 1
        log.warning("Execution %d lost its worker and is in its queue again.", found.row.id)

    async def _let_wait(self, found: RecoveryLease, flow_run_id: UUID) -> None:
        """Requeue a run that had begun and that Prefect cancelled because too many of its workflow go on."""
        await self._confirm(found)
        due = datetime.now(UTC) + timedelta(seconds=FULL_SECONDS)
        if await self._runs.requeue(flow_run_id, FULL, due):
            self._report.requeued += 1
            log.info(
                "Execution %d was cancelled by Prefect and is in its queue again: %s", found.row.id, FULL
            )
        await self._release(found)

    async def _tell_retry(self, found: RecoveryLease, flow_run_id: UUID) -> None:
        """Tell Prefect of a person's retry: the API that had opened the row did not come to it."""
        await self._confirm(found)
        try:
            await self._runs.requeue(flow_run_id, RETRIED)
        except ConflictError as error:
            await self._give_up(found, flow_run_id, str(error))
            return
        await self._release(found)
        self._report.reopened += 1
        log.info("Execution %d was retried and is in its queue.", found.row.id)

    async def _reopen(self, found: RecoveryLease, request: UUID) -> None:
        await self._database.run(
            lambda session: interventions.reopen_recovered(session, found.lease, request)
        )
        self._report.reopened += 1
        log.info("Execution %d was retried in Prefect and is open again.", found.row.id)

    async def _give_up(self, found: RecoveryLease, flow_run_id: UUID, reason: str) -> None:
        await self._close_as_failed(found, reason)
        await self._end(found, flow_run_id, Status.FAILED, reason)

    async def _close_as_failed(self, found: RecoveryLease, reason: str) -> None:
        closure = Closure(Status.FAILED, reason, ErrorKind.CRASHED)
        node = found.row.current_node
        await self._database.run(
            lambda session: recoveries.close_recovered(session, found.lease, closure, node)
        )
        self._report.failed += 1
        log.error("Execution %d is given up: %s", found.row.id, reason)

    async def _close(
        self, found: RecoveryLease, flow_run_id: UUID, state: FlowRunState | None, closure: Closure
    ) -> None:
        """Close the row of a run that was ended, or is to be ended, in Prefect."""
        await self._database.run(lambda session: recoveries.close_recovered(session, found.lease, closure))
        self._report.closed += 1
        log.warning("Execution %d is closed as %s: %s", found.row.id, closure.status, closure.error)
        if state is not None and (not state.final or state.kind is PrefectState.CRASHED):
            await self._end(found, flow_run_id, closure.status, closure.error)
        elif state is not None:
            await self._crash_task_runs(found, flow_run_id)

    async def _end(
        self, found: RecoveryLease, flow_run_id: UUID, status: Status, message: str | None
    ) -> None:
        await self._runs.set_final(flow_run_id, status, message)
        await self._crash_task_runs(found, flow_run_id)

    async def _crash_task_runs(self, found: RecoveryLease, flow_run_id: UUID) -> None:
        """End what Prefect still shows as running of the attempt that died."""
        if found.row.attempt == 0:
            return
        open_task_runs = await self._runs.open_task_runs(flow_run_id)
        await self._runs.crash_task_runs(open_task_runs, DIED)
        self._report.task_runs += len(open_task_runs)

    async def _confirm(self, found: RecoveryLease) -> None:
        lease = found.lease

        def renew(session: Session) -> None:
            if not leases.renew(session, [lease.owner], lease.seconds):
                raise leases.lost(session, lease)

        await self._database.run(renew)

    async def _release(self, found: RecoveryLease) -> None:
        await self._database.run(lambda session: attempts.release(session, found.lease))

    async def _put_down(self, found: RecoveryLease) -> None:
        """Leave a run as it was found; a lease that had run out has run out again."""
        await self._database.run(lambda session: orphans.release(session, found))
