"""Runs that nobody runs: found, looked after under a lease, and closed, requeued or handed on again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import LeaseHeldError, LeaseLostError
from flows.graphs.lifecycle import Closure, ErrorKind, RunSnapshot, Status, StepStatus
from flows.store import chain, orphans
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.leases import Lease
from flows.store.models import Execution, Workflow
from flows.store.orphans import RecoveryLease
from flows.store.transitions import attempts, interventions, recoveries, submissions
from tests.leasing import begin, lease_of
from tests.store.racing import together
from tests.store.rows import change, create, end, everything, expire, read, seconds_left, snapshot, take

DIED = "The worker of this run died."
GIVEN_UP = Closure(Status.FAILED, "It died too often.", ErrorKind.CRASHED)


def take_expired(database: Database, *but_not: Execution) -> RecoveryLease | None:
    """Take over the lease that ran out first."""
    return database.run_sync(lambda s: orphans.take_expired(s, [row.id for row in but_not]))


def take_seen(database: Database, seen: RunSnapshot, flow_run_id: uuid.UUID | None = None) -> Any:
    """Take the lease of a run that is as it was seen."""
    return database.run_sync(lambda s: orphans.take_as_seen(s, seen, flow_run_id))


def run(database: Database, workflow: Workflow) -> Execution:
    """A run that has begun."""
    return database.run_sync(partial(begin, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))


def schedule_retry(session: Session, lease: Lease, seconds: float = 600) -> None:
    """Have the run wait for its next attempt, as its own process."""
    attempts.schedule_retry(session, lease, "E2B does not answer.", ErrorKind.INFRASTRUCTURE, "a", seconds)


@pytest.fixture
def orphan(database: Database, execution: Execution) -> RecoveryLease:
    """A run whose process died at its step 1, looked after by the test."""
    lease = lease_of(execution)
    start = Step(0, 1, "start", "start", StepStatus.SUCCESS)
    database.run_sync(lambda s: attempts.note_sandbox(s, lease, "sbx"))
    database.run_sync(lambda s: chain.append(s, lease, start, "mail"))
    expire(database, execution)
    found = take_expired(database)
    assert found is not None
    return found


# -- found -------------------------------------------------------------------------------------------


def test_a_run_whose_lease_ran_out_is_found(database: Database, workflow: Workflow) -> None:
    """The one that ran out first, but for those that one has seen; what somebody has, or nobody, is none."""
    lost_first, lost_later, held, free = (run(database, workflow) for _ in range(4))
    database.run_sync(lambda s: attempts.release(s, lease_of(free)))
    expire(database, lost_first)
    expire(database, lost_later)
    before = read(database, lost_first)

    found = take_expired(database)
    assert found is not None
    assert (found.row.id, found.row.lease_owner) == (lost_first.id, before.lease_owner)
    assert (found.snapshot.leased, found.snapshot.expired, found.snapshot.status) == (
        True,
        True,
        Status.RUNNING,
    )
    assert found.lease.owner == read(database, lost_first).lease_owner != before.lease_owner
    assert orphans.SECONDS - 10 < seconds_left(database, lost_first) <= orphans.SECONDS

    assert take_expired(database, lost_later) is None
    second = take_expired(database)
    assert second is not None
    assert second.row.id == lost_later.id
    assert take_expired(database) is None
    assert read(database, held).lease_owner == held.lease_owner


def test_of_two_that_look_at_once_one_finds_a_run(database: Database, execution: Execution) -> None:
    """The other finds nothing to do."""
    seen = snapshot(database, execution)
    expire(database, execution)
    looks = [partial(take_expired, database)] * 2
    assert sorted(type(one).__name__ for one in together(*looks)) == ["NoneType", "RecoveryLease"]
    database.run_sync(lambda s: attempts.release(s, lease_of(read(database, execution))))
    looks = [partial(take_seen, database, replace(seen, leased=False))] * 2
    assert sorted(type(one).__name__ for one in together(*looks)) == ["NoneType", "RecoveryLease"]


@pytest.mark.parametrize("what", ["closed", "begun again", "taken", "deleted"])
def test_a_run_that_has_changed_since_it_was_seen_is_left_alone(
    database: Database, execution: Execution, what: str
) -> None:
    """Whoever looked at it knows nothing of what has happened meanwhile."""
    database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
    seen = snapshot(database, execution)
    if what == "closed":
        assert database.run_sync(lambda s: interventions.cancel_stopped(s, execution.id, "No."))
    elif what == "deleted":
        seen = replace(seen, id=10**6)
    else:
        assert take(database, execution) is not None
    if what == "begun again":
        row = read(database, execution)
        assert row.flow_run_id is not None
        again = database.run_sync(
            partial(
                begin,
                flow_run_id=row.flow_run_id,
                workflow_id=row.workflow_id,
                owner=row.lease_owner,
            )
        )
        database.run_sync(lambda s: attempts.release(s, lease_of(again)))
    before = everything(database)
    assert take_seen(database, seen) is None
    assert everything(database) == before


def test_a_run_that_was_seen_with_a_lease_that_had_run_out_is_taken(
    database: Database, execution: Execution
) -> None:
    """If it still has; a process that renewed it since keeps it."""
    seen = replace(snapshot(database, execution), expired=True)
    assert take_seen(database, seen) is None
    expire(database, execution)
    assert take_seen(database, replace(seen, expired=False, leased=False)) is None
    found = take_seen(database, seen)
    assert found is not None
    assert found.snapshot.expired


def test_a_run_that_is_looked_after_gets_its_flow_run(database: Database, workflow: Workflow) -> None:
    """Prefect has it, and the row was not told: it is noted; one that is noted stays."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    found = take_seen(database, snapshot(database, made), flow_run_id)
    assert found is not None
    assert (found.row.flow_run_id, found.snapshot.flow_run_id) == (None, flow_run_id)
    row = read(database, made)
    assert (row.flow_run_id, row.task_id) == (flow_run_id, flow_run_id)
    database.run_sync(lambda s: attempts.release(s, found.lease))
    assert take_seen(database, snapshot(database, made), uuid.uuid4()) is not None
    assert read(database, made).flow_run_id == flow_run_id


def test_no_worker_takes_a_run_that_is_looked_after(database: Database, orphan: RecoveryLease) -> None:
    """Nor does another one that looks after runs."""
    with pytest.raises(LeaseHeldError):
        take(database, orphan.row)
    assert take_expired(database) is None


def test_flow_runs_find_their_executions(database: Database, workflow: Workflow) -> None:
    """By the flow run, by the first one that Prefect lost, and by the public id where none was noted."""
    begun, made, other = run(database, workflow), create(database, workflow), uuid.uuid4()
    first, second, third = begun.flow_run_id, uuid.uuid4(), uuid.uuid4()
    assert first is not None

    def hand_over(session: Session) -> None:
        recoveries.resubmit(session, lease_of(begun))
        submissions.confirm(session, begun.id, second)

    database.run_sync(hand_over)
    found = database.run_sync(
        lambda s: orphans.match_flow_runs(
            s, {first: None, second: begun.public_id, third: made.public_id, other: uuid.uuid4()}
        )
    )
    assert {key: row.id for key, row in found.items()} == {
        first: begun.id,
        second: begun.id,
        third: made.id,
    }
    assert (found[first].flow_run_id, found[first].leased, found[first].expired) == (second, True, False)
    expire(database, begun)
    found = database.run_sync(lambda s: orphans.match_flow_runs(s, {second: None}))
    assert (found[second].leased, found[second].expired) == (True, True)


def test_runs_that_wait_are_listed(database: Database, workflow: Workflow) -> None:
    """Those that Prefect has, and those that it was never told of; none that is over or that somebody has."""
    held, free, over = (run(database, workflow) for _ in range(3))
    made = create(database, workflow)
    database.run_sync(lambda s: attempts.release(s, lease_of(free)))
    end(database, over, Status.FAILED)

    waiting = database.run_sync(lambda s: orphans.waiting(s, 0, 10))
    assert [row.id for row in waiting] == [free.id]
    assert database.run_sync(lambda s: orphans.waiting(s, free.id, 10)) == []
    assert [row.id for row in database.run_sync(lambda s: orphans.unsubmitted(s, 10))] == [made.id]
    assert held.id not in [row.id for row in waiting]


# -- left alone again --------------------------------------------------------------------------------


@pytest.mark.parametrize("expired", [True, False])
def test_what_was_not_helped_is_left_as_it_was_found(
    database: Database, execution: Execution, expired: bool
) -> None:
    """A lease that had run out has run out again, a moment ago: others are looked after first."""
    if expired:
        expire(database, execution)
        found = take_expired(database)
    else:
        database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
        found = take_seen(database, snapshot(database, execution))
    assert found is not None
    database.run_sync(lambda s: orphans.release(s, found))
    row = read(database, execution)
    assert row.lease_owner == found.row.lease_owner
    if expired:
        assert -10 < seconds_left(database, execution) <= 0
    else:
        assert (row.lease_owner, row.lease_until) == (None, None)


def test_what_somebody_else_has_by_now_is_not_released(database: Database, orphan: RecoveryLease) -> None:
    """It took too long to look after it."""
    expire(database, orphan.row)
    assert take(database, orphan.row) is not None
    before = everything(database)
    database.run_sync(lambda s: orphans.release(s, orphan))
    assert everything(database) == before


# -- what is done ------------------------------------------------------------------------------------


def test_a_run_that_died_too_often_is_closed(database: Database, orphan: RecoveryLease) -> None:
    """At its node, free of any lease."""
    database.run_sync(lambda s: recoveries.close_recovered(s, orphan.lease, GIVEN_UP, "mail"))
    row = read(database, orphan.row)
    assert (row.status, row.error, row.error_kind) == (Status.FAILED, GIVEN_UP.error, GIVEN_UP.kind)
    assert (row.failed_at_node, row.current_node, row.lease_owner) == ("mail", None, None)


def test_a_run_that_reads_cancelled_is_closed_as_that(database: Database, orphan: RecoveryLease) -> None:
    """Whatever whoever looks after it found."""
    change(database, orphan.row, revoked=True)
    database.run_sync(lambda s: recoveries.close_recovered(s, orphan.lease, GIVEN_UP))
    row = read(database, orphan.row)
    assert (row.status, row.error_kind, row.failed_at_node) == (
        Status.CANCELLED,
        ErrorKind.CANCELLED,
        None,
    )


def test_a_run_that_is_over_keeps_its_end(database: Database, execution: Execution) -> None:
    """Its process died before Prefect heard: only the lease is freed."""
    database.run_sync(lambda s: attempts.complete(s, lease_of(execution)))
    expire(database, execution)
    found = take_expired(database)
    assert found is not None
    database.run_sync(lambda s: recoveries.close_recovered(s, found.lease, GIVEN_UP))
    row = read(database, execution)
    assert (row.status, row.error, row.lease_owner) == (Status.COMPLETED, None, None)


def test_a_run_is_requeued(database: Database, orphan: RecoveryLease) -> None:
    """Due now, with the crash counted at its step, and free; it says why it waits until it begins."""
    attempt = orphan.lost_attempt
    assert attempt is not None
    counts = attempt.counters()
    database.run_sync(lambda s: recoveries.requeue(s, orphan.lease, counts, DIED))
    row = read(database, orphan.row)
    assert (row.status, row.attempt, row.lease_owner, row.stepping) == (Status.RUNNING, 1, None, False)
    assert (row.crashes, row.crash_step, row.lost_starts, row.retries) == (1, 1, 0, 0)
    assert (row.error, row.error_kind) == (DIED, ErrorKind.CRASHED)
    assert -10 < seconds_left(database, row, "next_attempt_at") <= 0
    assert (row.sandbox_id, row.current_node) == ("sbx", "mail"), "its sandbox is to be ended"
    assert take(database, row) is not None


def test_a_run_that_waited_for_its_time_still_does(database: Database, execution: Execution) -> None:
    """Its worker died after it had scheduled the retry: neither the reason nor the time is lost."""
    database.run_sync(lambda s: schedule_retry(s, lease_of(execution)))
    expire(database, execution)
    found = take_expired(database)
    assert found is not None
    assert (found.lost_attempt, found.due) == (None, read(database, execution).next_attempt_at)
    database.run_sync(lambda s: recoveries.requeue(s, found.lease, {}, None))
    row = read(database, execution)
    assert (row.error, row.error_kind, row.failed_at_node) == (
        "E2B does not answer.",
        ErrorKind.INFRASTRUCTURE,
        "a",
    )
    assert (row.retries, row.next_attempt_at, row.lease_owner) == (1, found.due, None)


def test_a_start_that_was_lost_is_counted_apart(database: Database, execution: Execution) -> None:
    """No node may have been started: the step is not to blame."""
    change(database, execution, crashes=2, crash_step=0, lost_starts=3)
    expire(database, execution)
    found = take_expired(database)
    assert found is not None
    attempt = found.lost_attempt
    assert attempt is not None
    assert attempt.counters() == {"lost_starts": 4}


def test_an_attempt_that_ended_by_a_retry_is_not_lost(database: Database, execution: Execution) -> None:
    """Its time came while nobody looked: the process died after its last word, which is no crash."""
    lease = lease_of(execution)
    database.run_sync(lambda s: attempts.note_sandbox(s, lease, "sbx"))
    database.run_sync(lambda s: schedule_retry(s, lease, 0))
    expire(database, execution)
    found = take_expired(database)
    assert found is not None
    assert (found.due, found.lost_attempt) == (None, None)


def test_a_run_that_never_began_is_requeued_without_an_error(database: Database, workflow: Workflow) -> None:
    """Its worker died between the lease and the beginning: it is pending, and says nothing."""
    made = create(database, workflow)
    change(database, made, flow_run_id=uuid.uuid4())
    assert take(database, read(database, made)) is not None
    expire(database, made)
    found = take_expired(database)
    assert found is not None
    attempt = found.lost_attempt
    assert attempt is not None
    counts = attempt.counters()
    database.run_sync(lambda s: recoveries.requeue(s, found.lease, counts, DIED))
    row = read(database, made)
    assert (row.status, row.error, row.error_kind, row.next_attempt_at) == (Status.PENDING, None, None, None)
    assert (row.lost_starts, row.lease_owner) == (1, None)


def test_a_run_that_prefect_lost_is_to_be_handed_over(database: Database, orphan: RecoveryLease) -> None:
    """It has no flow run any more, and keeps its task id; nobody else has it until Prefect has it again."""
    first = orphan.row.flow_run_id
    database.run_sync(lambda s: recoveries.resubmit(s, orphan.lease))
    row = read(database, orphan.row)
    assert (row.flow_run_id, row.task_id, row.lease_owner) == (None, first, orphan.lease.owner)
    assert (row.status, row.attempt, row.stepping) == (Status.RUNNING, 1, False)
    second = uuid.uuid4()
    assert database.run_sync(lambda s: submissions.confirm(s, row.id, second))
    assert database.run_sync(lambda s: attempts.release(s, orphan.lease))
    row = read(database, orphan.row)
    assert (row.flow_run_id, row.task_id) == (second, first)
    assert take(database, row) is not None


ACTIONS: dict[str, Callable[[Session, Lease], None]] = {
    "close": lambda s, lease: recoveries.close_recovered(s, lease, GIVEN_UP),
    "requeue": lambda s, lease: recoveries.requeue(s, lease, {}, DIED),
    "resubmit": recoveries.resubmit,
    "reopen": lambda s, lease: interventions.reopen_recovered(s, lease, uuid.uuid4()),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_who_took_too_long_to_look_after_a_run_changes_nothing(
    database: Database, orphan: RecoveryLease, name: str
) -> None:
    """Its lease ran out, and a worker has the run."""
    expire(database, orphan.row)
    assert take(database, orphan.row) is not None
    before = everything(database)
    with pytest.raises(LeaseLostError, match="taken over"):
        database.run_sync(lambda s: ACTIONS[name](s, orphan.lease))
    assert everything(database) == before


@pytest.mark.parametrize("name", ["requeue", "resubmit"])
def test_a_run_that_is_over_is_neither_requeued_nor_handed_over(
    database: Database, execution: Execution, name: str
) -> None:
    """What is closed stays closed, whatever whoever looks after it decided by an older look."""
    end(database, execution, Status.FAILED)
    found = take_seen(database, snapshot(database, execution))
    assert found is not None
    before = everything(database)
    with pytest.raises(LeaseLostError, match="failed"):
        database.run_sync(lambda s: ACTIONS[name](s, found.lease))
    assert everything(database) == before
