"""Leases: one owner at a time, and nothing is written by whoever is not."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, LeaseHeldError, LeaseLostError
from flows.graphs.lifecycle import Closure, ErrorKind, Status, StepStatus
from flows.store import chain, clients, executions, leases, orphans, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions, submissions
from flows.store.values import Value
from tests.leasing import SECONDS, begin, lease_of
from tests.store.racing import together
from tests.store.rows import (
    claim_of,
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

Write = Callable[[Session, Lease], object]

SUCCESS = Step(0, 1, "start", "start", StepStatus.SUCCESS, changes={"a": Value(b"1")})
FAILURE = Step(0, 1, "start", "start", StepStatus.FAILED, error_message="boom")
ENDS: dict[str, Write] = {
    "a retry": lambda s, lease: attempts.schedule_retry(s, lease, "x", ErrorKind.INFRASTRUCTURE, None, 60),
    "a wait for E2B": lambda s, lease: attempts.wait_for_provider(
        s, lease, "x", ErrorKind.INFRASTRUCTURE, None, 60
    ),
    "success": attempts.complete,
    "failure": lambda s, lease: attempts.fail(s, lease, "late", ErrorKind.NODE, None),
    "cancellation": lambda s, lease: attempts.cancel(s, lease, "late"),
}
"""Every way in which a flow ends an attempt."""
WRITES: dict[str, Write] = {
    "hold": leases.hold,
    "the current node": lambda s, lease: attempts.step_done(s, lease, succeeded=True, next_node="mail"),
    "no progress": lambda s, lease: attempts.step_done(s, lease, succeeded=False, next_node=None),
    "the sandbox": lambda s, lease: attempts.note_sandbox(s, lease, "late"),
    "an unrepeatable step": lambda s, lease: attempts.mark_unrepeatable(s, lease, 0),
    "a step that succeeded": lambda s, lease: chain.append(s, lease, SUCCESS, "mail"),
    "a step that failed": lambda s, lease: chain.append(s, lease, FAILURE),
    **ENDS,
}
"""Every way in which a flow writes what becomes of its run."""


KINDS = {Status.FAILED: ErrorKind.CRASHED, Status.CANCELLED: ErrorKind.CANCELLED}


def take_new(
    database: Database, workflow_id: int, public_id: uuid.UUID | None, flow_run_id: uuid.UUID | None = None
) -> Lease | None:
    """Take the lease of a flow run that nobody has heard of, unless one is given."""
    return database.run_sync(
        lambda s: attempts.take(
            s, LeaseClaim(flow_run_id or uuid.uuid4(), public_id, workflow_id, uuid.uuid4(), SECONDS)
        )
    )


# -- taking ------------------------------------------------------------------------------------------


def test_a_run_of_the_apis_is_leased_before_it_begins(database: Database, workflow: Workflow) -> None:
    """The worker's lease is in the row, with the flow run's id, while the run is still pending."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    lease = take_new(database, workflow.id, made.public_id, flow_run_id)
    assert lease is not None
    row = read(database, made)
    assert (lease.execution_id, lease.owner) == (row.id, row.lease_owner)
    assert (row.status, row.attempt, row.flow_run_id) == (Status.PENDING, 0, flow_run_id)
    assert SECONDS - 10 < seconds_left(database, made) <= SECONDS


def test_a_run_from_elsewhere_gets_its_row_with_the_lease(database: Database, workflow: Workflow) -> None:
    """Client and context are not known yet: beginning fills them in, at the first attempt only."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))
    flow_run_id = uuid.uuid4()
    lease = take_new(database, workflow.id, None, flow_run_id)
    assert lease is not None
    row = database.run_sync(lambda s: executions.get(s, lease.execution_id))
    assert (row.flow_run_id, row.status, row.attempt) == (flow_run_id, Status.PENDING, 0)
    assert (row.client_slug, row.initial) == (None, {})

    start = partial(
        attempts.begin, lease=lease, flow_run_id=flow_run_id, public_id=None, workflow_id=workflow.id
    )
    first = database.run_sync(partial(start, client=client, initial={"a": Value(b"1")}, priority="high"))
    again = database.run_sync(partial(start, client=None, initial={"b": Value(b"2")}, priority="low"))
    for begun in (first, again):
        assert (begun.client_slug, begun.client_id, begun.priority) == ("idom", client.id, "high")
        assert begun.initial == {"a": Value(b"1").digest}
    assert (again.id, again.attempt) == (lease.execution_id, 2)


def test_the_same_owner_renews(database: Database, execution: Execution) -> None:
    """The worker took it, the flow in it takes it again: the lease is the same, and lasts anew."""
    lease = lease_of(execution)
    expire(database, execution)
    assert take(database, execution, lease.owner) == lease
    assert seconds_left(database, execution) > SECONDS - 10


def test_a_lease_that_lasts_keeps_others_out(database: Database, execution: Execution) -> None:
    """Held while it lasts, free when it ran out or was given back."""
    before = everything(database)
    with pytest.raises(LeaseHeldError):
        take(database, execution)
    assert everything(database) == before

    expire(database, execution)
    second = take(database, execution)
    assert second is not None
    assert database.run_sync(lambda s: attempts.release(s, second))
    assert not database.run_sync(lambda s: attempts.release(s, second))
    assert (read(database, execution).lease_owner, read(database, execution).lease_until) == (None, None)
    assert take(database, execution) is not None


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_run_that_ended_badly_is_leased_where_a_person_retried_it(
    database: Database, execution: Execution, status: Status
) -> None:
    """It is open again with the lease, so that who dies then has not lost the retry; no one else opens it."""
    end(database, execution, status)
    assert take(database, execution) is None
    assert read(database, execution).status is status
    assert take_retried(database, execution) is not None
    assert read(database, execution).status is Status.RUNNING


@pytest.mark.parametrize("status", [Status.FAILED, Status.COMPLETED])
def test_a_run_that_is_over_is_not_opened_while_its_worker_has_it(
    database: Database, execution: Execution, status: Status
) -> None:
    """Prefect has not heard of its end yet: until it has, others wait, and the row stays closed."""
    lease = lease_of(execution)
    close = ENDS["success" if status is Status.COMPLETED else "failure"]
    database.run_sync(lambda s: close(s, lease))
    with pytest.raises(LeaseHeldError):
        take(database, execution)
    assert take_retried(database, execution) is None
    assert read(database, execution).status is status
    assert database.run_sync(lambda s: attempts.release(s, lease))
    assert take(database, execution) is None
    assert (take_retried(database, execution) is not None) == (status is Status.FAILED)


def test_who_is_being_cancelled_is_not_taken(database: Database, execution: Execution) -> None:
    """While its process has it others wait; when that is gone, or dead, there is nothing to run."""
    seen = snapshot(database, execution)
    assert database.run_sync(lambda s: interventions.revoke(s, seen))
    with pytest.raises(LeaseHeldError):
        take(database, execution)
    expire(database, execution)
    assert take(database, execution) is None
    assert database.run_sync(lambda s: attempts.release(s, lease_of(execution)))
    assert take(database, execution) is None


@pytest.mark.parametrize("name", ["success", "failure", "cancellation"])
def test_a_kept_lease_that_was_lost_says_nothing_more(
    database: Database, execution: Execution, name: str
) -> None:
    """Somebody looks after the run by now: it is theirs to tell Prefect how it ended."""
    lease = lease_of(execution)
    for _ in range(2):
        database.run_sync(lambda s: ENDS[name](s, lease))
    expire(database, execution)
    assert database.run_sync(lambda s: orphans.take_expired(s, ())) is not None
    with pytest.raises(LeaseLostError):
        database.run_sync(lambda s: ENDS[name](s, lease))


def test_there_is_nothing_to_lease(database: Database, workflow: Workflow, execution: Execution) -> None:
    """Completed, never started, unknown, of another workflow or flow run: None, and nothing changes."""
    rejected = create(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, rejected.id, "x"))
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=workflow.current.graph))
    waiting = create(database, workflow)
    done = database.run_sync(lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    end(database, done, Status.COMPLETED)
    before = everything(database)
    assert take(database, done) is None
    assert take_new(database, workflow.id, rejected.public_id) is None
    assert take_new(database, workflow.id, uuid.uuid4()) is None
    assert take_new(database, other.id, waiting.public_id) is None
    assert take_new(database, workflow.id, execution.public_id) is None
    for unknown in (0, 10**30):
        assert take_new(database, unknown, None) is None
    assert everything(database) == before


def test_a_copied_run_is_told_whose_the_execution_is(database: Database, execution: Execution) -> None:
    """Without a lease, beginning says why there was none."""
    with pytest.raises(ConflictError, match="belongs to flow run"):
        database.run_sync(
            lambda s: begin(
                s,
                flow_run_id=uuid.uuid4(),
                workflow_id=execution.workflow_id,
                public_id=execution.public_id,
            )
        )


@pytest.mark.parametrize("round_", range(5))
def test_of_two_that_take_at_once_one_wins(database: Database, workflow: Workflow, round_: int) -> None:
    """A pending run, a run that has no row yet, and one whose lease ran out."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    old = database.run_sync(lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    expire(database, old)
    for work in (
        partial(take_new, database, workflow.id, made.public_id, flow_run_id),
        partial(take_new, database, workflow.id, None, uuid.uuid4()),
        partial(take, database, old),
    ):
        outcomes = together(work, work, work)
        assert sorted(type(one).__name__ for one in outcomes) == ["Lease", *["LeaseHeldError"] * 2]
        (lease,) = (one for one in outcomes if isinstance(one, Lease))
        row = database.run_sync(partial(executions.get, execution_id=lease.execution_id))
        assert row.lease_owner == lease.owner


# -- fencing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_who_was_only_slow_writes_nothing(database: Database, execution: Execution, name: str) -> None:
    """Its lease ran out and another process has the run: every write is refused and leaves no trace."""
    slow = lease_of(execution)
    expire(database, execution)
    assert take(database, execution) is not None
    before = everything(database)
    with pytest.raises(LeaseLostError, match="taken over"):
        database.run_sync(lambda s: WRITES[name](s, slow))
    assert everything(database) == before


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED, Status.COMPLETED])
def test_nothing_is_written_to_a_run_that_is_over_and_not_ours(
    database: Database, execution: Execution, name: str, status: Status
) -> None:
    """Cancelled in the UI, say: the row stays as it was closed."""
    slow = lease_of(execution)
    if status is Status.COMPLETED:
        end(database, execution, status)
    else:
        seen, closure = snapshot(database, execution), Closure(status, "x", KINDS[status])
        assert database.run_sync(lambda s: interventions.close_as_seen(s, seen, closure))
    before = everything(database)
    with pytest.raises(LeaseLostError, match=status):
        database.run_sync(lambda s: WRITES[name](s, slow))
    assert everything(database) == before


@pytest.mark.parametrize("name", WRITES)
def test_a_deleted_run_is_said_to_be(database: Database, execution: Execution, name: str) -> None:
    """Its workflow was deleted while it ran."""
    database.run_sync(lambda s: workflows.delete(s, execution.workflow_id))
    with pytest.raises(LeaseLostError, match="deleted"):
        database.run_sync(lambda s: WRITES[name](s, lease_of(execution)))


@pytest.mark.parametrize("name", WRITES)
def test_a_lease_that_ran_out_is_still_ours_until_taken(
    database: Database, execution: Execution, name: str
) -> None:
    """A write comes through, and the lease lasts anew: at an attempt's end until Prefect has heard."""
    expire(database, execution)
    before = everything(database)
    database.run_sync(lambda s: WRITES[name](s, lease_of(execution)))
    assert everything(database) != before
    assert seconds_left(database, execution) > SECONDS - 10


def test_who_was_only_slow_does_not_begin(database: Database, execution: Execution) -> None:
    """Nor does whoever holds no lease at all."""
    slow = lease_of(execution)
    expire(database, execution)
    take(database, execution)
    before = everything(database)
    assert execution.flow_run_id is not None
    for lease in (slow, None):
        with pytest.raises(LeaseLostError):
            database.run_sync(
                partial(
                    attempts.begin,
                    lease=lease,
                    flow_run_id=execution.flow_run_id,
                    public_id=execution.public_id,
                    workflow_id=execution.workflow_id,
                    client=None,
                    initial={},
                )
            )
    assert everything(database) == before


def test_a_write_and_a_takeover_take_turns(database: Database, execution: Execution) -> None:
    """Who holds the row finishes; who waited for it then finds the lease renewed, or the run closed."""
    lease = lease_of(execution)
    expire(database, execution)

    def complete() -> bool:
        database.run_sync(lambda s: attempts.complete(s, lease))
        return True

    completed, taken = together(complete, partial(take, database, execution))
    if completed is True:
        assert isinstance(taken, LeaseHeldError)
        assert read(database, execution).status is Status.COMPLETED
    else:
        assert isinstance(completed, LeaseLostError)
        assert isinstance(taken, Lease)
        assert read(database, execution).status is Status.RUNNING


# -- renewing ----------------------------------------------------------------------------------------


def test_only_what_is_ours_is_renewed(database: Database, workflow: Workflow) -> None:
    """One statement for all of a process's leases; it says which are lost: taken over, closed, deleted."""
    runs = [
        database.run_sync(lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
        for _ in range(5)
    ]
    kept, run_out, taken, closed, foreign = runs
    owners = [lease_of(run).owner for run in (kept, run_out, taken, closed)]
    for run in (run_out, taken, foreign):
        expire(database, run)
    take(database, taken)
    end(database, closed, Status.CANCELLED)

    renewed = database.run_sync(lambda s: leases.renew(s, [*owners, uuid.uuid4()], 300.0))
    assert renewed == {lease_of(kept).owner, lease_of(run_out).owner}
    for run in (kept, run_out):
        assert 290 < seconds_left(database, run) <= 300
    assert seconds_left(database, foreign) < 0
    assert database.run_sync(lambda s: leases.renew(s, [], 300.0)) == set()


def test_closing_from_outside_takes_the_lease_away(database: Database, execution: Execution) -> None:
    """Prefect says that the run is over: nobody runs it any more."""
    seen, closure = snapshot(database, execution), Closure(Status.FAILED, "x", ErrorKind.CRASHED)
    assert database.run_sync(lambda s: interventions.close_as_seen(s, seen, closure))
    row = read(database, execution)
    assert (row.lease_owner, row.lease_until) == (None, None)


def test_a_run_that_cannot_begin_is_closed_under_its_lease(database: Database, workflow: Workflow) -> None:
    """Its client is gone, say: it becomes failed, when it is retried once more, and is free again."""
    made = create(database, workflow)
    assert take_new(database, workflow.id, made.public_id) is not None
    end(database, made, Status.FAILED)
    assert take_retried(database, read(database, made)) is not None
    assert read(database, made).status is Status.PENDING
    end(database, made, Status.FAILED)
    assert (read(database, made).status, read(database, made).lease_owner) == (Status.FAILED, None)


# -- all of it at once -------------------------------------------------------------------------------


class Ledger:
    """The chain of one run as the record of who took it, wrote it and gave it back, in that very order.

    Each record is written in the transaction that it is about, while that has the run's row locked.
    """

    def __init__(self, database: Database, execution: Execution) -> None:
        self._database = database
        self._execution = execution
        self.refused = 0

    def take(self, lease: Lease) -> Lease | None:
        """Take the run for a new owner."""

        def work(session: Session) -> Lease | None:
            taken = attempts.take(session, claim_of(self._execution))
            assert taken is not None
            self._note(session, taken, "take")
            return taken

        return self._database.run_sync(work)

    def write(self, lease: Lease) -> None:
        """Write something, as a flow does."""

        def work(session: Session) -> None:
            leases.hold(session, lease)
            self._note(session, lease, "write")

        self._database.run_sync(work)

    def release(self, lease: Lease) -> None:
        """Release the lease, if it is still ours."""

        def work(session: Session) -> None:
            if attempts.release(session, lease):
                self._note(session, lease, "end")

        self._database.run_sync(work)

    def close(self, lease: Lease) -> None:
        """End the run; a person opens it again at once."""

        def work(session: Session) -> None:
            attempts.fail(session, lease, "boom", ErrorKind.NODE, None)
            attempts.release(session, lease)
            reopened = interventions.reopen(session, self._execution.id, None)
            attempts.release(session, reopened.lease)
            self._note(session, lease, "end")

        self._database.run_sync(work)

    def lapse(self, lease: Lease) -> None:
        """Renew once more, then let whatever lease there is run out."""
        self._database.run_sync(lambda s: leases.renew(s, [lease.owner], SECONDS))
        expire(self._database, self._execution)

    def live(self, seed: str) -> None:
        """Do one thing after the other, with the newest lease that one has had or with any older one."""
        chance = random.Random(seed)
        actions = [*[self.take] * 3, *[self.write] * 6, *[self.lapse] * 2, self.release, self.close]
        mine = [lease_of(self._execution)]
        for _ in range(80):
            lease = mine[-1] if chance.random() < 0.7 else chance.choice(mine)
            try:
                taken = chance.choice(actions)(lease)
            except LeaseHeldError:
                continue
            except LeaseLostError:
                self.refused += 1
                continue
            if taken is not None:
                mine.append(taken)

    def records(self) -> list[tuple[str, str]]:
        """Each record: what was done, and by whom."""
        rows = self._database.run_sync(lambda s: chain.entries(s, self._execution.id, 0, 1000))
        return [(row.stdout, row.node_id) for row in rows]

    def _note(self, session: Session, lease: Lease, what: str) -> None:
        place = chain.count(session, self._execution.id)
        step = Step(place, 1, str(lease.owner), "action", StepStatus.FAILED, stdout=what)
        chain.add(session, self._execution.id, step)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_there_are_never_two_owners(database: Database, execution: Execution, seed: int) -> None:
    """Six threads do whatever one can do with leases, old ones too: each write is its current owner's."""
    ledger = Ledger(database, execution)
    outcomes = together(*(partial(ledger.live, f"{seed}-{number}") for number in range(6)))
    assert outcomes == [None] * 6

    owner: str | None = str(lease_of(execution).owner)
    for place, (what, by) in enumerate(ledger.records()):
        assert what == "take" or by == owner, f"record {place}: {what} by {by}, but the owner is {owner}"
        owner = None if what == "end" else by
    counts = Counter(what for what, _ in ledger.records())
    assert min(counts["take"], counts["write"], ledger.refused) >= 10, (counts, ledger.refused)
