"""What may become of a flow run: the rules of Prefect's `orchestration/core_policy.py`, in its order."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

from tests.stand_in.records import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    CRASHED,
    FAILED,
    FINAL,
    PAUSED,
    PENDING,
    RUNNING,
    SCHEDULED,
    TYPES,
    FlowRun,
)
from tests.stand_in.slots import (
    refuse_late_run_without_slot,
    release_slot,
    renew_slot,
    take_slot,
)
from tests.stand_in.transitions import Rule, Transition, rule

FlowTransition = Transition[FlowRun]


def keep_lease(transition: FlowTransition) -> None:
    """Carry the lease of the deployment's slot on from state to state."""
    if transition.initial is None or transition.proposed is None:
        return
    held = transition.initial.details["deployment_concurrency_lease_id"]
    if held is not None and transition.proposed.details["deployment_concurrency_lease_id"] is None:
        transition.proposed.details["deployment_concurrency_lease_id"] = held


@rule(TYPES, TYPES)
def prevent_doubles(transition: FlowTransition) -> None:
    """Refuse what the client sends a second time because the first answer was lost."""
    sent = transition.goal.details["transition_id"]
    if sent is not None and sent == transition.before.details["transition_id"]:
        transition.reject("This run has already made this state transition.")


@rule(FINAL, TYPES)
def guard_final_states(transition: FlowTransition) -> None:
    """Let a run leave its end only by a new start."""
    run, initial, proposed = transition.run, transition.before, transition.goal
    if proposed.type in (CANCELLING, PAUSED, CRASHED):
        transition.abort(f"Run is already in terminal state {initial.type}.")
        return
    if initial.type == COMPLETED and not proposed.is_final and _is_persisted(initial.data):
        transition.reject("Run is already COMPLETED.")
        return
    prevent_data_loss(transition)
    if transition.proposed is None:
        return
    if proposed.type == SCHEDULED and run.deployment_id is None:
        transition.abort("Cannot reschedule a run without an associated deployment.")
        return
    original = run.policy
    if not proposed.is_final:
        retry_type = "reschedule" if proposed.type == SCHEDULED else None
        run.policy = {**original, "resuming": False, "pause_keys": [], "retry_type": retry_type}

    def restore() -> None:
        if not transition.is_as_intended:
            run.policy = original

    transition.afterwards.append(restore)


@rule(FINAL, FINAL)
def prevent_data_loss(transition: FlowTransition) -> None:
    """Refuse a completed state without a result over one with a result."""
    initial, proposed = transition.before, transition.goal
    if (
        initial.type == proposed.type == COMPLETED
        and _is_persisted(initial.data)
        and not _is_persisted(proposed.data)
    ):
        transition.reject(
            "Cannot overwrite a COMPLETED state that carries persisted result data with one that does not."
        )


@rule(frozenset({CANCELLING}), TYPES - {CANCELLED})
def leave_cancelling_for_cancelled_only(transition: FlowTransition) -> None:
    """Let a run that is being cancelled become cancelled, and nothing else."""
    transition.reject("Cannot transition flows that are cancelling to a state other than Cancelled.")


@rule(frozenset({SCHEDULED, PAUSED}), frozenset({CANCELLING}))
def cancel_at_once_without_infrastructure(transition: FlowTransition) -> None:
    """Cancel a run at once where there is no process to be ended."""
    initial = transition.before
    has_process = bool(transition.run.infrastructure_pid)
    if (initial.type == SCHEDULED and not has_process) or initial.name == "Resuming":
        reason = "Scheduled flow run has no infrastructure to terminate."
        transition.reject(reason, transition.state(CANCELLED))
    elif initial.type == PAUSED and initial.details["pause_reschedule"]:
        reason = "Suspended flow run has no infrastructure to terminate."
        transition.reject(reason, transition.state(CANCELLED))


@rule(frozenset({PENDING, CANCELLING, RUNNING, CANCELLED}), frozenset({PENDING}))
def give_to_one_worker_only(transition: FlowTransition) -> None:
    """Refuse Pending to whoever comes second."""
    initial, proposed = transition.before, transition.goal
    if initial.type == PENDING and proposed.name not in (initial.name, "Pending"):
        for key in ("scheduled_time", "deployment_concurrency_lease_id"):
            proposed.details[key] = initial.details[key]
        return
    transition.abort(f"This run is in a {initial.type} state and cannot transition to a PENDING state.")


@rule(TYPES, frozenset({SCHEDULED}))
def mark_late_what_is_scheduled_only(transition: FlowTransition) -> None:
    """Let only a scheduled run become late, and once."""
    if transition.goal.name != "Late":
        return
    if transition.before.type != SCHEDULED:
        transition.reject("Only scheduled flows can be marked late.")
    elif transition.before.name == "Late":
        transition.reject("This flow run is already marked late.")


@rule(TYPES, frozenset({PAUSED}))
def pause(transition: FlowTransition) -> None:
    """Let only a running run pause, and once for each key."""
    run, details = transition.run, transition.goal.details
    verb = "suspend" if transition.goal.name == "Suspended" else "pause"
    if transition.before.type != RUNNING:
        transition.reject(f"Cannot {verb} flows that are not currently running.")
        return
    key = details["pause_key"] or transition.world.new_id()
    if key in run.policy["pause_keys"]:
        transition.reject(f"This {verb} has already fired.")
    elif details["pause_reschedule"] and run.parent_task_run_id:
        transition.abort(f"Cannot {verb} subflows.")
    elif details["pause_reschedule"] and run.deployment_id is None:
        transition.abort(f"Cannot {verb} flows without a deployment.")
    else:

        def remember() -> None:
            run.policy = {**run.policy, "pause_keys": [*run.policy["pause_keys"], key]}

        transition.afterwards.append(remember)


@rule(frozenset({PAUSED}), TYPES)
def resume(transition: FlowTransition) -> None:
    """Let a paused run go on, or end, in its time."""
    run, initial, proposed = transition.run, transition.before, transition.goal
    verb = "suspend" if proposed.name == "Suspended" else "pause"

    def resuming() -> None:
        run.policy = {**run.policy, "resuming": True}

    transition.afterwards.append(resuming)
    timeout: datetime | None = initial.details["pause_timeout"]
    if proposed.type in (PENDING, PAUSED):
        transition.reject(
            f"This run cannot transition to the StateType.{proposed.type} state"
            f" from the StateType.{initial.type} state."
        )
    elif initial.details["pause_reschedule"] and not run.deployment_id:
        transition.reject(f"Cannot reschedule a {proposed.name.lower()} flow run without a deployment.")
    elif proposed.type != CANCELLING and timeout is not None and timeout < transition.world.now():
        transition.reject(
            f"The flow run {verb} has timed out and can no longer resume.",
            transition.state(FAILED, message=f"The flow was {proposed.name.lower()} and never resumed."),
        )


@rule(frozenset({SCHEDULED}), frozenset({PENDING}))
def copy_scheduled_time(transition: Transition[Any]) -> None:
    """Remember in Pending when the run was due."""
    if transition.goal.details["scheduled_time"] is None:
        transition.goal.details["scheduled_time"] = transition.before.details["scheduled_time"]


@rule(frozenset({SCHEDULED, PENDING}), frozenset({RUNNING}))
def wait_for_scheduled_time(transition: Transition[Any]) -> None:
    """Have a client wait that is too early by the server's clock."""
    due: datetime | None = transition.before.details["scheduled_time"]
    if due is None:
        return
    early = due - transition.world.now()
    seconds = math.floor(early.total_seconds()) + round(early.microseconds / 1e6)
    if seconds > 0:
        transition.wait(seconds, "Scheduled time is in the future")


@rule(frozenset({RUNNING}), frozenset({FAILED}))
def retry_failed(transition: FlowTransition) -> None:
    """Have a failed run try again where its flow has retries left."""
    run, proposed = transition.run, transition.goal
    retries = run.policy["retries"]
    if retries is None or run.run_count > retries:
        run.policy = {**run.policy, "retry_type": None}
        return
    run.policy = {**run.policy, "resuming": False, "pause_keys": [], "retry_type": "in_process"}
    due = transition.world.now() + timedelta(seconds=run.policy["retry_delay"] or 0)
    lease = transition.before.details["deployment_concurrency_lease_id"]
    again = transition.state(
        SCHEDULED,
        "AwaitingRetry",
        proposed.message,
        scheduled_time=due,
        deployment_concurrency_lease_id=lease,
    )
    again.data = proposed.data
    transition.reject("Retrying", again)


def _is_persisted(data: Any) -> bool:
    return isinstance(data, dict) and bool(data) and data.get("type") != "unpersisted"


CORE: list[Rule[FlowRun]] = [
    keep_lease,
    prevent_doubles,
    guard_final_states,
    leave_cancelling_for_cancelled_only,
    cancel_at_once_without_infrastructure,
    give_to_one_worker_only,
    renew_slot,
    take_slot,
    mark_late_what_is_scheduled_only,
    pause,
    resume,
    copy_scheduled_time,
    wait_for_scheduled_time,
    retry_failed,
    release_slot,
]
"""What a proposal passes."""

FORCED: list[Rule[FlowRun]] = [prevent_data_loss, cancel_at_once_without_infrastructure, release_slot]
"""What even a forced proposal passes, and the first state of a run."""

LATE: list[Rule[FlowRun]] = [mark_late_what_is_scheduled_only, refuse_late_run_without_slot]
"""What Prefect's own marking of late runs passes."""
