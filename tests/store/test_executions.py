"""What is read of executions: polls, lists, tasks."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import InvalidInputError
from flows.graphs.lifecycle import Status, StepStatus
from flows.store import chain, executions, workflows
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts, recoveries, submissions
from tests.leasing import begin, lease_of
from tests.store.rows import create, end


def test_a_poll_reads_what_there_is_to_tell(
    database: Database, workflow: Workflow, execution: Execution
) -> None:
    """The row, the workflow's name and how many steps succeeded; None for an unknown task."""
    lease, flow_run_id = lease_of(execution), execution.flow_run_id
    assert flow_run_id is not None

    def work(session: Session) -> None:
        for step, status in ((0, StepStatus.SUCCESS), (1, StepStatus.FAILED)):
            entry = chain.Step(step=step, attempt=1, node_id="a", node_type="action", status=status)
            chain.append(session, lease, entry)
        attempts.step_done(session, lease, succeeded=False, next_node="a")

    database.run_sync(work)
    found = database.run_sync(lambda s: executions.poll(s, flow_run_id))
    assert found is not None
    assert (found.id, found.status, found.attempt) == (execution.id, Status.RUNNING, 1)
    assert (found.nodes_done, found.leased) == (1, True)
    assert (found.workflow_name, found.version_id) == ("Invoices", execution.version_id)
    assert (found.current_node, found.client_slug, found.error) == ("a", None, None)
    assert database.run_sync(lambda s: executions.poll(s, uuid.uuid4())) is None


def test_a_poll_finds_the_run_whose_flow_run_was_not_noted(database: Database, workflow: Workflow) -> None:
    """By the public id that Prefect was given; a row that has a flow run is no other one's."""
    made, flow_run_id = create(database, workflow), uuid.uuid4()
    assert database.run_sync(lambda s: executions.poll(s, flow_run_id)) is None
    found = database.run_sync(lambda s: executions.poll(s, flow_run_id, made.public_id))
    assert found is not None
    assert (found.id, found.next_attempt_at, found.retries, found.revoked) == (made.id, None, 0, False)
    database.run_sync(lambda s: submissions.confirm(s, made.id, flow_run_id))
    assert database.run_sync(lambda s: executions.poll(s, uuid.uuid4(), made.public_id)) is None


def test_a_task_finds_its_run_by_every_flow_run_that_it_had(database: Database, execution: Execution) -> None:
    """Prefect lost the first one and got another: the task id that the client has stays good."""
    lease, first, second = lease_of(execution), execution.flow_run_id, uuid.uuid4()
    assert first is not None

    def hand_over(session: Session) -> None:
        recoveries.resubmit(session, lease)
        assert submissions.confirm(session, execution.id, second)

    database.run_sync(hand_over)
    for task_id in (first, second):
        row = database.run_sync(partial(executions.by_task, flow_run_id=task_id))
        polled = database.run_sync(partial(executions.poll, flow_run_id=task_id))
        assert row is not None
        assert polled is not None
        assert (row.id, row.task_id, row.flow_run_id) == (execution.id, first, second)
        assert (polled.id, polled.flow_run_id) == (execution.id, second)


def test_lists_are_filtered_paged_and_newest_first(
    database: Database, workflow: Workflow, graph: dict[str, Any]
) -> None:
    """By workflow, by status, by both; the total counts what matches."""
    other = database.run_sync(lambda s: workflows.create(s, name="Other", graph=graph))
    made = [create(database, one) for one in (workflow, other, workflow, workflow)]
    started = made[2]
    database.run_sync(
        lambda s: begin(
            s, flow_run_id=uuid.uuid4(), public_id=started.public_id, workflow_id=started.workflow_id
        )
    )
    end(database, started, Status.COMPLETED)

    def ids(**filters: Any) -> tuple[list[int], int]:
        page, total = database.run_sync(lambda s: executions.list_(s, **filters))
        return [made.index(next(m for m in made if m.id == row.id)) for row in page], total

    assert ids() == ([3, 2, 1, 0], 4)
    assert ids(skip=1, limit=2) == ([2, 1], 4)
    assert ids(workflow_id=workflow.id) == ([3, 2, 0], 3)
    assert ids(status="completed") == ([2], 1)
    assert ids(workflow_id=workflow.id, status="pending") == ([3, 0], 2)
    with pytest.raises(InvalidInputError, match="status"):
        ids(status="done\0")

    live = database.run_sync(lambda s: executions.live(s, workflow.id))
    assert [row.id for row in live] == [made[0].id, made[3].id]
    assert len(database.run_sync(executions.live)) == 3


def test_an_unknown_task_has_no_execution(database: Database) -> None:
    """An id that was never issued."""
    assert database.run_sync(lambda s: executions.by_task(s, uuid.uuid4())) is None
