"""Schedules of a workflow."""

from __future__ import annotations

from typing import Any

import pytest

from flows.graphs.errors import InvalidInputError, NotFoundError
from flows.store import schedules, workflows
from flows.store.database import Database
from flows.store.models import Workflow


def test_a_schedule_is_added_read_changed_and_deleted(database: Database, workflow: Workflow) -> None:
    """The whole life of a schedule; what is not given on a change stays."""
    made = database.run_sync(
        lambda s: schedules.add(
            s,
            workflow.id,
            cron="0 9 * * *",
            timezone="Europe/Madrid",
            parameters={"client_slug": "idom", "odd": "\0\ud800"},
        )
    )
    assert made.active
    changed = database.run_sync(lambda s: schedules.update(s, workflow.id, made.id, active=False))
    assert changed.updated_at > made.created_at
    read = database.run_sync(lambda s: schedules.get(s, workflow.id, made.id))
    assert (read.cron, read.timezone, read.active) == ("0 9 * * *", "Europe/Madrid", False)
    assert read.parameters == {"client_slug": "idom", "odd": "\0\ud800"}
    assert [one.id for one in database.run_sync(lambda s: schedules.list_(s, workflow.id))] == [made.id]

    database.run_sync(lambda s: schedules.delete(s, workflow.id, made.id))
    assert database.run_sync(lambda s: schedules.list_(s, workflow.id)) == []


def test_parameters_that_python_holds_equal_are_changed(database: Database, workflow: Workflow) -> None:
    """From 1 to true is a change, though Python holds them equal."""
    made = database.run_sync(lambda s: schedules.add(s, workflow.id, cron="* * * * *", parameters={"x": 1}))
    database.run_sync(lambda s: schedules.update(s, workflow.id, made.id, parameters={"x": True}))
    assert database.run_sync(lambda s: schedules.get(s, workflow.id, made.id)).parameters["x"] is True


def test_a_schedule_belongs_to_its_workflow(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Under another workflow's id, or an unknown one, a schedule is not found."""
    made = database.run_sync(lambda s: schedules.add(s, workflow.id, cron="* * * * *"))
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=graph))
    for work in (
        lambda s: schedules.get(s, other.id, made.id),
        lambda s: schedules.update(s, other.id, made.id, active=False),
        lambda s: schedules.delete(s, other.id, made.id),
        lambda s: schedules.add(s, 999, cron="* * * * *"),
        lambda s: schedules.list_(s, 999),
    ):
        with pytest.raises(NotFoundError):
            database.run_sync(work)


@pytest.mark.parametrize("fields", [{"cron": "a\0b"}, {"cron": "x" * 256}, {"timezone": "\ud800"}])
def test_texts_that_no_column_takes_are_refused(
    database: Database, workflow: Workflow, fields: dict[str, Any]
) -> None:
    """InvalidInputError, not a driver's error."""
    with pytest.raises(InvalidInputError, match=next(iter(fields))):
        database.run_sync(lambda s: schedules.add(s, workflow.id, **({"cron": "* * * * *"} | fields)))
