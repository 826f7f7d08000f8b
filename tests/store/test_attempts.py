"""Executions: who may take a run over, and when it is closed; also when two come at the same moment."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, ExecutionClosedError, InvalidInputError, NotFoundError
from flows.store import chain, clients, creation, executions, metrics, transitions, values, workflows
from flows.store.base import utcnow
from flows.store.database import Database, make_engine
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, submissions
from flows.store.values import Value
from tests.leasing import begin as start_run
from tests.leasing import lease_of
from tests.servers import wait_until
from tests.store.racing import together


def create(
    database: Database, workflow: Workflow, initial: dict[str, Value] | None = None, priority: str = "normal"
) -> Execution:
    """The row that the API makes before it asks Prefect."""
    return database.run_sync(
        lambda s: submissions.create(
            s, workflow_id=workflow.id, client=None, priority=priority, initial=initial or {}
        )
    )


def begin(
    database: Database,
    workflow: Workflow,
    flow_run_id: uuid.UUID,
    public_id: uuid.UUID | None = None,
    initial: dict[str, Value] | None = None,
    *,
    reopens: bool = False,
) -> Execution:
    """What the flow does at its start."""
    return database.run_sync(
        lambda s: start_run(
            s,
            flow_run_id=flow_run_id,
            public_id=public_id,
            workflow_id=workflow.id,
            reopens=reopens,
            client=None,
            initial=initial or {},
        )
    )


def finish(database: Database, execution: Execution, status: str, **fields: Any) -> bool:
    """What the flow does at its end."""
    return database.run_sync(lambda s: transitions.finish(s, execution.id, status=status, **fields))


def read(database: Database, execution: Execution) -> Execution:
    """The row as it is now."""
    return database.run_sync(lambda s: executions.get(s, execution.id))


# -- from the API to the flow ------------------------------------------------------------------------


def test_a_run_from_the_api_goes_from_pending_to_completed(database: Database, workflow: Workflow) -> None:
    """Made pending with its context, confirmed, begun under its public id, finished."""
    flow_run_id = uuid.uuid4()
    made = create(database, workflow, {"a": Value(b"1")}, priority="high")
    assert (made.status, made.attempt, made.version_id, made.priority) == ("pending", 0, None, "high")
    database.run_sync(lambda s: submissions.confirm(s, made.id, flow_run_id))
    found = database.run_sync(lambda s: executions.by_task(s, flow_run_id))
    assert found is not None
    assert found.id == made.id

    running = begin(database, workflow, flow_run_id, made.public_id, {"ignored": Value(b"2")})
    assert (running.id, running.status, running.attempt) == (made.id, "running", 1)
    assert running.started_at is not None
    assert running.version is not None
    assert running.version.graph == workflow.current.graph
    state = database.run_sync(lambda s: chain.state(s, made.id))
    assert state == {"a": Value(b"1").digest}
    assert database.run_sync(lambda s: values.load(s, made.id, state.values())) == {
        Value(b"1").digest: Value(b"1")
    }

    database.run_sync(
        lambda s: transitions.set_progress(s, lease_of(running), current_node="mail", sandbox_id="sbx")
    )
    database.run_sync(lambda s: transitions.set_progress(s, lease_of(running), current_node="pdf\0"))
    assert (read(database, made).current_node, read(database, made).sandbox_id) == ("pdf\0", "sbx")

    assert finish(database, made, "completed")
    done = read(database, made)
    assert (done.status, done.current_node, done.error) == ("completed", None, None)
    assert done.completed_at is not None
    assert done.completed_at >= running.started_at


def test_a_flow_that_is_faster_than_the_confirmation(database: Database, workflow: Workflow) -> None:
    """The flow notes its own id; the confirmation that comes later changes nothing."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    begin(database, workflow, flow_run_id, made.public_id)
    database.run_sync(lambda s: submissions.confirm(s, made.id, flow_run_id))
    database.run_sync(lambda s: submissions.confirm(s, made.id, uuid.uuid4()))
    assert read(database, made).flow_run_id == flow_run_id
    assert read(database, made).status == "running"


def test_a_run_from_elsewhere_makes_its_row(database: Database, workflow: Workflow) -> None:
    """Started in the UI or by a schedule: the row is made once, with client and context, and found again."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))
    flow_run_id, owner = uuid.uuid4(), uuid.uuid4()

    def start(session: Session) -> Execution:
        return start_run(
            session,
            owner=owner,
            flow_run_id=flow_run_id,
            public_id=None,
            workflow_id=workflow.id,
            client=client,
            initial={"a": Value(b"1")},
            priority="low",
        )

    first = database.run_sync(start)
    assert (first.client_slug, first.client_id, first.priority) == ("idom", client.id, "low")
    assert first.initial == {"a": Value(b"1").digest}
    again = database.run_sync(start)
    assert (again.id, again.attempt, again.started_at) == (first.id, 2, first.started_at)


def test_the_version_is_pinned_at_the_first_start(database: Database, workflow: Workflow) -> None:
    """A graph saved while the run waits counts; one saved after its start does not, on no attempt."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()

    def save(note: str) -> None:
        graph: dict[str, Any] = {**workflow.current.graph, "note": note}
        database.run_sync(lambda s: workflows.update(s, workflow.id, graph=graph))

    save("while it waits")
    first = begin(database, workflow, flow_run_id, made.public_id)
    save("while it runs")
    finish(database, made, "failed", error="x", error_kind="node")
    second = begin(database, workflow, flow_run_id, made.public_id, reopens=True)
    for execution in (first, second):
        assert execution.version is not None
        assert execution.version.graph["note"] == "while it waits"


# -- what is over is over ----------------------------------------------------------------------------


def test_a_failed_run_is_opened_again(database: Database, workflow: Workflow) -> None:
    """By Retry in the UI alone: the error is cleared, the attempt counted, chain and first start stay."""
    flow_run_id = uuid.uuid4()
    first = begin(database, workflow, flow_run_id)
    database.run_sync(
        lambda s: chain.append(s, lease_of(first), chain.Step(0, 1, "start", "start", "success", stdout="hi"))
    )
    database.run_sync(lambda s: transitions.set_progress(s, lease_of(first), sandbox_id="sbx"))
    assert finish(database, first, "failed", error="boom \ud800", error_kind="node", failed_at_node="mail")
    failed = read(database, first)
    assert (failed.error, failed.error_kind, failed.failed_at_node) == ("boom \ud800", "node", "mail")

    with pytest.raises(ExecutionClosedError, match="failed"):
        begin(database, workflow, flow_run_id)
    again = begin(database, workflow, flow_run_id, reopens=True)
    assert (again.id, again.status, again.attempt) == (first.id, "running", 2)
    assert (again.error, again.error_kind, again.failed_at_node, again.completed_at) == (None,) * 4
    assert (again.started_at, again.sandbox_id) == (first.started_at, "sbx")
    assert database.run_sync(lambda s: chain.visits(s, first.id)) == [("start", None)]


def test_a_run_that_succeeded_is_not_begun_again(database: Database, workflow: Workflow) -> None:
    """Retrying it does nothing."""
    flow_run_id = uuid.uuid4()
    first = begin(database, workflow, flow_run_id)
    finish(database, first, "completed")
    with pytest.raises(ExecutionClosedError, match="completed"):
        begin(database, workflow, flow_run_id)
    assert (read(database, first).status, read(database, first).attempt) == ("completed", 1)


def test_a_run_that_was_given_up_never_starts(database: Database, workflow: Workflow) -> None:
    """503 was answered: a flow run that turns up later finds the door closed."""
    made = create(database, workflow)
    assert database.run_sync(lambda s: submissions.refuse(s, made.id, "Prefect does not answer."))
    with pytest.raises(ExecutionClosedError, match="before it started"):
        begin(database, workflow, uuid.uuid4(), made.public_id)
    row = read(database, made)
    assert (row.status, row.error_kind, row.error) == ("failed", "not_started", "Prefect does not answer.")
    assert row.started_at is None
    assert row.completed_at is not None


@pytest.mark.parametrize("committed", [True, False])
def test_a_row_that_is_about_to_be_committed_is_waited_for(
    database: Database, database_url: str, workflow: Workflow, committed: bool
) -> None:
    """Its connection is gone, its commit may still be under way: only afterwards it is known what stands."""
    public_id = uuid.uuid4()

    def look(session: Session) -> Execution | None:
        creation.settle(session, public_id, workflow.id)
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


def test_what_has_begun_cannot_be_given_up(database: Database, workflow: Workflow) -> None:
    """Prefect's answer was lost, but the flow runs: the rejection says so and changes nothing."""
    made = create(database, workflow)
    begin(database, workflow, uuid.uuid4(), made.public_id)
    assert not database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert read(database, made).status == "running"


def test_what_a_flow_run_has_is_not_given_up(database: Database, workflow: Workflow) -> None:
    """Two requests with one key: the first answered 202, so the second gives nothing up."""
    made = create(database, workflow)
    assert database.run_sync(lambda s: submissions.confirm(s, made.id, uuid.uuid4()))
    assert not database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert read(database, made).status == "pending"


def test_what_was_given_up_is_not_confirmed(database: Database, workflow: Workflow) -> None:
    """Two requests with one key: the first answered 503, so the second must not answer 202."""
    made = create(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    assert not database.run_sync(lambda s: submissions.confirm(s, made.id, uuid.uuid4()))


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_run_that_reads_cancelled_ends_as_that(
    database: Database, execution: Execution, status: str
) -> None:
    """Somebody was told so before its last node had ended: no final state is taken back."""
    assert database.run_sync(lambda s: transitions.revoke(s, execution.id, execution.attempt))
    assert read(database, execution).status == "running"
    assert finish(database, execution, status, lease=lease_of(execution))
    assert read(database, execution).status == "cancelled"


def test_a_run_that_is_over_is_not_revoked(database: Database, execution: Execution) -> None:
    """Nor is an attempt that began since; a retried run may complete."""
    assert not database.run_sync(lambda s: transitions.revoke(s, execution.id, execution.attempt - 1))
    assert database.run_sync(lambda s: transitions.revoke(s, execution.id, execution.attempt))
    finish(database, execution, "cancelled")
    assert not database.run_sync(lambda s: transitions.revoke(s, execution.id, execution.attempt))
    database.run_sync(lambda s: transitions.reopen(s, execution.id))
    finish(database, execution, "completed")
    assert read(database, execution).status == "completed"


def test_who_saw_a_run_before_it_was_retried_neither_closes_nor_revokes_it(
    database: Database, execution: Execution
) -> None:
    """A slow look at Prefect: the number of the attempt is the same when the row was opened again."""
    seen, stands = read(database, execution), uuid.uuid4()
    finish(database, execution, "failed")
    database.run_sync(lambda s: transitions.reopen(s, execution.id, stands))
    assert not finish(
        database, execution, "cancelled", attempt=seen.attempt, reopened_from=seen.reopened_from
    )
    assert not database.run_sync(
        lambda s: transitions.revoke(s, execution.id, seen.attempt, seen.reopened_from)
    )
    assert (read(database, execution).status, read(database, execution).revoked) == ("running", False)
    assert finish(database, execution, "cancelled", attempt=seen.attempt, reopened_from=stands)


def test_only_the_first_end_counts(database: Database, execution: Execution) -> None:
    """Whoever closes a run second is told, and overwrites nothing."""
    assert finish(database, execution, "cancelled", error_kind="cancelled")
    assert not finish(database, execution, "completed")
    assert read(database, execution).status == "cancelled"


def test_who_heard_of_an_earlier_attempts_end_closes_nothing(database: Database, workflow: Workflow) -> None:
    """The run was retried since: the attempt that goes on now stays open, and is closed by its own number."""
    flow_run_id = uuid.uuid4()
    first = begin(database, workflow, flow_run_id)
    database.run_sync(lambda s: attempts.release(s, lease_of(first)))
    second = begin(database, workflow, flow_run_id)

    assert not finish(database, first, "failed", attempt=first.attempt)
    assert read(database, first).status == "running"
    assert finish(database, first, "failed", attempt=second.attempt)


def test_a_poll_reads_what_there_is_to_tell(database: Database, workflow: Workflow) -> None:
    """The row, the workflow's name and how many steps succeeded; None for an unknown task."""
    flow_run_id = uuid.uuid4()
    made = begin(database, workflow, flow_run_id)

    def work(session: Session) -> None:
        for step, status in ((0, "success"), (1, "failed")):
            entry = chain.Step(step=step, attempt=1, node_id="a", node_type="action", status=status)
            chain.append(session, lease_of(made), entry)
        transitions.set_progress(session, lease_of(made), current_node="a")

    database.run_sync(work)
    found = database.run_sync(lambda s: executions.poll(s, flow_run_id))
    assert found is not None
    assert (found.id, found.status, found.attempt, found.nodes_done) == (made.id, "running", 1, 1)
    assert (found.workflow_name, found.version_id) == ("Invoices", made.version_id)
    assert (found.current_node, found.client_slug, found.error) == ("a", None, None)
    assert database.run_sync(lambda s: executions.poll(s, uuid.uuid4())) is None


def test_a_poll_finds_the_run_whose_flow_run_was_not_noted(database: Database, workflow: Workflow) -> None:
    """By the public id that Prefect was given; a row that has a flow run is no other one's."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    assert database.run_sync(lambda s: executions.poll(s, flow_run_id)) is None
    found = database.run_sync(lambda s: executions.poll(s, flow_run_id, made.public_id))
    assert found is not None
    assert (found.id, found.next_attempt_at, found.retries, found.revoked) == (made.id, None, 0, False)
    database.run_sync(lambda s: submissions.confirm(s, made.id, flow_run_id))
    assert database.run_sync(lambda s: executions.poll(s, uuid.uuid4(), made.public_id)) is None


def test_a_pending_run_can_be_closed(database: Database, workflow: Workflow) -> None:
    """Cancelled before it started: the reconciler closes the row."""
    made = create(database, workflow)
    assert finish(database, made, "cancelled")
    assert read(database, made).status == "cancelled"


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
    assert read(database, made).status == "pending"


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
    assert (total, rows[0].attempt, rows[0].status) == (1, 1, "running")


@pytest.mark.parametrize("round_", range(5))
def test_two_flow_runs_never_both_take_one_row(database: Database, workflow: Workflow, round_: int) -> None:
    """Whoever is second is refused."""
    made = create(database, workflow)
    outcomes = together(*(partial(begin, database, workflow, uuid.uuid4(), made.public_id) for _ in range(2)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "Execution"]


@pytest.mark.parametrize("round_", range(10))
def test_giving_up_and_beginning_at_once(database: Database, workflow: Workflow, round_: int) -> None:
    """Either the run was given up and does not start, or it started and was not given up."""
    made = create(database, workflow)
    rejected, begun = together(
        lambda: database.run_sync(lambda s: submissions.refuse(s, made.id, "x")),
        partial(begin, database, workflow, uuid.uuid4(), made.public_id),
    )
    if rejected is True:
        assert isinstance(begun, ExecutionClosedError)
        assert read(database, made).status == "failed"
    else:
        assert isinstance(begun, Execution)
        assert read(database, made).status == "running"


def test_finishing_at_once(database: Database, execution: Execution) -> None:
    """Of several ends one counts."""
    ends = [partial(finish, database, execution, status) for status in ("completed", "failed", "cancelled")]
    outcomes = together(*ends)
    assert sorted(map(repr, outcomes)) == ["False", "False", "True"]


# -- lists and figures -------------------------------------------------------------------------------


def test_lists_are_filtered_paged_and_newest_first(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """By workflow, by status, by both; the total counts what matches."""
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=graph))
    made = [create(database, one) for one in (workflow, other, workflow, workflow)]
    finish(database, made[2], "completed")

    def ids(**filters: Any) -> tuple[list[int], int]:
        page, total = database.run_sync(lambda s: executions.list_(s, **filters))
        return [made.index(next(m for m in made if m.id == row.id)) for row in page], total

    assert ids() == ([3, 2, 1, 0], 4)
    assert ids(skip=1, limit=2) == ([2, 1], 4)
    assert ids(workflow_id=workflow.id) == ([3, 2, 0], 3)
    assert ids(status="completed") == ([2], 1)
    assert ids(workflow_id=workflow.id, status="pending") == ([3, 0], 2)
    with pytest.raises(InvalidInputError, match="status"):
        ids(status="done\0")

    live = database.run_sync(lambda s: executions.live(s, workflow.id))
    assert [row.id for row in live] == [made[0].id, made[3].id]
    assert len(database.run_sync(executions.live)) == 3


def test_an_unknown_task_has_no_execution(database: Database) -> None:
    """An id that was never issued."""
    assert database.run_sync(lambda s: executions.by_task(s, uuid.uuid4())) is None


def test_metrics_of_nothing(database: Database) -> None:
    """An empty database has rates of 0, and divides by nothing."""
    assert database.run_sync(metrics.metrics) == {
        "executions": {"total": 0, "completed": 0, "failed": 0, "pending": 0, "success_rate": 0.0},
        "error_rate": {"period_hours": 1, "total_executions": 0, "failed_executions": 0, "error_rate": 0.0},
        "workflows": {"total_workflows": 0, "active_workflows": 0},
    }


def test_metrics_count_the_last_day_and_the_last_hour(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """Success is percent of what is over, errors of all."""
    database.run_sync(lambda s: workflows.create(s, name="Idle", graph=graph))
    kinds = ["infrastructure", None, "crashed", "infrastructure", "node"]
    for kind in kinds:
        made = create(database, workflow)
        finish(database, made, "failed" if kind else "completed", **({"error_kind": kind} if kind else {}))
    begin(database, workflow, uuid.uuid4())
    hours_ago = create(database, workflow)
    days_ago = create(database, workflow)

    def age(session: Session) -> None:
        for row, hours in ((hours_ago, 2), (days_ago, 25)):
            then = utcnow() - timedelta(hours=hours)
            session.execute(update(Execution).where(Execution.id == row.id).values(created_at=then))

    database.run_sync(age)
    assert database.run_sync(metrics.metrics) == {
        "executions": {"total": 7, "completed": 1, "failed": 4, "pending": 2, "success_rate": 20.0},
        "error_rate": {
            "period_hours": 1,
            "total_executions": 6,
            "failed_executions": 4,
            "error_rate": 66.67,
        },
        "workflows": {"total_workflows": 2, "active_workflows": 1},
    }
