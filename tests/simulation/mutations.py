"""Faults put into the production code, which the simulation must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import LIVE, Closure
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.runs.lease_keeper import AskRequest, HeldLease, LeaseKeeper
from flows.runs.loading import RunRequest
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts, columns, recoveries
from tests.leasing import take_retried

Mutate = Callable[[pytest.MonkeyPatch], None]


def old_rule_of_retries(patch: pytest.MonkeyPatch) -> None:
    """A late claim opens a run again that failed: its first scheduled state is taken for a person's."""

    async def take_for(
        self: LeaseKeeper, request: RunRequest, runs: FlowRuns, ask: AskRequest, *, ask_breaker: bool = False
    ) -> HeldLease | None:
        held = await self.take(request, ask_breaker=ask_breaker)
        if held is not None:
            return held
        queued = [state for state in await runs._states(request.flow_run_id) if state.is_scheduled()]
        if not queued or queued[-1].data == {"by": "nova"}:
            return None
        asked = queued[-1].id
        return await self._take(
            request, lambda session, claim: take_retried(session, claim, asked), ask_breaker
        )

    patch.setattr(LeaseKeeper, "take_for", take_for)


def steps_without_fence(patch: pytest.MonkeyPatch) -> None:
    """A step is written whoever has the lease."""

    def step_done(session: Session, lease: Lease, *, succeeded: bool, next_node: str | None) -> None:
        changes: dict[str, Any] = {"unrepeatable_step": None} if succeeded else {}
        if next_node is not None:
            changes["current_node"] = next_node
        if changes:
            session.execute(update(Execution).where(Execution.id == lease.execution_id).values(**changes))

    patch.setattr(attempts, "step_done", step_done)


def closing_without_lease(patch: pytest.MonkeyPatch) -> None:
    """The reconciler closes rows without looking whose they are by now."""

    def close_recovered(session: Session, lease: Lease, closure: Closure, node: str | None = None) -> None:
        which = (Execution.id == lease.execution_id, Execution.status.in_(LIVE))
        columns.close(session, which, **columns.unless_revoked(closure, node), **columns.FREE)

    patch.setattr(recoveries, "close_recovered", close_recovered)


MUTATIONS: dict[str, Mutate] = {
    "A1's old rule: a late claim opens a failed run": old_rule_of_retries,
    "a step is written without its fence": steps_without_fence,
    "the reconciler closes a row without looking at its lease": closing_without_lease,
}


@contextmanager
def mutated(mutate: Mutate) -> Iterator[None]:
    """Put a fault into the code for a while."""
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        yield
