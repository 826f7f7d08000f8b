"""What breaks under a run: what is tried again, where, how often, and what is then said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.exceptions import Abort
from sqlalchemy.orm import Session

from flows.graphs.errors import DatabaseUnavailableError
from flows.runs.process import opened
from flows.store import circuit_breaker, executions
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import recoveries
from tests.api.relay import Relay
from tests.builders import action, decision, fork, line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.flows.conftest import Nova, Outcome
from tests.waiting import eventually
from tests.wires import to_database

__all__ = ["e2b_server", "e2b_session_server"]

HANGS_ONCE = (
    "import pathlib, time\n"
    "with open(context['ledger'], 'a') as ledger: ledger.write(run['idempotency_key'] + '\\n')\n"
    "if len(pathlib.Path(context['ledger']).read_text().splitlines()) == 1: time.sleep(50)\n"
    "context['key'] = run['idempotency_key']"
)


@pytest.fixture
def nova_in_e2b(nova: Nova, limits: Callable[..., None], e2b_server: E2BServer) -> Nova:
    """NOVA in E2B, with short pauses between tries."""
    limits(**e2b_server.environment, NOVA_NODE_RETRY_DELAY="0.05")
    return nova


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file outside of every sandbox, to which nodes write what they do."""
    file = tmp_path / "ledger"
    file.touch()
    return file


def starts(ledger: Path) -> list[str]:
    """What was written down so far."""
    return ledger.read_text().splitlines()


async def until_started(ledger: Path) -> None:
    """Wait until a node has written something down."""

    async def count() -> int:
        return len(starts(ledger))

    await eventually(count, lambda number: number > 0)


async def lose_the_sandbox_of(
    nova: Nova, server: E2BServer, ledger: Path, **node: Any
) -> tuple[Outcome, State[Any]]:
    """Run a node whose sandbox vanishes while it runs for the first time."""
    graph = line(action("before", "context['before'] = 1"), action("hangs", HANGS_ONCE, timeout=60, **node))
    workflow = await nova.workflow(graph)
    execution = await nova.pending(workflow, {"ledger": str(ledger)})
    running = asyncio.create_task(nova.run(workflow, execution=execution.public_id))
    await until_started(ledger)
    server.vanish(server.sandboxes[0].id)
    state = await running
    return await nova.outcome(execution.id, state), state


async def schedule_retry(nova: Nova, graph: dict[str, Any]) -> Execution:
    """Run a graph that is put off, and return its row."""
    workflow = await nova.workflow(graph)
    execution = await nova.pending(workflow)
    with pytest.raises(Abort):
        await nova.run(workflow, execution=execution.public_id)
    return (await nova.outcome(execution.id, State(type="SCHEDULED"))).execution


async def test_a_node_whose_sandbox_vanishes_runs_again_in_a_new_one(
    nova_in_e2b: Nova, e2b_server: E2BServer, ledger: Path
) -> None:
    """The new sandbox has the context of the nodes before; both tries are rows, under one key."""
    outcome, _ = await lose_the_sandbox_of(nova_in_e2b, e2b_server, ledger)
    assert outcome.execution.status == "completed"
    rows = [(row.node_id, row.attempt, row.status, row.error_type) for row in outcome.entries[1:4]]
    assert rows == [
        ("before", 1, "success", None),
        ("hangs", 1, "failed", "SandboxError"),
        ("hangs", 2, "success", None),
    ]
    assert outcome.context["before"] == 1
    assert starts(ledger) == [outcome.context["key"]] * 2
    assert [place.ended_by for place in e2b_server.sandboxes] == ["vanished", "kill"]
    assert outcome.execution.sandbox_id == e2b_server.sandboxes[1].id


async def test_a_node_that_must_not_start_twice_is_not_tried_again(
    nova_in_e2b: Nova, e2b_server: E2BServer, ledger: Path
) -> None:
    """Its sandbox vanished, so nobody knows what it did: the run stops there and says what to do."""
    outcome, state = await lose_the_sandbox_of(nova_in_e2b, e2b_server, ledger, on_interrupt="fail")
    assert len(starts(ledger)) == 1
    row = outcome.execution
    assert (row.status, row.error_kind, row.failed_at_node) == ("failed", "interrupted", "hangs")
    assert "retry the run or skip the node" in (row.error or "")
    assert state.is_failed()
    assert row.unrepeatable_step == 2
    assert all(place.killed for place in e2b_server.sandboxes)


async def test_a_sandbox_that_cannot_be_made_is_asked_for_again(
    nova_in_e2b: Nova, e2b_server: E2BServer
) -> None:
    """E2B fails for a moment: the run only takes longer, and the breaker forgets the failure."""
    e2b_server.cloud.refuse_with = (500, "oops")
    running = asyncio.create_task(nova_in_e2b.run_graph(line(action("a", "context['a'] = 1"))))

    async def refused() -> int:
        return e2b_server.cloud.refused

    await eventually(refused, lambda number: number >= 1)
    e2b_server.cloud.refuse_with = None
    outcome = await running
    assert (outcome.execution.status, outcome.execution.attempt) == ("completed", 1)
    state = await nova_in_e2b.database.run(circuit_breaker.read)
    assert (state["state"], state["failure_count"]) == ("closed", 0)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_of_another_call_than_the_creation_is_tried_again(
    nova_in_e2b: Nova, e2b_server: E2BServer, status: int
) -> None:
    """Only a creation waits its turn; where the start of the runner is refused, it is all done once more."""
    e2b_server.cloud.starts_refused_with = iter([status])
    outcome = await nova_in_e2b.run_graph(line(action("a", "context['a'] = 1")))
    assert (outcome.execution.status, outcome.execution.attempt) == ("completed", 1)
    assert [place.killed for place in e2b_server.sandboxes] == [True, True]


async def test_a_turn_that_was_waited_for_in_vain_is_not_waited_for_again_at_once(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """The run leaves and gives its slot back; the breaker counts it once."""
    limits(NOVA_E2B_PATIENCE="0.3")
    e2b_server.cloud.refuse_with = (503, "no node is free")
    row = await schedule_retry(nova_in_e2b, line(action("a", "pass")))
    assert "waited 0.3 s for its turn" in (row.error or "")
    assert (await nova_in_e2b.database.run(circuit_breaker.read))["failure_count"] == 1


async def test_a_run_is_put_off_when_e2b_keeps_failing(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """Four tries in place, then it leaves: its row knows when it is due, Prefect has it in its queue."""
    limits(NOVA_RETRY_DELAY="100")
    e2b_server.cloud.refuse_with = (500, "oops")
    row = await schedule_retry(nova_in_e2b, line(action("a", "pass")))
    assert e2b_server.cloud.refused == 4
    assert (row.status, row.retries, row.error_kind) == ("running", 1, "infrastructure")
    assert row.lease_owner is None
    assert row.next_attempt_at is not None
    assert 70 < (row.next_attempt_at - datetime.now(UTC)).total_seconds() <= 121
    assert row.flow_run_id is not None
    flow_run = await nova_in_e2b.prefect.read_flow_run(row.flow_run_id)
    assert flow_run.state is not None
    assert flow_run.state_name == "AwaitingRetry"
    assert flow_run.state.state_details.scheduled_time == row.next_attempt_at


async def test_when_a_run_is_due_is_said_in_utc(
    in_new_york: str, nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """Whatever time zone PostgreSQL's own clock is shown in."""
    limits(NOVA_RETRY_DELAY="100")
    e2b_server.cloud.refuse_with = (500, "oops")
    row = await schedule_retry(nova_in_e2b, line(action("a", "pass")))
    assert row.next_attempt_at is not None
    assert row.flow_run_id is not None
    flow_run = await nova_in_e2b.prefect.read_flow_run(row.flow_run_id)
    assert flow_run.state is not None
    assert f"{row.next_attempt_at.astimezone(UTC):%H:%M:%S} UTC" in (flow_run.state.message or "")


async def test_while_the_breaker_is_open_a_run_only_waits(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """The failure that opened it does not count, and the next run does not even ask E2B."""
    limits(NOVA_BREAKER_THRESHOLD="4", NOVA_BREAKER_PAUSE="50", NOVA_RETRIES="0")
    e2b_server.cloud.refuse_with = (500, "oops")
    first = await schedule_retry(nova_in_e2b, line(action("a", "pass")))
    second = await schedule_retry(nova_in_e2b, line(action("a", "pass")))
    assert e2b_server.cloud.refused == 4
    for row in (first, second):
        assert (row.status, row.retries) == ("running", 0)
        assert row.next_attempt_at is not None
        assert (row.next_attempt_at - datetime.now(UTC)).total_seconds() <= 50


@pytest.mark.parametrize("status", [500, 502])
@pytest.mark.parametrize("used", [0, 1])
async def test_a_run_waits_while_sandboxes_are_made_and_cannot_be_used(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None], status: int, used: int
) -> None:
    """No runner starts in them: an outage like any other, for a run without a first sandbox or a second."""
    limits(NOVA_BREAKER_THRESHOLD="3", NOVA_RETRIES="0")
    e2b_server.cloud.starts_refused_with = chain([0] * used, repeat(status))
    row = await schedule_retry(nova_in_e2b, line(action("a", "import os; os.kill(os.getppid(), 9)")))
    assert (row.status, row.retries) == ("running", 0)
    assert row.next_attempt_at is not None
    assert (await nova_in_e2b.database.run(circuit_breaker.read))["state"] == "open"
    assert len(e2b_server.sandboxes) == 4
    assert all(place.killed for place in e2b_server.sandboxes)


async def test_a_template_that_is_wrong_is_no_outage(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """Without Python in it, or unknown to E2B: this run fails, and no other has to wait."""
    limits(NOVA_BREAKER_THRESHOLD="1", NOVA_RETRIES="0")
    e2b_server.cloud.envs = {"PATH": "/nowhere"}
    first = await nova_in_e2b.run_graph(line(action("a", "pass")))
    e2b_server.cloud.refuse_with = (404, "no such template")
    second = await nova_in_e2b.run_graph(line(action("a", "pass")))
    for outcome, words in ((first, "python3"), (second, "no such template")):
        assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "infrastructure")
        assert words in (outcome.execution.error or "")
    assert (await nova_in_e2b.database.run(circuit_breaker.read))["state"] == "closed"


async def test_without_retries_left_the_run_fails_and_says_why(
    nova_in_e2b: Nova, e2b_server: E2BServer, limits: Callable[..., None]
) -> None:
    """The row has the error of the last try."""
    limits(NOVA_RETRIES="0")
    e2b_server.cloud.refuse_with = (500, "oops")
    outcome = await nova_in_e2b.run_graph(line(action("a", "pass")))
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "infrastructure")
    assert "oops" in (outcome.execution.error or "")


async def test_code_is_tried_again_only_where_its_node_says_so(nova: Nova, limits: Any, ledger: Path) -> None:
    """`retries: 2`: the third try succeeds, on the context as it was before the first; each is a row."""
    limits(NOVA_NODE_RETRY_DELAY="0.05")
    code = (
        "context['n'] = context.get('n', 0) + 1\n"
        "words = run['step'], run['attempt'], run['idempotency_key']\n"
        "print(*words, file=open(context['ledger'], 'a'))\n"
        "if run['attempt'] < 3: raise OSError('not yet')"
    )
    graph = line(action("again", code, retries=2), action("other", code.replace("< 3", "< 1")))
    outcome = await nova.run_graph(graph, ledger=str(ledger))
    assert (outcome.execution.status, outcome.context["n"]) == ("completed", 2)
    assert [(row.attempt, row.status) for row in outcome.entries if row.node_id == "again"] == [
        (1, "failed"),
        (2, "failed"),
        (3, "success"),
    ]
    steps, attempts, keys = zip(*(row.split() for row in starts(ledger)), strict=True)
    assert (steps, attempts) == (("1", "1", "1", "2"), ("1", "2", "3", "1"))
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]

    outcome = await nova.run_graph(line(action("once", code)), ledger=str(ledger))
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "node")
    assert len([row for row in outcome.entries if row.node_id == "once"]) == 1


async def test_a_decision_is_tried_again_on_the_context_as_it_was(nova: Nova, limits: Any) -> None:
    """An answer that is no way is a failure: what that try changed counts no more than another's."""
    limits(NOVA_NODE_RETRY_DELAY="0.05")
    code = (
        "context['n'] = context.get('n', 0) + 1\n"
        "context['branch_decision'] = 'yes' if run['attempt'] > 1 else 'perhaps'"
    )
    choice = decision("choice", code, retries=1)
    graph = fork(action("before", "pass"), choice, yes=action("a", "pass"), no=action("b", "pass"))
    outcome = await nova.run_graph(graph)
    assert (outcome.execution.status, outcome.context["n"]) == ("completed", 1)


async def test_a_node_knows_its_run(nova: Nova) -> None:
    """`run` names the execution, the workflow and the client, in actions and expressions alike."""
    client = await nova.client()
    workflow = await nova.workflow(line(action("a", "context['run_was'] = run")))
    execution = await nova.pending(workflow, {}, client)
    state = await nova.run(workflow, execution=execution.public_id)
    seen = (await nova.outcome(execution.id, state)).context["run_was"]
    assert seen["execution_id"] == execution.id
    assert (seen["workflow"], seen["client"], seen["step"], seen["attempt"]) == (workflow.slug, client, 1, 1)


async def test_a_context_that_grows_too_large_fails_the_run(nova: Nova, limits: Any) -> None:
    """The node that made it so is the one that failed; what it left is not stored. A start may be, too."""
    limits(NOVA_CONTEXT_LIMIT="2000")
    grow = "context['a'] = 'x' * 1500"
    graph = line(action("fits", grow), action("too_much", grow.replace("'a'", "'b'")))
    outcome = await nova.run_graph(graph)
    row = outcome.execution
    assert (row.status, row.error_kind, row.failed_at_node) == ("failed", "limit", "too_much")
    assert "NOVA_CONTEXT_LIMIT" in (row.error or "")
    assert sorted(outcome.context) == ["a"]
    assert [entry.status for entry in outcome.entries] == ["success", "success", "failed"]
    outcome = await nova.run_graph(line(action("at_once", "context['a'] = 'x' * 3000")))
    assert (outcome.execution.status, outcome.entries[-1].error_type) == ("failed", "ContextTooLarge")
    outcome = await nova.run_graph(graph, blob="x" * 3000)
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "limit")
    assert outcome.state.is_failed()


async def test_the_keys_of_a_context_count_too(nova: Nova, limits: Any) -> None:
    """Many of them, or a long name: in a node, over several nodes, and at the start."""
    limits(NOVA_CONTEXT_LIMIT="2000")
    few = "context.update({f'%s{i}': i for i in range(10)})"
    outcome = await nova.run_graph(line(action("a", few % "a"), action("b", few % "b")))
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "limit")
    assert outcome.execution.failed_at_node == "b"
    for code in (few.replace("10", "20") % "a", "context['a' * 2000] = 1"):
        outcome = await nova.run_graph(line(action("at_once", code)))
        assert (outcome.execution.status, outcome.entries[-1].error_type) == ("failed", "ContextTooLarge")
    outcome = await nova.run_graph(line(action("a", "pass")), **{f"key{i}": i for i in range(20)})
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "limit")


@pytest.fixture
async def wire(nova: Nova, limits: Any, database_url: str) -> AsyncIterator[Relay]:
    """The flow's way to PostgreSQL, which the test can cut."""
    async with to_database(database_url) as (relay, url):
        limits(DATABASE_URL=url)
        yield relay
        opened.cache_clear()


async def test_what_a_node_did_is_written_when_the_database_is_back(
    nova: Nova, wire: Relay, ledger: Path
) -> None:
    """It goes away while a node runs and stays away past its end: the node does not run again."""
    cut = ledger.with_name("cut")
    until_cut = "import os\nwhile not os.path.exists(context['cut']): time.sleep(0.02)\n"
    code = HANGS_ONCE.replace("time.sleep(50)", "pass") + "\n" + until_cut
    workflow = await nova.workflow(line(action("slow", code), action("next", "context['next'] = 1")))
    execution = await nova.pending(workflow, {"ledger": str(ledger), "cut": str(cut)})
    running = asyncio.create_task(nova.run(workflow, execution=execution.public_id))
    await until_started(ledger)
    await wire.cut()
    cut.touch()
    done, _ = await asyncio.wait({running}, timeout=2)
    assert not done
    await wire.restore()
    outcome = await nova.outcome(execution.id, await running)
    assert (outcome.execution.status, outcome.execution.attempt) == ("completed", 1)
    assert len(starts(ledger)) == 1
    assert outcome.context["next"] == 1


async def test_a_row_whose_commit_was_not_answered_is_written_once(
    nova: Nova, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit came through and its answer did not: the second try finds the row, and the run goes on."""
    unanswered: list[Callable[[Session], Any]] = []
    run = Database.run

    async def lose_the_first_answer(database: Database, work: Callable[[Session], Any]) -> Any:
        answer = await run(database, work)
        if "_record" in work.__qualname__ and work not in unanswered:
            unanswered.append(work)
            raise DatabaseUnavailableError("PostgreSQL does not answer.")
        return answer

    monkeypatch.setattr(Database, "run", lose_the_first_answer)
    outcome = await nova.run_graph(line(action("a", "context['a'] = 1"), action("b", "context['b'] = 2")))
    assert len(unanswered) == 4
    assert [(row.node_id, row.attempt) for row in outcome.entries] == [
        ("start", 1),
        ("a", 1),
        ("b", 1),
        ("end", 1),
    ]
    assert outcome.execution.status == "completed"
    assert outcome.context == {"a": 1, "b": 2}


async def test_a_last_word_whose_commit_was_not_answered_stands(
    nova: Nova, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said again under the lease, which outlasts it until Prefect has heard it, and changes nothing."""
    workflow = await nova.workflow(line(action("writes", HANGS_ONCE.replace("time.sleep(50)", "pass"))))
    execution = await nova.pending(workflow, {"ledger": str(ledger)})
    run, lost = Database.run, 0

    async def lose_the_last_answer(database: Database, work: Callable[[Session], Any]) -> Any:
        nonlocal lost
        answer = await run(database, work)
        row = await run(nova.database, lambda session: executions.get(session, execution.id))
        if row.status == "completed" and not lost:
            lost += 1
            raise DatabaseUnavailableError("PostgreSQL does not answer.")
        return answer

    monkeypatch.setattr(Database, "run", lose_the_last_answer)
    state = await nova.run(workflow, execution=execution.public_id)
    assert (lost, state.name) == (1, "Completed")
    outcome = await nova.outcome(execution.id, state)
    row = outcome.execution
    assert (row.status, row.attempt, row.lease_owner, row.error) == ("completed", 1, None, None)
    assert len(starts(ledger)) == 1


async def test_a_run_that_lost_its_lease_says_nothing(nova: Nova, ledger: Path, limits: Any) -> None:
    """Another process took the execution over in the middle of a node: no row, no state, no sandbox."""
    limits(NOVA_LEASE_SECONDS="0.6")
    workflow = await nova.workflow(line(action("hangs", HANGS_ONCE, timeout=60)))
    execution = await nova.pending(workflow, {"ledger": str(ledger)})
    running = asyncio.create_task(nova.run(workflow, execution=execution.public_id))
    await until_started(ledger)

    other = await nova.database.run(lambda session: recoveries.recover(session, execution.id, None, 30))
    with pytest.raises(Abort):
        await running
    outcome = await nova.outcome(execution.id, State(type="RUNNING"))
    assert (outcome.execution.status, outcome.execution.lease_owner) == ("running", other.owner)
    assert [entry.node_id for entry in outcome.entries] == ["start"]
    assert (await nova.prefect.read_flow_run(outcome.flow_run_id)).state_name == "Running"
