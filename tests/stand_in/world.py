"""The stand-in's tables, clock and ids, and the look-ups that several of its parts need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from tests.stand_in.records import (
    JSON,
    SLOT_TAKING,
    Deployment,
    Flow,
    FlowRun,
    Lease,
    Limit,
    Pool,
    Queue,
    TaskRun,
    Worker,
)


class Refusal(Exception):  # noqa: N818 - the server's refusal, not a fault of the stand-in
    """An answer that is not a success: a status code and its reason, under the key that the server uses."""

    def __init__(self, status: int, detail: str, key: str = "detail") -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.body = {key: detail}


def conflict() -> Refusal:
    """What PostgreSQL refuses."""
    return Refusal(
        409,
        "Data integrity conflict. This usually means a unique or foreign key constraint was violated. "
        "See server logs for details.",
    )


def failure() -> Refusal:
    """What the server itself fails at."""
    return Refusal(500, "Internal Server Error", "exception_message")


@dataclass
class Tables:
    """All that the server's database holds; a restored backup replaces it as a whole."""

    flows: dict[str, Flow] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    workers: dict[tuple[str, str], Worker] = field(default_factory=dict)
    """By their pool's id and their names."""
    flow_runs: dict[str, FlowRun] = field(default_factory=dict)
    task_runs: dict[str, TaskRun] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    """Flow's id and idempotency key → flow run's id."""
    leases: dict[str, Lease] = field(default_factory=dict)
    logs: list[JSON] = field(default_factory=list)
    events: list[JSON] = field(default_factory=list)


class World:
    """The tables with a clock, a source of ids and a place for events."""

    def __init__(self, now: Callable[[], datetime], seed: int) -> None:
        self.tables = Tables()
        self.now = now
        self.listeners: list[Callable[[JSON], None]] = []
        self.cleaned_up: datetime | None = None
        """When the server last finished what was cancelled."""
        self._random = random.Random(seed)

    def new_id(self) -> str:
        """An id that this server has not given before; the same ones in each server of the same seed."""
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def pool(self, name: str) -> Pool:
        """The work pool of a name."""
        for pool in self.tables.pools.values():
            if pool.name == name:
                return pool
        raise Refusal(404, f'Work pool "{name}" not found.')

    def queues_of(self, pool: Pool) -> list[Queue]:
        """The queues of a pool, highest priority first."""
        found = [queue for queue in self.tables.queues.values() if queue.pool_id == pool.id]
        return sorted(found, key=lambda queue: queue.priority)

    def queue(self, pool: Pool, name: str) -> Queue:
        """The queue of a name in a pool."""
        for queue in self.tables.queues.values():
            if queue.pool_id == pool.id and queue.name == name:
                return queue
        raise Refusal(404, f"Work pool queue '{pool.name}/{name}' not found.")

    def pool_of_queue(self, queue_id: str | None) -> Pool | None:
        """The pool that a queue is in; None where there is no such queue."""
        queue = self.tables.queues.get(queue_id or "")
        return self.tables.pools[queue.pool_id] if queue else None

    def deployment(self, deployment_id: str) -> Deployment:
        """The deployment of an id."""
        found = self.tables.deployments.get(deployment_id)
        if found is None:
            raise Refusal(404, "Deployment not found")
        return found

    def flow_run(self, flow_run_id: str) -> FlowRun:
        """The flow run of an id."""
        found = self.tables.flow_runs.get(flow_run_id)
        if found is None:
            raise Refusal(404, "Flow run not found")
        return found

    def slots_taken(self, queue_ids: Iterable[str]) -> int:
        """How many runs in these queues are pending or running."""
        wanted = set(queue_ids)
        return sum(
            1
            for run in self.tables.flow_runs.values()
            if run.queue_id in wanted and run.state is not None and run.state.type in SLOT_TAKING
        )

    def delete_flow_run(self, flow_run_id: str) -> None:
        """Delete a flow run with its task runs; slots of its deployment are another's business."""
        run = self.tables.flow_runs.pop(flow_run_id)
        if run.idempotency_key is not None:
            self.tables.keys.pop((run.flow_id, run.idempotency_key), None)
        for task_run in [one for one in self.tables.task_runs.values() if one.flow_run_id == flow_run_id]:
            del self.tables.task_runs[task_run.id]

    def emit(self, event: JSON) -> None:
        """Note an event and tell it to whoever listens."""
        self.tables.events.append(event)
        for listener in list(self.listeners):
            listener(event)


def moment(value: Any) -> datetime | None:
    """The time that a client wrote; None for none."""
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromisoformat(value)
