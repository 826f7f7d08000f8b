"""What the API does with work pools, their queues and workers, and with runs that are due."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.stand_in import answers, filters
from tests.stand_in.records import JSON, SCHEDULED, FlowRun, Pool, Queue, Worker
from tests.stand_in.world import Refusal, World, moment

Answer = tuple[int, Any]

FIELDS: JSON = {
    "description": None,
    "base_job_template": {},
    "storage_configuration": {
        "bundle_upload_step": None,
        "bundle_execution_step": None,
        "default_result_storage_block_id": None,
    },
}
"""What a client sets and the server only keeps, with the defaults."""


def create(world: World, body: JSON) -> Answer:
    """Create a pool with the queue that every pool has."""
    name = body["name"]
    if name.lower().startswith("prefect"):
        raise Refusal(403, "Work pools starting with 'Prefect' are reserved for internal use.")
    if any(pool.name == name for pool in world.tables.pools.values()):
        raise Refusal(409, "A work pool with this name already exists.")
    now = world.now()
    given = {key: body[key] for key in FIELDS if body.get(key) is not None}
    pool = Pool(world.new_id(), now, now, name, body["type"], {**FIELDS, **given}, "")
    pool.paused, pool.limit = bool(body.get("is_paused")), body.get("concurrency_limit")
    world.tables.pools[pool.id] = pool
    default = {"name": "default", "description": "The work pool's default queue."}
    pool.default_queue_id = make_queue(world, pool, default).id
    return 201, answers.pool(world, pool)


def change(world: World, pool: Pool, body: JSON) -> Answer:
    """Change a pool: what it says, its limit, whether it is paused."""
    pool.fields = {**pool.fields, **{key: body[key] for key in FIELDS if key in body}}
    if body.get("is_paused") is not None:
        pool.paused = body["is_paused"]
    if "concurrency_limit" in body:
        pool.limit = body["concurrency_limit"]
    pool.updated = world.now()
    return 204, None


def delete(world: World, pool: Pool) -> Answer:
    """Delete a pool with its queues and workers; deployments and runs lose their queue."""
    for queue in world.queues_of(pool):
        _drop_queue(world, queue)
    for key in [key for key in world.tables.workers if key[0] == pool.id]:
        del world.tables.workers[key]
    del world.tables.pools[pool.id]
    return 204, None


def read_all(world: World, body: JSON) -> Answer:
    """All pools, by their names."""
    found = sorted(world.tables.pools.values(), key=lambda pool: pool.name)
    return 200, [answers.pool(world, pool) for pool in filters.page(found, body)]


def make_queue(world: World, pool: Pool, body: JSON) -> Queue:
    """Make a queue; without a priority of its own it comes where there is room, else last."""
    if any(queue.name == body["name"] for queue in world.queues_of(pool)):
        # The braces are the real server's.
        raise Refusal(409, "A work queue with this name already exists in work pool {work_pool_name!r}.")
    now = world.now()
    taken = [queue.priority for queue in world.queues_of(pool)]
    free = next((at for at, priority in enumerate(taken, 1) if at != priority), max(taken, default=0) + 1)
    priority = body.get("priority")
    description = body.get("description")
    queue = Queue(
        id=world.new_id(),
        created=now,
        updated=now,
        name=body["name"],
        pool_id=pool.id,
        priority=priority or free,
        description="" if description is None else description,
        paused=bool(body.get("is_paused")),
        limit=body.get("concurrency_limit"),
    )
    world.tables.queues[queue.id] = queue
    if priority:
        _make_room(world, pool, queue)
    return queue


def change_queue(world: World, queue: Queue, body: JSON) -> Answer:
    """Change a queue; others make room for a new priority."""
    for key, name in (("name", "name"), ("description", "description"), ("concurrency_limit", "limit")):
        if key in body:
            setattr(queue, name, body[key])
    if body.get("is_paused") is not None:
        queue.paused = body["is_paused"]
    if body.get("priority") is not None:
        queue.priority = body["priority"]
        _make_room(world, world.tables.pools[queue.pool_id], queue)
    queue.updated = world.now()
    return 204, None


def delete_queue(world: World, queue: Queue, refusal: Refusal) -> Answer:
    """Delete a queue; deployments and runs lose it. Its pool's default is kept, with a refusal."""
    if world.tables.pools[queue.pool_id].default_queue_id == queue.id:
        raise refusal
    _drop_queue(world, queue)
    return 204, None


def _drop_queue(world: World, queue: Queue) -> None:
    del world.tables.queues[queue.id]
    for deployment in world.tables.deployments.values():
        if deployment.queue_id == queue.id:
            deployment.queue_id = None
    for run in world.tables.flow_runs.values():
        if run.queue_id == queue.id:
            run.queue_id = None


def _make_room(world: World, pool: Pool, placed: Queue) -> None:
    """Move queues back, as few as need be, so that each priority is one queue's."""
    others = [queue for queue in world.queues_of(pool) if queue is not placed]
    at = next((i for i, queue in enumerate(others) if queue.priority >= placed.priority), len(others))
    last = 0
    for queue in [*others[:at], placed, *others[at:]]:
        last = queue.priority = max(queue.priority, last + 1)


def read_queues(world: World, pool: Pool, body: JSON) -> Answer:
    """The queues of a pool, highest priority first."""
    return 200, [answers.queue(world, queue) for queue in filters.page(world.queues_of(pool), body)]


def due_runs(world: World, pool: Pool, body: JSON) -> Answer:
    """The runs of a pool that are due, by the priorities of their queues, then by their times.

    The pool's limit counts all that is pending or running in it, each queue's what is in that queue.
    """
    chosen = [world.queue(pool, name) for name in body.get("work_queue_names") or []]
    queues = chosen or world.queues_of(pool)
    before, after = moment(body.get("scheduled_before")), moment(body.get("scheduled_after"))
    now = world.now()
    found: list[FlowRun] = []
    for queue in sorted(queues, key=lambda queue: queue.priority):
        if queue.paused:
            continue
        due = [run for run in _waiting(world, queue) if _is_between(run, before, after)]
        due.sort(key=lambda run: run.next_scheduled_start_time or now)
        found += due if queue.limit is None else due[: max(0, queue.limit - world.slots_taken([queue.id]))]
    if pool.paused:
        found = []
    elif pool.limit is not None:
        unpaused = [queue.id for queue in world.queues_of(pool) if not queue.paused]
        found = found[: max(0, pool.limit - world.slots_taken(unpaused))] if unpaused else found
    shown = filters.page(found, {"limit": body.get("limit")})
    for queue in queues:
        queue.last_polled = now
    for deployment in world.tables.deployments.values():
        if any(deployment.queue_id == queue.id for queue in queues):
            deployment.last_polled = now
    return 200, [
        {"work_pool_id": pool.id, "work_queue_id": run.queue_id, "flow_run": answers.due_run(world, run)}
        for run in shown
    ]


def _waiting(world: World, queue: Queue) -> list[FlowRun]:
    return [
        run
        for run in world.tables.flow_runs.values()
        if run.queue_id == queue.id
        and run.state is not None
        and run.state.type == SCHEDULED
        and run.policy["retry_type"] != "in_process"
    ]


def _is_between(run: FlowRun, before: datetime | None, after: datetime | None) -> bool:
    at = run.next_scheduled_start_time
    if at is None:
        return before is None and after is None
    return (before is None or at <= before) and (after is None or at >= after)


def heartbeat(world: World, pool: Pool, body: JSON) -> Answer:
    """Note that a worker lives."""
    now, key = world.now(), (pool.id, body["name"])
    interval = body.get("heartbeat_interval_seconds")
    known = world.tables.workers.get(key)
    if known is None:
        known = Worker(world.new_id(), now, now, body["name"], pool.id, now, interval)
        world.tables.workers[key] = known
    known.last_heartbeat = known.updated = now
    if interval is not None:
        known.interval = interval
    return 204, None


def read_workers(world: World, pool: Pool, body: JSON) -> Answer:
    """The workers of a pool, the last heard first."""
    wanted = ((body.get("workers") or {}).get("status") or {}).get("any_")
    found = [worker for worker in world.tables.workers.values() if worker.pool_id == pool.id]
    found.sort(key=lambda worker: worker.last_heartbeat, reverse=True)
    shown = [answers.worker(world, worker) for worker in found]
    chosen = [worker for worker in shown if wanted is None or worker["status"] in wanted]
    return 200, list(filters.page(chosen, body))


def delete_worker(world: World, pool: Pool, name: str) -> Answer:
    """Forget a worker."""
    if world.tables.workers.pop((pool.id, name), None) is None:
        raise Refusal(404, "Worker not found.")
    return 204, None
