"""The Chain of Work: rows of attempts, and contexts put together from changes."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest

from flows.graphs.errors import ConflictError, LeaseLostError, NotFoundError
from flows.store import chain, values, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import ChainEntry, Execution, Workflow
from flows.store.values import Value
from tests.leasing import begin, lease_of
from tests.store.racing import together


def append(database: Database, execution: Execution, step: Step) -> ChainEntry:
    """Write a row."""
    return database.run_sync(lambda s: chain.append(s, lease_of(execution), step))


def value(number: int) -> Value:
    """A small value."""
    return Value(str(number).encode())


@pytest.fixture
def run(database: Database, workflow: Workflow) -> Execution:
    """A run from a=1 whose node `loop` fails once, then sets b=2, comes back, sets a=3, and goes out."""
    execution = database.run_sync(
        lambda s: begin(
            s,
            flow_run_id=uuid.uuid4(),
            public_id=None,
            workflow_id=workflow.id,
            client=None,
            initial={"a": value(1)},
        )
    )
    for step in (
        Step(0, 1, "start", "start", "success"),
        Step(1, 1, "loop", "action", "failed", changes={"b": value(9)}, error_message="boom"),
        Step(1, 2, "loop", "action", "success", changes={"b": value(2)}),
        Step(2, 1, "more?", "decision", "success", decision_result="true", path_taken="loop"),
        Step(3, 1, "loop", "action", "success", changes={"a": value(3)}),
        Step(4, 1, "more?", "decision", "success", decision_result="false", path_taken="end"),
        Step(5, 1, "end", "end", "success"),
    ):
        append(database, execution, step)
    return execution


def shown(database: Database, run: Execution, digests: Any) -> dict[str, int]:
    """A context with numbers instead of digests."""
    held = database.run_sync(lambda s: values.load(s, run.id, digests.values()))
    return {key: int(held[digest].data) for key, digest in digests.items()}


def test_all_of_a_row_is_read_back(database: Database, execution: Execution) -> None:
    """Every field of a step is stored, NUL, surrogates and all."""
    odd = "\0 '\" \\ \ud800 é 😀 {}"
    step = Step(
        step=3,
        attempt=2,
        node_id=odd,
        node_type="decision",
        status="failed",
        execution_time=1.5,
        decision_result=odd,
        path_taken=odd,
        error_type=odd,
        error_message=odd,
        traceback=odd,
        stdout=odd,
        stderr=odd,
    )
    append(database, execution, step)
    (entry,) = database.run_sync(lambda s: chain.entries(s, execution.id))
    for name in Step.__dataclass_fields__:
        assert getattr(entry, name) == getattr(step, name), name


def test_a_resume_knows_what_was_visited(database: Database, run: Execution) -> None:
    """Successes only, in order, with what decisions said; the next attempt of each step."""
    assert database.run_sync(lambda s: chain.visits(s, run.id)) == [
        ("start", None),
        ("loop", None),
        ("more?", "true"),
        ("loop", None),
        ("more?", "false"),
        ("end", None),
    ]
    assert [
        database.run_sync(partial(chain.next_attempt, execution_id=run.id, step=n)) for n in (0, 1, 6)
    ] == [
        2,
        3,
        1,
    ]
    assert database.run_sync(lambda s: chain.count(s, run.id)) == 7


def test_the_state_is_put_together_from_changes(database: Database, run: Execution) -> None:
    """Before any step, or at the end; what a failed attempt changed does not count."""
    states = [
        shown(database, run, database.run_sync(partial(chain.state, execution_id=run.id, before_step=step)))
        for step in (0, 1, 2, 3, 4, None)
    ]
    assert states == [{"a": 1}, {"a": 1}, *[{"a": 1, "b": 2}] * 2, *[{"a": 3, "b": 2}] * 2]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_carry_the_context_on(database: Database, run: Execution, size: int) -> None:
    """Wherever a page begins, each row has the context before and after it."""
    seen = []
    for skip in range(0, 7, size):
        page = database.run_sync(partial(chain.entries, execution_id=run.id, skip=skip, limit=size))
        for frame in database.run_sync(partial(chain.frames, execution_id=run.id, page=page)):
            before, after = (shown(database, run, digests) for digests in (frame.before, frame.after))
            seen.append((frame.entry.step, frame.entry.attempt, before, after))
    one, two, three = {"a": 1}, {"a": 1, "b": 2}, {"a": 3, "b": 2}
    assert seen == [
        (0, 1, one, one),
        (1, 1, one, one),
        (1, 2, one, two),
        (2, 1, two, two),
        (3, 1, two, three),
        (4, 1, three, three),
        (5, 1, three, three),
    ]


def test_a_page_without_rows(database: Database, run: Execution) -> None:
    """Past the end there is nothing."""
    assert database.run_sync(lambda s: chain.entries(s, run.id, 7, 5)) == []
    assert list(database.run_sync(lambda s: chain.frames(s, run.id, []))) == []


def test_a_step_is_written_once(database: Database, run: Execution) -> None:
    """The same attempt again, or another one of a step that succeeded, is refused and leaves no trace."""
    for step, attempt in ((1, 2), (1, 3)):
        with pytest.raises(ConflictError, match="Step 1"):
            append(database, run, Step(step, attempt, "loop", "action", "success", changes={"c": value(7)}))
    assert database.run_sync(lambda s: chain.count(s, run.id)) == 7
    assert database.run_sync(lambda s: values.load(s, run.id, [value(7).digest])) == {}


def test_two_that_run_the_same_step_at_once(database: Database, execution: Execution) -> None:
    """One row is written, and the other writer is told."""
    works = [
        partial(append, database, execution, Step(0, attempt, "start", "start", "success"))
        for attempt in (1, 2)
    ]
    outcomes = together(*works)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ChainEntry", "ConflictError"]


def test_a_run_whose_workflow_was_deleted(database: Database, run: Execution, workflow: Workflow) -> None:
    """Writing to it, or reading its state, says that it is gone."""
    database.run_sync(lambda s: workflows.delete(s, workflow.id))
    with pytest.raises(LeaseLostError, match="deleted"):
        append(database, run, Step(6, 1, "x", "action", "success"))
    for changes in ({}, {"c": value(7)}):
        step = Step(6, 1, "x", "action", "success", changes=changes)
        with pytest.raises(NotFoundError):
            database.run_sync(partial(chain.add, execution_id=run.id, step=step))
    with pytest.raises(NotFoundError):
        database.run_sync(lambda s: chain.state(s, run.id))
