"""Executions over HTTP: lists, one of them, and the Chain of Work put together from what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from flows.credentials.cipher import Cipher
from flows.graphs.lifecycle import Status
from flows.store.database import Database
from flows.store.models import ContextValue
from flows.store.transitions import submissions
from tests.api.runs import Run
from tests.builders import action, fresh_name, line
from tests.statements import Statement, recorded

Start = Callable[..., Any]

ENTRY = [
    "id",
    "execution_id",
    "node_id",
    "node_type",
    "code_executed",
    "input_context",
    "output_result",
    "execution_time",
    "status",
    "error_message",
    "decision_result",
    "path_taken",
    "timestamp",
]
"""The contract's fields of a chain entry."""


@pytest.fixture
async def completed(start: Start) -> Run:
    """A run that went through all of its nodes, one of them at the second attempt."""
    _, run = await start(initial_context={"mailbox": "INBOX"})
    await run.begin()
    await run.step("start", "start")
    await run.step(
        "read",
        status="failed",
        error_message="ValueError: no",
        error_type="ValueError",
        traceback="Traceback: line 1",
        stderr="oh",
    )
    await run.step("read", changes={"amount": 1200, "mailbox": "Archive"}, stdout="one mail")
    await run.step("high", "decision", decision_result="true", path_taken="approve")
    await run.step("approve", changes={"approved": False})
    await run.step("end", "end")
    await run.finish()
    assert isinstance(run, Run)
    return run


async def test_a_completed_execution_has_its_result(
    api: httpx.AsyncClient, completed: Run, workflow: dict[str, Any]
) -> None:
    """GET /executions/{id}: the contract's fields, with the final context."""
    body = (await api.get(f"/executions/{completed.execution_id}")).json()
    assert body["result"] == {
        "execution_id": completed.execution_id,
        "status": "success",
        "nodes_executed": 5,
        "final_context": {"mailbox": "Archive", "amount": 1200, "approved": False},
    }
    assert (body["id"], body["workflow_id"]) == (completed.execution_id, workflow["id"])
    assert (body["status"], body["error"], body["workflow_version"]) == ("completed", None, 1)
    for moment in ("started_at", "completed_at", "created_at"):
        assert body[moment].endswith("Z")


async def test_an_execution_that_is_not_over_has_no_result(api: httpx.AsyncClient, start: Start) -> None:
    """Pending, running and failed ones have null there."""
    task_id, run = await start()
    pending = (await api.get("/executions/1")).json()
    assert (pending["status"], pending["result"], pending["started_at"]) == ("pending", None, None)
    assert (pending["task_id"], pending["workflow_version"]) == (task_id, None)
    await run.begin()
    assert (await api.get("/executions/1")).json()["status"] == "running"
    await run.finish(Status.FAILED, error="Boom", node="read")
    failed = (await api.get("/executions/1")).json()
    assert (failed["result"], failed["error"], failed["failed_at_node"]) == (None, "Boom", "read")


async def test_executions_are_listed_newest_first(
    api: httpx.AsyncClient, start: Start, completed: Run
) -> None:
    """`{executions, total}` with filters by workflow and status; results come without their context."""
    _, run = await start()
    await run.begin()
    body = (await api.get("/executions")).json()
    assert [row["id"] for row in body["executions"]] == [2, 1]
    assert body["executions"][1]["result"] == {"execution_id": 1, "status": "success", "nodes_executed": 5}
    assert body["total"] == 2
    assert (await api.get("/executions?status=running")).json()["total"] == 1
    assert (await api.get("/executions?status=failed")).json() == {"executions": [], "total": 0}
    page = (await api.get("/executions?skip=1&limit=1")).json()
    assert ([row["id"] for row in page["executions"]], page["total"]) == ([1], 2)


async def test_executions_are_filtered_by_workflow(
    api: httpx.AsyncClient, start: Start, workflow: dict[str, Any]
) -> None:
    """An unknown workflow has none, whatever its number; empty filters filter nothing."""
    await start()
    other = {"name": fresh_name(), "graph_definition": line(action("a", "pass"))}
    other_id = (await api.post("/workflows", json=other)).json()["id"]
    await api.post(f"/workflows/{other_id}/execute")
    listed = (await api.get("/executions", params={"workflow_id": other_id})).json()
    assert [row["workflow_id"] for row in listed["executions"]] == [other_id]
    assert (await api.get("/executions?workflow_id=&status=")).json()["total"] == 2
    for number in (99, -1, 2**31, 10**30):
        assert (await api.get(f"/executions?workflow_id={number}")).json()["total"] == 0
    assert (await api.get("/executions?status=done")).status_code == 422
    assert (await api.get("/executions?workflow_id=x")).status_code == 422


async def test_the_chain_has_every_field_in_order(
    api: httpx.AsyncClient, completed: Run, invoices: dict[str, Any]
) -> None:
    """By default with both whole contexts of each node."""
    body = (await api.get(f"/executions/{completed.execution_id}/chain")).json()
    entries = body["entries"]
    assert (body["execution_id"], body["total"], len(entries)) == (completed.execution_id, 6, 6)
    assert all(list(entry)[:13] == ENTRY for entry in entries)
    assert [(entry["step"], entry["attempt"]) for entry in entries] == [
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 1),
        (4, 1),
    ]
    codes = {node["id"]: node.get("code") for node in invoices["nodes"]}
    assert all(entry["code_executed"] == codes[entry["node_id"]] for entry in entries)
    before, after = {"mailbox": "INBOX"}, {"mailbox": "Archive", "amount": 1200}
    failed, read, high = entries[1:4]
    assert (failed["input_context"], failed["output_result"]) == (before, None)
    assert (failed["status"], failed["error_message"]) == ("failed", "ValueError: no")
    assert (failed["error_type"], failed["traceback"], failed["stderr"]) == (
        "ValueError",
        "Traceback: line 1",
        "oh",
    )
    assert (read["input_context"], read["output_result"], read["stdout"]) == (before, after, "one mail")
    assert (read["label"], read["execution_time"]) == ("Read the invoice", 0.25)
    assert (high["input_context"], high["output_result"]) == (after, after)
    assert (high["decision_result"], high["path_taken"]) == ("true", "approve")
    assert entries[5]["output_result"] == after | {"approved": False}
    assert all(entry["timestamp"].endswith("Z") for entry in entries)


async def test_the_chain_may_come_with_less(api: httpx.AsyncClient, completed: Run) -> None:
    """`contexts=changes` gives what a node changed, `none` neither context; anything else is refused."""
    address = f"/executions/{completed.execution_id}/chain"
    changes = (await api.get(address, params={"contexts": "changes"})).json()["entries"]
    assert [entry["output_result"] for entry in changes] == [
        {},
        None,
        {"amount": 1200, "mailbox": "Archive"},
        {},
        {"approved": False},
        {},
    ]
    assert {entry["input_context"] for entry in changes} == {None}
    none = (await api.get(address, params={"contexts": "none"})).json()["entries"]
    assert {entry["output_result"] for entry in none} == {None}
    assert (await api.get(address, params={"contexts": "some"})).status_code == 422


async def test_the_chain_comes_in_pages(api: httpx.AsyncClient, completed: Run) -> None:
    """`total` counts all entries; a page begins with the right context, an empty one is empty."""
    address = f"/executions/{completed.execution_id}/chain"
    whole = (await api.get(address)).json()["entries"]
    for skip in range(7):
        for limit in (1, 2, 1000):
            page = (await api.get(address, params={"skip": skip, "limit": limit})).json()
            assert page["entries"] == whole[skip : skip + limit]
            assert page["total"] == 6
    assert (await api.get(address, params={"limit": 0})).status_code == 422


async def test_a_long_chain_comes_whole(api: httpx.AsyncClient, start: Start) -> None:
    """Old clients know of no pages here: without a limit all entries come, however many."""
    _, run = await start()
    await run.begin()
    for number in range(70):
        await run.step("read", changes={"count": number, f"key{number}": "x"})
    await run.finish()
    body = (await api.get(f"/executions/{run.execution_id}/chain")).json()
    assert (body["total"], len(body["entries"])) == (70, 70)
    assert [entry["output_result"]["count"] for entry in body["entries"]] == list(range(70))
    assert len(body["entries"][69]["output_result"]) == 71


async def test_a_run_stays_with_the_version_it_started_with(
    api: httpx.AsyncClient, completed: Run, workflow: dict[str, Any]
) -> None:
    """The chain shows the code that ran, though the workflow has another now."""
    graph = json.loads(json.dumps(workflow["graph_definition"]).replace("1200", "9999"))
    await api.put(f"/workflows/{workflow['id']}", json={"graph_definition": graph})
    entries = (await api.get(f"/executions/{completed.execution_id}/chain")).json()["entries"]
    assert entries[1]["code_executed"] == "context['amount'] = 1200"
    assert (await api.get(f"/executions/{completed.execution_id}")).json()["workflow_version"] == 1


async def test_an_expression_is_shown_as_the_code(
    api: httpx.AsyncClient, database: Database, cipher: Cipher
) -> None:
    """A decision that is given as an expression has that in `code_executed`."""
    graph = {
        "nodes": [
            {"id": "s", "type": "start"},
            {"id": "d", "type": "decision", "condition": "context['x'] > 1"},
            {"id": "e", "type": "end"},
        ],
        "edges": [
            {"from": "s", "to": "d"},
            {"from": "d", "to": "e", "condition": True},
            {"from": "d", "to": "e", "condition": "false"},
        ],
    }
    made = (await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph})).json()
    queued = (await api.post(f"/workflows/{made['id']}/execute")).json()
    run = Run(database, cipher, queued["task_id"])
    await run.begin()
    await run.step("d", "decision", decision_result="false", path_taken="e")
    entry = (await api.get("/executions/1/chain")).json()["entries"][0]
    assert entry["code_executed"] == "context['x'] > 1"


async def test_any_value_comes_back_as_it_was(api: httpx.AsyncClient, start: Start) -> None:
    """NUL, lone surrogates and long integers, in contexts, keys, outputs and errors."""
    odd = 'a\0b"\\\n\ud83d'
    context = {f"key{odd}": odd, "long": 10**999, "deep": [[[[]]]], "float": 1e-300, "none": None}
    task_id, run = await start()
    await run.begin()
    await run.step("read", status="failed", error_message=odd, traceback=odd, stderr=odd)
    await run.step("read", changes=context, stdout=odd)
    await run.finish()
    response = await api.get(f"/executions/{run.execution_id}/chain")
    failed, read = response.json()["entries"]
    assert response.content.isascii()
    assert (read["output_result"], read["stdout"]) == (context, odd)
    assert (failed["error_message"], failed["traceback"], failed["stderr"]) == (odd, odd, odd)
    result = (await api.get(f"/tasks/{task_id}")).json()["result"]
    assert result["final_context"] == context
    execution = (await api.get(f"/executions/{run.execution_id}")).json()
    assert execution["result"]["final_context"] == context


async def test_a_sealed_value_is_shown_as_stars(
    api: httpx.AsyncClient, start: Start, database: Database
) -> None:
    """A connection string that a node built from a secret is in no answer, and encrypted at rest."""
    secret = "hunter2-and-more"
    task_id, run = await start(initial_context={"db_password": secret})
    await run.begin()
    await run.step("read", changes={"dsn": f"postgresql://u:{secret}@h/d", "open": 1}, secrets=(secret,))
    await run.finish()
    answers = [
        await api.get(f"/tasks/{task_id}"),
        await api.get(f"/executions/{run.execution_id}"),
        await api.get(f"/executions/{run.execution_id}/chain"),
        await api.get(f"/executions/{run.execution_id}/chain?contexts=changes"),
    ]
    assert all(secret not in answer.text for answer in answers)
    final = answers[0].json()["result"]["final_context"]
    assert final == {"db_password": "***", "dsn": "***", "open": 1}
    assert answers[2].json()["entries"][0]["output_result"] == final
    stored = await database.run(lambda session: session.scalars(select(ContextValue.data)).all())
    assert all(secret.encode() not in bytes(data) for data in stored)


async def test_what_was_never_started_is_cancelled(
    api: httpx.AsyncClient, workflow: dict[str, Any], database: Database
) -> None:
    """An execution that Prefect never confirmed has no task id, an empty chain, and says so."""
    row = await database.run(
        lambda session: submissions.create(
            session, workflow_id=workflow["id"], client=None, priority="normal", initial={}
        )
    )
    await database.run(lambda session: submissions.refuse(session, row.id, "The run was never started."))
    body = (await api.get(f"/executions/{row.id}")).json()
    assert (body["status"], body["task_id"], body["error"]) == (
        "cancelled",
        None,
        "The run was never started.",
    )
    chain = (await api.get(f"/executions/{row.id}/chain")).json()
    assert chain == {"execution_id": row.id, "entries": [], "total": 0}


async def test_a_long_chain_costs_what_it_holds(api: httpx.AsyncClient, start: Start) -> None:
    """The whole reads each row once; a page, wherever it begins, its own rows and the keys before it."""
    _, run = await start()
    await run.begin()
    for number in range(130):
        await run.step("read", changes={"count": number})
    address = f"/executions/{run.execution_id}/chain"
    with recorded() as whole:
        body = (await api.get(address)).json()
    assert [entry["output_result"] for entry in body["entries"]] == [{"count": n} for n in range(130)]
    assert sum(one.rows for one in whole if "chain_entries" in one.sql) == 130 + 1
    assert len([one for one in whole if "context_values" in one.sql]) == 7  # one for twenty rows

    def rows(found: list[Statement]) -> int:
        return sum(one.rows for one in found)

    costs = []
    for skip in (0, 60, 120):
        with recorded() as page:
            entries = (await api.get(address, params={"skip": skip, "limit": 10})).json()["entries"]
        assert entries == body["entries"][skip : skip + 10]
        costs.append((len(page), rows(page)))
    assert costs[1] == costs[2]
    assert costs[2][1] <= costs[0][1] + 2
