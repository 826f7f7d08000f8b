"""Idempotency keys: one run for a key, for a day."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from flows.graphs.errors import InvalidInputError
from flows.store import executions, idempotency, workflows
from flows.store.database import Database, now
from flows.store.models import Execution, IdempotencyKey, Workflow
from flows.store.transitions import submissions
from tests.store.racing import together

ONE, OTHER = "1" * 64, "2" * 64


def put(database: Database, key: str, execution: Execution, digest: str = ONE) -> bool:
    """Note a key."""
    return database.run_sync(lambda s: idempotency.put(s, key, digest, execution.id))


def find(database: Database, key: str) -> tuple[str, int] | None:
    """What a key stands for: digest and execution."""
    found = database.run_sync(lambda s: idempotency.find(s, key))
    return (found.digest, found.execution_id) if found else None


def age(database: Database, hours: float) -> None:
    """Let all keys be so old."""
    database.run_sync(
        lambda s: s.execute(update(IdempotencyKey).values(created_at=now() - timedelta(hours=hours)))
    )


def test_a_key_stands_for_its_first_run(database: Database, execution: Execution) -> None:
    """A second request with it, the same or another one, changes nothing; other keys are other keys."""
    assert find(database, "order 7") is None
    assert put(database, "order 7", execution)
    for digest in (ONE, OTHER):
        assert not put(database, "order 7", execution, digest)
    assert find(database, "order 7") == (ONE, execution.id)
    assert find(database, "Order 7") is None


def test_a_key_is_free_again_after_a_day(
    database: Database, workflow: Workflow, execution: Execution
) -> None:
    """By the database's clock; then it stands for another run, for another day."""
    put(database, "order 7", execution)
    age(database, 23.9)
    assert find(database, "order 7") == (ONE, execution.id)
    assert not put(database, "order 7", execution)
    age(database, 24.1)
    assert find(database, "order 7") is None
    new = database.run_sync(
        lambda s: submissions.create(s, workflow_id=workflow.id, client=None, priority="normal", initial={})
    )
    assert put(database, "order 7", new, OTHER)
    assert find(database, "order 7") == (OTHER, new.id)
    assert not put(database, "order 7", execution)


@pytest.mark.parametrize("old", [False, True])
def test_of_requests_at_once_one_makes_the_run(
    database: Database, workflow: Workflow, execution: Execution, old: bool
) -> None:
    """Each makes a row and asks for the key in one transaction; who does not get it leaves no row."""
    if old:
        put(database, "order 7", execution)
        age(database, 25)

    def request(session: Session) -> int | None:
        made = submissions.create(
            session, workflow_id=workflow.id, client=None, priority="normal", initial={}
        )
        if idempotency.put(session, "order 7", ONE, made.id):
            return made.id
        session.rollback()
        return None

    outcomes = together(*[partial(database.run_sync, request)] * 6)
    (winner,) = (one for one in outcomes if one is not None)
    assert find(database, "order 7") == (ONE, winner)
    assert database.run_sync(executions.list_)[1] == 2


def test_a_key_is_moved_once(database: Database, workflow: Workflow, execution: Execution) -> None:
    """Its run was never started, and two requests make another one: only one of them gets the key."""
    put(database, "order 7", execution)

    def request(session: Session) -> int | None:
        made = submissions.create(
            session, workflow_id=workflow.id, client=None, priority="normal", initial={}
        )
        if idempotency.move(session, "order 7", execution.id, made.id):
            return made.id
        session.rollback()
        return None

    outcomes = together(*[partial(database.run_sync, request)] * 2)
    (winner,) = (one for one in outcomes if one is not None)
    assert find(database, "order 7") == (ONE, winner)


def test_a_key_goes_with_its_run(database: Database, execution: Execution) -> None:
    """Its workflow is deleted: the key stands for nothing."""
    put(database, "order 7", execution)
    database.run_sync(lambda s: workflows.delete(s, execution.workflow_id))
    assert find(database, "order 7") is None


@pytest.mark.parametrize("key", ["", "  ", "x" * 256, "a\0b", "a\nb", "\ud800"])
def test_keys_are_plain(database: Database, execution: Execution, key: str) -> None:
    """What no column takes is the caller's mistake; it was never given out either."""
    with pytest.raises(InvalidInputError, match="Idempotency-Key"):
        put(database, key, execution)
    assert find(database, key) is None


@pytest.mark.parametrize("key", ["x" * 255, "é 😀 '\" \\ %s"])
def test_keys_may_be(database: Database, execution: Execution, key: str) -> None:
    """Long, and of any letters."""
    assert put(database, key, execution)
    assert find(database, key) == (ONE, execution.id)
