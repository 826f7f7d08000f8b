"""Runs whose nodes execute in E2B sandboxes: the real SDK against a local server of its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prefect.exceptions import Abort

from flows.store import executions
from flows.store.transitions import submissions
from tests.builders import action, line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.flows.conftest import Nova
from tests.waiting import eventually

__all__ = ["e2b_server", "e2b_session_server"]


@pytest.fixture
def nova_in_e2b(nova: Nova, limits: Callable[..., None], e2b_server: E2BServer) -> Nova:
    """NOVA with a key of E2B's: nodes run there."""
    limits(**e2b_server.environment, E2B_TEMPLATE="nova-python")
    return nova


async def test_one_sandbox_serves_a_run_and_is_killed(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """All nodes of a run share one sandbox, made for it from the template and dead when the run is over."""
    client = await nova_in_e2b.client()
    workflow = await nova_in_e2b.workflow(
        line(*(action(f"n{i}", f"context['n{i}'] = context['client_slug']") for i in range(4)))
    )
    execution = await nova_in_e2b.pending(workflow, {}, client)
    state = await nova_in_e2b.run(workflow, execution=execution.public_id)
    outcome = await nova_in_e2b.outcome(execution.id, state)
    assert outcome.execution.status == "completed"
    assert outcome.context["n3"] == client
    (place,) = e2b_server.sandboxes
    assert place.killed
    assert place.template == "nova-python"
    flow_run = await nova_in_e2b.prefect.read_flow_run(outcome.flow_run_id)
    labels = {"nova": "run", "flow_run": str(flow_run.id), "run": flow_run.name}
    assert labels.items() <= place.metadata.items()
    assert 600 <= place.timeout <= 700
    assert outcome.execution.sandbox_id == place.id


async def test_failed_run_leaves_no_sandbox(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """The sandbox is killed when a node fails, too."""
    outcome = await nova_in_e2b.run_graph(line(action("boom", "raise ValueError('no total')")))
    assert outcome.execution.error == "ValueError: no total"
    assert [place.killed for place in e2b_server.sandboxes] == [True]


async def test_cancelled_run_leaves_no_sandbox(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """A flow that is cancelled in the middle of a node kills its sandbox before it leaves."""
    workflow = await nova_in_e2b.workflow(line(action("slow", "import time\ntime.sleep(50)", timeout=60)))
    execution = await nova_in_e2b.pending(workflow)
    running = asyncio.create_task(nova_in_e2b.run(workflow, execution=execution.public_id))

    async def commands() -> int:
        return sum(len(place.processes) for place in e2b_server.sandboxes)

    await eventually(commands, lambda number: number > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [place.killed for place in e2b_server.sandboxes] == [True]


async def test_refused_key_is_said(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """A key that E2B refuses fails the run with a sentence that names the setting, not the key."""
    e2b_server.cloud.refuse_with = (401, "unauthorized")
    outcome = await nova_in_e2b.run_graph(line(action("a", "pass")))
    assert outcome.execution.status == "failed"
    assert "E2B_API_KEY" in (outcome.execution.error or "")
    assert "e2b_000" not in (outcome.execution.error or "")


async def test_sandbox_is_made_while_the_run_is_read(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """The run is taken over while E2B is still at it, and the time that this takes is none of the run's."""
    workflow = await nova_in_e2b.workflow(line(action("a", "context['a'] = 1")))
    execution = await nova_in_e2b.pending(workflow)
    e2b_server.hold()
    running = asyncio.create_task(nova_in_e2b.run(workflow, execution=execution.public_id))

    async def status() -> str:
        return (await nova_in_e2b.database.run(lambda session: executions.get(session, execution.id))).status

    await eventually(status, lambda found: found == "running")
    assert (e2b_server.cloud.asked, e2b_server.sandboxes) == (1, [])
    e2b_server.release()
    outcome = await nova_in_e2b.outcome(execution.id, await running)
    assert outcome.execution.status == "completed"
    assert outcome.execution.sandbox_id == e2b_server.sandboxes[0].id


async def test_waiting_for_a_sandbox_is_none_of_the_run_s_time(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """A run whose sandbox takes longer than a run may still has all of its time."""
    limits(NOVA_RUN_TIMEOUT="2")
    e2b_server.cloud.start_delay = 2.5
    outcome = await nova_in_e2b.run_graph(line(action("a", "context['a'] = 1")))
    assert (outcome.execution.status, outcome.execution.error) == ("completed", None)


async def test_turn_that_does_not_come_is_a_failure_of_the_infrastructure(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """Past the patience that is set, which was long, the run is put off and says what it waited for."""
    limits(NOVA_E2B_PATIENCE="0.3")
    e2b_server.cloud.at_once = 0
    workflow = await nova_in_e2b.workflow(line(action("a", "pass")))
    execution = await nova_in_e2b.pending(workflow)
    with pytest.raises(Abort):
        await nova_in_e2b.run(workflow, execution=execution.public_id)
    row = await nova_in_e2b.database.run(lambda session: executions.get(session, execution.id))
    assert (row.status, row.error_kind, row.retries) == ("running", "infrastructure", 1)
    assert "waited 0.3 s for its turn" in (row.error or "")


async def test_run_that_is_not_to_be_run_leaves_no_sandbox(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """What was made ahead of a run that turns out to be over is ended."""
    workflow = await nova_in_e2b.workflow(line(action("a", "pass")))
    execution = await nova_in_e2b.pending(workflow)
    await nova_in_e2b.database.run(lambda session: submissions.refuse(session, execution.id, "no Prefect"))
    state = await nova_in_e2b.run(workflow, execution=execution.public_id)
    assert state.is_cancelled()
    assert all(place.killed for place in e2b_server.sandboxes)
