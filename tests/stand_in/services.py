"""What Prefect's server does by itself now and then; here it does it when a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.stand_in import flow_runs
from tests.stand_in.records import (
    CANCELLED,
    CANCELLING,
    FINAL,
    JSON,
    SCHEDULED,
    Deployment,
    FlowRun,
    Schedule,
)
from tests.stand_in.rules import FORCED, LATE
from tests.stand_in.transitions import Transition, carry_out, new_state
from tests.stand_in.world import World

LATE_AFTER = timedelta(seconds=15)
"""How long a run may be overdue before the server calls it Late (`…_LATE_RUNS_AFTER_SECONDS`)."""
CANCELLING_FOR = timedelta(seconds=300)
"""How long a run may be Cancelling before the server ends it (`…_CANCELLING_TIMEOUT_SECONDS`)."""
CLEAN_UP_EVERY = timedelta(seconds=20)
"""`PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS`."""
MIN_RUNS, MAX_RUNS = 3, 100
MIN_TIME, MAX_TIME = timedelta(hours=1), timedelta(days=100)
"""How many runs, and how far ahead, a schedule makes (`PREFECT_SERVER_SERVICES_SCHEDULER_…`)."""


def run_all(world: World) -> None:
    """Do all of it that is due."""
    for service in (mark_late, schedule_all, clean_up, revoke_leases):
        service(world)


def mark_late(world: World) -> None:
    """Mark overdue runs Late; those that wait for a retry or a slot keep their names."""
    before = world.now() - LATE_AFTER
    for run in list(world.tables.flow_runs.values()):
        due, state = run.next_scheduled_start_time, run.state
        if state is None or state.type != SCHEDULED or state.name != "Scheduled" or due is None:
            continue
        if due <= before:
            late = {"type": SCHEDULED, "name": "Late", "state_details": {"scheduled_time": due}}
            flow_runs.orchestrate(world, run, new_state(world, late), LATE)


def clean_up(world: World) -> None:
    """Finish what was cancelled, as seldom as Prefect's server does."""
    if world.cleaned_up is None or world.now() >= world.cleaned_up + CLEAN_UP_EVERY:
        world.cleaned_up = world.now()
        end_cancelling(world)
        cancel_task_runs(world)


def end_cancelling(world: World) -> None:
    """Cancel runs that have been Cancelling for too long: their workers are gone."""
    before = world.now() - CANCELLING_FOR
    message = "Flow run cancellation timed out; marked this flow run as Cancelled."
    for run in list(world.tables.flow_runs.values()):
        if run.state is not None and run.state.type == CANCELLING and run.state.timestamp <= before:
            state = new_state(world, {"type": CANCELLED, "message": message})
            flow_runs.orchestrate(world, run, state, FORCED)


def cancel_task_runs(world: World) -> None:
    """Cancel the open task runs of cancelled flow runs."""
    for task_run in list(world.tables.task_runs.values()):
        flow_run = world.tables.flow_runs.get(task_run.flow_run_id or "")
        if flow_run is None or flow_run.state is None or flow_run.state.type != CANCELLED:
            continue
        if task_run.state is None or task_run.state.type not in FINAL:
            state = new_state(world, {"type": CANCELLED, "message": "The parent flow run was cancelled."})
            carry_out(Transition(world, task_run, task_run.state, state), [])


def revoke_leases(world: World) -> None:
    """Free the slots of deployments whose runs have not renewed their leases in time."""
    now = world.now()
    for lease_id, lease in list(world.tables.leases.items()):
        if lease.expires <= now:
            del world.tables.leases[lease_id]
            if (limit := world.tables.limits.get(lease.limit_id)) is not None:
                limit.active_slots = max(0, limit.active_slots - 1)


def schedule_all(world: World) -> None:
    """Make the next runs of all active schedules of deployments that are not paused."""
    for deployment in list(world.tables.deployments.values()):
        if not deployment.paused:
            schedule(world, deployment, {})


def schedule(world: World, of: Deployment, body: JSON) -> None:
    """Make the next runs of a deployment's active schedules; a run that was made once is not made again."""
    start = _moment(body.get("start_time")) or world.now()
    end = _moment(body.get("end_time")) or start + MAX_TIME
    least = timedelta(seconds=body["min_time"]) if body.get("min_time") is not None else MIN_TIME
    fewest = MIN_RUNS if body.get("min_runs") is None else body["min_runs"]
    most = MAX_RUNS if body.get("max_runs") is None else body["max_runs"]
    for one in of.schedules:
        if not one.active:
            continue
        for number, date in enumerate(_dates(one, most, start, end), 1):
            at = datetime.fromtimestamp(date.timestamp(), UTC)  # Prefect's own class is not for JSON
            _make(world, of, one, at)
            if number >= fewest and at >= start + least:
                break


def _dates(one: Schedule, most: int, start: datetime, end: datetime) -> Iterator[datetime]:
    """Compute the dates with Prefect's own code, imported only here: it takes a second."""
    from prefect.server.schemas.schedules import SCHEDULE_TYPES
    from pydantic import TypeAdapter

    rule: Any = TypeAdapter(SCHEDULE_TYPES).validate_python(one.rule)
    yield from rule._get_dates_generator(n=most, start=start, end=end)


def _make(world: World, of: Deployment, one: Schedule, at: datetime) -> None:
    key = f"scheduled {of.id} {one.id} {at}"
    if (of.flow_id, key) in world.tables.keys:
        return
    now = world.now()
    run = FlowRun(
        id=world.new_id(),
        created=now,
        updated=now,
        name=f"scheduled-{world.new_id()[:8]}",
        policy=flow_runs.POLICY,
        tags=["auto-scheduled", *of.fields["tags"]],
        labels={**of.labels, "prefect.flow.id": of.flow_id, "prefect.deployment.id": of.id},
        flow_id=of.flow_id,
        deployment_id=of.id,
        deployment_version=of.fields["version"],
        queue_id=of.queue_id,
        queue_name=of.queue_name,
        parameters={**of.fields["parameters"], **one.parameters},
        job_variables={},
        idempotency_key=key,
        auto_scheduled=True,
        created_by={"id": one.id, "type": "SCHEDULE", "display_value": one.slug or _kind(one)},
        expected_start_time=at,
        next_scheduled_start_time=at,
    )
    details = {"state_details": {"scheduled_time": at}, "message": "Flow run scheduled"}
    run.state = new_state(world, {"type": SCHEDULED, **details})
    run.states.append(run.state)
    world.tables.flow_runs[run.id] = run
    world.tables.keys[run.flow_id, key] = run.id


def _kind(one: Schedule) -> str:
    kinds = {"cron": "CronSchedule", "interval": "IntervalSchedule", "rrule": "RRuleSchedule"}
    return next((name for key, name in kinds.items() if key in one.rule), "NoSchedule")


def _moment(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None
