"""Cron schedules, as NOVA keeps them and as Prefect does.

A schedule that was set over the API or the CLI carries the slug `nova-<id>` in Prefect; every other
schedule of a deployment was made in Prefect's UI or CLI and is left alone.
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
        """Its name in Prefect."""
        return f"{_SLUG_PREFIX}{self.id}"


@dataclass(frozen=True)
class ScheduleView:
    """One schedule of a deployment as Prefect has it, whoever made it."""

    prefect_id: UUID
    id: int | None
    """NOVA's id; None where it was made in Prefect."""
    cron: str | None
    """None for a schedule that is not a cron one (the UI makes intervals and RRules as well)."""
    timezone: str | None
    rule: dict[str, Any]
    """The whole schedule as Prefect writes it."""
    parameters: dict[str, Any]
    active: bool


def validate_cron(cron: str, timezone: str) -> None:
    """Raise InvalidInputError, naming the field, where Prefect could not run this schedule."""
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
    """What Prefect's API wants to make this schedule."""
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=spec.cron, timezone=spec.timezone),
        active=spec.active,
        parameters=spec.parameters,
        slug=spec.slug,
    )


def view(schedule: DeploymentSchedule) -> ScheduleView:
    """Prefect's schedule in NOVA's terms."""
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
    """The id that a schedule has in NOVA's database; None where it was made in Prefect."""
    number = (schedule.slug or "").removeprefix(_SLUG_PREFIX)
    return int(number) if number != schedule.slug and number.isdecimal() else None
