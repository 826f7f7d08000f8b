"""What Prefect says of a flow run, in NOVA's terms; the gateway translates it, nothing here asks Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

TaskStatus = Literal["PENDING", "RUNNING", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
"""The task states of the HTTP contract."""

CONCURRENCY_LIMIT = "Deployment concurrency limit reached."
"""Prefect's message of a run that it cancelled because its workflow's `max_concurrent_runs` was reached."""


SLOT_LOST = "Deployment concurrency slot lost during provisioning"
"""How Prefect's message begins of a run that it cancelled because it was minutes from its claim to its start:
another one has its place by then."""


class PrefectState(StrEnum):
    """Prefect's types of state."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    FAILED = "failed"
    COMPLETED = "completed"


@dataclass(frozen=True)
class FlowRunState:
    """What Prefect says of a flow run."""

    flow_run_id: UUID
    status: TaskStatus
    kind: PrefectState
    state_id: UUID | None
    """A new one with each change, so that it tells whether anything has happened since."""
    state_name: str
    """Prefect's own word: Late, AwaitingRetry, Suspended, …"""
    state_message: str
    final: bool
    run_count: int
    """How often it was started."""
    next_attempt: datetime | None
    """When a run that waits is due."""
    workflow_id: int | None
    """The parameter of that name; None for a flow run that is not of a workflow."""
    public_id: UUID | None
    """The execution that the API made it for; None where it was started elsewhere."""
    by_nova: bool = False
    """Whether NOVA put the run in its queue, or claimed it, by this state."""

    @property
    def is_over_limit(self) -> bool:
        """Whether Prefect cancelled it because its workflow had as many runs as it may have."""
        is_refused = self.kind is PrefectState.CANCELLED and self.state_message == CONCURRENCY_LIMIT
        return is_refused or self.has_lost_slot

    @property
    def has_lost_slot(self) -> bool:
        """Whether it is `is_over_limit` though Prefect had given it a place."""
        return self.kind is PrefectState.CANCELLED and self.state_message.startswith(SLOT_LOST)

    @property
    def message(self) -> str:
        """The contract's sentence for this state."""
        if self.status == "RETRY":
            return f"Task failed, retrying ({self.run_count} attempts)"
        if self.state_name in ("Paused", "Suspended"):
            return f"Task is executing ({self.state_name.lower()} in Prefect)"
        return {
            "PENDING": "Task is queued, waiting for worker",
            "RUNNING": "Task is executing",
            "SUCCESS": "Task completed successfully",
            "FAILURE": "Task failed",
            "REVOKED": "Task was cancelled",
        }[self.status]
