"""Schedules of workflows, as they were set over the API or the command line.

The gateway checks whether a cron line and a time zone make sense, before they come here.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import NotFoundError
from flows.store import checks, workflows
from flows.store.base import utcnow
from flows.store.database import constraint
from flows.store.models import Schedule


class ScheduleFields(TypedDict, total=False):
    """What of a schedule can be changed."""

    cron: str
    timezone: str
    parameters: dict[str, Any]
    active: bool


def list_(session: Session, workflow_id: int) -> list[Schedule]:
    """The schedules of a workflow, oldest first. Raises NotFoundError when there is no such workflow."""
    workflows.without_graph(session, workflow_id)
    return list(
        session.scalars(select(Schedule).where(Schedule.workflow_id == workflow_id).order_by(Schedule.id))
    )


def add(
    session: Session,
    workflow_id: int,
    *,
    cron: str,
    timezone: str = "UTC",
    parameters: dict[str, Any] | None = None,
    active: bool = True,
) -> Schedule:
    """Add a schedule. Raises NotFoundError when there is no such workflow, InvalidInputError."""
    workflows.without_graph(session, workflow_id)
    schedule = Schedule(workflow_id=workflow_id)
    _assign(schedule, {"cron": cron, "timezone": timezone, "parameters": parameters or {}, "active": active})
    session.add(schedule)
    try:
        session.flush()
    except IntegrityError as error:
        if constraint(error).startswith("fk_schedules_"):  # it was deleted since we saw it
            raise NotFoundError(f"There is no workflow {workflow_id}.") from None
        raise
    return schedule


def get(session: Session, workflow_id: int, schedule_id: int) -> Schedule:
    """One schedule of a workflow. Raises NotFoundError."""
    return _one(session, workflow_id, schedule_id, select(Schedule))


def update(
    session: Session, workflow_id: int, schedule_id: int, **fields: Unpack[ScheduleFields]
) -> Schedule:
    """Change the fields given. Raises NotFoundError, InvalidInputError."""
    schedule = _locked(session, workflow_id, schedule_id)
    _assign(schedule, fields)
    if session.is_modified(schedule):
        schedule.updated_at = utcnow()
    session.flush()
    return schedule


def delete(session: Session, workflow_id: int, schedule_id: int) -> None:
    """Delete one schedule of a workflow. Raises NotFoundError."""
    session.delete(_locked(session, workflow_id, schedule_id))
    session.flush()


def _locked(session: Session, workflow_id: int, schedule_id: int) -> Schedule:
    """One schedule, ours to change until the transaction ends: nobody deletes it."""
    return _one(session, workflow_id, schedule_id, select(Schedule).with_for_update(key_share=True))


def _one(
    session: Session, workflow_id: int, schedule_id: int, statement: Select[tuple[Schedule]]
) -> Schedule:
    which = statement.where(Schedule.id == schedule_id, Schedule.workflow_id == workflow_id)
    found = session.scalars(which).one_or_none()
    if found is None:
        raise NotFoundError(f"Workflow {workflow_id} has no schedule {schedule_id}.")
    return found


def _assign(schedule: Schedule, fields: ScheduleFields) -> None:
    if "cron" in fields:
        schedule.cron = checks.plain("cron", fields["cron"], 255)
    if "timezone" in fields:
        schedule.timezone = checks.plain("timezone", fields["timezone"], 64)
    if "parameters" in fields:
        schedule.parameters = fields["parameters"]
    if "active" in fields:
        schedule.active = fields["active"]
