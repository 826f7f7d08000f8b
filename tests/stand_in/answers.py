"""The records as Prefect's API shows them."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.stand_in.records import (
    FINAL,
    JSON,
    RUNNING,
    Deployment,
    Flow,
    FlowRun,
    Pool,
    Queue,
    Run,
    Schedule,
    TaskRun,
    Worker,
)
from tests.stand_in.transitions import state_json
from tests.stand_in.world import World

ONLINE_FOR = 3
"""A worker counts as online for so many of its heartbeats' intervals."""
HEARTBEAT = 30
"""Seconds between two heartbeats of a worker that does not say."""


def flow_run(world: World, run: FlowRun) -> JSON:
    """A flow run with its state, its queue and its pool."""
    queue = world.tables.queues.get(run.queue_id or "")
    pool = world.pool_of_queue(run.queue_id)
    return {
        **_run(run, world.now()),
        "flow_id": run.flow_id,
        "deployment_id": run.deployment_id,
        "deployment_version": run.deployment_version,
        "work_queue_id": run.queue_id,
        "work_queue_name": queue.name if queue else run.queue_name,
        "flow_version": run.flow_version,
        "parameters": run.parameters,
        "idempotency_key": run.idempotency_key,
        "context": run.context,
        "parent_task_run_id": run.parent_task_run_id,
        "auto_scheduled": run.auto_scheduled,
        "infrastructure_document_id": None,
        "infrastructure_pid": run.infrastructure_pid,
        "created_by": run.created_by,
        "work_pool_id": pool.id if pool else None,
        "work_pool_name": pool.name if pool else None,
        "job_variables": run.job_variables,
    }


def due_run(world: World, run: FlowRun) -> JSON:
    """A flow run as the look-up of due runs shows it: without its state and its pool."""
    shown = flow_run(world, run)
    del shown["work_pool_id"], shown["work_pool_name"]
    return {**shown, "work_queue_name": run.queue_name, "state": None}


def task_run(world: World, run: TaskRun) -> JSON:
    """A task run with its state."""
    return {
        **_run(run, world.now()),
        "flow_run_id": run.flow_run_id,
        "task_key": run.task_key,
        "dynamic_key": run.dynamic_key,
        "cache_key": None,
        "cache_expiration": None,
        "task_version": run.task_version,
        "task_inputs": run.task_inputs,
        "flow_run_run_count": run.flow_run_run_count,
    }


def _run(run: Run, now: datetime) -> JSON:
    state, expected, estimate = run.state, run.expected_start_time, run.total_run_time
    if state is not None and state.type == RUNNING:
        estimate += (now - state.timestamp).total_seconds()
    delta = 0.0
    if expected is not None and run.start_time is not None:
        delta = max(0.0, (run.start_time - expected).total_seconds())
    elif expected is not None and (state is None or state.type not in FINAL):
        delta = max(0.0, (now - expected).total_seconds())
    return {
        "id": run.id,
        "created": run.created,
        "updated": run.updated,
        "name": run.name,
        "state_id": state.id if state else None,
        "state_type": state.type if state else None,
        "state_name": state.name if state else None,
        "state": state_json(state) if state else None,
        "empirical_policy": run.policy,
        "tags": run.tags,
        "labels": run.labels,
        "run_count": run.run_count,
        "expected_start_time": expected,
        "next_scheduled_start_time": run.next_scheduled_start_time,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "total_run_time": run.total_run_time,
        "estimated_run_time": estimate,
        "estimated_start_time_delta": delta,
    }


def flow(one: Flow) -> JSON:
    """A flow."""
    return {
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "name": one.name,
        "tags": one.tags,
        "labels": one.labels,
    }


def deployment(world: World, one: Deployment) -> JSON:
    """A deployment with its schedules, its limit, its queue and its pool."""
    limit = world.tables.limits.get(one.limit_id or "")
    queue = world.tables.queues.get(one.queue_id or "")
    pool = world.pool_of_queue(one.queue_id)
    return {
        **one.fields,
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "name": one.name,
        "flow_id": one.flow_id,
        "paused": one.paused,
        "schedules": [schedule(one, each) for each in one.schedules],
        "concurrency_limit": None,
        "global_concurrency_limit": {
            "id": limit.id,
            "created": limit.created,
            "updated": limit.updated,
            "active": True,
            "name": limit.name,
            "limit": limit.limit,
            "active_slots": limit.active_slots,
            "slot_decay_per_second": 0.0,
        }
        if limit
        else None,
        "labels": one.labels,
        "work_queue_name": queue.name if queue else one.queue_name,
        "work_queue_id": one.queue_id,
        "work_pool_name": pool.name if pool else None,
        "last_polled": one.last_polled,
        "storage_document_id": None,
        "infrastructure_document_id": None,
        "created_by": None,
        "updated_by": None,
        "status": "READY" if one.last_polled else "NOT_READY",
    }


def schedule(of: Deployment, one: Schedule) -> JSON:
    """A schedule of a deployment."""
    return {
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "deployment_id": of.id,
        "schedule": one.rule,
        "active": one.active,
        "max_scheduled_runs": one.max_scheduled_runs,
        "parameters": one.parameters,
        "slug": one.slug,
    }


def pool(world: World, one: Pool) -> JSON:
    """A work pool; a limited one with the number of its slots that are taken."""
    taken = None
    if one.limit is not None:
        taken = world.slots_taken(queue.id for queue in world.queues_of(one))
    return {
        **one.fields,
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "name": one.name,
        "type": one.type,
        "is_paused": one.paused,
        "concurrency_limit": one.limit,
        "status": _pool_status(world, one),
        "default_queue_id": one.default_queue_id,
        "active_slots": taken,
    }


def _pool_status(world: World, one: Pool) -> str:
    if one.paused:
        return "PAUSED"
    workers = [each for each in world.tables.workers.values() if each.pool_id == one.id]
    return "READY" if any(is_online(world, each) for each in workers) else "NOT_READY"


def queue(world: World, one: Queue) -> JSON:
    """A queue of a work pool; a limited one with the number of its slots that are taken."""
    status = "READY" if one.last_polled else "NOT_READY"
    return {
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "name": one.name,
        "description": one.description,
        "is_paused": one.paused,
        "concurrency_limit": one.limit,
        "priority": one.priority,
        "work_pool_id": one.pool_id,
        "filter": None,
        "last_polled": one.last_polled,
        "work_pool_name": world.tables.pools[one.pool_id].name,
        "status": "PAUSED" if one.paused else status,
        "active_slots": None if one.limit is None else world.slots_taken([one.id]),
    }


def worker(world: World, one: Worker) -> JSON:
    """A worker, online or not."""
    return {
        "id": one.id,
        "created": one.created,
        "updated": one.updated,
        "name": one.name,
        "work_pool_id": one.pool_id,
        "last_heartbeat_time": one.last_heartbeat,
        "heartbeat_interval_seconds": one.interval,
        "status": "ONLINE" if is_online(world, one) else "OFFLINE",
    }


def is_online(world: World, one: Worker) -> bool:
    """Whether a worker's last heartbeat is young enough."""
    silence = timedelta(seconds=(one.interval or HEARTBEAT) * ONLINE_FOR)
    return one.last_heartbeat > world.now() - silence
