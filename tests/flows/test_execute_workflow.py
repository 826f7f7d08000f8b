"""A run, start to end: what the flow leaves in the database, in Prefect and on the machine."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from sqlalchemy import text
from sqlalchemy.orm import Session

from flows.store import executions
from flows.store.transitions import submissions
from tests.builders import action, decision, expression, fork, line
from tests.flows.conftest import Nova, Outcome
from tests.servers import nap, running
from tests.waiting import eventually


async def graph_edges(nova: Nova, outcome: Outcome) -> dict[str, set[str]]:
    """Return what the UI draws: task name → names of the tasks that its arrows come from.

    A set, since the server repeats a parent once per parameter of the task.
    """
    response = await nova.prefect._client.get(f"/flow_runs/{outcome.flow_run_id}/graph-v2")
    nodes = dict(response.json()["nodes"])
    return {
        node["label"]: {nodes[parent["id"]]["label"] for parent in node["parents"]} for node in nodes.values()
    }


async def test_graph_runs_from_start_to_end(nova: Nova) -> None:
    """Each node sees what those before it left; every step is a row, and the run is completed."""
    outcome = await nova.run_graph(
        line(action("double", "context['n'] *= 2"), action("name", "context['who'] = 'Ana'")), n=21
    )
    assert outcome.context == {"n": 42, "who": "Ana"}
    assert [(e.step, e.node_id, e.node_type, e.status) for e in outcome.entries] == [
        (0, "start", "start", "success"),
        (1, "double", "action", "success"),
        (2, "name", "action", "success"),
        (3, "end", "end", "success"),
    ]
    assert (outcome.execution.status, outcome.execution.attempt) == ("completed", 1)
    assert outcome.execution.completed_at is not None
    assert outcome.state.type == StateType.COMPLETED


async def test_failed_node_fails_the_run_with_its_error(nova: Nova) -> None:
    """The node's error is the flow run's message; the row has type, message and the node's own lines."""
    outcome = await nova.run_graph(
        line(action("ok", "context['a'] = 1"), action("boom", "x = 1\nraise ValueError('no total')"))
    )
    assert outcome.state.type == StateType.FAILED
    assert "ValueError: no total" in (outcome.state.message or "")
    execution, entry = outcome.execution, outcome.entries[-1]
    assert (execution.status, execution.failed_at_node, execution.error_kind) == ("failed", "boom", "node")
    assert execution.error == "ValueError: no total"
    assert (entry.status, entry.error_type) == ("failed", "ValueError")
    assert "line 2" in (entry.traceback or "")
    assert "raise ValueError('no total')" in (entry.traceback or "")
    assert outcome.context == {"a": 1}


@pytest.mark.real_prefect
async def test_prefect_draws_the_graph_that_ran(nova: Nova) -> None:
    """One task run per action and decision, named after the node, each with an arrow from the one before."""
    graph = fork(
        action("read", "context['total'] = 1500", label="Read the mail"),
        decision("check", "context['branch_decision'] = context['total'] > 1000", label="High?"),
        true=action("ask", "context['asked'] = True", label="Ask the boss"),
        false=action("book", "context['booked'] = True"),
    )
    outcome = await nova.run_graph(graph)
    assert outcome.path == ["start", "read", "check", "ask", "end"]
    # Task runs reach the server as events, some moments after the run.
    drawn = {"Read the mail": set(), "High?": {"Read the mail"}, "Ask the boss": {"High?"}}
    await eventually(lambda: graph_edges(nova, outcome), lambda found: found == drawn)


async def test_decisions_by_truth_label_and_expression(nova: Nova) -> None:
    """A decision picks its way by truth, by a label, or as an expression; the row says which."""
    by_label = fork(
        action("a", "context['n'] = 2"),
        decision("size", "context['branch_decision'] = ['none', 'one', 'two'][context['n']]"),
        one=action("x", "pass"),
        two=action("y", "pass"),
    )
    by_expression = fork(
        action("a", "context['items'] = [1, 2, 3]"),
        expression("any", "any(item > limit for item in items)"),
        true=action("x", "pass"),
        false=action("y", "pass"),
    )
    outcome = await nova.run_graph(by_label)
    assert outcome.path == ["start", "a", "size", "y", "end"]
    assert (outcome.entries[2].decision_result, outcome.entries[2].path_taken) == ("two", "y")
    outcome = await nova.run_graph(by_expression, limit=5)
    assert (outcome.entries[2].decision_result, outcome.entries[2].path_taken) == ("false", "y")


async def test_decision_without_a_way_names_the_ways(nova: Nova) -> None:
    """An answer that is no label of the decision fails the run and says which labels there are."""
    outcome = await nova.run_graph(
        fork(
            action("a", "pass"),
            decision("d", "context['branch_decision'] = 'three'"),
            one=action("x", "pass"),
            two=action("y", "pass"),
        )
    )
    assert outcome.execution.status == "failed"
    assert outcome.execution.failed_at_node == "d"
    assert all(word in (outcome.execution.error or "") for word in ("three", "one", "two"))


async def test_loop_runs_and_is_bounded(nova: Nova) -> None:
    """A graph may loop; one that never ends is stopped at max_steps with a sentence that says so."""
    graph: dict[str, Any] = {
        "nodes": [
            {"id": "start", "type": "start"},
            action("count", "context['n'] = context.get('n', 0) + 1"),
            expression("enough", "n >= limit"),
            {"id": "end", "type": "end"},
        ],
        "edges": [
            {"from": "start", "to": "count"},
            {"from": "count", "to": "enough"},
            {"from": "enough", "to": "end", "condition": "true"},
            {"from": "enough", "to": "count", "condition": "false"},
        ],
        "max_steps": 12,
    }
    outcome = await nova.run_graph(graph, limit=3)
    assert outcome.context["n"] == 3
    assert outcome.execution.status == "completed"
    outcome = await nova.run_graph(graph, limit=1000)
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "limit")
    assert "max_steps" in (outcome.execution.error or "")
    assert len(outcome.entries) == 12


async def test_output_of_a_node_is_kept(nova: Nova) -> None:
    """Stdout and stderr stand in the row, even where the last line printed is JSON."""
    outcome = await nova.run_graph(
        line(action("say", "import sys\nprint('hello')\nprint('{\"n\": 1}')\nprint('oops', file=sys.stderr)"))
    )
    entry = outcome.entries[1]
    assert (entry.stdout, entry.stderr) == ('hello\n{"n": 1}\n', "oops\n")
    assert outcome.context == {}


async def test_secrets_reach_the_nodes_and_nothing_else(nova: Nova) -> None:
    """Nodes read the client's password; no table, no Prefect record and no output contains it."""
    password = 'p"4ss\\wörd%'
    client = await nova.client(password)
    workflow = await nova.workflow(
        line(
            action(
                "use",
                "pw = context['email_password']\n"
                "context['length'] = len(pw)\n"
                "context['url'] = f'imap://{pw}@{context[\"imap_host\"]}'\n"
                "context['email_password'] = 'changed ' + pw\n"
                "print('password:', pw)",
            ),
            action("again", "context['seen'] = context['email_password'].startswith('changed ')"),
            action("fail", "raise RuntimeError('login failed for ' + context['email_password'])"),
        )
    )
    execution = await nova.pending(workflow, {"n": 1}, client)
    state = await nova.run(workflow, execution=execution.public_id)
    outcome = await nova.outcome(execution.id, state)
    assert outcome.context["length"] == len(password)
    assert outcome.context["seen"] is True
    assert outcome.context["url"] == "***"
    assert "email_password" not in outcome.context
    assert outcome.context["imap_host"] == "127.0.0.1"
    assert outcome.context["client_slug"] == client
    assert "login failed for changed ***" in (outcome.execution.error or "")
    assert "***" in outcome.entries[1].stdout
    assert "4ss" not in (state.message or "")
    assert not await nova.database.run(lambda session: _find_in_all_tables(session, "4ss"))


def _find_in_all_tables(session: Session, needle: str) -> list[str]:
    tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
    return [
        table
        for table in tables
        if session.scalar(
            text(f"SELECT count(*) FROM {table} t WHERE t::text LIKE :needle"), {"needle": f"%{needle}%"}
        )
    ]


async def test_password_given_by_the_caller_is_sealed(nova: Nova) -> None:
    """A password in the initial context reaches the node and is stored encrypted."""
    outcome = await nova.run_graph(
        line(action("use", "context['ok'] = len(context['db_password']) == 13")),
        db_password="given-by-hand",
    )
    assert outcome.context == {"db_password": "***", "ok": True}
    assert not await nova.database.run(lambda session: _find_in_all_tables(session, "given-by-hand"))


async def test_run_without_a_row_makes_its_own(nova: Nova) -> None:
    """A run from the UI, the CLI or a schedule gets its row, a readable name and its tags from the flow."""
    client = await nova.client()
    workflow = await nova.workflow(line(action("a", "context['b'] = context['a'] + 1")))
    state = await nova.run(workflow, client_slug=client, initial_context={"a": 1})
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    execution = await nova.database.run(lambda session: executions.by_task(session, flow_run_id))
    assert execution is not None
    outcome = await nova.outcome(execution.id, state)
    assert outcome.execution.status == "completed"
    assert outcome.context["b"] == 2
    flow_run = await nova.prefect.read_flow_run(flow_run_id)
    assert flow_run.name == f"{workflow.slug} #{execution.id} {client}"
    assert {f"workflow:{workflow.slug}", f"client:{client}"} <= set(flow_run.tags)


async def test_unknown_client_or_workflow_is_a_clear_failure(nova: Nova) -> None:
    """A run from the UI with a wrong client or workflow fails with a sentence that names it."""
    workflow = await nova.workflow(line(action("a", "pass")))
    state = await nova.run(workflow, client_slug="nobody")
    assert state.type == StateType.FAILED
    assert "nobody" in (state.message or "")
    workflow.id = 999_999
    state = await nova.run(workflow)
    assert state.type == StateType.FAILED
    assert "999999" in (state.message or "")


async def test_rejected_execution_is_never_run(nova: Nova) -> None:
    """After a 503 a late flow run of that execution runs nothing and says why."""
    workflow = await nova.workflow(line(action("a", "context['ran'] = True")))
    execution = await nova.pending(workflow)
    await nova.database.run(lambda session: submissions.refuse(session, execution.id, "Prefect is down"))
    state = await nova.run(workflow, execution=execution.public_id)
    outcome = await nova.outcome(execution.id, state)
    assert state.type == StateType.CANCELLED
    assert outcome.entries == []
    assert (outcome.execution.status, outcome.execution.error_kind) == ("cancelled", "not_started")


async def test_finished_execution_is_not_run_again(nova: Nova) -> None:
    """Retrying a run that succeeded does nothing."""
    workflow = await nova.workflow(line(action("a", "context['n'] = context.get('n', 0) + 1")))
    execution = await nova.pending(workflow)
    await nova.run(workflow, execution=execution.public_id)
    state = await nova.run(workflow, execution=execution.public_id)
    outcome = await nova.outcome(execution.id, state)
    assert outcome.context == {"n": 1}
    assert len(outcome.entries) == 3
    assert outcome.execution.status == "completed"


async def test_run_that_takes_too_long_is_stopped(nova: Nova, limits: Callable[..., None]) -> None:
    """At the run's limit the node and what it started are killed, and the run fails with a clear sentence."""
    limits(NOVA_RUN_TIMEOUT="1.5", NOVA_RUN_WARNING="0.5")
    seconds = nap()
    outcome = await nova.run_graph(
        line(action("slow", f"import subprocess\nsubprocess.run(['sleep', '{seconds}'])", timeout=60))
    )
    assert (outcome.execution.status, outcome.execution.error_kind) == ("failed", "limit")
    assert "1.5 s" in (outcome.execution.error or "")
    assert "1.5 s" in (outcome.state.message or "")
    assert not running(seconds)


async def test_long_run_is_warned_of(
    nova: Nova, limits: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that comes near its limit says so in its log."""
    limits(NOVA_RUN_TIMEOUT="30", NOVA_RUN_WARNING="0.2")
    await nova.run_graph(line(action("slow", "import time\ntime.sleep(1)")))
    assert any("has taken 0.2 s" in record.getMessage() for record in caplog.records)


async def test_node_timeout_fails_the_node(nova: Nova) -> None:
    """A node past its own timeout is killed and the run says which node and how long."""
    outcome = await nova.run_graph(line(action("hang", "while True: pass", timeout=1)))
    assert outcome.execution.failed_at_node == "hang"
    assert outcome.entries[-1].error_type == "NodeTimeout"


async def test_hostile_names_and_errors_are_survived(nova: Nova) -> None:
    """NUL and lone surrogates in labels, values, outputs and errors break neither PostgreSQL nor Prefect."""
    bad = "nul \0 lone \ud800 quote ' \" back \\ slash"
    outcome = await nova.run_graph(
        line(
            action("keep", "context['copy'] = context['v']\nprint('\\0 \\ud800'.encode('utf-8', 'replace'))"),
            action("label", "raise ValueError(context['v'])", label=bad),
        ),
        v=bad,
    )
    assert outcome.context == {"v": bad, "copy": bad}
    assert outcome.execution.error == f"ValueError: {bad}"
    assert outcome.state.type == StateType.FAILED


async def test_database_holds_ten_megabytes_once(nova: Nova) -> None:
    """A context of 10 MB that cannot be compressed costs its size once, however many nodes pass it on."""
    blob = "".join(random.Random(7).choices(string.ascii_letters + string.digits + "+/", k=10_000_000))
    graph = line(*(action(f"n{i}", f"context['step'] = {i}") for i in range(10)))

    def size(session: Session) -> int:
        return int(
            session.scalar(
                text(
                    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
                    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
                )
            )
            or 0
        )

    before = await nova.database.run(size)
    outcome = await nova.run_graph(graph, blob=blob)
    assert outcome.execution.status == "completed"
    assert outcome.context["blob"] == blob
    assert await nova.database.run(size) - before <= 1.2 * len(blob)
