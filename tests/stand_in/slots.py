"""The slots of a deployment with a limit: who takes one, and when it is free again.

As in Prefect's `SecureFlowConcurrencySlots`, `ValidateDeploymentConcurrencyAtRunning` and
`ReleaseFlowConcurrencySlots`: Pending takes a slot under a lease, and the run gives it back when it leaves
Pending, Running and Cancelling.
"""

from __future__ import annotations

from datetime import timedelta

from tests.stand_in.records import (
    CANCELLED,
    CANCELLING,
    JSON,
    PENDING,
    RUNNING,
    SCHEDULED,
    TYPES,
    Deployment,
    FlowRun,
    Lease,
    Limit,
)
from tests.stand_in.transitions import Transition, rule
from tests.stand_in.world import Refusal, World, failure

HOLDING = frozenset({PENDING, RUNNING, CANCELLING})
SLOT_WAIT = timedelta(seconds=30)
"""After how long a run without a slot is due again (`…_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS`)."""
HELD_FOR = timedelta(seconds=300)
"""How long a lease holds that is not renewed (`…_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION`)."""
LEASE = "deployment_concurrency_lease_id"
FULL = "Deployment concurrency limit reached."


@rule(frozenset({PENDING}), frozenset({RUNNING}))
def renew_slot(transition: Transition[FlowRun]) -> None:
    """See that a run that starts still has its slot, or can have it again."""
    world, proposed = transition.world, transition.goal
    lease = transition.before.details[LEASE]
    proposed.details[LEASE] = lease
    limit = _limit_of(world, transition.run)
    if lease is None or limit is None:
        return
    if lease in world.tables.leases:
        world.tables.leases[lease].expires = world.now() + HELD_FOR
        return
    if limit.active_slots < limit.limit:
        proposed.details[LEASE] = _take(world, limit)
        return
    lost = "Deployment concurrency slot lost during provisioning - no slots available to continue execution"
    transition.reject(
        "Deployment concurrency limit reached after lease expiry.", transition.state(CANCELLED, message=lost)
    )


@rule(TYPES - HOLDING, frozenset({PENDING}))
def take_slot(transition: Transition[FlowRun]) -> None:
    """Give a run a slot of its deployment, or have it wait, or end it, as the deployment says."""
    world, run = transition.world, transition.run
    if run.deployment_id is None:
        return
    deployment = world.tables.deployments.get(run.deployment_id)
    if deployment is None:
        transition.abort("Deployment not found.")
        return
    limit = world.tables.limits.get(deployment.limit_id or "")
    if limit is None:
        return
    if limit.limit == 0:
        transition.abort("The deployment concurrency limit is 0. The flow will deadlock if submitted again.")
    elif limit.active_slots < limit.limit:
        transition.goal.details[LEASE] = _take(world, limit)
    elif _cancels_new(deployment):
        transition.reject(FULL, transition.state(CANCELLED, message=FULL))
    else:
        due = world.now() + SLOT_WAIT
        transition.reject(FULL, transition.state(SCHEDULED, "AwaitingConcurrencySlot", scheduled_time=due))


@rule(frozenset({SCHEDULED}), frozenset({SCHEDULED}))
def refuse_late_run_without_slot(transition: Transition[FlowRun]) -> None:
    """Cancel a run that became late where its deployment is full and cancels what is new."""
    world, run = transition.world, transition.run
    deployment = world.tables.deployments.get(run.deployment_id or "")
    limit = _limit_of(world, run)
    if deployment is None or limit is None or not _cancels_new(deployment):
        return
    if limit.active_slots >= limit.limit:
        transition.reject(
            "Deployment concurrency limit is full and uses the CANCEL_NEW strategy.",
            transition.state(CANCELLED, message=FULL),
        )


def release_slot(transition: Transition[FlowRun]) -> None:
    """Give the slot of a run back once the run leaves the states that need it; the last of all rules."""
    proposed, initial = transition.proposed, transition.initial
    if proposed is None or initial is None or initial.type not in HOLDING or proposed.type in HOLDING:
        return
    retries_in_process = proposed.name == "AwaitingRetry" and transition.status == "REJECT"
    if not retries_in_process:
        release(transition.world, transition.run, initial.details[LEASE])


def release(world: World, run: FlowRun, lease: str | None) -> None:
    """Free the slot of a run, under its lease or without one; as the server, fail where its limit is gone."""
    limit = _limit_of(world, run)
    if lease is not None and lease in world.tables.leases:
        limit = world.tables.limits.get(world.tables.leases[lease].limit_id)
        if limit is None:
            raise failure()
        del world.tables.leases[lease]
    if limit is not None:
        limit.active_slots = max(0, limit.active_slots - 1)


def change_limit(world: World, name: str, body: JSON) -> None:
    """Change a deployment's limit, by its name or its id, as an operator does in Prefect's UI."""
    for limit in world.tables.limits.values():
        if name in (limit.name, limit.id):
            limit.limit = body.get("limit", limit.limit)
            limit.active_slots = body.get("active_slots", limit.active_slots)
            return
    raise Refusal(404, "Concurrency Limit not found")


def renew(world: World, lease_id: str, seconds: float) -> None:
    """Hold a lease for some more time, as a flow that runs does."""
    lease = world.tables.leases.get(lease_id)
    if lease is None or lease.expires <= world.now():
        raise Refusal(410, "Lease not found - it may have expired or been revoked")
    lease.expires = world.now() + timedelta(seconds=seconds)


def _take(world: World, limit: Limit) -> str:
    limit.active_slots += 1
    lease = world.new_id()
    world.tables.leases[lease] = Lease(limit.id, world.now() + HELD_FOR)
    return lease


def _limit_of(world: World, run: FlowRun) -> Limit | None:
    deployment = world.tables.deployments.get(run.deployment_id or "")
    return world.tables.limits.get(deployment.limit_id or "") if deployment else None


def _cancels_new(deployment: Deployment) -> bool:
    options = deployment.fields.get("concurrency_options") or {}
    return bool(options.get("collision_strategy") == "CANCEL_NEW")
