"""What is deleted between the moment in which it was read and the one in which it is written."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from flows.graphs.errors import NotFoundError
from flows.store import clients, schedules, workflows
from flows.store.database import Database
from flows.store.leases import LeaseClaim
from flows.store.models import Client, Execution, Schedule, Workflow
from flows.store.transitions import attempts, submissions
from flows.store.values import Value
from tests.servers import wait_until

Work = Callable[[Session], object]
WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.fixture
def idom(database: Database) -> Client:
    """A client with a mailbox."""

    def write(session: Session) -> Client:
        client = clients.create(session, slug="idom", name="Idom")
        put_mailbox(session)
        return client

    return database.run_sync(write)


@pytest.fixture
def schedule(database: Database, workflow: Workflow) -> Schedule:
    """A schedule of the workflow."""
    return database.run_sync(lambda s: schedules.add(s, workflow.id, cron="0 9 * * *"))


def put_mailbox(session: Session) -> object:
    """Give the client another password."""
    return clients.put_credential(
        session, "idom", kind="email", label="main", primary=True, public={}, secret=b"x"
    )


def interleaved(database: Database, work: Work, other: Work) -> list[object]:
    """Do the work, and the other one when the first is about to write; what each returned or raised.

    The other has its end before the first goes on, unless it has to wait for the first.
    """
    outcomes: list[object] = [None, None]

    def run(place: int, what: Work) -> None:
        try:
            outcomes[place] = database.run_sync(what)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            outcomes[place] = error

    thread = threading.Thread(target=run, args=(1, other))

    def is_over_or_waits() -> bool:
        return not thread.is_alive() or database.run_sync(lambda s: s.scalar(text(WAITS))) > 0

    def first(session: Session) -> object:
        def begin(*_: Any) -> None:
            thread.start()
            wait_until(is_over_or_waits, 30, "the other to end, or to wait")

        event.listen(session, "before_flush", begin, once=True)
        return work(session)

    run(0, first)
    thread.join()
    return outcomes


def test_a_schedule_for_a_workflow_that_goes(database: Database, workflow: Workflow) -> None:
    """There is no such workflow any more: not an error of the database's."""
    outcomes = interleaved(
        database,
        lambda s: schedules.add(s, workflow.id, cron="0 9 * * *"),
        lambda s: workflows.delete(s, workflow.id),
    )
    assert isinstance(outcomes[0], NotFoundError)
    assert str(outcomes[0]) == f"There is no workflow {workflow.id}."
    assert outcomes[1] is None


def test_a_run_from_elsewhere_of_a_client_that_goes(
    database: Database, workflow: Workflow, idom: Client
) -> None:
    """Its first start says that there is no such client any more."""
    flow_run_id = uuid.uuid4()

    def work(session: Session) -> object:
        lease = attempts.take(session, LeaseClaim(flow_run_id, None, workflow.id, uuid.uuid4(), 30))
        return attempts.begin(
            session,
            lease,
            flow_run_id=flow_run_id,
            public_id=None,
            workflow_id=workflow.id,
            client=clients.get(session, "idom"),
            initial={"a": Value(b"1")},
        )

    outcomes = interleaved(database, work, lambda s: clients.delete(s, "idom"))
    assert isinstance(outcomes[0], NotFoundError)
    assert "no such client any more" in str(outcomes[0])
    assert outcomes[1] is None


@pytest.mark.parametrize("name", ["rename", "credential", "schedule", "deployment", "workflow"])
def test_a_change_of_what_is_about_to_go(
    database: Database, workflow: Workflow, schedule: Schedule, idom: Client, name: str
) -> None:
    """The change is made, and the deletion takes its turn."""

    def delete_client(session: Session) -> None:
        clients.delete(session, "idom")

    def delete_workflow(session: Session) -> None:
        workflows.delete(session, workflow.id)

    change, delete = {
        "rename": (lambda s: clients.update(s, "idom", name="New"), delete_client),
        "credential": (put_mailbox, delete_client),
        "schedule": (lambda s: schedules.update(s, workflow.id, schedule.id, active=False), delete_workflow),
        "deployment": (lambda s: workflows.set_deployment(s, workflow.id, uuid.uuid4()), delete_workflow),
        "workflow": (lambda s: workflows.update(s, workflow.id, name="New"), delete_workflow),
    }[name]
    outcomes = interleaved(database, change, delete)
    assert not isinstance(outcomes[0], Exception), outcomes
    assert outcomes[1] is None
    gone = Client if delete is delete_client else Workflow
    assert database.run_sync(lambda s: s.scalars(select(gone)).all()) == []


@pytest.mark.parametrize("name", ["client", "credential", "schedule", "workflow"])
def test_of_two_that_delete_one_finds_nothing(
    database: Database, workflow: Workflow, schedule: Schedule, idom: Client, name: str
) -> None:
    """The second is told that there is no such thing."""
    deletes: dict[str, Work] = {
        "client": lambda s: clients.delete(s, "idom"),
        "credential": lambda s: clients.remove_credential(s, "idom", "email", "main"),
        "schedule": lambda s: schedules.delete(s, workflow.id, schedule.id),
        "workflow": lambda s: workflows.delete(s, workflow.id),
    }
    outcomes = interleaved(database, deletes[name], deletes[name])
    assert outcomes[0] is None
    assert isinstance(outcomes[1], NotFoundError), outcomes


def test_a_change_keeps_no_run_waiting(database: Database, workflow: Workflow, idom: Client) -> None:
    """Rows that refer to a workflow and a client are written while these are being changed."""

    def change(session: Session) -> int:
        workflows.locked(session, workflow.id).overlap = "skip"
        clients.update(session, "idom", active=False)
        return len(session.scalars(select(Execution.id)).all())

    outcomes = interleaved(
        database,
        change,
        lambda s: submissions.create(s, workflow_id=workflow.id, client=idom, priority="normal", initial={}),
    )
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], Execution)
