"""Rows that PostgreSQL refuses for good: the run ends with that as its reason, and nobody waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect import State

from flows.config.settings import get_settings
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.recovery.reconciler import Reconciler
from flows.runs.process import process
from flows.store.models import Execution
from tests.builders import action, line
from tests.flows.conftest import Nova, Outcome
from tests.refusals import DISK_FULL, PROGRAM_LIMIT, WORDS, refused_rows, slow_rows

GRAPH = line(action("first", "context['first'] = 1"), action("second", "context['second'] = 2"))
SECOND = "NEW.node_id = '\"second\"'"
"""Which rows of a chain are the second node's."""
PATIENCE = 30.0
"""Seconds within which a run ends that waits for nothing."""


async def run(nova: Nova, graph: dict[str, Any] = GRAPH) -> Outcome:
    """Run a graph to its end, in bounded time."""
    return await asyncio.wait_for(nova.run_graph(graph), PATIENCE)


def is_failed_as_refused(state: State[Any], row: Execution, *, node: str | None, code: str) -> None:
    """The run is over, in its row and for Prefect, and both say what PostgreSQL said."""
    assert (row.status, row.error_kind, row.failed_at_node) == ("failed", "refused", node)
    assert f"PostgreSQL refused this ({code})" in (row.error or "")
    assert state.is_failed()
    assert f"({code})" in (state.message or "")
    assert (row.lease_owner, row.next_attempt_at, row.retries) == (None, None, 0)


@pytest.mark.parametrize("code", [DISK_FULL, PROGRAM_LIMIT])
async def test_a_step_that_is_refused_ends_the_run(nova: Nova, database_url: str, code: str) -> None:
    """The node has run, which the reason says; the steps before it stand, and a retry goes on behind them."""
    with refused_rows(database_url, "INSERT", "chain_entries", SECOND, code):
        outcome = await run(nova)
    row = outcome.execution
    is_failed_as_refused(outcome.state, row, node="second", code=code)
    assert (row.error or "").startswith("Node 'second' (step 2) has run, but that could not be written down.")
    assert WORDS in (row.error or "")
    assert outcome.path == ["start", "first"]


async def test_a_failure_that_cannot_be_written_is_told(nova: Nova, database_url: str) -> None:
    """What the node's code raised is in the run's error, for it is in no row of the chain."""
    graph = line(action("second", "raise ValueError('no such invoice')", retries=3))
    with refused_rows(database_url, "INSERT", "chain_entries", SECOND):
        outcome = await run(nova, graph)
    is_failed_as_refused(outcome.state, outcome.execution, node="second", code=DISK_FULL)
    assert "failed (ValueError: no such invoice)" in (outcome.execution.error or "")


async def test_a_step_that_takes_too_long_to_write_ends_the_run(nova: Nova, database_url: str) -> None:
    """The statement timeout of the server, the database or the role is no outage."""
    with slow_rows(database_url, "INSERT", "chain_entries", SECOND):
        outcome = await run(nova)
    is_failed_as_refused(outcome.state, outcome.execution, node="second", code="57014")
    assert "statement timeout" in (outcome.execution.error or "")


async def test_a_guard_that_is_refused_keeps_its_node_from_starting(nova: Nova, database_url: str) -> None:
    """What must not start twice does not start once unless that is written down."""
    graph = line(action("second", "context['sent'] = True", on_interrupt="fail"))
    with refused_rows(database_url, "UPDATE", "executions", "NEW.unrepeatable_step IS NOT NULL"):
        outcome = await run(nova, graph)
    is_failed_as_refused(outcome.state, outcome.execution, node="second", code=DISK_FULL)
    assert outcome.path == ["start"]


async def test_a_start_that_is_refused_ends_the_run(nova: Nova, database_url: str) -> None:
    """The row of a run that is about to begin cannot be changed, but closed it can be."""
    with refused_rows(database_url, "UPDATE", "executions", "NEW.attempt > OLD.attempt"):
        outcome = await run(nova)
    is_failed_as_refused(outcome.state, outcome.execution, node=None, code=DISK_FULL)
    assert outcome.path == []


async def test_a_success_that_is_refused_ends_the_run(nova: Nova, database_url: str) -> None:
    """Every node has succeeded, and the row says why it is not completed all the same."""
    with refused_rows(database_url, "UPDATE", "executions", "NEW.status = 'completed'"):
        outcome = await run(nova)
    is_failed_as_refused(outcome.state, outcome.execution, node=None, code=DISK_FULL)
    assert outcome.path == ["start", "first", "second", "end"]


@pytest.mark.parametrize("ends", ["completed", "failed"])
async def test_an_end_that_cannot_be_written_at_all_is_not_waited_for(
    nova: Nova, database_url: str, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt ends, and its log says so; Prefect has the reason, by which the row is closed later."""
    graph = GRAPH if ends == "completed" else line(action("second", "raise ValueError('no such invoice')"))
    with refused_rows(database_url, "UPDATE", "executions", "NEW.status IN ('completed', 'failed')"):
        outcome = await run(nova, graph)
        row, told = outcome.execution, outcome.state.message or ""
        assert outcome.state.is_failed()
        assert ("no such invoice" in told) if ends == "failed" else (DISK_FULL in told)
        assert (row.status, row.lease_owner) == ("running", None)
        assert "could not be written in its execution" in caplog.text
        await look(nova)  # it is refused there, too, and the round goes on
    await look(nova)
    row = (await nova.outcome(row.id, outcome.state)).execution
    assert (row.status, row.error) == ("failed", told)


async def test_a_run_that_cannot_be_taken_is_not_waited_for(nova: Nova, database_url: str) -> None:
    """No lease, no attempt; Prefect has the reason, by which the row is closed later."""
    with refused_rows(database_url, "UPDATE", "executions", "NEW.lease_owner IS NOT NULL"):
        outcome = await run(nova)
    assert outcome.state.is_failed()
    assert DISK_FULL in (outcome.state.message or "")
    assert (outcome.execution.status, outcome.execution.attempt) == ("pending", 0)


async def look(nova: Nova) -> None:
    """Have a reconciler look once."""
    settings = get_settings()
    await Reconciler(process(settings).database, FlowRuns(nova.prefect, 60), settings).once()
