"""Each transition, tried on rows of every status: it leads where the list says, and leaves others alone."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import NovaError
from flows.graphs.lifecycle import Closure, ErrorKind, Status
from flows.graphs.row_states import TRANSITIONS
from flows.store.database import Database
from flows.store.leases import Lease, LeaseClaim
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions, recoveries, submissions
from tests.leasing import SECONDS, begin
from tests.store.rows import change, create, end, expire, read, snapshot

BROKE = Closure(Status.FAILED, "It broke.", ErrorKind.CRASHED)
DELETED = Closure(Status.CANCELLED, "It was deleted.", ErrorKind.CANCELLED)
E2B = ("E2B does not answer.", ErrorKind.INFRASTRUCTURE, None, 60.0)


class Scene:
    """A run in one of the states that there are, and what is known of it."""

    def __init__(self, database: Database, row: Execution) -> None:
        assert row.flow_run_id is not None
        self.row = row
        self.seen = snapshot(database, row)
        self.lease = Lease(row.id, row.lease_owner or uuid.uuid4(), SECONDS)
        self.claim = LeaseClaim(row.flow_run_id, row.public_id, row.workflow_id, self.lease.owner, SECONDS)

    def begin(self, session: Session) -> None:
        """Begin the next attempt."""
        attempts.begin(
            session,
            self.lease,
            flow_run_id=self.claim.flow_run_id,
            public_id=self.claim.public_id,
            workflow_id=self.claim.workflow_id,
            client=None,
            initial={},
        )

    def undo_reopen(self, session: Session, closure: Closure) -> None:
        """Undo a retry of it, of which the lease is there: it was closed like this."""
        before: dict[str, Any] = {
            "status": closure.status,
            "error": closure.error,
            "error_kind": closure.kind,
        }
        before |= {"completed_at": self.row.created_at, "next_attempt_at": None}
        interventions.undo_reopen(session, interventions.Reopened(self.lease, before))


Act = Callable[[Session, Scene], object]
Row = dict[str, Any]
ACTS: dict[str, list[Act]] = {
    "refuse": [lambda s, of: submissions.refuse(s, of.row.id, "Prefect does not answer.")],
    "take": [lambda s, of: attempts.take(s, of.claim)],
    "take_retried": [lambda s, of: attempts.take_retried(s, of.claim, uuid.uuid4(), of.seen)],
    "begin": [lambda s, of: of.begin(s)],
    "complete": [lambda s, of: attempts.complete(s, of.lease)],
    "fail": [lambda s, of: attempts.fail(s, of.lease, "boom", ErrorKind.NODE, None)],
    "schedule_retry": [lambda s, of: attempts.schedule_retry(s, of.lease, *E2B)],
    "wait_for_provider": [lambda s, of: attempts.wait_for_provider(s, of.lease, *E2B)],
    "revoke": [lambda s, of: interventions.revoke(s, of.seen)],
    "cancel": [lambda s, of: attempts.cancel(s, of.lease, "Stopped.")],
    "cancel_stopped": [lambda s, of: interventions.cancel_stopped(s, of.row.id, "Stopped.")],
    "close_as_seen": [
        lambda s, of: interventions.close_as_seen(s, of.seen, BROKE),
        lambda s, of: interventions.close_as_seen(s, of.seen, DELETED),
    ],
    "recover": [lambda s, of: recoveries.recover(s, of.row.id, None, SECONDS)],
    "close_recovered": [
        lambda s, of: recoveries.close_recovered(s, of.lease, BROKE),
        lambda s, of: recoveries.close_recovered(s, of.lease, DELETED),
    ],
    "requeue": [lambda s, of: recoveries.requeue(s, of.lease, {"lost_starts": 1}, "It died.")],
    "resubmit": [lambda s, of: recoveries.resubmit(s, of.lease)],
    "reopen": [lambda s, of: interventions.reopen(s, of.row.id, uuid.uuid4())],
    "reopen_recovered": [lambda s, of: interventions.reopen_recovered(s, of.lease, uuid.uuid4())],
    "undo_reopen": [lambda s, of: of.undo_reopen(s, BROKE), lambda s, of: of.undo_reopen(s, DELETED)],
}
"""Each transition of a row that there is, as its callers make it."""
MAKE = ("create", "adopt")
"""Those that make a row: tests/store/test_submissions.py has them."""


def make_rows(database: Database, workflow: Workflow) -> None:
    """A run in each state: of every status, begun or not, free, held, expired, revoked, reopened."""

    def pending() -> Execution:
        row = create(database, workflow)
        change(database, row, flow_run_id=uuid.uuid4())
        return read(database, row)

    def take(row: Execution) -> Execution:
        assert row.flow_run_id is not None
        claim = LeaseClaim(row.flow_run_id, row.public_id, workflow.id, uuid.uuid4(), SECONDS)
        assert database.run_sync(lambda s: attempts.take(s, claim)) is not None
        return row

    def running() -> Execution:
        return database.run_sync(partial(begin, flow_run_id=uuid.uuid4(), workflow_id=workflow.id))

    def free(row: Execution) -> Execution:
        change(database, row, lease_owner=None, lease_until=None)
        return row

    submitted = create(database, workflow)
    refused = create(database, workflow)
    database.run_sync(lambda s: submissions.refuse(s, refused.id, "x"))
    change(database, refused, flow_run_id=uuid.uuid4())
    change(database, submitted, flow_run_id=uuid.uuid4(), task_id=None)
    for row in (pending(), take(pending()), free(running()), running()):
        assert read(database, row).status in (Status.PENDING, Status.RUNNING)
    for made in (take(pending()), running()):
        expire(database, made)
    for made in (take(pending()), running(), free(running())):
        change(database, made, revoked=True)
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        end(database, running(), status)
        kept = running()
        end(database, kept, status)
        change(database, kept, lease_owner=uuid.uuid4(), lease_until=kept.created_at)
    for status in (Status.FAILED, Status.CANCELLED):
        end(database, take(pending()), status)
        looked_after = take(pending())
        end(database, looked_after, status)
        change(database, looked_after, lease_owner=uuid.uuid4(), lease_until=looked_after.created_at)
    for made in (running(), take(pending())):
        end(database, made, Status.FAILED)
        database.run_sync(partial(interventions.reopen, execution_id=made.id, reopened_from=uuid.uuid4()))


def test_each_transition_leads_where_the_list_says(database: Database, workflow: Workflow) -> None:
    """From each of its origins, to each of its targets, and from and to nothing else."""
    make_rows(database, workflow)
    rows = database.run_sync(lambda s: list(s.scalars(select(Execution).order_by(Execution.id))))
    scenes = [Scene(database, row) for row in rows]
    for transition in TRANSITIONS:
        origins: set[str] = set()
        targets: set[str] = set()
        for act, scene in product(ACTS.get(transition.name, ()), scenes):
            before, after = database.run_sync(partial(_try, act=act, scene=scene))
            if _has_changed(before, after, of_leases=transition.name in ("take", "recover")):
                origins.add(before["status"])
                targets.add(after["status"])
        if transition.name not in MAKE:
            assert (origins, targets) == (set(transition.origins), set(transition.targets)), transition.name


def _try(session: Session, act: Act, scene: Scene) -> tuple[Row, Row]:
    """Make a transition, and take it back: the row before and after."""

    def look() -> Row:
        query = text("SELECT to_jsonb(e) FROM executions e WHERE id = :id")
        return session.execute(query, {"id": scene.row.id}).scalar_one()  # type: ignore[no-any-return]

    before = look()
    try:
        act(session, scene)
        session.flush()
        return before, look()
    except (NovaError, IntegrityError):  # refused, by NOVA or by the rules that PostgreSQL knows
        return before, before
    finally:
        session.rollback()


def _has_changed(before: Row, after: Row, *, of_leases: bool) -> bool:
    """Whether more than a lease's time has changed, or its owner where that is not what it is about."""
    lease = {"lease_until"} if of_leases else {"lease_owner", "lease_until"}
    return any(before[name] != after[name] for name in before if name not in lease)


def test_every_transition_is_tried() -> None:
    """One that is new has to say here how it is made."""
    assert sorted([*ACTS, *MAKE]) == sorted(each.name for each in TRANSITIONS)
