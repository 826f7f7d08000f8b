"""The table of the lifecycle and the statements that follow it agree: PostgreSQL does what the table says."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, LeaseHeldError
from flows.graphs.flow_run_state import PrefectState
from flows.graphs.lifecycle import Action, Asker, RunSnapshot, decide
from flows.store import orphans
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, interventions
from tests import leasing
from tests.graphs.situations import flow_run
from tests.store.rows import claim_of, snapshot
from tests.store.test_transitions import make_rows

REQUEST = uuid.uuid4()
QUEUED, OVER = flow_run(PrefectState.SCHEDULED), flow_run(PrefectState.FAILED)


@pytest.fixture
def runs(database: Database, workflow: Workflow) -> list[tuple[Execution, RunSnapshot]]:
    """A run in each state that there is, as it is and as decisions see it."""
    make_rows(database, workflow)
    rows = database.run_sync(lambda s: list(s.scalars(select(Execution).order_by(Execution.id))))
    return [(row, snapshot(database, row)) for row in rows]


def tried(database: Database, work: Callable[[Session], Any]) -> Any:
    """What comes of a transition, or the error that it raises; nothing of it stays."""

    def attempt(session: Session) -> Any:
        try:
            return work(session)
        except (LeaseHeldError, ConflictError) as error:
            return error
        finally:
            session.rollback()

    return database.run_sync(attempt)


def test_a_worker_gets_the_lease_where_the_table_says_take(
    database: Database, runs: list[tuple[Execution, RunSnapshot]]
) -> None:
    """It is told to wait where it is to wait, and gets nothing where there is nothing to run."""
    answers = set()
    for row, seen in runs:
        came = tried(database, partial(attempts.take, claim=claim_of(row)))
        answer = decide(seen, QUEUED, Asker.WORKER)
        answers.add(answer)
        assert (came is None) == (answer is Action.REFUSE), (seen, came)
        assert isinstance(came, LeaseHeldError) == (answer is Action.WAIT), (seen, came)
    assert answers == {Action.TAKE, Action.WAIT, Action.REFUSE}


def test_a_worker_opens_a_run_where_the_table_says_reopen(
    database: Database, runs: list[tuple[Execution, RunSnapshot]]
) -> None:
    """By a request that the row was not opened by before."""
    opened = 0
    for (row, seen), request in product(runs, (REQUEST, None)):
        asked = request or seen.reopened_from
        if asked is None:
            continue
        came = tried(database, partial(leasing.take_retried, claim=claim_of(row), request=asked))
        answer = decide(seen, QUEUED, Asker.WORKER, request=asked)
        assert (came is not None) == (answer is Action.REOPEN), (seen, came)
        opened += came is not None
    assert opened > 0


def test_a_retry_opens_a_run_where_the_table_says_so(
    database: Database, runs: list[tuple[Execution, RunSnapshot]]
) -> None:
    """Else it is told why not."""
    opened = 0
    for row, seen in runs:
        came = tried(database, partial(interventions.reopen, execution_id=row.id, reopened_from=REQUEST))
        answer = decide(seen, OVER, Asker.RETRY)
        assert isinstance(came, ConflictError) == (answer is not Action.REOPEN), (seen, came)
        opened += not isinstance(came, ConflictError)
    assert opened > 0


def test_whatever_is_done_about_a_run_that_nobody_has_its_lease_can_be_taken(
    database: Database, runs: list[tuple[Execution, RunSnapshot]]
) -> None:
    """By the reconciler and by a cancellation, as it was seen; of what somebody has it cannot."""
    for (row, seen), state in product(runs, (None, *map(flow_run, PrefectState))):
        acts = decide(seen, state, Asker.RECONCILER) is not Action.LEAVE
        acts = acts or decide(seen, state, Asker.CANCEL) is Action.CANCEL
        came = tried(database, partial(orphans.take_as_seen, seen=seen))
        assert came is not None or not acts, (row.id, seen, state)
        if seen.leased and not seen.expired:
            assert came is None, (row.id, seen)
