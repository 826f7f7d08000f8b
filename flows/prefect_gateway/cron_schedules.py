"""Cron schedules, as NOVA and as Prefect keep them.

A schedule that was made with NOVA's API or CLI has the slug `nova-<id>` in Prefect. Every other schedule of a
deployment was made in Prefect's UI or CLI; NOVA does not change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from flows.graphs.errors import InvalidInputError

_SLUG_PREFIX = "nova-"


@dataclass(frozen=True)
class ScheduleSpec:
    """One schedule of a workflow as the database has it."""

    id: int
    cron: str
    timezone: str
    parameters: dict[str, Any]
    active: bool

    @property
    def slug(self) -> str:
        """Return the schedule's name in Prefect."""
        return f"{_SLUG_PREFIX}{self.id}"


@dataclass(frozen=True)
class ScheduleView:
    """One schedule of a deployment as Prefect has it; NOVA or somebody else made it."""

    prefect_id: UUID
    id: int | None
    """NOVA's id; None if it was made in Prefect."""
    cron: str | None
    """None if it is not a cron schedule (the UI makes intervals and RRules, too)."""
    timezone: str | None
    rule: dict[str, Any]
    """The whole schedule as Prefect's JSON."""
    parameters: dict[str, Any]
    active: bool


def validate_cron(cron: str, timezone: str) -> None:
    """Raise InvalidInputError, which names the field, if Prefect could not run this schedule."""
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, e["loc"])), "message": e["msg"].removeprefix("Value error, ")}
            for e in error.errors()
        ]
        raise InvalidInputError(
            "The schedule is not valid: " + "; ".join(p["message"] for p in problems), problems
        ) from None


def to_create(spec: ScheduleSpec) -> DeploymentScheduleCreate:
    """Return the schedule as Prefect's API takes it."""
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=spec.cron, timezone=spec.timezone),
        active=spec.active,
        parameters=spec.parameters,
        slug=spec.slug,
    )


def view(schedule: DeploymentSchedule) -> ScheduleView:
    """Return Prefect's schedule in NOVA's terms."""
    rule = schedule.schedule
    return ScheduleView(
        prefect_id=schedule.id,
        id=nova_id(schedule),
        cron=rule.cron if isinstance(rule, CronSchedule) else None,
        timezone=getattr(rule, "timezone", None),
        rule=rule.model_dump(mode="json"),
        parameters=schedule.parameters,
        active=schedule.active,
    )


def nova_id(schedule: DeploymentSchedule) -> int | None:
    """Return a schedule's id in NOVA's database; None if it was made in Prefect."""
    number = (schedule.slug or "").removeprefix(_SLUG_PREFIX)
    return int(number) if number != schedule.slug and number.isdecimal() else None
