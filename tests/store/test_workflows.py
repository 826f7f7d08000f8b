"""Workflows: names, slugs, versions, and what goes with a workflow that is deleted."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError
from flows.store import chain, clients, executions, schedules, workflows
from flows.store.base import Base
from flows.store.database import Database
from flows.store.models import ChainEntry, ContextValue, Execution, Schedule, Workflow, WorkflowVersion
from flows.store.values import Value
from tests.leasing import begin, lease_of
from tests.store.racing import together


def create(database: Database, name: str, graph: dict[str, Any]) -> Workflow:
    """Make a workflow."""
    return database.run_sync(lambda s: workflows.create(s, name=name, graph=graph))


def save(database: Database, workflow: Workflow, graph: dict[str, Any]) -> Workflow:
    """Change a workflow's graph."""
    return database.run_sync(lambda s: workflows.update(s, workflow.id, graph=graph))


def test_a_new_workflow_has_its_graph_as_version_1(database: Database, graph: dict[str, Any]) -> None:
    """All that was given is read back, times in UTC."""
    made = database.run_sync(
        lambda s: workflows.create(
            s,
            name="Invoices",
            graph=graph,
            description="Reads \0 mail",
            priority="high",
            max_concurrent_runs=2,
            overlap="skip",
        )
    )
    read = database.run_sync(lambda s: workflows.get(s, made.id))
    assert (read.name, read.slug, read.description, read.priority) == (
        "Invoices",
        "invoices",
        "Reads \0 mail",
        "high",
    )
    assert (read.max_concurrent_runs, read.overlap, read.version, read.deployment_id) == (2, "skip", 1, None)
    assert (read.current.number, read.current.graph) == (1, graph)
    assert read.created_at.utcoffset() is not None


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Invoice Processing V3", "invoice-processing-v3"),
        ("  Überweisung — Köln/2 ", "uberweisung-koln-2"),
        ("請求書", "workflow"),
        ("---", "workflow"),
        ("a" * 59 + " bcd", "a" * 59),
        ("x" * 255, "x" * 60),
    ],
)
def test_slugs_are_made_from_names(name: str, slug: str) -> None:
    """ASCII letters, digits and hyphens, 60 at most, never empty."""
    assert workflows.slugify(name) == slug


def test_slugs_are_unique_and_survive_renames(database: Database, graph: dict[str, Any]) -> None:
    """Names that give the same slug are numbered; a rename leaves the slug alone."""
    names = ["Mail in", "Mail-In", "mail  in", "y" * 70, "y" * 71, "y" * 72]
    made = [create(database, name, graph) for name in names]
    long = ["y" * 60, "y" * 58 + "-2", "y" * 58 + "-3"]
    assert [one.slug for one in made] == ["mail-in", "mail-in-2", "mail-in-3", *long]

    renamed = database.run_sync(lambda s: workflows.update(s, made[0].id, name="Post"))
    assert (renamed.name, renamed.slug) == ("Post", "mail-in")


def test_a_taken_name_is_a_conflict(database: Database, workflow: Workflow, graph: dict[str, Any]) -> None:
    """Neither a new workflow nor a renamed one takes another's name."""
    with pytest.raises(ConflictError, match="'Invoices'"):
        create(database, "Invoices", graph)
    other = create(database, "Orders", graph)
    with pytest.raises(ConflictError, match="'Invoices'"):
        database.run_sync(lambda s: workflows.update(s, other.id, name="Invoices"))


def test_a_taken_name_with_a_changed_graph_is_a_conflict(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Nothing of it is saved, and the error is the same as for the name alone."""
    other = create(database, "Orders", graph)
    changed = {**graph, "editor": {"zoom": 1}}
    with pytest.raises(ConflictError, match="'Invoices'"):
        database.run_sync(lambda s: workflows.update(s, other.id, name="Invoices", graph=changed))
    left = database.run_sync(lambda s: workflows.get(s, other.id))
    assert (left.name, left.version, left.current.graph) == ("Orders", 1, graph)


def test_the_same_name_created_at_once_is_one_conflict(database: Database, graph: dict[str, Any]) -> None:
    """Of two requests at the same moment one makes the workflow, and the other is told."""
    make = partial(create, database, "Race", graph)
    outcomes = together(make, make)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "Workflow"]


def test_names_with_the_same_slug_created_at_once_both_get_one(
    database: Database, graph: dict[str, Any]
) -> None:
    """Different names, same slug, same moment: no conflict, two slugs."""
    works = [partial(create, database, name, graph) for name in ("A b", "A-b", "a b", "a-B")]
    slugs = [made.slug for made in together(*works) if isinstance(made, Workflow)]
    assert sorted(slugs) == ["a-b", "a-b-2", "a-b-3", "a-b-4"]


@pytest.mark.parametrize("name", ["", "   ", "a\0b", "line\nbreak", "lone \ud800", "z" * 256])
def test_names_that_no_column_takes_are_refused(
    database: Database, workflow: Workflow, graph: dict[str, Any], name: str
) -> None:
    """Control characters, surrogates, nothing, too much: InvalidInputError that names the field."""
    for work in (
        lambda s: workflows.create(s, name=name, graph=graph),
        lambda s: workflows.update(s, workflow.id, name=name),
    ):
        with pytest.raises(InvalidInputError) as caught:
            database.run_sync(work)
        assert [problem["field"] for problem in caught.value.problems] == ["name"]


@pytest.mark.parametrize("fields", [{"priority": "urgent"}, {"overlap": "both"}, {"max_concurrent_runs": 0}])
def test_other_fields_are_checked(database: Database, workflow: Workflow, fields: dict[str, Any]) -> None:
    """What the table's own checks would refuse is an error that names the field."""
    with pytest.raises(InvalidInputError, match=next(iter(fields))):
        database.run_sync(lambda s: workflows.update(s, workflow.id, **fields))


def test_a_changed_graph_is_a_new_version(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """The old version stays as it was; an equal graph, in whatever order, makes none."""
    changed = {**graph, "editor": {"zoom": 1}}
    second = save(database, workflow, changed)
    assert (second.version, second.current.graph) == (2, changed)
    assert second.updated_at > workflow.updated_at

    reordered = dict(reversed(changed.items()))
    same = save(database, workflow, reordered)
    assert (same.version, same.updated_at) == (2, second.updated_at)

    first = database.run_sync(lambda s: workflows.version(s, workflow.current.id))
    assert first.graph == graph


def test_one_and_true_are_different_graphs(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Python holds 1 and True equal, JSON does not: the change is saved."""
    for number, value in enumerate((1, True, 1.0), 2):
        updated = save(database, workflow, {**graph, "flag": value})
        assert updated.version == number
        assert repr(updated.current.graph["flag"]) == repr(value)


def test_graphs_saved_at_once_are_both_kept(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Concurrent updates take their turns: every graph has a version of its own."""
    works = [partial(save, database, workflow, {**graph, "n": number}) for number in range(6)]
    outcomes = together(*works)
    assert sorted(o.version for o in outcomes if isinstance(o, Workflow)) == [2, 3, 4, 5, 6, 7]
    for outcome in outcomes:
        assert isinstance(outcome, Workflow)
        assert outcome.current.number == outcome.version


def test_fields_can_be_emptied(database: Database, graph: dict[str, Any]) -> None:
    """None is a value for a description and for a limit; what is not given stays."""
    made = database.run_sync(
        lambda s: workflows.create(s, name="One", graph=graph, description="x", max_concurrent_runs=3)
    )
    left = database.run_sync(lambda s: workflows.update(s, made.id, description=None))
    assert (left.description, left.max_concurrent_runs) == (None, 3)
    left = database.run_sync(lambda s: workflows.update(s, made.id, max_concurrent_runs=None))
    assert left.max_concurrent_runs is None


def test_find_goes_by_slug_first(database: Database, graph: dict[str, Any]) -> None:
    """A slug wins over a name that looks the same; what cannot be a name is not found, and no error."""
    first = create(database, "Mail in", graph)
    second = create(database, "mail-in", graph)

    def found(text: str) -> int | None:
        workflow = database.run_sync(lambda s: workflows.find(s, text))
        return workflow.id if workflow else None

    assert [found(text) for text in ("mail-in", "Mail in", "mail-in-2", "other", "a\0b", "\ud800")] == [
        first.id,
        first.id,
        second.id,
        None,
        None,
        None,
    ]


def test_lists_are_paged(database: Database, graph: dict[str, Any]) -> None:
    """A page and the number of all, oldest first, each with its graph."""
    for number in range(5):
        create(database, f"W{number}", graph)
    page, total = database.run_sync(lambda s: workflows.list_(s, 1, 2))
    assert ([w.name for w in page], total) == (["W1", "W2"], 5)
    assert page[0].current.graph == graph


def test_the_deployment_is_noted(database: Database, workflow: Workflow) -> None:
    """The id of the deployment is kept, and can be taken off."""
    deployment_id = uuid.uuid4()
    database.run_sync(lambda s: workflows.set_deployment(s, workflow.id, deployment_id))
    assert database.run_sync(lambda s: workflows.get(s, workflow.id)).deployment_id == deployment_id
    database.run_sync(lambda s: workflows.set_deployment(s, workflow.id, None))
    assert database.run_sync(lambda s: workflows.get(s, workflow.id)).deployment_id is None


def test_unknown_ids_are_not_found(database: Database) -> None:
    """Every call that names a workflow says so, also for numbers that no column holds."""
    for number in (7, 10**30):
        for work in (
            lambda s, n=number: workflows.get(s, n),
            lambda s, n=number: workflows.update(s, n, name="x"),
            lambda s, n=number: workflows.delete(s, n),
            lambda s, n=number: workflows.set_deployment(s, n, None),
            lambda s, n=number: workflows.version(s, n),
            lambda s, n=number: executions.get(s, n),
            lambda s, n=number: schedules.list_(s, n),
        ):
            with pytest.raises(NotFoundError):
                database.run_sync(work)


def test_deleting_a_workflow_takes_everything_of_it_along(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Versions, schedules, executions, chain and values go; other workflows and clients stay."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))

    def fill(session: Session) -> None:
        workflows.update(session, workflow.id, graph={**graph, "more": 1})
        schedules.add(session, workflow.id, cron="0 9 * * *")
        run = begin(
            session,
            flow_run_id=uuid.uuid4(),
            public_id=None,
            workflow_id=workflow.id,
            client=client,
            initial={"a": Value(b"1")},
        )
        chain.append(
            session, lease_of(run), chain.Step(0, 1, "start", "start", "success", changes={"b": Value(b"2")})
        )

    database.run_sync(fill)
    kept = create(database, "Kept", graph)
    database.run_sync(lambda s: workflows.delete(s, workflow.id))

    def left(session: Session) -> dict[str, int]:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }

    counts = database.run_sync(left)
    for table in (Schedule, Execution, ChainEntry, ContextValue):
        assert counts[table.__tablename__] == 0
    assert counts[Workflow.__tablename__] == counts[WorkflowVersion.__tablename__] == 1
    assert counts["clients"] == 1
    assert database.run_sync(lambda s: workflows.get(s, kept.id)).current.graph == graph
