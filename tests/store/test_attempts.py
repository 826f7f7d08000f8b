"""An attempt of a run: how it begins, what it notes on the way, and how it ends."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import ExecutionClosedError, LeaseLostError
from flows.graphs.lifecycle import CANCELLED, ErrorKind, Status, StepStatus
from flows.store import chain, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.leases import Lease
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions
from tests.leasing import begin as start_run
from tests.leasing import lease_of
from tests.store.racing import together
from tests.store.rows import (
    COUNTED,
    begin_next,
    change,
    counters,
    create,
    end,
    everything,
    expire,
    read,
    seconds_left,
    snapshot,
)

ENDS: dict[Status, Callable[[Session, Lease], None]] = {
    Status.COMPLETED: attempts.complete,
    Status.FAILED: lambda s, lease: attempts.fail(s, lease, "boom", ErrorKind.NODE, "mail"),
    Status.CANCELLED: lambda s, lease: attempts.cancel(s, lease, "Somebody stopped it."),
}
"""How a run's own process closes it."""


def begin(
    database: Database,
    workflow: Workflow,
    flow_run_id: uuid.UUID,
    public_id: uuid.UUID | None = None,
    request: uuid.UUID | None = None,
) -> Execution:
    """What the flow does at its start."""
    return database.run_sync(
        partial(
            start_run,
            flow_run_id=flow_run_id,
            public_id=public_id,
            workflow_id=workflow.id,
            request=request,
        )
    )


def schedule_retry(database: Database, execution: Execution, *, counted: bool = True) -> Any:
    """Have the run begin again in ten minutes, and free its lease."""
    lease = lease_of(execution)
    write = attempts.schedule_retry if counted else attempts.wait_for_provider

    def work(session: Session) -> Any:
        due = write(session, lease, "E2B does not answer.", ErrorKind.INFRASTRUCTURE, "mail", 600)
        assert attempts.release(session, lease)
        return due

    return database.run_sync(work)


# -- begun -------------------------------------------------------------------------------------------


def test_the_version_is_pinned_at_the_first_start(database: Database, workflow: Workflow) -> None:
    """A graph saved while the run waits counts; one saved after its start does not, on no attempt."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()

    def save(note: str) -> None:
        graph: dict[str, Any] = {**workflow.current.graph, "note": note}
        database.run_sync(lambda s: workflows.update(s, workflow.id, graph=graph))

    save("while it waits")
    first = begin(database, workflow, flow_run_id, made.public_id)
    save("while it runs")
    end(database, made, Status.FAILED)
    second = begin(database, workflow, flow_run_id, made.public_id, request=uuid.uuid4())
    for execution in (first, second):
        assert execution.version is not None
        assert execution.version.graph["note"] == "while it waits"


def test_a_failed_run_is_begun_again_where_a_person_asked(database: Database, workflow: Workflow) -> None:
    """By Retry in the UI alone: the error is cleared, the attempt counted, chain and first start stay."""
    flow_run_id = uuid.uuid4()
    first = begin(database, workflow, flow_run_id)
    lease = lease_of(first)
    start = Step(0, 1, "start", "start", StepStatus.SUCCESS, stdout="hi")
    database.run_sync(lambda s: chain.append(s, lease, start))
    database.run_sync(lambda s: attempts.note_sandbox(s, lease, "sbx"))
    end(database, first, Status.FAILED, "boom \ud800", ErrorKind.NODE, "mail")
    failed = read(database, first)
    assert (failed.error, failed.error_kind, failed.failed_at_node) == ("boom \ud800", ErrorKind.NODE, "mail")

    with pytest.raises(ExecutionClosedError, match="failed"):
        begin(database, workflow, flow_run_id)
    again = begin(database, workflow, flow_run_id, request=uuid.uuid4())
    assert (again.id, again.status, again.attempt) == (first.id, Status.RUNNING, 2)
    assert (again.error, again.error_kind, again.failed_at_node, again.completed_at) == (None,) * 4
    assert (again.started_at, again.sandbox_id) == (first.started_at, "sbx")
    assert database.run_sync(lambda s: chain.visits(s, first.id)) == [("start", None)]


def test_a_run_that_succeeded_is_not_begun_again(database: Database, workflow: Workflow) -> None:
    """Retrying it does nothing, whoever asks."""
    flow_run_id = uuid.uuid4()
    first = begin(database, workflow, flow_run_id)
    end(database, first, Status.COMPLETED)
    for request in (None, uuid.uuid4()):
        with pytest.raises(ExecutionClosedError, match="completed"):
            begin(database, workflow, flow_run_id, request=request)
    assert (read(database, first).status, read(database, first).attempt) == (Status.COMPLETED, 1)


def test_a_run_that_is_being_cancelled_is_not_begun(database: Database, execution: Execution) -> None:
    """Somebody was told that it is cancelled: its process is gone, and nobody takes it up again."""
    seen = snapshot(database, execution)
    assert database.run_sync(lambda s: interventions.revoke(s, seen))
    database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
    with pytest.raises(ExecutionClosedError, match="being cancelled"):
        begin_next(database, execution)
    assert read(database, execution).attempt == 1


# -- on the way --------------------------------------------------------------------------------------


def test_a_step_that_is_done_names_the_next_node(database: Database, execution: Execution) -> None:
    """What is shown of a run that goes on: the node that it is at; none is named, none is changed."""
    lease = lease_of(execution)
    for named, shown in (("mail", "mail"), ("pdf\0", "pdf\0"), (None, "pdf\0")):
        database.run_sync(partial(attempts.step_done, lease=lease, succeeded=True, next_node=named))
        assert read(database, execution).current_node == shown


def test_a_sandbox_means_that_a_node_may_have_started(database: Database, execution: Execution) -> None:
    """From its id on the attempt counts as one that stepped; starts that were lost before are forgotten."""
    change(database, execution, **COUNTED)
    lease = lease_of(execution)
    database.run_sync(lambda s: attempts.step_done(s, lease, succeeded=False, next_node="mail"))
    assert (read(database, execution).stepping, read(database, execution).lost_starts) == (False, 3)
    database.run_sync(lambda s: attempts.note_sandbox(s, lease, "sbx"))
    row = read(database, execution)
    assert (row.stepping, row.lost_starts, row.sandbox_id, row.current_node) == (True, 0, "sbx", "mail")
    assert (row.crashes, row.retries) == (2, 2)


def test_an_unrepeatable_step_stays_so_until_it_succeeds(database: Database, execution: Execution) -> None:
    """An attempt that fails, or dies, leaves it: a run that goes on sees that the node was started."""
    lease = lease_of(execution)
    failed, succeeded = (
        Step(0, attempt, "mail", "action", status)
        for attempt, status in ((1, StepStatus.FAILED), (2, StepStatus.SUCCESS))
    )
    database.run_sync(lambda s: attempts.mark_unrepeatable(s, lease, 0))
    assert read(database, execution).unrepeatable_step == 0
    database.run_sync(lambda s: chain.append(s, lease, failed, "mail"))
    assert read(database, execution).unrepeatable_step == 0
    expire(database, execution)
    again = begin_next(database, execution)
    assert again.unrepeatable_step == 0
    database.run_sync(lambda s: chain.append(s, lease_of(again), succeeded, "end"))
    row = read(database, execution)
    assert (row.unrepeatable_step, row.current_node) == (None, "end")


# -- to be tried again -------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_a_retry_is_scheduled(database: Database, execution: Execution, counted: bool) -> None:
    """The run stays running, says why and until when, and is free for whoever takes it then."""
    due = schedule_retry(database, execution, counted=counted)
    row = read(database, execution)
    assert (row.status, row.retries, row.next_attempt_at) == (Status.RUNNING, int(counted), due)
    assert (row.error, row.error_kind) == ("E2B does not answer.", ErrorKind.INFRASTRUCTURE)
    assert (row.failed_at_node, row.completed_at) == ("mail", None)
    assert 590 < seconds_left(database, execution, "next_attempt_at") <= 600

    again = begin_next(database, execution)
    assert (again.attempt, again.retries) == (2, int(counted))
    assert (again.next_attempt_at, again.error, again.error_kind, again.failed_at_node) == (None,) * 4
    assert schedule_retry(database, again) is not None
    assert read(database, execution).retries == 1 + int(counted)


@pytest.mark.parametrize("write", [attempts.schedule_retry, attempts.wait_for_provider])
def test_the_lease_of_a_run_that_waits_stays_until_prefect_has_heard(
    database: Database, execution: Execution, write: Callable[..., Any]
) -> None:
    """The commit stood and its answer was lost: said again under the same lease it changes nothing."""
    lease = lease_of(execution)
    again = partial(write, lease=lease, error="x", kind=ErrorKind.INFRASTRUCTURE, node="a", seconds=60)
    due = database.run_sync(again)
    before = everything(database)
    assert database.run_sync(again) == due
    assert everything(database) == before
    assert read(database, execution).lease_owner == lease.owner


def test_cancelling_a_run_that_waits_takes_its_next_attempt_away(
    database: Database, execution: Execution
) -> None:
    """Nothing is due any more, and it failed at no node."""
    schedule_retry(database, execution)
    assert database.run_sync(lambda s: interventions.cancel_stopped(s, execution.id, "No."))
    row = read(database, execution)
    assert (row.status, row.next_attempt_at, row.failed_at_node) == (Status.CANCELLED, None, None)


def test_an_attempt_after_a_crash_keeps_all_counters(database: Database, execution: Execution) -> None:
    """Nobody closed the run: its lease ran out, and the machinery's patience goes on where it was."""
    change(database, execution, **COUNTED, stepping=True)
    expire(database, execution)
    again = begin_next(database, execution)
    assert (again.attempt, again.stepping) == (2, False)
    assert counters(database, execution) == COUNTED


# -- ended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ENDS)
def test_a_run_is_closed_by_its_own_process(database: Database, execution: Execution, status: Status) -> None:
    """It says why, is at no node any more, and nobody else has it until Prefect has heard."""
    lease = lease_of(execution)
    database.run_sync(lambda s: attempts.step_done(s, lease, succeeded=False, next_node="mail"))
    database.run_sync(lambda s: ENDS[status](s, lease))
    row = read(database, execution)
    assert (row.status, row.current_node, row.lease_owner) == (status, None, lease.owner)
    assert row.completed_at is not None
    assert (row.error, row.error_kind, row.failed_at_node) == {
        Status.COMPLETED: (None, None, None),
        Status.FAILED: ("boom", ErrorKind.NODE, "mail"),
        Status.CANCELLED: ("Somebody stopped it.", ErrorKind.CANCELLED, None),
    }[status]


@pytest.mark.parametrize("status", ENDS)
def test_a_run_that_reads_cancelled_ends_as_that(
    database: Database, execution: Execution, status: Status
) -> None:
    """Somebody was told so before its last node had ended: no final state is taken back."""
    seen = snapshot(database, execution)
    assert database.run_sync(lambda s: interventions.revoke(s, seen))
    assert read(database, execution).status is Status.RUNNING
    database.run_sync(lambda s: ENDS[status](s, lease_of(execution)))
    row = read(database, execution)
    assert (row.status, row.error_kind) == (Status.CANCELLED, ErrorKind.CANCELLED)
    said = {Status.COMPLETED: CANCELLED, Status.FAILED: "boom", Status.CANCELLED: "Somebody stopped it."}
    assert row.error == said[status]


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_only_the_first_end_counts(
    database: Database, execution: Execution, first: Status, second: Status
) -> None:
    """A last word may be said again, where its commit's answer was lost: the row stays as it is."""
    lease = lease_of(execution)
    database.run_sync(lambda s: ENDS[first](s, lease))
    before = read(database, execution)
    expire(database, execution)
    database.run_sync(lambda s: ENDS[second](s, lease))
    after = read(database, execution)
    assert (after.status, after.error, after.completed_at) == (
        before.status,
        before.error,
        before.completed_at,
    )
    assert seconds_left(database, execution) > 20, "its lease lasts until Prefect has heard"


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_run_that_never_began_is_closed_under_its_lease(
    database: Database, workflow: Workflow, status: Status
) -> None:
    """Its client is gone, say: it becomes failed without an attempt, and is pending when it is retried."""
    made = create(database, workflow)
    change(database, made, flow_run_id=uuid.uuid4(), lease_owner=uuid.uuid4(), lease_until=made.created_at)
    end(database, made, status)
    row = read(database, made)
    assert (row.status, row.attempt, row.started_at, row.lease_owner) == (status, 0, None, None)
    reopened = database.run_sync(lambda s: interventions.reopen(s, made.id, None))
    assert read(database, made).status is Status.PENDING
    database.run_sync(lambda s: ENDS[status](s, reopened.lease))
    assert read(database, made).status is status


def test_finishing_at_once(database: Database, execution: Execution) -> None:
    """Of several ends one counts."""
    lease = lease_of(execution)

    def close(status: Status) -> None:
        database.run_sync(lambda s: ENDS[status](s, lease))

    assert together(*(partial(close, status) for status in ENDS)) == [None, None, None]
    row = read(database, execution)
    errors = {Status.COMPLETED: None, Status.FAILED: "boom", Status.CANCELLED: "Somebody stopped it."}
    assert row.error == errors[row.status]


def test_who_lost_the_lease_says_nothing_more(database: Database, execution: Execution) -> None:
    """Somebody looks after the run by now: it is theirs to tell Prefect how it ended."""
    lease = lease_of(execution)
    database.run_sync(lambda s: ENDS[Status.FAILED](s, lease))
    change(database, execution, lease_owner=uuid.uuid4())

    def close(session: Session, status: Status) -> None:
        ENDS[status](session, lease)

    for status in ENDS:
        with pytest.raises(LeaseLostError, match="taken over"):
            database.run_sync(partial(close, status=status))
