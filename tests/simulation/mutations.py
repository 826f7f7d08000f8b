"""Faults put into the production code, which the simulation must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from flows.prefect_gateway.flow_runs import FlowRuns
from flows.prefect_gateway.prefect_errors import prefect_call
from flows.recovery import actions
from flows.store import chain, transitions
from flows.store.leases import Lease
from flows.store.models import ChainEntry, Execution

Mutate = Callable[[pytest.MonkeyPatch], None]


def old_rule_of_retries(patch: pytest.MonkeyPatch) -> None:
    """A late claim opens a run again that failed: its first scheduled state is taken for a person's."""

    async def retried(self: FlowRuns, flow_run_id: UUID) -> bool:
        async with prefect_call(self._timeout, "reading the flow run's states"):
            states = await self._client.read_flow_run_states(flow_run_id)
        queued = [each for each in states if each.name != "AwaitingConcurrencySlot" and each.is_scheduled()]
        last = max(queued, key=lambda state: state.timestamp, default=None)
        return last is not None and not (last.message or "").startswith("NOVA: ")

    patch.setattr(FlowRuns, "retried", retried)


def steps_without_fence(patch: pytest.MonkeyPatch) -> None:
    """A step is written whoever has the lease."""

    def append(
        session: Session, lease: Lease, step: chain.Step, current_node: str | None = None
    ) -> ChainEntry:
        changes: dict[str, Any] = {"unrepeatable_step": None} if step.status == "success" else {}
        if current_node is not None:
            changes["current_node"] = current_node
        if changes:
            session.execute(update(Execution).where(Execution.id == lease.execution_id).values(**changes))
        return chain.add(session, lease.execution_id, step)

    patch.setattr(chain, "append", append)


def closing_without_lease(patch: pytest.MonkeyPatch) -> None:
    """The reconciler closes rows without looking whose they are by now."""

    class Careless:
        def __getattr__(self, name: str) -> Any:
            return getattr(transitions, name)

        @staticmethod
        def finish(session: Session, execution_id: int, **how: Any) -> bool:
            return transitions.finish(session, execution_id, **{**how, "lease": None})

    patch.setattr(actions, "transitions", Careless())


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
