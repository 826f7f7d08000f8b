"""What the stand-in of Prefect's server keeps: one small class per kind of record, ids as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

JSON = dict[str, Any]

SCHEDULED, PENDING, RUNNING, PAUSED = "SCHEDULED", "PENDING", "RUNNING", "PAUSED"
CANCELLING, CANCELLED = "CANCELLING", "CANCELLED"
COMPLETED, FAILED, CRASHED = "COMPLETED", "FAILED", "CRASHED"

FINAL = frozenset({COMPLETED, FAILED, CANCELLED, CRASHED})
TYPES = FINAL | {SCHEDULED, PENDING, RUNNING, PAUSED, CANCELLING}
SLOT_TAKING = frozenset({PENDING, RUNNING})
"""The types of state that take a slot of the work pool and of its queue."""

NO_DETAILS: JSON = {
    "flow_run_id": None,
    "task_run_id": None,
    "child_flow_run_id": None,
    "scheduled_time": None,
    "cache_key": None,
    "cache_expiration": None,
    "deferred": False,
    "untrackable_result": False,
    "pause_timeout": None,
    "pause_reschedule": False,
    "pause_key": None,
    "run_input_keyset": None,
    "refresh_cache": None,
    "retriable": None,
    "transition_id": None,
    "task_parameters_id": None,
    "traceparent": None,
    "deployment_concurrency_lease_id": None,
}


@dataclass(slots=True)
class State:
    """A state of a run; nobody changes it once it is written."""

    id: str
    type: str
    name: str
    timestamp: datetime
    message: str | None = None
    data: Any = None
    details: JSON = field(default_factory=NO_DETAILS.copy)

    @property
    def is_final(self) -> bool:
        """Whether a run ends with it."""
        return self.type in FINAL


@dataclass(slots=True)
class Run:
    """What flow runs and task runs have in common."""

    id: str
    created: datetime
    updated: datetime
    name: str
    policy: JSON
    tags: list[str]
    labels: JSON | None
    run_count: int = 0
    expected_start_time: datetime | None = None
    next_scheduled_start_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    total_run_time: float = 0.0
    """Seconds."""
    state: State | None = None
    states: list[State] = field(default_factory=list)
    """All of them, oldest first."""


@dataclass(slots=True, kw_only=True)
class FlowRun(Run):
    """A run of a flow."""

    flow_id: str
    deployment_id: str | None = None
    deployment_version: str | None = None
    flow_version: str | None = None
    queue_id: str | None = None
    queue_name: str | None = None
    """The queue's name at the run's creation; it stays when the queue is gone."""
    parameters: JSON = field(default_factory=dict)
    context: JSON = field(default_factory=dict)
    idempotency_key: str | None = None
    parent_task_run_id: str | None = None
    auto_scheduled: bool = False
    infrastructure_pid: str | None = None
    created_by: JSON | None = None
    job_variables: JSON | None = None


@dataclass(slots=True, kw_only=True)
class TaskRun(Run):
    """A run of a task."""

    flow_run_id: str | None
    task_key: str
    dynamic_key: str
    flow_run_run_count: int = 0
    task_inputs: JSON = field(default_factory=dict)
    task_version: str | None = None


@dataclass(slots=True)
class Flow:
    """A flow; deployments and runs belong to one."""

    id: str
    created: datetime
    updated: datetime
    name: str
    tags: list[str]
    labels: JSON


@dataclass(slots=True)
class Schedule:
    """A schedule of a deployment; `rule` is what Prefect's client sent."""

    id: str
    created: datetime
    updated: datetime
    rule: JSON
    active: bool
    parameters: JSON
    slug: str | None
    max_scheduled_runs: int | None = None


@dataclass(slots=True)
class Limit:
    """How many runs of a deployment may be pending or running."""

    id: str
    created: datetime
    updated: datetime
    name: str
    limit: int
    active_slots: int = 0


@dataclass(slots=True)
class Lease:
    """A run's right to a slot of a deployment, until it expires."""

    limit_id: str
    expires: datetime


@dataclass(slots=True)
class Deployment:
    """A deployment. `fields` is what the client set and the server only keeps."""

    id: str
    created: datetime
    updated: datetime
    name: str
    flow_id: str
    fields: JSON
    labels: JSON
    paused: bool = False
    schedules: list[Schedule] = field(default_factory=list)
    limit_id: str | None = None
    queue_id: str | None = None
    queue_name: str | None = None
    """The queue's name as the client set it; it stays when the queue is gone."""
    last_polled: datetime | None = None


@dataclass(slots=True)
class Pool:
    """A work pool; `fields` is what the client set and the server only keeps."""

    id: str
    created: datetime
    updated: datetime
    name: str
    type: str
    fields: JSON
    default_queue_id: str
    paused: bool = False
    limit: int | None = None


@dataclass(slots=True)
class Queue:
    """A queue of a work pool."""

    id: str
    created: datetime
    updated: datetime
    name: str
    pool_id: str
    priority: int
    description: str | None = ""
    paused: bool = False
    limit: int | None = None
    last_polled: datetime | None = None


@dataclass(slots=True)
class Worker:
    """A worker as its heartbeats tell of it."""

    id: str
    created: datetime
    updated: datetime
    name: str
    pool_id: str
    last_heartbeat: datetime
    interval: int | None
