"""What a workflow's deployment and schedules in Prefect should be, by the database."""

from __future__ import annotations

from sqlalchemy.orm import Session

from flows.prefect_gateway.cron_schedules import ScheduleSpec
from flows.prefect_gateway.workflow_deployments import DeploymentSpec
from flows.store import schedules, workflows
from flows.store.models import Schedule


def deployment_spec(session: Session, workflow_id: int) -> DeploymentSpec:
    """Return what a workflow's deployment should be. Raises NotFoundError."""
    row = workflows.without_graph(session, workflow_id)
    return DeploymentSpec(
        workflow_id=row.id,
        name=row.name,
        slug=row.slug,
        description=row.description,
        priority=row.priority,
        max_concurrent_runs=row.max_concurrent_runs,
        overlap=row.overlap,
        version=row.version,
        deployment_id=row.deployment_id,
        schedules=tuple(schedule_spec(schedule) for schedule in schedules.list_(session, workflow_id)),
    )


def schedule_spec(row: Schedule) -> ScheduleSpec:
    """Return what a schedule should be in Prefect."""
    return ScheduleSpec(
        id=row.id, cron=row.cron, timezone=row.timezone, parameters=row.parameters, active=row.active
    )
