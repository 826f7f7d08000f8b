"""Graphs are large: who does not need one does not read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.credentials.cipher import Cipher, generate_key
from flows.runs.deployment_specs import deployment_spec
from flows.runs.loading import RunRequest, load_run
from flows.store import executions, schedules, workflows
from flows.store.database import Database
from flows.store.leases import LeaseClaim
from flows.store.models import Workflow
from flows.store.transitions import attempts, submissions
from tests.statements import Statement, recorded

Work = Callable[[Session, int], object]


def graphs_read(found: list[Statement]) -> int:
    """How many graphs these statements have brought."""
    return sum(statement.rows for statement in found if statement.reads_a_graph)


@pytest.fixture
def saved_often(database: Database, workflow: Workflow, graph: dict[str, Any]) -> Workflow:
    """A workflow whose graph has three versions."""
    for number in (2, 3):
        changed = {**graph, "number": number}
        database.run_sync(partial(workflows.update, workflow_id=workflow.id, graph=changed))
    return workflow


def test_a_page_of_workflows_reads_the_graphs_that_it_holds(
    database: Database, saved_often: Workflow, graph: dict[str, Any]
) -> None:
    """One graph for each workflow of the page: no other page's, and no older version's."""
    for name in ("Orders", "Mails", "Letters"):
        database.run_sync(partial(workflows.create, name=name, graph=graph))
    with recorded(database) as found:
        page, total = database.run_sync(lambda s: workflows.list_(s, 0, 2))
    assert ([one.current.number for one in page], total) == ([3, 1], 4)
    assert graphs_read(found) == 2
    with recorded(database) as found:
        page, total = database.run_sync(lambda s: workflows.list_without_graphs(s, 1, 2))
    assert ([one.name for one in page], total) == (["Orders", "Mails"], 4)
    assert graphs_read(found) == 0


@pytest.mark.parametrize(
    "work",
    [
        lambda s, n: deployment_spec(s, n),
        lambda s, n: workflows.set_deployment(s, n, uuid4()),
        lambda s, n: schedules.add(s, n, cron="0 9 * * *"),
        lambda s, n: schedules.list_(s, n),
        lambda s, n: submissions.create(s, workflow_id=n, client=None, priority="low", initial={}),
        lambda s, n: executions.live(s, n),
        lambda s, n: executions.list_(s, workflow_id=n),
        lambda s, n: workflows.delete(s, n),
    ],
    ids=["deploy", "note", "schedule", "schedules", "execute", "live", "executions", "delete"],
)
def test_what_is_done_to_a_workflow_needs_no_graph(
    database: Database, saved_often: Workflow, work: Work
) -> None:
    """Deploying, scheduling, starting and deleting look at the workflow's own row."""
    with recorded(database) as found:
        database.run_sync(lambda s: work(s, saved_often.id))
    assert found
    assert [one.sql for one in found if one.reads_a_graph] == []


def test_a_change_reads_the_graph_that_it_answers(
    database: Database, saved_often: Workflow, graph: dict[str, Any]
) -> None:
    """A rename reads one graph, its answer's; a new graph is compared with the current one, and no other."""
    with recorded(database) as found:
        database.run_sync(lambda s: workflows.update(s, saved_often.id, name="Post"))
    assert graphs_read(found) == 1
    with recorded(database) as found:
        database.run_sync(lambda s: workflows.update(s, saved_often.id, graph=graph))
    assert graphs_read(found) == 2


def test_a_run_from_elsewhere_reads_the_version_that_it_runs(
    database: Database, saved_often: Workflow
) -> None:
    """Its start asks whether the workflow exists, and reads one graph."""
    request = RunRequest(uuid4(), None, saved_often.id)
    key = generate_key()

    def work(session: Session) -> None:
        lease = attempts.take(session, LeaseClaim(request.flow_run_id, None, saved_often.id, uuid4(), 30))
        load_run(session, request, lease, Cipher(key), Settings(NOVA_ENCRYPTION_KEY=key))

    with recorded(database) as found:
        database.run_sync(work)
    assert graphs_read(found) == 1
