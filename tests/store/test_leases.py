"""Leases: one owner at a time, and nothing is written by whoever is not."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, LeaseHeldError, LeaseLostError
from flows.store import chain, clients, executions, leases, orphans, transitions, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.leases import Lease
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, submissions
from flows.store.values import Value
from tests.leasing import SECONDS, begin, lease_of
from tests.store.racing import together
from tests.store.rows import everything, expire, seconds_left, take

Write = Callable[[Session, Lease], object]

SUCCESS = Step(0, 1, "start", "start", "success", changes={"a": Value(b"1")})
WRITES: dict[str, Write] = {
    "hold": leases.hold,
    "the current node": lambda s, lease: transitions.set_progress(s, lease, current_node="mail"),
    "the sandbox": lambda s, lease: transitions.set_progress(s, lease, sandbox_id="late"),
    "no progress": lambda s, lease: transitions.set_progress(s, lease),
    "a guarded step": lambda s, lease: transitions.mark_unrepeatable(s, lease, 0),
    "a step that succeeded": lambda s, lease: chain.append(s, lease, SUCCESS, "mail"),
    "a step that failed": lambda s, lease: chain.append(
        s, lease, Step(0, 1, "start", "start", "failed", error_message="boom")
    ),
    "a pause": lambda s, lease: transitions.schedule_retry(
        s, lease, error="x", error_kind="infrastructure", at_node=None, seconds=60
    ),
    "success": lambda s, lease: transitions.finish(s, lease.execution_id, status="completed", lease=lease),
    "failure": lambda s, lease: transitions.finish(
        s, lease.execution_id, status="failed", error="late", error_kind="node", lease=lease
    ),
}
"""Every way in which a flow writes what becomes of its run."""


def read(database: Database, execution: Execution) -> Execution:
    """The row as it is now."""
    return database.run_sync(lambda s: executions.get(s, execution.id))


def pending(database: Database, workflow: Workflow) -> Execution:
    """The row that the API makes before it asks Prefect."""
    return database.run_sync(
        lambda s: submissions.create(s, workflow_id=workflow.id, client=None, priority="normal", initial={})
    )


def take_new(
    database: Database, workflow_id: int, public_id: uuid.UUID | None, flow_run_id: uuid.UUID | None = None
) -> Lease | None:
    """Take the lease of a flow run that nobody has heard of, unless one is given."""
    return database.run_sync(
        lambda s: leases.take(
            s,
            flow_run_id=flow_run_id or uuid.uuid4(),
            public_id=public_id,
            workflow_id=workflow_id,
            owner=uuid.uuid4(),
            seconds=SECONDS,
        )
    )


# -- taking ------------------------------------------------------------------------------------------


def test_a_run_of_the_apis_is_leased_before_it_begins(database: Database, workflow: Workflow) -> None:
    """The worker's lease is in the row, with the flow run's id, while the run is still pending."""
    made, flow_run_id = pending(database, workflow), uuid.uuid4()
    lease = take_new(database, workflow.id, made.public_id, flow_run_id)
    assert lease is not None
    row = read(database, made)
    assert (lease.execution_id, lease.owner) == (row.id, row.lease_owner)
    assert (row.status, row.attempt, row.flow_run_id) == ("pending", 0, flow_run_id)
    assert SECONDS - 10 < seconds_left(database, made) <= SECONDS


def test_a_run_from_elsewhere_gets_its_row_with_the_lease(database: Database, workflow: Workflow) -> None:
    """Client and context are not known yet: beginning fills them in, at the first attempt only."""
    client = database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom"))
    flow_run_id = uuid.uuid4()
    lease = take_new(database, workflow.id, None, flow_run_id)
    assert lease is not None
    row = database.run_sync(lambda s: executions.get(s, lease.execution_id))
    assert (row.flow_run_id, row.status, row.attempt) == (flow_run_id, "pending", 0)
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


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_run_that_ended_badly_is_leased_where_a_person_retried_it(
    database: Database, execution: Execution, status: str
) -> None:
    """It is open again with the lease, so that who dies then has not lost the retry; no one else opens it."""
    database.run_sync(lambda s: transitions.finish(s, execution.id, status=status))
    assert take(database, execution) is None
    assert read(database, execution).status == status
    assert take(database, execution, reopens=True) is not None
    assert read(database, execution).status == "running"


def test_a_run_that_is_over_is_not_opened_while_its_worker_has_it(
    database: Database, execution: Execution
) -> None:
    """Prefect has not heard of its end yet: until it has, the lease is kept, and the row closed."""
    lease = lease_of(execution)
    database.run_sync(
        lambda s: transitions.finish(s, execution.id, status="failed", lease=lease, keep_lease=True)
    )
    with pytest.raises(LeaseHeldError):
        take(database, execution, reopens=True)
    assert read(database, execution).status == "failed"
    assert database.run_sync(lambda s: attempts.release(s, lease))
    assert take(database, execution, reopens=True) is not None


@pytest.mark.parametrize("keep_lease", [True, False])
def test_a_last_word_may_be_repeated(database: Database, execution: Execution, keep_lease: bool) -> None:
    """The commit stood and its answer was lost: said again under the same lease it changes nothing."""
    lease = lease_of(execution)

    def schedule_retry(session: Session) -> Any:
        options: dict[str, Any] = {"error_kind": "infrastructure", "at_node": "a", "keep_lease": keep_lease}
        return transitions.schedule_retry(session, lease, error="x", seconds=60, **options)

    due = database.run_sync(schedule_retry)
    if keep_lease:
        assert database.run_sync(schedule_retry) == due
        assert read(database, execution).retries == 1
    else:
        with pytest.raises(LeaseLostError):
            database.run_sync(schedule_retry)


def test_a_kept_lease_that_was_lost_says_nothing_more(database: Database, execution: Execution) -> None:
    """Somebody looks after the run by now: it is theirs to tell Prefect how it ended."""
    lease = lease_of(execution)

    def finish(session: Session) -> bool:
        return transitions.finish(session, execution.id, status="failed", lease=lease, keep_lease=True)

    assert database.run_sync(finish)
    assert not database.run_sync(finish)
    expire(database, execution)
    assert database.run_sync(lambda s: orphans.seize_expired(s, ())) is not None
    with pytest.raises(LeaseLostError):
        database.run_sync(finish)


def test_there_is_nothing_to_lease(database: Database, workflow: Workflow, execution: Execution) -> None:
    """Completed, never started, unknown, of another workflow or flow run: None, and nothing changes."""
    rejected = pending(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, rejected.id, "x"))
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=workflow.current.graph))
    waiting = pending(database, workflow)
    done = database.run_sync(lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))
    database.run_sync(lambda s: transitions.finish(s, done.id, status="completed"))
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
    made, flow_run_id = pending(database, workflow), uuid.uuid4()
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
@pytest.mark.parametrize("status", ["cancelled", "failed", "completed"])
def test_nothing_is_written_to_a_run_that_was_closed_from_outside(
    database: Database, execution: Execution, name: str, status: str
) -> None:
    """Cancelled in the UI, say: the row stays as it was closed."""
    slow = lease_of(execution)
    assert database.run_sync(lambda s: transitions.finish(s, execution.id, status=status))
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
    """A write comes through, and unless it ends the attempt, the lease lasts anew."""
    expire(database, execution)
    before = everything(database)
    database.run_sync(lambda s: WRITES[name](s, lease_of(execution)))
    assert everything(database) != before
    if read(database, execution).lease_owner is not None:
        assert seconds_left(database, execution) > SECONDS - 10
    else:
        assert name in ("a pause", "success", "failure")


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

    def finish() -> bool:
        return database.run_sync(
            lambda s: transitions.finish(s, execution.id, status="completed", lease=lease)
        )

    finished, taken = together(finish, partial(take, database, execution))
    if finished is True:
        assert taken is None
        assert read(database, execution).status == "completed"
    else:
        assert isinstance(finished, LeaseLostError)
        assert isinstance(taken, Lease)
        assert read(database, execution).status == "running"


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
    database.run_sync(lambda s: transitions.finish(s, closed.id, status="cancelled"))

    renewed = database.run_sync(lambda s: leases.renew(s, [*owners, uuid.uuid4()], 300.0))
    assert renewed == {lease_of(kept).owner, lease_of(run_out).owner}
    for run in (kept, run_out):
        assert 290 < seconds_left(database, run) <= 300
    assert seconds_left(database, foreign) < 0
    assert database.run_sync(lambda s: leases.renew(s, [], 300.0)) == set()


def test_closing_takes_the_lease_away(database: Database, execution: Execution) -> None:
    """Whoever closes a run: nobody runs it any more."""
    database.run_sync(lambda s: transitions.finish(s, execution.id, status="cancelled"))
    row = read(database, execution)
    assert (row.lease_owner, row.lease_until) == (None, None)


def test_a_run_that_cannot_begin_is_closed_under_its_lease(database: Database, workflow: Workflow) -> None:
    """Its client is gone, say: it becomes failed, when it is retried once more, and is free again."""
    made = pending(database, workflow)
    lease = take_new(database, workflow.id, made.public_id)
    assert lease is not None

    def close(lease: Lease) -> bool:
        return database.run_sync(lambda s: transitions.finish(s, made.id, status="failed", lease=lease))

    assert close(lease)
    retried = take(database, read(database, made), reopens=True)
    assert retried is not None
    assert close(retried)
    assert (read(database, made).status, read(database, made).lease_owner) == ("failed", None)


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
            assert self._execution.flow_run_id is not None
            taken = leases.take(
                session,
                flow_run_id=self._execution.flow_run_id,
                public_id=self._execution.public_id,
                workflow_id=self._execution.workflow_id,
                owner=uuid.uuid4(),
                seconds=SECONDS,
            )
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
            transitions.finish(session, self._execution.id, status="failed", lease=lease)
            transitions.reopen(session, self._execution.id)
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
        step = Step(place, 1, str(lease.owner), "action", "failed", stdout=what)
        chain.add(session, self._execution.id, step)


@pytest.mark.parametrize("seed", range(3))
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
