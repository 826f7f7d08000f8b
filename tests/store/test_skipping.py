"""Runs that are tried again: put off by the machinery, retried or led past a node by a person."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest

from flows.graphs.errors import ConflictError, InvalidInputError, LeaseLostError, NotFoundError
from flows.store import chain, executions, transitions, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import submissions
from flows.store.values import Value
from tests.builders import action, expression, fork
from tests.leasing import begin, lease_of
from tests.store.racing import together
from tests.store.rows import change, everything, expire, seconds_left

COUNTED: dict[str, Any] = {
    "retries": 2,
    "crashes": 2,
    "crash_step": 1,
    "lost_starts": 3,
    "unrepeatable_step": 1,
}
FORGOTTEN: dict[str, Any] = {**dict.fromkeys(COUNTED, 0), "crash_step": None, "unrepeatable_step": None}


def read(database: Database, execution: Execution) -> Execution:
    """The row as it is now."""
    return database.run_sync(lambda s: executions.get(s, execution.id))


def counters(database: Database, execution: Execution) -> dict[str, Any]:
    """What a person's retry forgets."""
    row = read(database, execution)
    return {name: getattr(row, name) for name in COUNTED}


def begin_again(database: Database, execution: Execution) -> Execution:
    """Start the next attempt, as somebody else."""
    assert execution.flow_run_id is not None
    return database.run_sync(
        partial(
            begin,
            flow_run_id=execution.flow_run_id,
            public_id=execution.public_id,
            workflow_id=execution.workflow_id,
            reopens=True,
        )
    )


def fail(database: Database, execution: Execution, status: str = "failed", kind: str = "node") -> None:
    """Close the run."""
    database.run_sync(
        lambda s: transitions.finish(s, execution.id, status=status, error="boom", error_kind=kind)
    )


def schedule_retry(database: Database, execution: Execution, *, counted: bool = True) -> Any:
    """Put the run off for ten minutes."""
    return database.run_sync(
        lambda s: transitions.schedule_retry(
            s,
            lease_of(execution),
            error="E2B does not answer.",
            error_kind="infrastructure",
            at_node="mail",
            seconds=600,
            counted=counted,
        )
    )


# -- put off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_a_run_is_put_off(database: Database, execution: Execution, counted: bool) -> None:
    """It stays running, says why and until when, and is free for whoever takes it then."""
    due = schedule_retry(database, execution, counted=counted)
    row = read(database, execution)
    assert (row.status, row.retries, row.next_attempt_at) == ("running", int(counted), due)
    assert (row.error, row.error_kind, row.failed_at_node) == (
        "E2B does not answer.",
        "infrastructure",
        "mail",
    )
    assert (row.lease_owner, row.lease_until, row.completed_at) == (None, None, None)
    assert 590 < seconds_left(database, execution, "next_attempt_at") <= 600

    again = begin_again(database, execution)
    assert (again.attempt, again.retries) == (2, int(counted))
    assert (again.next_attempt_at, again.error, again.error_kind, again.failed_at_node) == (None,) * 4
    assert schedule_retry(database, again) is not None
    assert read(database, execution).retries == 1 + int(counted)


def test_closing_a_run_that_was_put_off_takes_its_next_attempt_away(
    database: Database, execution: Execution
) -> None:
    """Cancelled while it waits: nothing is due any more."""
    schedule_retry(database, execution)
    fail(database, execution, "cancelled")
    assert read(database, execution).next_attempt_at is None


def test_an_attempt_after_a_crash_keeps_all_counters(database: Database, execution: Execution) -> None:
    """Nobody closed the run: its lease ran out, and the machinery's patience goes on where it was."""
    change(database, execution, **COUNTED, stepping=True)
    expire(database, execution)
    again = begin_again(database, execution)
    assert (again.attempt, again.stepping) == (2, False)
    assert counters(database, execution) == COUNTED


def test_a_sandbox_means_that_a_node_may_have_started(database: Database, execution: Execution) -> None:
    """From its id on the attempt counts as one that stepped; starts that were lost before are forgotten."""
    change(database, execution, **COUNTED)
    lease = lease_of(execution)
    database.run_sync(lambda s: transitions.set_progress(s, lease, current_node="mail"))
    assert (read(database, execution).stepping, read(database, execution).lost_starts) == (False, 3)
    database.run_sync(lambda s: transitions.set_progress(s, lease, sandbox_id="sbx"))
    row = read(database, execution)
    assert (row.stepping, row.lost_starts, row.sandbox_id, row.current_node) == (True, 0, "sbx", "mail")
    assert (row.crashes, row.retries) == (2, 2)


# -- guarded -----------------------------------------------------------------------------------------


def test_a_guard_holds_until_its_step_succeeds(database: Database, execution: Execution) -> None:
    """An attempt that fails, or dies, leaves it: a run that goes on sees that the node was started."""
    lease = lease_of(execution)
    database.run_sync(lambda s: transitions.mark_unrepeatable(s, lease, 0))
    assert read(database, execution).unrepeatable_step == 0
    database.run_sync(lambda s: chain.append(s, lease, Step(0, 1, "mail", "action", "failed"), "mail"))
    assert read(database, execution).unrepeatable_step == 0
    expire(database, execution)
    again = begin_again(database, execution)
    assert again.unrepeatable_step == 0
    database.run_sync(
        lambda s: chain.append(s, lease_of(again), Step(0, 2, "mail", "action", "success"), "end")
    )
    row = read(database, execution)
    assert (row.unrepeatable_step, row.current_node) == (None, "end")


# -- retried by a person -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_retry_in_prefect_opens_the_run_when_it_begins(
    database: Database, execution: Execution, status: str
) -> None:
    """A person looked at it: all patience begins anew, and the guarded node may run."""
    change(database, execution, **COUNTED)
    fail(database, execution, status)
    assert counters(database, execution) == COUNTED
    again = begin_again(database, execution)
    assert (again.status, again.attempt, again.error, again.completed_at) == ("running", 2, None, None)
    assert counters(database, execution) == FORGOTTEN


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_run_is_opened_again(database: Database, execution: Execution, status: str) -> None:
    """A retry over the API: due now, with its error until it begins; the chain stays."""
    database.run_sync(lambda s: chain.append(s, lease_of(execution), Step(0, 1, "start", "start", "success")))
    change(database, execution, **COUNTED)
    fail(database, execution, status)
    stands = uuid.uuid4()
    row = database.run_sync(lambda s: transitions.reopen(s, execution.id, stands))
    assert (row.status, row.error, row.completed_at, row.attempt) == ("running", "boom", None, 1)
    assert row.reopened_from == stands
    assert row.workflow.name == "Invoices"
    assert -10 < seconds_left(database, execution, "next_attempt_at") <= 0
    assert counters(database, execution) == FORGOTTEN
    again = begin_again(database, execution)
    assert (again.attempt, again.error) == (2, None)
    assert database.run_sync(lambda s: chain.visits(s, execution.id)) == [("start", None)]


def test_what_prefect_never_had_is_pending_again(database: Database, execution: Execution) -> None:
    """Cancelled before there was a flow run: it is to be handed over as at first."""
    made = database.run_sync(
        lambda s: submissions.create(
            s, workflow_id=execution.workflow_id, client=None, priority="normal", initial={}
        )
    )
    fail(database, made, "cancelled")
    assert database.run_sync(lambda s: transitions.reopen(s, made.id)).status == "pending"


def test_there_is_nothing_to_retry(database: Database, execution: Execution) -> None:
    """A run that goes on, succeeded, never started, or is unknown."""
    made = database.run_sync(
        lambda s: submissions.create(
            s, workflow_id=execution.workflow_id, client=None, priority="normal", initial={}
        )
    )

    def refused(one: Execution, why: str) -> None:
        before = everything(database)
        for work in (transitions.reopen, partial(transitions.skip, step=0, changes={})):
            with pytest.raises(ConflictError, match=why):
                database.run_sync(partial(work, execution_id=one.id))
        assert everything(database) == before

    refused(execution, "running")
    refused(made, "pending")
    database.run_sync(lambda s: submissions.refuse(s, made.id, "x"))
    refused(made, "never started")
    fail(database, execution, "completed")
    refused(execution, "completed")
    for unknown in (0, 10**30):
        with pytest.raises(NotFoundError):
            database.run_sync(partial(transitions.reopen, execution_id=unknown))
        with pytest.raises(NotFoundError):
            database.run_sync(partial(transitions.skip, execution_id=unknown, step=0, changes={}))


def test_a_run_is_opened_once(database: Database, execution: Execution) -> None:
    """Of several retries at the same moment one counts."""
    fail(database, execution)
    retry = partial(database.run_sync, lambda s: transitions.reopen(s, execution.id))
    outcomes = together(retry, retry, retry)
    assert sorted(type(one).__name__ for one in outcomes) == ["ConflictError", "ConflictError", "Execution"]


# -- a node skipped ----------------------------------------------------------------------------------


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


def walk(database: Database, execution: Execution, *steps: Step, end: str = "failed") -> None:
    """Write these rows, then fail or be cancelled."""
    for step in steps:
        database.run_sync(partial(chain.append, lease=lease_of(execution), step=step))
    fail(database, execution, end)


START = Step(0, 1, "start", "start", "success")
READ = Step(1, 1, "read", "action", "success", changes={"total": Value(b"10")})


def test_a_node_is_skipped_with_the_context_that_it_should_have_left(
    database: Database, forked: Execution
) -> None:
    """The chain has a row that says so, behind the attempts that failed, and the run goes on behind it."""
    change(database, forked, **COUNTED)
    walk(database, forked, START, Step(1, 1, "read", "action", "failed", error_message="boom"))
    row = database.run_sync(lambda s: transitions.skip(s, forked.id, 1, {"total": Value(b"7")}))
    assert (row.status, row.id) == ("running", forked.id)
    assert counters(database, forked) == FORGOTTEN
    entry = database.run_sync(lambda s: chain.entries(s, forked.id))[-1]
    assert (entry.step, entry.attempt, entry.node_id, entry.status) == (1, 2, "read", "success")
    assert (entry.stdout, entry.decision_result, entry.path_taken) == ("Skipped by a person.", None, None)
    assert database.run_sync(lambda s: chain.state(s, forked.id)) == {"total": Value(b"7").digest}
    assert database.run_sync(lambda s: chain.visits(s, forked.id)) == [("start", None), ("read", None)]
    assert begin_again(database, forked).attempt == 2


def test_a_decision_is_skipped_with_its_answer(database: Database, forked: Execution) -> None:
    """The person decides; an answer that leads nowhere is refused."""
    walk(database, forked, START, READ)
    before = everything(database)
    for branch in (None, "maybe", ""):
        with pytest.raises(InvalidInputError, match="branch must be one of true, false"):
            database.run_sync(
                partial(transitions.skip, execution_id=forked.id, step=2, changes={}, branch=branch)
            )
    assert everything(database) == before
    database.run_sync(lambda s: transitions.skip(s, forked.id, 2, {}, "false"))
    entry = database.run_sync(lambda s: chain.entries(s, forked.id))[-1]
    assert (entry.node_type, entry.decision_result, entry.path_taken) == ("decision", "false", "low")


def test_an_action_decides_nothing(database: Database, forked: Execution) -> None:
    """A branch given for one is a misunderstanding."""
    walk(database, forked, START)
    with pytest.raises(InvalidInputError, match="branch"):
        database.run_sync(lambda s: transitions.skip(s, forked.id, 1, {}, "true"))


def test_only_the_step_at_which_a_run_failed_is_skipped(database: Database, forked: Execution) -> None:
    """The refusal names it; a start is no node that one could skip."""
    walk(database, forked, START)
    for step in (0, 2, -1):
        with pytest.raises(ConflictError, match="at step 1, node 'read'"):
            database.run_sync(partial(transitions.skip, execution_id=forked.id, step=step, changes={}))


def test_a_node_of_a_cancelled_run_is_skipped(database: Database, forked: Execution) -> None:
    """It may have sent its mail when it was stopped: to try it again would send another one."""
    walk(database, forked, START, end="cancelled")
    row = database.run_sync(lambda s: transitions.skip(s, forked.id, 1, {}))
    assert (row.status, row.unrepeatable_step) == ("running", None)
    assert database.run_sync(lambda s: chain.visits(s, forked.id)) == [("start", None), ("read", None)]


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_run_that_did_not_stop_at_a_node_has_none_to_skip(
    database: Database, forked: Execution, status: str
) -> None:
    """Cancelled, or failed before its first node."""
    fail(database, forked, status)
    with pytest.raises(ConflictError):
        database.run_sync(lambda s: transitions.skip(s, forked.id, 0, {}))


def test_a_step_is_skipped_once(database: Database, forked: Execution) -> None:
    """Two people press the button at the same moment."""
    walk(database, forked, START)
    skip = partial(database.run_sync, lambda s: transitions.skip(s, forked.id, 1, {}))
    outcomes = together(skip, skip)
    assert sorted(type(one).__name__ for one in outcomes) == ["ConflictError", "Execution"]
    assert database.run_sync(lambda s: chain.count(s, forked.id)) == 2


def test_a_late_writer_does_not_undo_a_skip(database: Database, forked: Execution) -> None:
    """The process that had the run comes back after it was closed and led on."""
    walk(database, forked, START)
    database.run_sync(lambda s: transitions.skip(s, forked.id, 1, {}))
    before = everything(database)
    with pytest.raises(LeaseLostError):
        database.run_sync(lambda s: chain.append(s, lease_of(forked), READ))
    assert everything(database) == before
