"""The story of a client that was written for the old build, against ours, unchanged."""

from __future__ import annotations

import time
from typing import Any

from tests.builders import action, decision, fork
from tests.nova_up import FINAL, NovaUp


def test_old_client(nova: NovaUp) -> None:
    """Health, list, execute, poll, execution, chain: each answer has what the old client reads from it."""
    graph = fork(
        action("read", "context['amount'] = context['base'] * 2\nprint('read')", timeout=10),
        decision("check", "context['branch_decision'] = context['amount'] > 1000", timeout=5),
        true=action("high", "context['route'] = 'high'"),
        false=action("low", "context['route'] = 'low'"),
    )
    created = nova.workflow(graph, description="An old graph")

    health = nova.http.get("/health").json()
    assert (health["status"], health["database"]) == ("healthy", "connected")

    listed = nova.http.get("/workflows").json()
    assert created["id"] in [workflow["id"] for workflow in listed["workflows"]]
    assert listed["total"] >= 1

    queued = nova.http.post(f"/workflows/{created['id']}/execute", json={"initial_context": {"base": 700}})
    assert queued.status_code == 202
    task_id = queued.json()["task_id"]
    assert queued.json() == {
        "task_id": task_id,
        "status": "queued",
        "workflow_id": created["id"],
        "workflow_name": created["name"],
        "message": f"Workflow queued for execution. Use GET /tasks/{task_id} to check status.",
    }

    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["status"] not in FINAL:
        time.sleep(0.2)  # the old client's own pause, shortened
        seen.append(nova.task(task_id))
    assert {answer["status"] for answer in seen} <= {"PENDING", "RUNNING", "SUCCESS"}
    for answer in seen:
        if answer["status"] == "RUNNING":
            assert {"execution_id", "workflow_id", "workflow_name", "started_at"} <= set(answer["meta"])
    task = seen[-1]
    assert task["message"] == "Task completed successfully"
    result = task["result"]
    assert result["status"] == "success"
    assert result["nodes_executed"] == 5
    assert result["final_context"]["route"] == "high"
    assert result["final_context"]["amount"] == 1400

    execution = nova.http.get(f"/executions/{task['execution_id']}").json()
    assert (execution["status"], execution["error"]) == ("completed", None)
    assert execution["started_at"].endswith("Z")

    entries = nova.chain(task)
    assert [entry["node_type"] for entry in entries] == ["start", "action", "decision", "action", "end"]
    check = entries[2]
    assert (check["decision_result"], check["path_taken"]) == ("true", "high")
    assert check["input_context"]["amount"] == 1400
    assert "branch_decision" in check["code_executed"]
    assert entries[1]["output_result"] == {"base": 700, "amount": 1400}
    assert entries[1]["stdout"] == "read\n"


def test_final_state_is_answered_without_prefect_and_stays(nova: NovaUp) -> None:
    """Asked again, a finished task gives the same answer; one that was never issued is 404."""
    graph = fork(
        action("a", "pass"),
        decision("d", "raise KeyError('x')"),
        true=action("t", "pass"),
        false=action("f", "pass"),
    )
    workflow = nova.workflow(graph)
    task = nova.finished(nova.execute(workflow))
    assert task["status"] == "FAILURE"
    assert "KeyError" in task["error"]
    assert task["failed_at_node"] == "d"
    assert nova.task(task["task_id"]) == task
    assert nova.http.get("/tasks/00000000-0000-4000-8000-000000000000").status_code == 404
