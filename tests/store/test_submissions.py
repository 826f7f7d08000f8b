"""How a run comes into being: accepted by the API, refused, or started in Prefect."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, ExecutionClosedError, InvalidInputError, NotFoundError
from flows.graphs.lifecycle import ErrorKind, Status
from flows.store import chain, clients, executions, values, workflows
from flows.store.database import Database, make_engine
from flows.store.models import Execution, Workflow
from flows.store.transitions import submissions
from flows.store.values import Value
from tests.leasing import begin as start_run
from tests.servers import wait_until
from tests.store.racing import together
from tests.store.rows import create, end, read


def begin(
    database: Database,
    workflow: Workflow,
    flow_run_id: uuid.UUID,
    public_id: uuid.UUID | None = None,
    initial: dict[str, Value] | None = None,
) -> Execution:
    """What the flow does at its start."""
    return database.run_sync(
        partial(
            start_run,
            flow_run_id=flow_run_id,
            public_id=public_id,
            workflow_id=workflow.id,
            initial=initial,
        )
    )


# -- from the API to the flow ------------------------------------------------------------------------


def test_a_run_from_the_api_goes_from_pending_to_completed(database: Database, workflow: Workflow) -> None:
    """Made pending with its context, confirmed, begun under its public id, completed."""
    flow_run_id = uuid.uuid4()
    made = create(database, workflow, {"a": Value(b"1")}, priority="high")
    assert (made.status, made.attempt, made.version_id, made.priority) == (Status.PENDING, 0, None, "high")
    assert database.run_sync(lambda s: submissions.confirm(s, made.id, flow_run_id))
    found = database.run_sync(lambda s: executions.by_task(s, flow_run_id))
    assert found is not None
    assert (found.id, found.task_id, found.flow_run_id) == (made.id, flow_run_id, flow_run_id)

    running = begin(database, workflow, flow_run_id, made.public_id, {"ignored": Value(b"2")})
    assert (running.id, running.status, running.attempt) == (made.id, Status.RUNNING, 1)
    assert running.started_at is not None
    assert running.version is not None
    assert running.version.graph == workflow.current.graph
    state = database.run_sync(lambda s: chain.state(s, made.id))
    assert state == {"a": Value(b"1").digest}
    assert database.run_sync(lambda s: values.load(s, made.id, state.values())) == {
        Value(b"1").digest: Value(b"1")
    }

    end(database, made, Status.COMPLETED)
    done = read(database, made)
    assert (done.status, done.current_node, done.error) == (Status.COMPLETED, None, None)
    assert done.completed_at is not None
    assert done.completed_at >= running.started_at


def test_a_flow_that_is_faster_than_the_confirmation(database: Database, workflow: Workflow) -> None:
    """The flow notes its own id; the confirmation that comes later changes nothing."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    begin(database, workflow, flow_run_id, made.public_id)
    for confirmed in (flow_run_id, uuid.uuid4()):
        assert database.run_sync(partial(submissions.confirm, execution_id=made.id, flow_run_id=confirmed))
    row = read(database, made)
    assert (row.flow_run_id, row.task_id, row.status) == (flow_run_id, flow_run_id, Status.RUNNING)


def test_a_run_from_elsewhere_makes_its_row(database: Database, workflow: Workflow) -> None:
    """Started in the UI or by a schedule: the row is made once, with client and context, and found again."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))
    flow_run_id, owner = uuid.uuid4(), uuid.uuid4()

    def start(session: Session) -> Execution:
        return start_run(
            session,
            owner=owner,
            flow_run_id=flow_run_id,
            workflow_id=workflow.id,
            client=client,
            initial={"a": Value(b"1")},
            priority="low",
        )

    first = database.run_sync(start)
    assert (first.client_slug, first.client_id, first.priority) == ("idom", client.id, "low")
    assert (first.initial, first.task_id) == ({"a": Value(b"1").digest}, flow_run_id)
    again = database.run_sync(start)
    assert (again.id, again.attempt, again.started_at) == (first.id, 2, first.started_at)


def test_a_run_from_elsewhere_is_adopted_once(database: Database, workflow: Workflow) -> None:
    """Whoever makes its row, it is the same one; for a workflow that is gone none is made."""
    flow_run_id = uuid.uuid4()
    for _ in range(2):
        database.run_sync(lambda s: submissions.adopt(s, flow_run_id, workflow.id))
        database.run_sync(lambda s: submissions.adopt(s, uuid.UUID(int=1), 10**6))
    (row,), total = database.run_sync(executions.list_)
    assert (total, row.status, row.attempt, row.flow_run_id) == (1, Status.PENDING, 0, flow_run_id)
    assert row.task_id == flow_run_id


# -- refused -----------------------------------------------------------------------------------------


def test_a_run_that_was_refused_never_starts(database: Database, workflow: Workflow) -> None:
    """503 was answered: it is cancelled, not failed, and a flow run that turns up later finds it closed."""
    made = create(database, workflow)
    assert database.run_sync(lambda s: submissions.refuse(s, made.id, "Prefect does not answer."))
    with pytest.raises(ExecutionClosedError, match="before it started"):
        begin(database, workflow, uuid.uuid4(), made.public_id)
    row = read(database, made)
    assert (row.status, row.error_kind) == (Status.CANCELLED, ErrorKind.NOT_STARTED)
    assert (row.error, row.started_at) == ("Prefect does not answer.", None)
    assert row.completed_at is not None


@pytest.mark.parametrize("committed", [True, False])
def test_a_row_that_is_about_to_be_committed_is_waited_for(
    database: Database, database_url: str, workflow: Workflow, committed: bool
) -> None:
    """Its connection is gone, its commit may still be under way: only afterwards it is known what stands."""
    public_id = uuid.uuid4()

    def look(session: Session) -> Execution | None:
        submissions.await_create(session, public_id, workflow.id)
        return executions.by_public_id(session, public_id)

    def waits() -> bool:
        blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
        return bool(database.run_sync(lambda session: session.scalar(blocked)))

    with ThreadPoolExecutor(1) as elsewhere, Session(make_engine(database_url)) as making:
        submissions.create(
            making, workflow_id=workflow.id, client=None, priority="normal", initial={}, public_id=public_id
        )
        looking = elsewhere.submit(database.run_sync, look)
        wait_until(waits, 60, "the look to wait")
        (making.commit if committed else making.rollback)()
        found = looking.result()
    assert (found is not None) == committed
    assert database.run_sync(executions.list_)[1] == int(committed)


def test_what_has_begun_cannot_be_refused(database: Database, workflow: Workflow) -> None:
    """Prefect's answer was lost, but the flow runs: the refusal says so and changes nothing."""
    made = create(database, workflow)
    begin(database, workflow, uuid.uuid4(), made.public_id)
    assert not database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert read(database, made).status is Status.RUNNING


def test_what_a_flow_run_has_is_not_refused(database: Database, workflow: Workflow) -> None:
    """Two requests with one key: the first answered 202, so the second refuses nothing."""
    made = create(database, workflow)
    assert database.run_sync(lambda s: submissions.confirm(s, made.id, uuid.uuid4()))
    assert not database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert read(database, made).status is Status.PENDING


def test_what_was_refused_is_not_confirmed(database: Database, workflow: Workflow) -> None:
    """Two requests with one key: the first answered 503, so the second must not answer 202."""
    made = create(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert not database.run_sync(lambda s: submissions.confirm(s, made.id, uuid.uuid4()))


# -- what does not belong together -------------------------------------------------------------------


def test_a_copied_run_does_not_take_the_row_over(database: Database, workflow: Workflow) -> None:
    """A run copied in the UI brings the first one's id along: refused, else one row would have two runs."""
    made = create(database, workflow)
    begin(database, workflow, uuid.uuid4(), made.public_id)
    with pytest.raises(ConflictError, match="belongs to flow run"):
        begin(database, workflow, uuid.uuid4(), made.public_id)
    assert read(database, made).attempt == 1


def test_an_id_that_is_unknown_or_of_another_workflow_is_refused(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """A row that was deleted is not made anew: its context is gone."""
    with pytest.raises(NotFoundError):
        begin(database, workflow, uuid.uuid4(), uuid.uuid4())
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=graph))
    made = create(database, other)
    with pytest.raises(ConflictError):
        begin(database, workflow, uuid.uuid4(), made.public_id)
    assert read(database, made).status is Status.PENDING


def test_a_workflow_or_a_client_that_is_gone(database: Database, workflow: Workflow) -> None:
    """Deleted in between: NotFoundError, not the driver's."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))
    database.run_sync(lambda s: clients.delete(s, "idom"))
    make = partial(submissions.create, workflow_id=workflow.id, client=client, priority="normal", initial={})
    with pytest.raises(NotFoundError, match="client"):
        database.run_sync(make)
    database.run_sync(lambda s: workflows.delete(s, workflow.id))
    with pytest.raises(NotFoundError, match="workflow"):
        create(database, workflow)
    with pytest.raises(NotFoundError):
        begin(database, workflow, uuid.uuid4())


def test_an_id_that_is_taken_is_no_missing_workflow(database: Database, workflow: Workflow) -> None:
    """What PostgreSQL refuses for another reason keeps its own words."""
    make = partial(
        submissions.create,
        workflow_id=workflow.id,
        client=None,
        priority="normal",
        initial={},
        public_id=uuid.uuid4(),
    )
    database.run_sync(make)
    with pytest.raises(IntegrityError, match="public_id"):
        database.run_sync(make)


def test_priorities_are_checked(database: Database, workflow: Workflow) -> None:
    """An unknown priority is the caller's mistake."""
    with pytest.raises(InvalidInputError, match="priority"):
        create(database, workflow, priority="urgent")


# -- races -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(5))
def test_a_flow_run_begun_twice_at_once_has_one_row(
    database: Database, workflow: Workflow, round_: int
) -> None:
    """Without a row before: one makes it and begins it, the others find it leased."""
    flow_run_id = uuid.uuid4()
    start = partial(begin, database, workflow, flow_run_id, None, {"a": Value(b"1")})
    outcomes = together(start, start, start)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Execution", *["LeaseHeldError"] * 2]
    rows, total = database.run_sync(executions.list_)
    assert (total, rows[0].attempt, rows[0].status) == (1, 1, Status.RUNNING)


@pytest.mark.parametrize("round_", range(5))
def test_two_flow_runs_never_both_take_one_row(database: Database, workflow: Workflow, round_: int) -> None:
    """Whoever is second is refused."""
    made = create(database, workflow)
    outcomes = together(*(partial(begin, database, workflow, uuid.uuid4(), made.public_id) for _ in range(2)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "Execution"]


@pytest.mark.parametrize("round_", range(10))
def test_refusing_and_beginning_at_once(database: Database, workflow: Workflow, round_: int) -> None:
    """Either the run was refused and does not start, or it started and was not refused."""
    made = create(database, workflow)
    refused, begun = together(
        lambda: database.run_sync(lambda s: submissions.refuse(s, made.id, "x")),
        partial(begin, database, workflow, uuid.uuid4(), made.public_id),
    )
    if refused is True:
        assert isinstance(begun, ExecutionClosedError)
        assert read(database, made).status is Status.CANCELLED
    else:
        assert isinstance(begun, Execution)
        assert read(database, made).status is Status.RUNNING
