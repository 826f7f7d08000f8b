"""The events that the server emits, as subscribers see them."""

from __future__ import annotations

from tests.stand_in.records import JSON, FlowRun, State
from tests.stand_in.world import World


def of_state_change(world: World, run: FlowRun, initial: State | None) -> JSON:
    """The event `prefect.flow-run.<state's name>`; its id is the new state's."""
    state = run.state
    if state is None:
        raise RuntimeError("A run without a state has not changed it.")
    return {
        "id": state.id,
        "event": f"prefect.flow-run.{state.name}",
        "occurred": state.timestamp,
        "received": world.now(),
        "follows": initial.id if initial else None,
        "resource": {
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "prefect.run-count": str(run.run_count),
            "prefect.state-message": state.message or "",
            "prefect.state-name": state.name,
            "prefect.state-timestamp": state.timestamp.isoformat(),
            "prefect.state-type": state.type,
        },
        "related": _related(world, run),
        "payload": {
            "intended": {"from": initial.type if initial else None, "to": state.type},
            "initial_state": {"type": initial.type, "name": initial.name} if initial else None,
            "validated_state": {"type": state.type, "name": state.name, "message": state.message},
        },
    }


def _related(world: World, run: FlowRun) -> list[JSON]:
    tables = world.tables
    flow, deployment = tables.flows.get(run.flow_id), tables.deployments.get(run.deployment_id or "")
    queue, pool = tables.queues.get(run.queue_id or ""), world.pool_of_queue(run.queue_id)
    found = (("flow", flow), ("deployment", deployment), ("work-queue", queue), ("work-pool", pool))
    return [
        {
            "prefect.resource.id": f"prefect.{role}.{one.id}",
            "prefect.resource.name": one.name,
            "prefect.resource.role": role,
        }
        for role, one in found
        if one is not None
    ]
