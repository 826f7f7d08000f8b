"""What comes from outside of a run: a person's retry or cancellation, and Prefect's word."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, LeaseLostError, NotFoundError
from flows.graphs.lifecycle import CANCELLED, Closure, ErrorKind, RunSnapshot, Status, StepStatus
from flows.store import chain, orphans, skipping
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions, submissions
from flows.store.transitions.interventions import HOLD_SECONDS, Reopened
from tests.leasing import begin, lease_of
from tests.store.racing import together
from tests.store.rows import (
    COUNTED,
    FORGOTTEN,
    begin_next,
    change,
    claim_of,
    counters,
    create,
    end,
    everything,
    expire,
    read,
    seconds_left,
    snapshot,
    take,
    take_retried,
)

BADLY = [Status.FAILED, Status.CANCELLED]
DELETED = Closure(Status.CANCELLED, "It was deleted.", ErrorKind.CANCELLED)
BROKE = Closure(Status.FAILED, "It was set to failed.", ErrorKind.CRASHED)


def reopen(database: Database, execution: Execution, origin: uuid.UUID | None = None) -> Reopened:
    """What a retry over the API does before it tells Prefect."""
    return database.run_sync(lambda s: interventions.reopen(s, execution.id, origin))


def revoke(database: Database, seen: RunSnapshot) -> bool:
    """Note that a run is cancelled, as it was seen."""
    return database.run_sync(lambda s: interventions.revoke(s, seen))


def close(database: Database, seen: RunSnapshot, closure: Closure = DELETED) -> bool:
    """Close a run as Prefect says, as it was seen."""
    return database.run_sync(lambda s: interventions.close_as_seen(s, seen, closure))


# -- cancelled ---------------------------------------------------------------------------------------


def test_a_run_that_is_over_is_not_revoked(database: Database, execution: Execution) -> None:
    """Nor is an attempt that began since; a retried run may complete."""
    seen = snapshot(database, execution)
    assert not revoke(database, RunSnapshot(**{**vars(seen), "attempt": 0}))
    assert revoke(database, seen)
    assert read(database, execution).revoked
    end(database, execution, Status.CANCELLED)
    assert not revoke(database, seen)

    database.run_sync(lambda s: attempts.release(s, reopen(database, execution).lease))
    assert not read(database, execution).revoked
    end(database, begin_next(database, execution), Status.COMPLETED)
    assert read(database, execution).status is Status.COMPLETED


@pytest.mark.parametrize("released", [True, False])
def test_a_run_that_was_told_to_stop_is_closed_when_nobody_has_it(
    database: Database, execution: Execution, released: bool
) -> None:
    """Its process has released the lease, or died and lost it by time; while it has it nothing is closed."""
    cancel = partial(interventions.cancel_stopped, execution_id=execution.id, message="Stopped.")
    assert not database.run_sync(cancel)
    assert read(database, execution).status is Status.RUNNING
    if released:
        assert database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
    else:
        expire(database, execution)
    assert database.run_sync(cancel)
    row = read(database, execution)
    assert (row.status, row.error, row.error_kind) == (Status.CANCELLED, "Stopped.", ErrorKind.CANCELLED)
    assert (row.lease_owner, row.lease_until) == (None, None)
    assert not database.run_sync(cancel)


# -- Prefect's word ----------------------------------------------------------------------------------


@pytest.mark.parametrize("closure", [DELETED, BROKE], ids=["cancelled", "failed"])
def test_a_run_that_is_over_in_prefect_is_closed(
    database: Database, execution: Execution, closure: Closure
) -> None:
    """Whoever has its lease loses it, and writes nothing more."""
    assert close(database, snapshot(database, execution), closure)
    row = read(database, execution)
    assert (row.status, row.error, row.error_kind) == (closure.status, closure.error, closure.kind)
    assert (row.lease_owner, row.lease_until, row.failed_at_node) == (None, None, None)
    with pytest.raises(LeaseLostError, match=closure.status):
        database.run_sync(lambda s: attempts.complete(s, lease_of(execution)))


def test_a_run_that_reads_cancelled_is_not_closed_as_failed(database: Database, execution: Execution) -> None:
    """Somebody was told so: Prefect's Failed comes too late."""
    seen = snapshot(database, execution)
    assert revoke(database, seen)
    assert close(database, seen, BROKE)
    row = read(database, execution)
    assert (row.status, row.error_kind) == (Status.CANCELLED, ErrorKind.CANCELLED)


def test_a_pending_run_can_be_closed(database: Database, workflow: Workflow) -> None:
    """Cancelled before it started: the reconciler closes the row."""
    made = create(database, workflow)
    assert close(database, snapshot(database, made))
    assert read(database, made).status is Status.CANCELLED


def test_what_is_closed_is_not_closed_again(database: Database, execution: Execution) -> None:
    """Whoever closes a run second is told, and overwrites nothing."""
    seen = snapshot(database, execution)
    assert close(database, seen)
    before = everything(database)
    assert not close(database, seen, BROKE)
    assert not revoke(database, seen)
    assert not database.run_sync(lambda s: interventions.cancel_stopped(s, execution.id, "Stopped."))
    assert everything(database) == before


def test_who_saw_a_run_before_it_was_retried_neither_closes_nor_revokes_it(
    database: Database, execution: Execution
) -> None:
    """A slow look at Prefect: the number of the attempt is the same when the row was opened again."""
    seen, origin = snapshot(database, execution), uuid.uuid4()
    end(database, execution, Status.FAILED)
    reopen(database, execution, origin)
    assert not close(database, seen)
    assert not revoke(database, seen)
    assert (read(database, execution).status, read(database, execution).revoked) == (Status.RUNNING, False)
    assert close(database, RunSnapshot(**{**vars(seen), "reopened_from": origin}))


def test_who_heard_of_an_earlier_attempts_end_closes_nothing(
    database: Database, execution: Execution
) -> None:
    """Another attempt has begun since: it stays open, and is closed by its own number."""
    first = snapshot(database, execution)
    database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
    begin_next(database, execution)
    assert not close(database, first, BROKE)
    assert read(database, execution).status is Status.RUNNING
    assert close(database, snapshot(database, execution), BROKE)


# -- retried in Prefect ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", BADLY)
def test_a_retry_in_prefect_opens_the_run_with_its_lease(
    database: Database, execution: Execution, status: Status
) -> None:
    """A person looked at it: all patience begins anew, and the unrepeatable node may run."""
    change(database, execution, **COUNTED)
    end(database, execution, status)
    assert counters(database, execution) == COUNTED
    assert take(database, execution) is None
    request = uuid.uuid4()
    lease = take_retried(database, execution, request)
    row = read(database, execution)
    assert lease is not None
    assert (row.status, row.lease_owner, row.reopened_from) == (Status.RUNNING, lease.owner, request)
    assert (row.error, row.completed_at, row.attempt) == ("boom", None, 1)
    assert counters(database, execution) == FORGOTTEN


def test_a_persons_request_opens_a_run_once(database: Database, execution: Execution) -> None:
    """Who followed it may have failed since: without another request nothing goes on."""
    end(database, execution, Status.FAILED)
    request = uuid.uuid4()
    assert take_retried(database, execution, request) is not None
    end(database, execution, Status.FAILED)
    before = everything(database)
    assert take_retried(database, execution, request) is None
    assert everything(database) == before
    assert take_retried(database, execution) is not None


def test_a_request_that_was_read_before_the_run_went_on_opens_nothing(
    database: Database, execution: Execution
) -> None:
    """A person took it back and retried the run elsewhere; it failed again, and nobody has asked since."""
    end(database, execution, Status.FAILED)
    seen = snapshot(database, execution)
    assert take_retried(database, execution) is not None
    end(database, execution, Status.FAILED)
    before = everything(database)
    late = partial(attempts.take_retried, claim=claim_of(execution), request=uuid.uuid4(), seen=seen)
    assert database.run_sync(late) is None
    assert everything(database) == before


def test_of_two_workers_that_find_a_request_one_follows_it(database: Database, execution: Execution) -> None:
    """Both looked at the same moment."""
    end(database, execution, Status.FAILED)
    attempt = partial(take_retried, database, execution, uuid.uuid4())
    outcomes = together(attempt, attempt, attempt)
    assert sorted(type(one).__name__ for one in outcomes) == ["Lease", "NoneType", "NoneType"]


def test_nothing_but_a_failed_or_cancelled_run_is_opened_for_a_request(
    database: Database, workflow: Workflow, execution: Execution
) -> None:
    """One that goes on, is completed, or was refused stays as it is; so does another workflow's."""
    refused = create(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, refused.id, "x"))
    change(database, refused, flow_run_id=uuid.uuid4())
    done = begin_another(database, workflow)
    end(database, done, Status.COMPLETED)
    before = everything(database)
    for run in (execution, read(database, refused), done):
        assert take_retried(database, run) is None
    assert everything(database) == before


def begin_another(database: Database, workflow: Workflow) -> Execution:
    """A second run of the workflow."""
    return database.run_sync(partial(begin, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))


@pytest.mark.parametrize("status", BADLY)
def test_the_reconciler_opens_a_run_that_a_person_retried(
    database: Database, execution: Execution, status: Status
) -> None:
    """It has the lease, and frees it: the run waits for a worker."""
    change(database, execution, **COUNTED)
    end(database, execution, status)
    found = database.run_sync(lambda s: orphans.take_as_seen(s, snapshot(database, execution)))
    assert found is not None
    request = uuid.uuid4()
    database.run_sync(lambda s: interventions.reopen_recovered(s, found.lease, request))
    row = read(database, execution)
    assert (row.status, row.lease_owner, row.reopened_from) == (Status.RUNNING, None, request)
    assert counters(database, execution) == FORGOTTEN
    with pytest.raises(LeaseLostError):
        database.run_sync(lambda s: interventions.reopen_recovered(s, found.lease, uuid.uuid4()))
    assert take(database, execution) is not None


# -- retried over the API ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", BADLY)
def test_a_run_is_opened_again(database: Database, execution: Execution, status: Status) -> None:
    """Due now, with its error until it begins; the chain stays; others wait until Prefect has heard."""
    start = Step(0, 1, "start", "start", StepStatus.SUCCESS)
    database.run_sync(lambda s: chain.append(s, lease_of(execution), start))
    change(database, execution, **COUNTED)
    end(database, execution, status)
    origin = uuid.uuid4()
    reopened = reopen(database, execution, origin)
    row = read(database, execution)
    assert (row.status, row.error, row.completed_at, row.attempt) == (Status.RUNNING, "boom", None, 1)
    assert (row.reopened_from, row.lease_owner) == (origin, reopened.lease.owner)
    assert reopened.lease.execution_id == execution.id
    assert HOLD_SECONDS - 10 < seconds_left(database, execution) <= HOLD_SECONDS
    assert -10 < seconds_left(database, execution, "next_attempt_at") <= 0
    assert counters(database, execution) == FORGOTTEN

    assert database.run_sync(lambda s: attempts.release(s, reopened.lease))
    again = begin_next(database, execution)
    assert (again.attempt, again.error) == (2, None)
    assert database.run_sync(lambda s: chain.visits(s, execution.id)) == [("start", None)]


def test_a_run_that_never_began_is_pending_again(database: Database, workflow: Workflow) -> None:
    """Cancelled before its first attempt: it waits as at first."""
    made = create(database, workflow)
    assert close(database, snapshot(database, made))
    reopen(database, made)
    row = read(database, made)
    assert (row.status, row.attempt, row.error) == (Status.PENDING, 0, "It was deleted.")


def test_there_is_nothing_to_retry(database: Database, workflow: Workflow, execution: Execution) -> None:
    """A run that goes on, is completed, was refused, or is unknown."""
    made = create(database, workflow)

    def refused(one: Execution, why: str) -> None:
        before = everything(database)
        for work in (
            partial(interventions.reopen, reopened_from=None),
            partial(skipping.skip, step=0, changes={}),
        ):
            with pytest.raises(ConflictError, match=why):
                database.run_sync(partial(work, execution_id=one.id))
        assert everything(database) == before

    refused(execution, "running")
    refused(made, "pending")
    database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    refused(made, "never started")
    end(database, execution, Status.COMPLETED)
    refused(execution, "completed")
    for unknown in (0, 10**30):
        with pytest.raises(NotFoundError):
            database.run_sync(partial(interventions.reopen, execution_id=unknown, reopened_from=None))
        with pytest.raises(NotFoundError):
            database.run_sync(partial(skipping.skip, execution_id=unknown, step=0, changes={}))


def test_a_run_is_not_opened_while_its_worker_has_it(database: Database, execution: Execution) -> None:
    """Prefect has not heard of its end yet. A worker that died over that keeps nobody out for long."""
    lease = lease_of(execution)
    database.run_sync(lambda s: attempts.fail(s, lease, "boom", ErrorKind.NODE, None))
    with pytest.raises(ConflictError, match="changes hands"):
        reopen(database, execution)
    assert read(database, execution).status is Status.FAILED
    expire(database, execution)
    reopened = reopen(database, execution)
    assert read(database, execution).lease_owner == reopened.lease.owner


def test_a_run_is_opened_once(database: Database, execution: Execution) -> None:
    """Of several retries at the same moment one counts."""
    end(database, execution, Status.FAILED)
    outcomes = together(*[partial(reopen, database, execution)] * 3)
    assert sorted(type(one).__name__ for one in outcomes) == ["ConflictError", "ConflictError", "Reopened"]


@pytest.mark.parametrize("status", BADLY)
def test_a_retry_that_prefect_refuses_leaves_all_as_it_was(
    database: Database, execution: Execution, status: Status
) -> None:
    """Counters, the word of whoever cancelled it, and what an earlier retry left."""
    change(database, execution, **COUNTED, revoked=status is Status.CANCELLED, reopened_from=uuid.uuid4())
    end(database, execution, status, node="mail")
    before = everything(database)
    reopened = reopen(database, execution, uuid.uuid4())
    assert everything(database) != before
    database.run_sync(lambda s: interventions.undo_reopen(s, reopened))
    assert everything(database) == before
    with pytest.raises(LeaseLostError):
        database.run_sync(lambda s: interventions.undo_reopen(s, reopened))


def test_a_retry_that_others_saw_is_not_undone(database: Database, execution: Execution) -> None:
    """Its lease ran out and a worker took the run: what Prefect refused late changes nothing."""
    end(database, execution, Status.FAILED)
    reopened = reopen(database, execution)
    expire(database, execution)
    assert take(database, execution) is not None
    before = everything(database)
    with pytest.raises(LeaseLostError, match="taken over"):
        database.run_sync(lambda s: interventions.undo_reopen(s, reopened))
    assert everything(database) == before


LATE: dict[str, Callable[[Session, Execution], None]] = {
    "complete": lambda s, row: attempts.complete(s, lease_of(row)),
    "fail": lambda s, row: attempts.fail(s, lease_of(row), "late", ErrorKind.NODE, None),
    "cancel": lambda s, row: attempts.cancel(s, lease_of(row), CANCELLED),
}


@pytest.mark.parametrize("name", LATE)
def test_the_process_that_had_the_run_before_a_retry_writes_nothing(
    database: Database, execution: Execution, name: str
) -> None:
    """It was paused while the run was closed, and comes back when a person has opened it."""
    assert close(database, snapshot(database, execution), BROKE)
    reopen(database, execution)
    before = everything(database)
    with pytest.raises(LeaseLostError, match="taken over"):
        database.run_sync(lambda s: LATE[name](s, execution))
    assert everything(database) == before
