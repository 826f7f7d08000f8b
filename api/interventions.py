"""What a person does to a run: stop it, try it again, lead it past a node. `decide` says what that takes.

Prefect is asked first, so that without it nothing is changed. A retry then opens the row before Prefect hears
of it, and holds its lease until Prefect has answered: a cancellation waits for that, for what arrives late
would undo it. Where Prefect refuses, the row is closed again as it was. Whoever dies in between, the
reconciler finds the row and tells Prefect (`Execution.reopened_from`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio
from sqlalchemy.orm import Session

from api import submission
from api.services import Services
from flows.graphs.errors import (
    ConflictError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseLostError,
    NotFoundError,
    PrefectUnavailableError,
)
from flows.graphs.flow_run_state import FlowRunState, PrefectState
from flows.graphs.lifecycle import (
    CANCELLED,
    Action,
    Asker,
    Closure,
    ErrorKind,
    RunSnapshot,
    Status,
    closure_for,
    decide,
    needs_request,
)
from flows.recovery.actions import RETRIED
from flows.runs.skip_context import seal_context
from flows.store import executions, orphans, skipping
from flows.store.orphans import RecoveryLease
from flows.store.transitions import attempts, interventions, recoveries, submissions
from flows.store.transitions.interventions import Reopened

log = logging.getLogger(__name__)

_LOOKS = 20
_PAUSE = 0.25
"""Seconds between two looks at a run that is changing hands, or has not come to rest."""
_BY_HAND = Closure(Status.CANCELLED, CANCELLED, ErrorKind.CANCELLED)


@dataclass(frozen=True)
class _Seen:
    """What Prefect and the database have of a task at one moment."""

    task_id: UUID
    row: RunSnapshot | None
    state: FlowRunState | None
    request: UUID | None = None

    @property
    def flow_run_id(self) -> UUID:
        """The run in Prefect; another one than the task where Prefect lost that."""
        return (self.row.flow_run_id if self.row is not None else None) or self.task_id

    def decide(self, asker: Asker) -> Action:
        """What is to be done."""
        return decide(self.row, self.state, asker, request=self.request)


async def cancel(services: Services, task_id: UUID) -> int | None:
    """Cancel a run, and return its execution's id where it has one already.

    One that waits is over at once. One that somebody runs is told to stop, reads as cancelled from now on,
    and is closed when it has stopped. Raises NotFoundError, ConflictError when it is over,
    PrefectUnavailableError and DatabaseUnavailableError.
    """
    for _ in range(_LOOKS):
        seen = await _look(services, task_id)
        action = seen.decide(Asker.CANCEL)
        if action is Action.REFUSE:
            raise ConflictError(_why_over(seen))
        if action is Action.CANCEL and await _cancel_waiting(services, seen):
            return seen.row.id if seen.row is not None else None
        if action is Action.STOP and await _stop(services, seen):
            return seen.row.id if seen.row is not None else None
        await asyncio.sleep(_PAUSE)
    raise ConflictError(f"Task {task_id} changes hands at this moment. Ask again.")


async def retry(services: Services, task_id: UUID) -> int | None:
    """Try a run that failed or was cancelled again, behind its last node that succeeded.

    Returns its execution's id where it has one. Raises NotFoundError, ConflictError when there is nothing to
    retry or Prefect refuses (then nothing is changed), PrefectUnavailableError and DatabaseUnavailableError.
    """
    seen, action = await _at_rest(services, task_id)
    if seen.row is None:
        await _put_in_queue(services, seen, None)
        return None
    row_id = seen.row.id
    await _go_on(
        services, seen, action, lambda session, origin: interventions.reopen(session, row_id, origin)
    )
    return row_id


async def skip(
    services: Services, execution_id: int, step: int, context: Mapping[str, Any], branch: str | None
) -> UUID:
    """Let a run that failed or was cancelled at a step go on behind it with this context.

    Returns its task's id. `branch` is the answer of a decision. Raises NotFoundError,
    InvalidInputError for a branch that the node does not have and for a context that is too large,
    ConflictError when that step cannot be skipped or Prefect refuses (then nothing is changed),
    PrefectUnavailableError and DatabaseUnavailableError.
    """
    found = await services.database.run(lambda session: executions.get(session, execution_id))
    task_id = found.task_id
    if task_id is None:
        raise ConflictError(f"Execution {execution_id} was never started: there is no node to skip.")
    seen, action = await _at_rest(services, task_id)
    limit = services.settings.context_limit

    def open_behind(session: Session, origin: UUID | None) -> Reopened:
        changes = seal_context(session, services.cipher, execution_id, context, limit)
        return skipping.skip(session, execution_id, step, changes, branch, origin)

    await _go_on(services, seen, action, open_behind)
    return task_id


async def _look(services: Services, task_id: UUID) -> _Seen:
    """What Prefect and the database have of a task; raises NotFoundError when neither has it."""
    state = await services.gateway.runs.find(task_id)
    runs = {task_id: state.public_id if state else None}
    row = (await services.database.run(lambda session: orphans.match_flow_runs(session, runs))).get(task_id)
    if row is None and (state is None or state.workflow_id is None):
        raise NotFoundError(f"There is no task {task_id}.")
    seen = _Seen(task_id, row, state)
    if state is None and seen.flow_run_id != task_id:  # Prefect lost the first one, and has another
        seen = _Seen(task_id, row, await services.gateway.runs.find(seen.flow_run_id))
    if needs_request(seen.row, seen.state):
        request = await services.gateway.runs.request_of_start(seen.flow_run_id)
        seen = _Seen(task_id, seen.row, seen.state, request)
    return seen


def _why_over(seen: _Seen) -> str:
    if seen.row is not None:
        return f"Execution {seen.row.id} is {seen.row.status} already."
    name = seen.state.state_name if seen.state is not None else "unknown"
    return f"Task {seen.task_id} is over: {name} in Prefect."


# -- cancel ------------------------------------------------------------------------------------------


async def _stop(services: Services, seen: _Seen) -> bool:
    """Tell whoever has the run to stop; False when it has changed meanwhile."""
    row = seen.row
    if row is not None and _is_being_retried(row, seen.state):
        return False
    after = await _tell(services, seen.flow_run_id)
    if row is None:
        return after is None or after.status == "REVOKED"
    if _is_being_retried(row, after):
        return False
    action = decide(row, after, Asker.CANCEL_TOLD)
    if action is Action.REVOKE:
        return await services.database.run(lambda session: interventions.revoke(session, row))
    if action is Action.CLOSE:  # it was taken, and not yet claimed in Prefect
        closure = closure_for(row, after)
        closed = await services.database.run(
            lambda session: interventions.close_as_seen(session, row, closure)
        )
        return closed and closure.status is Status.CANCELLED
    return False


def _is_being_retried(row: RunSnapshot, state: FlowRunState | None) -> bool:
    """Whether a retry of a run that somebody has is on its way to Prefect, or was there a moment ago.

    Until Prefect has answered it may be sent again, and would undo what was done between.
    """
    if state is None or row.reopened_from is None:
        return False
    return state.state_id == row.reopened_from or (
        state.kind is PrefectState.SCHEDULED and state.state_message == RETRIED
    )


async def _cancel_waiting(services: Services, seen: _Seen) -> bool:
    """Close a run that nobody has, and that nobody can take while its lease is ours."""
    row = seen.row
    if row is None:
        return False
    found = await services.database.run(lambda session: orphans.take_as_seen(session, row, seen.flow_run_id))
    if found is None:
        return False
    try:
        after = await _tell(services, seen.flow_run_id)
        if after is not None and _is_at_work(seen.state) and after.kind is PrefectState.CANCELLING:
            # Prefect's own worker has it, which takes the lease later: it is the one to stop.
            await services.database.run(lambda session: _revoke_and_release(session, found))
            return True
        if after is not None and after.kind is not PrefectState.CANCELLED:
            await services.gateway.runs.set_final(seen.flow_run_id, Status.CANCELLED, None)
        await services.database.run(
            lambda session: recoveries.close_recovered(session, found.lease, _BY_HAND)
        )
    except BaseException:
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            await services.database.run(lambda session: orphans.release(session, found))
        raise
    return True


def _is_at_work(state: FlowRunState | None) -> bool:
    """Whether a worker may have the run, as Prefect had it before it was told to cancel it."""
    return (
        state is not None
        and not state.final
        and state.kind not in (PrefectState.SCHEDULED, PrefectState.PAUSED)
    )


def _revoke_and_release(session: Session, found: RecoveryLease) -> None:
    interventions.revoke(session, found.snapshot)
    orphans.release(session, found)


async def _tell(services: Services, flow_run_id: UUID) -> FlowRunState | None:
    """Ask Prefect to cancel a run, and what it says of it then."""
    await services.gateway.runs.cancel(flow_run_id)
    return await services.gateway.watch.fresh(flow_run_id)


# -- retry -------------------------------------------------------------------------------------------


async def _at_rest(services: Services, task_id: UUID) -> tuple[_Seen, Action]:
    """A run that can be opened now, and how: `REOPEN` or `RESUBMIT`.

    The row is closed a moment before Prefect hears of it: what was put in the queue before would be ended.
    So would be what is retried while its worker still has it to tell Prefect of its end. One that is being
    cancelled will be over soon. Raises ConflictError when the run goes on, or does not stop in time.
    """
    for _ in range(_LOOKS):
        seen = await _look(services, task_id)
        action = seen.decide(Asker.RETRY)
        if action is Action.REFUSE:
            raise ConflictError(_why_not_retried(seen))
        if action is not Action.WAIT:
            return seen, action
        await asyncio.sleep(_PAUSE)
    if seen.row is not None and seen.row.is_live:
        raise ConflictError(f"Execution {seen.row.id} is being cancelled and has not stopped yet. Ask again.")
    raise ConflictError(f"Task {task_id} has not come to rest in Prefect yet. Ask again.")


def _why_not_retried(seen: _Seen) -> str:
    row = seen.row
    if row is None:
        name = seen.state.state_name if seen.state is not None else "unknown"
        over = "over" if seen.state is not None and seen.state.final else "not over"
        return f"Task {seen.task_id} is {over}: {name} in Prefect."
    if row.error_kind is ErrorKind.NOT_STARTED:
        return f"Execution {row.id} was never started. Start its workflow anew."
    return f"Execution {row.id} is {row.status}, not failed or cancelled."


async def _go_on(
    services: Services, seen: _Seen, action: Action, open_row: Callable[[Session, UUID | None], Reopened]
) -> None:
    """Open the row, and have Prefect put the run in its queue, or get it anew where Prefect lost it."""
    origin = seen.request or (seen.state.state_id if seen.state is not None else None)
    reopened = await services.database.run(lambda session: open_row(session, origin))
    if action is Action.RESUBMIT:
        await _resubmit(services, reopened)
    else:
        await _put_in_queue(services, seen, reopened)


async def _resubmit(services: Services, reopened: Reopened) -> None:
    """Hand a run to Prefect again that Prefect does not have any more; its task id stays."""
    execution_id = reopened.lease.execution_id
    await services.database.run(lambda session: recoveries.resubmit(session, reopened.lease))
    try:
        flow_run_id = await submission.resubmit(services, execution_id)
        await services.database.run(lambda session: submissions.confirm(session, execution_id, flow_run_id))
    except ConflictError:
        await _undo(services, reopened)
        raise
    except PrefectUnavailableError as error:  # the reconciler hands it over later
        log.warning("Execution %d waits to be handed to Prefect: %s", execution_id, error)
    finally:
        await _release(services, reopened)


async def _put_in_queue(services: Services, seen: _Seen, reopened: Reopened | None) -> None:
    """Tell Prefect of a retry and release the row's lease.

    Where Prefect is away at this moment the reconciler does so later; where the database is, the lease runs
    out by itself. Raises ConflictError where Prefect refuses: the row is as it was, then.
    """
    runs, state = services.gateway.runs, seen.state
    try:
        if state is not None and not state.final:
            # It waited there already; but the reconciler may have ended it before the row was open.
            state = await runs.find(seen.flow_run_id)
        if state is not None and state.final:
            await runs.requeue(state.flow_run_id, RETRIED)
    except NotFoundError:  # deleted at this moment
        if reopened is None:
            raise
        await _resubmit(services, reopened)
        return
    except ConflictError:
        if reopened is not None:
            await _undo(services, reopened)
        raise
    except PrefectUnavailableError as error:
        log.warning("Task %s waits for Prefect to hear of its retry: %s", seen.task_id, error)
        await _release(services, reopened)
    else:
        await _release(services, reopened)
    with contextlib.suppress(PrefectUnavailableError):
        await services.gateway.watch.fresh(seen.flow_run_id)


async def _undo(services: Services, reopened: Reopened) -> None:
    """Close a run again whose retry Prefect refused."""
    with contextlib.suppress(LeaseLostError):
        await services.database.run(lambda session: skipping.undo(session, reopened))


async def _release(services: Services, reopened: Reopened | None) -> None:
    if reopened is not None:
        with contextlib.suppress(DatabaseUnavailableError, DatabaseRefusedError):
            await services.database.run(lambda session: attempts.release(session, reopened.lease))
