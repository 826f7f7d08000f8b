"""What the API does with task runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.stand_in import answers, filters
from tests.stand_in.records import (
    CANCELLING,
    COMPLETED,
    CRASHED,
    FAILED,
    FINAL,
    JSON,
    PAUSED,
    PENDING,
    RUNNING,
    SCHEDULED,
    TYPES,
    FlowRun,
    State,
    TaskRun,
)
from tests.stand_in.rules import copy_scheduled_time, wait_for_scheduled_time
from tests.stand_in.transitions import Rule, Transition, carry_out, new_state, rule
from tests.stand_in.world import Refusal, World

Answer = tuple[int, Any]
TaskTransition = Transition[TaskRun]

POLICY: JSON = {
    "max_retries": 0,
    "retry_delay_seconds": 0.0,
    "retries": None,
    "retry_delay": None,
    "retry_jitter_factor": None,
}


def create(world: World, body: JSON) -> Answer:
    """Create a task run; the same flow run, key and dynamic key give the same one."""
    for run in world.tables.task_runs.values():
        if (run.flow_run_id, run.task_key, run.dynamic_key) == (
            body.get("flow_run_id"),
            body["task_key"],
            body["dynamic_key"],
        ):
            return 200, answers.task_run(world, run)
    run = make(world, body, body.get("id") or world.new_id())
    state = new_state(world, body.get("state") or {"type": PENDING})
    carry_out(Transition(world, run, None, state), [])
    return 201, answers.task_run(world, run)


def make(world: World, body: JSON, task_run_id: str) -> TaskRun:
    """Make a task run that has no state yet."""
    now = world.now()
    flow_run = world.tables.flow_runs.get(body.get("flow_run_id") or "")
    labels: JSON = {}
    if flow_run is not None:
        labels = {
            **(flow_run.labels or {}),
            "prefect.flow.id": flow_run.flow_id,
            "prefect.flow-run.id": flow_run.id,
        }
    run = TaskRun(
        id=task_run_id,
        created=now,
        updated=now,
        name=body.get("name") or f"task-{task_run_id[:8]}",
        policy={**POLICY, **(body.get("empirical_policy") or {})},
        tags=list(body.get("tags") or []),
        labels={**labels, **(body.get("labels") or {})},
        flow_run_id=body.get("flow_run_id"),
        task_key=body["task_key"],
        dynamic_key=body["dynamic_key"],
        task_inputs=body.get("task_inputs") or {},
        task_version=body.get("task_version"),
    )
    world.tables.task_runs[run.id] = run
    return run


def find(world: World, task_run_id: str) -> TaskRun:
    """The task run of an id."""
    found = world.tables.task_runs.get(task_run_id)
    if found is None:
        raise Refusal(404, "Task not found")
    return found


def change(world: World, run: TaskRun, body: JSON) -> Answer:
    """Give a task run another name."""
    run.name = body.get("name") or run.name
    run.updated = world.now()
    return 204, None


def delete(world: World, run: TaskRun) -> Answer:
    """Delete a task run."""
    del world.tables.task_runs[run.id]
    return 204, None


def set_state(world: World, task_run_id: str, body: JSON) -> Answer:
    """Propose a state."""
    run = world.tables.task_runs.get(task_run_id)
    if run is None:
        raise Refusal(404, f"Task run with id {task_run_id} not found", "exception_message")
    initial = run.state
    transition = Transition(world, run, initial, new_state(world, body["state"]))
    result = carry_out(transition, [] if body.get("force") else CORE)
    return (200 if run.state is initial else 201), result


def read_all(world: World, body: JSON) -> Answer:
    """The page of the task runs that a filter asks for."""
    found = sorted(filters.task_runs(world, body), key=lambda run: run.id, reverse=True)
    return 200, [answers.task_run(world, run) for run in filters.page(found, body)]


def _flow_run(transition: TaskTransition) -> FlowRun | None:
    return transition.world.tables.flow_runs.get(transition.run.flow_run_id or "")


@rule(FINAL, TYPES)
def guard_final_states(transition: TaskTransition) -> None:
    """Let a task run leave its end only by a new start."""
    run, initial, proposed = transition.run, transition.before, transition.goal
    if proposed.type in (CANCELLING, PAUSED, CRASHED):
        transition.abort(f"Run is already {initial.type}.")
        return
    if initial.type == COMPLETED and initial.data and initial.data.get("type") != "unpersisted":
        transition.reject("This run is already completed.")
        return
    original = run.run_count
    if not proposed.is_final:
        run.run_count = 0
    flow_run = _flow_run(transition)
    if proposed.type == RUNNING and flow_run and run.flow_run_run_count < flow_run.run_count:
        proposed.name = "Retrying"

    def restore() -> None:
        if not transition.is_as_intended:
            run.run_count = original

    transition.afterwards.append(restore)


def run_only_in_running_flows(transition: TaskTransition) -> None:
    """Let a task run only while its flow runs."""
    flow_run = _flow_run(transition)
    if transition.intended != RUNNING or not transition.is_as_intended or flow_run is None:
        return
    state: State | None = flow_run.state
    if state is not None and state.type == PAUSED:
        paused = transition.state(
            PAUSED,
            "NotReady",
            pause_timeout=state.details["pause_timeout"],
            pause_reschedule=state.details["pause_reschedule"],
        )
        reason = f"The flow is paused, new tasks can execute after resuming flow run: {flow_run.id}."
        transition.reject(reason, paused)
    elif state is None or state.type != RUNNING:
        transition.abort("The enclosing flow must be running to begin task execution.")


@rule(frozenset({RUNNING}), frozenset({FAILED}))
def retry_failed(transition: TaskTransition) -> None:
    """Have a failed task run try again where it has retries left."""
    run, proposed = transition.run, transition.goal
    retries, delay = run.policy["retries"], run.policy["retry_delay"] or 0
    if proposed.details["retriable"] is False or retries is None or run.run_count > retries:
        return
    if isinstance(delay, list):
        delay = delay[min(run.run_count - 1, len(delay) - 1)]
    due = transition.world.now() + timedelta(seconds=delay)
    again = transition.state(SCHEDULED, "AwaitingRetry", proposed.message, scheduled_time=due)
    again.data = proposed.data
    transition.reject("Retrying", again)


@rule(TYPES, frozenset({RUNNING}))
def rename_reruns(transition: TaskTransition) -> None:
    """Name the state of a task that has run before."""
    if transition.run.run_count > 0:
        is_retry = transition.before.name == "AwaitingRetry"
        transition.goal.name = "Retrying" if is_retry else "Rerunning"


def note_flow_runs_count(transition: TaskTransition) -> None:
    """Note in a task run which start of its flow run it belongs to."""
    flow_run = _flow_run(transition)
    if transition.intended == RUNNING and transition.is_as_intended and flow_run is not None:
        transition.run.flow_run_run_count = flow_run.run_count


CORE: list[Rule[TaskRun]] = [
    guard_final_states,
    run_only_in_running_flows,
    copy_scheduled_time,
    wait_for_scheduled_time,
    retry_failed,
    rename_reruns,
    note_flow_runs_count,
]
"""What a proposal passes: Prefect's `CoreTaskPolicy` without caches and limits of tags."""
