"""What a person does to a run: stop it, try it again, lead it past a node.

Prefect is asked first, so that without it nothing is changed. A retry then opens the row before Prefect hears
of it, and holds its lease until Prefect has answered: a cancellation waits for that, for what arrives late
would undo it. Whoever dies in between, the reconciler finds the row and tells Prefect
(`Execution.reopened_from`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import anyio
from sqlalchemy.orm import Session

from api.services import Services
from flows.graphs.errors import (
    ConflictError,
    DatabaseUnavailableError,
    NotFoundError,
    PrefectUnavailableError,
)
from flows.prefect_gateway.flow_runs import CANCELLED, FlowRunState
from flows.recovery.actions import RETRIED
from flows.runs.skip_context import seal_context
from flows.store import executions, leases, orphans, transitions
from flows.store.leases import Lease
from flows.store.orphans import RecoveryLease, RunSnapshot

log = logging.getLogger(__name__)

_LOOKS = 20
_PAUSE = 0.25
"""Seconds between two looks at a run that is changing hands, or has not come to rest."""


async def cancel(services: Services, task_id: UUID) -> int | None:
    """Cancel a run, and return its execution's id where it has one already.

    One that waits is over at once. One that somebody runs is told to stop, reads as cancelled from now on,
    and is closed when it has stopped. Raises NotFoundError, ConflictError when it is over,
    PrefectUnavailableError and DatabaseUnavailableError.
    """
    for _ in range(_LOOKS):
        state, row = await _look(services, task_id)
        if row is None:
            if await _cancel_unstarted(services, task_id, state):
                return None
        elif await _cancel(services, row, task_id, state):
            return row.id
        await asyncio.sleep(_PAUSE)
    raise ConflictError(f"Task {task_id} changes hands at this moment. Ask again.")


async def retry(services: Services, task_id: UUID) -> int | None:
    """Try a run that failed or was cancelled again, behind its last node that succeeded.

    Returns its execution's id where it has one. Raises NotFoundError, ConflictError when there is nothing to
    retry, PrefectUnavailableError and DatabaseUnavailableError.
    """
    state, row = await _at_rest(services, task_id)
    if row is None:
        await _put_in_queue(services, state, None)
        return None
    row_id = row.id

    def write(session: Session) -> Lease:
        transitions.reopen(session, row_id, state.state_id)
        return orphans.hold_reopened(session, row_id)

    await _put_in_queue(services, state, await services.database.run(write))
    return row_id


async def skip(
    services: Services, execution_id: int, step: int, context: Mapping[str, Any], branch: str | None
) -> UUID:
    """Let a run that failed or was cancelled at a step go on behind it with this context.

    Returns its task's id. `branch` is the answer of a decision. Raises NotFoundError,
    InvalidInputError for a branch that the node does not have and for a context that is too large,
    ConflictError when that step cannot be skipped, PrefectUnavailableError and DatabaseUnavailableError.
    """
    found = await services.database.run(lambda session: executions.get(session, execution_id))
    task_id = found.flow_run_id
    if task_id is None:
        raise ConflictError(f"Execution {execution_id} was never started: there is no node to skip.")
    state, _ = await _at_rest(services, task_id)
    limit = services.settings.context_limit

    def write(session: Session) -> Lease:
        changes = seal_context(session, services.cipher, execution_id, context, limit)
        transitions.skip(session, execution_id, step, changes, branch, state.state_id)
        return orphans.hold_reopened(session, execution_id)

    await _put_in_queue(services, state, await services.database.run(write))
    return task_id


async def _look(services: Services, task_id: UUID) -> tuple[FlowRunState | None, RunSnapshot | None]:
    """What Prefect and the database have of a task; raises NotFoundError when neither has it."""
    state = await services.gateway.runs.find(task_id)
    runs = {task_id: state.public_id if state else None}
    row = (await services.database.run(lambda session: orphans.match_flow_runs(session, runs))).get(task_id)
    if row is None and (state is None or state.workflow_id is None):
        raise NotFoundError(f"There is no task {task_id}.")
    return state, row


# -- cancel ------------------------------------------------------------------------------------------


async def _cancel_unstarted(services: Services, task_id: UUID, state: FlowRunState | None) -> bool:
    """Cancel a run that was started in Prefect and has no row yet."""
    if state is not None and state.final:
        raise ConflictError(f"Task {task_id} is over: {state.state_name} in Prefect.")
    after = await _tell(services, task_id)
    return after is None or after.status == "REVOKED"


async def _cancel(services: Services, row: RunSnapshot, task_id: UUID, state: FlowRunState | None) -> bool:
    """Cancel a run as far as it can be now; False when it has changed meanwhile."""
    if not row.is_live:
        raise ConflictError(f"Execution {row.id} is {row.status} already.")
    seized = await services.database.run(lambda session: orphans.seize(session, row, task_id))
    if seized is not None:
        return await _cancel_waiting(services, seized, task_id, state)
    if _is_being_retried(row, state):
        return False
    return await _cancel_running(services, row, task_id)


def _is_being_retried(row: RunSnapshot, state: FlowRunState | None) -> bool:
    """Whether a retry of a run that somebody has is on its way to Prefect, or was there a moment ago.

    Until Prefect has answered it may be sent again, and would undo what was done between.
    """
    if state is None or row.reopened_from is None:
        return False
    return state.state_id == row.reopened_from or (
        state.kind == "scheduled" and state.state_message == RETRIED
    )


async def _cancel_running(services: Services, row: RunSnapshot, task_id: UUID) -> bool:
    """Tell whoever has the run to stop; False when it has changed meanwhile."""
    after = await _tell(services, task_id)
    if _is_being_retried(row, after):
        return False
    if after is not None and after.kind == "cancelling":
        return await services.database.run(
            lambda session: transitions.revoke(session, row.id, row.attempt, row.reopened_from)
        )
    if after is None or after.kind == "cancelled":  # it was taken, and not yet claimed in Prefect
        return await services.database.run(
            lambda session: transitions.finish(
                session,
                row.id,
                status="cancelled",
                error=CANCELLED,
                error_kind="cancelled",
                attempt=row.attempt,
                reopened_from=row.reopened_from,
            )
        )
    return False


async def _cancel_waiting(
    services: Services, seized: RecoveryLease, task_id: UUID, before: FlowRunState | None
) -> bool:
    """Close a run that nobody has, and that nobody can take while its lease is ours."""
    runs, row_id = services.gateway.runs, seized.row.id
    try:
        after = await _tell(services, task_id)
        waited = before is None or before.final or before.kind in ("scheduled", "paused")
        if after is not None and after.kind == "cancelling" and not waited:
            # Prefect's own worker has it, which takes the lease later: it is the one to stop.
            await services.database.run(
                lambda session: transitions.revoke(
                    session, row_id, seized.row.attempt, seized.row.reopened_from
                )
            )
            await services.database.run(lambda session: orphans.release_recovery(session, seized))
            return True
        if after is not None and after.kind != "cancelled":
            await runs.set_final(task_id, "cancelled", None)
        return await services.database.run(
            lambda session: transitions.finish(
                session,
                row_id,
                status="cancelled",
                error=CANCELLED,
                error_kind="cancelled",
                lease=seized.lease,
            )
        )
    except BaseException:
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            await services.database.run(lambda session: orphans.release_recovery(session, seized))
        raise


async def _tell(services: Services, task_id: UUID) -> FlowRunState | None:
    """Ask Prefect to cancel a run, and what it says of it then."""
    await services.gateway.runs.cancel(task_id)
    return await services.gateway.watch.fresh(task_id)


# -- retry -------------------------------------------------------------------------------------------


async def _at_rest(services: Services, task_id: UUID) -> tuple[FlowRunState, RunSnapshot | None]:
    """A run that is over in Prefect as well, or waits there since somebody retried it.

    The row is closed a moment before Prefect hears of it: what was put in the queue before would be ended.
    So would be what is retried while its worker still has it to tell Prefect of its end. One that is being
    cancelled will be over soon. Raises ConflictError when the run goes on, or does not stop in time, and when
    Prefect does not have it any more.
    """
    row: RunSnapshot | None = None
    for _ in range(_LOOKS):
        state, row = await _look(services, task_id)
        if row is not None and row.is_live and not row.revoked:
            raise ConflictError(f"Execution {row.id} is {row.status}, not failed or cancelled.")
        if state is None:
            raise ConflictError(f"Task {task_id} was deleted in Prefect. Start its workflow anew.")
        is_over = row is None or not (row.is_live or row.leased)
        if is_over and (state.final or (row is not None and state.kind == "scheduled")):
            if row is None and state.status == "SUCCESS":
                raise ConflictError(f"Task {task_id} is over: {state.state_name} in Prefect.")
            return state, row
        if row is None:
            raise ConflictError(f"Task {task_id} is not over: {state.state_name} in Prefect.")
        await asyncio.sleep(_PAUSE)
    if row is not None and row.is_live:
        raise ConflictError(f"Execution {row.id} is being cancelled and has not stopped yet. Ask again.")
    raise ConflictError(f"Task {task_id} has not come to rest in Prefect yet. Ask again.")


async def _put_in_queue(services: Services, state: FlowRunState, lease: Lease | None) -> None:
    """Tell Prefect of a retry and give the row's lease back.

    Where Prefect is away at this moment the reconciler does so later; where the database is, the lease runs
    out by itself.
    """
    try:
        if state.final:
            await services.gateway.runs.requeue(state.flow_run_id, RETRIED)
    except PrefectUnavailableError as error:
        log.warning("Task %s waits for Prefect to hear of its retry: %s", state.flow_run_id, error)
    finally:
        if lease is not None:
            with contextlib.suppress(DatabaseUnavailableError):
                await services.database.run(lambda session: leases.release(session, lease))
    with contextlib.suppress(PrefectUnavailableError):
        await services.gateway.watch.fresh(state.flow_run_id)
