"""Runs that a person leads past the node at which they stopped."""

from __future__ import annotations

import uuid
from functools import partial

import pytest

from flows.graphs.errors import ConflictError, InvalidInputError, LeaseLostError
from flows.graphs.lifecycle import Status, StepStatus
from flows.store import chain, skipping, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import attempts
from flows.store.transitions.interventions import Reopened
from flows.store.values import Stored, Value
from tests.builders import action, expression, fork
from tests.leasing import begin, lease_of
from tests.store.racing import together
from tests.store.rows import COUNTED, FORGOTTEN, change, counters, end, everything, read, take


@pytest.fixture
def forked(database: Database) -> Execution:
    """A run that has begun: start → read → big? → high or low → end."""
    graph = fork(
        action("read", "pass"),
        expression("big?", "total > 9"),
        true=action("high", "pass"),
        false=action("low", "pass"),
    )
    workflow = database.run_sync(lambda s: workflows.create(s, name="Forked", graph=graph))
    return database.run_sync(
        lambda s: begin(s, flow_run_id=uuid.uuid4(), workflow_id=workflow.id, initial={"total": Value(b"1")})
    )


def walk(database: Database, execution: Execution, *steps: Step, status: Status = Status.FAILED) -> None:
    """Write these rows, then fail or be cancelled."""
    for step in steps:
        database.run_sync(partial(chain.append, lease=lease_of(execution), step=step))
    end(database, execution, status)


def skip(
    database: Database,
    execution: Execution,
    step: int,
    changes: Stored | None = None,
    branch: str | None = None,
    origin: uuid.UUID | None = None,
) -> Reopened:
    """Lead the run past a step."""
    return database.run_sync(lambda s: skipping.skip(s, execution.id, step, changes or {}, branch, origin))


START = Step(0, 1, "start", "start", StepStatus.SUCCESS)
READ = Step(1, 1, "read", "action", StepStatus.SUCCESS, changes={"total": Value(b"10")})
READ_FAILED = Step(1, 1, "read", "action", StepStatus.FAILED, error_message="boom")


def test_a_node_is_skipped_with_the_context_that_it_should_have_left(
    database: Database, forked: Execution
) -> None:
    """The chain has a row that says so, behind the attempts that failed, and the run goes on behind it."""
    change(database, forked, **COUNTED)
    walk(database, forked, START, READ_FAILED)
    origin = uuid.uuid4()
    reopened = skip(database, forked, 1, {"total": Value(b"7")}, origin=origin)
    row = read(database, forked)
    assert (row.status, row.lease_owner, row.reopened_from) == (Status.RUNNING, reopened.lease.owner, origin)
    assert counters(database, forked) == FORGOTTEN
    entry = database.run_sync(lambda s: chain.entries(s, forked.id))[-1]
    assert (entry.step, entry.attempt, entry.node_id, entry.status) == (1, 2, "read", StepStatus.SUCCESS)
    assert (entry.stdout, entry.decision_result, entry.path_taken) == ("Skipped by a person.", None, None)
    assert database.run_sync(lambda s: chain.state(s, forked.id)) == {"total": Value(b"7").digest}
    assert database.run_sync(lambda s: chain.visits(s, forked.id)) == [("start", None), ("read", None)]

    assert database.run_sync(lambda s: attempts.release(s, reopened.lease))
    assert take(database, forked) is not None


def test_a_decision_is_skipped_with_its_answer(database: Database, forked: Execution) -> None:
    """The person decides; an answer that leads nowhere is refused."""
    walk(database, forked, START, READ)
    before = everything(database)
    for branch in (None, "maybe", ""):
        with pytest.raises(InvalidInputError, match="branch must be one of true, false"):
            skip(database, forked, 2, branch=branch)
    assert everything(database) == before
    skip(database, forked, 2, branch="false")
    entry = database.run_sync(lambda s: chain.entries(s, forked.id))[-1]
    assert (entry.node_type, entry.decision_result, entry.path_taken) == ("decision", "false", "low")


def test_an_action_decides_nothing(database: Database, forked: Execution) -> None:
    """A branch given for one is a misunderstanding."""
    walk(database, forked, START)
    with pytest.raises(InvalidInputError, match="branch"):
        skip(database, forked, 1, branch="true")


def test_only_the_step_at_which_a_run_failed_is_skipped(database: Database, forked: Execution) -> None:
    """The refusal names it; a start is no node that one could skip."""
    walk(database, forked, START)
    for step in (0, 2, -1):
        with pytest.raises(ConflictError, match="at step 1, node 'read'"):
            skip(database, forked, step)


def test_a_node_of_a_cancelled_run_is_skipped(database: Database, forked: Execution) -> None:
    """It may have sent its mail when it was stopped: to try it again would send another one."""
    walk(database, forked, START, status=Status.CANCELLED)
    skip(database, forked, 1)
    row = read(database, forked)
    assert (row.status, row.unrepeatable_step) == (Status.RUNNING, None)
    assert database.run_sync(lambda s: chain.visits(s, forked.id)) == [("start", None), ("read", None)]


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED])
def test_a_run_that_did_not_stop_at_a_node_has_none_to_skip(
    database: Database, forked: Execution, status: Status
) -> None:
    """Cancelled, or failed before its first node."""
    end(database, forked, status)
    with pytest.raises(ConflictError):
        skip(database, forked, 0)


def test_a_step_is_skipped_once(database: Database, forked: Execution) -> None:
    """Two people press the button at the same moment."""
    walk(database, forked, START)
    outcomes = together(*[partial(skip, database, forked, 1)] * 2)
    assert sorted(type(one).__name__ for one in outcomes) == ["ConflictError", "Reopened"]
    assert database.run_sync(lambda s: chain.count(s, forked.id)) == 2


def test_a_skip_that_prefect_refuses_leaves_all_as_it_was(database: Database, forked: Execution) -> None:
    """The row is closed again, and the chain has no row of the skip: the step can be skipped, or tried."""
    change(database, forked, **COUNTED)
    walk(database, forked, START, READ_FAILED)
    before = everything(database)
    reopened = skip(database, forked, 1)
    assert everything(database) != before
    database.run_sync(lambda s: skipping.undo(s, reopened))
    assert everything(database) == before
    skip(database, forked, 1)
    assert database.run_sync(lambda s: chain.visits(s, forked.id)) == [("start", None), ("read", None)]


def test_a_late_writer_does_not_undo_a_skip(database: Database, forked: Execution) -> None:
    """The process that had the run comes back after it was closed and led on."""
    walk(database, forked, START)
    skip(database, forked, 1)
    before = everything(database)
    with pytest.raises(LeaseLostError):
        database.run_sync(lambda s: chain.append(s, lease_of(forked), READ))
    assert everything(database) == before
