"""The same graph, the same result, however the run was started; and the ways to stop or retry one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry

from tests.builders import action, decision, fork, line
from tests.nova_up import NovaUp
from tests.servers import clean_environment, nap, running, wait_until


@pytest.fixture(scope="module")
def sums(up: NovaUp) -> dict[str, Any]:
    """A workflow that adds up, with a schedule of every minute set over the API."""
    graph = fork(
        action("sum", "context['sum'] = sum(context.get('numbers', [1, 2]))", label="Add up"),
        decision("odd", "context['branch_decision'] = context['sum'] % 2 == 1", label="Odd?"),
        true=action("yes", "context['odd'] = True"),
        false=action("no", "context['odd'] = False"),
    )
    workflow = up.workflow(graph)
    schedule = up.http.post(f"/workflows/{workflow['id']}/schedules", json={"cron": "* * * * *"})
    assert schedule.status_code == 201, schedule.text
    return workflow


RESULT = {"sum": 3, "odd": True}
PATH = ["start", "sum", "odd", "yes", "end"]


def check(nova: NovaUp, task_id: str, **given: Any) -> dict[str, Any]:
    """Wait for a run of `sums` and check what came of it."""
    task = nova.finished(task_id)
    assert task["status"] == "SUCCESS", task
    final = {key: value for key, value in task["result"]["final_context"].items() if key != "branch_decision"}
    assert final == {**given, **RESULT}
    assert [entry["node_id"] for entry in nova.chain(task, "none")] == PATH
    return task


def test_by_post(nova: NovaUp, sums: dict[str, Any]) -> None:
    """POST /workflows/{id}/execute."""
    check(nova, nova.execute(sums, initial_context={"numbers": [1, 2]}), numbers=[1, 2])


def prefect_cli(nova: NovaUp, home: Path, *command: str) -> str:
    """What `prefect …` prints; fails where it does."""
    return subprocess.run(
        [sys.executable, "-m", "prefect", *command],
        env=clean_environment(PREFECT_API_URL=f"{nova.prefect_url}/api", PREFECT_HOME=str(home)),
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_by_prefects_cli(nova: NovaUp, sums: dict[str, Any], tmp_path: Path) -> None:
    """`prefect deployment run 'execute-workflow/<slug>'` with parameters."""
    parameters = '{"initial_context": {"numbers": [1, 2]}}'
    said = prefect_cli(
        nova, tmp_path, "deployment", "run", f"execute-workflow/{sums['slug']}", "--params", parameters
    )
    task_id = next(row.split()[-1] for row in said.splitlines() if "UUID:" in row)
    check(nova, task_id, numbers=[1, 2])


def test_by_the_button_in_the_ui(nova: NovaUp, sums: dict[str, Any]) -> None:
    """The UI's Run sends the form's values to create_flow_run, as here; wrong ones are refused there."""
    deployment = nova.prefect.read_deployment_by_name(f"execute-workflow/{sums['slug']}")
    url = f"/deployments/{deployment.id}/create_flow_run"
    form = {"workflow_id": sums["id"], "client_slug": None, "initial_context": {"numbers": [1, 2]}}
    answer = nova.prefect._client.post(url, json={"parameters": form, "state": {"type": "SCHEDULED"}})
    check(nova, answer.json()["id"], numbers=[1, 2])
    with pytest.raises(httpx.HTTPStatusError):
        nova.prefect._client.post(url, json={"parameters": {**form, "initial_context": "no object"}})


def test_prefect_draws_the_run_by_its_nodes_names(nova: NovaUp, sums: dict[str, Any]) -> None:
    """The server's graph of a run has a task per action and decision, chained as they ran, by name."""
    task_id = nova.execute(sums)
    check(nova, task_id)

    def edges() -> dict[str, set[str]]:
        nodes = dict(nova.prefect._client.get(f"/flow_runs/{task_id}/graph-v2").json()["nodes"])
        return {n["label"]: {nodes[p["id"]]["label"] for p in n["parents"]} for n in nodes.values()}

    expected = {"Add up": set(), "Odd?": {"Add up"}, "yes": {"Odd?"}}
    wait_until(lambda: edges() == expected, 60, "the tasks to reach the server")
    flow_run = nova.prefect.read_flow_run(task_id)  # type: ignore[arg-type]
    assert flow_run.name.startswith(f"{sums['slug']} #")
    assert f"workflow:{sums['slug']}" in flow_run.tags


def test_cancelled_in_prefect(nova: NovaUp) -> None:
    """Cancelling a run in Prefect ends its node's process; its task is REVOKED, its execution cancelled."""
    sleep = f"sleep {nap()}"
    workflow = nova.workflow(
        line(action("wait", f"import subprocess\nsubprocess.run({sleep.split()})", timeout=60))
    )
    task_id = nova.execute(workflow)
    wait_until(lambda: running(sleep), 60, "the node to run")
    assert nova.task(task_id)["meta"]["progress"]["current_node"] == "wait"
    nova.prefect._client.post(
        f"/flow_runs/{task_id}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}}
    )
    wait_until(lambda: not running(sleep), 60, "the node to be killed")
    wait_until(lambda: nova.task(task_id)["status"] == "REVOKED", 60, "the task to be revoked")
    executions = nova.http.get("/executions", params={"workflow_id": workflow["id"]}).json()["executions"]
    wait_until(
        lambda: nova.http.get(f"/executions/{executions[0]['id']}").json()["status"] == "cancelled",
        60,
        "the execution to be cancelled",
    )


@pytest.mark.parametrize("way", ["cli", "ui", "api"])
def test_retried(nova: NovaUp, tmp_path: Path, way: str) -> None:
    """A run that failed goes on behind its last good node; the Chain of Work has every attempt."""
    cause, note = tmp_path / "cause", f"open({str(tmp_path / 'ledger')!r}, 'a').write('first ')"
    cause.touch()
    fails = f"import os\nassert not os.path.exists({str(cause)!r}), 'the cause is there'"
    workflow = nova.workflow(line(action("first", note + "\ncontext['first'] = 1"), action("second", fails)))
    task_id = nova.execute(workflow)
    assert nova.finished(task_id)["status"] == "FAILURE"
    cause.unlink()
    if way == "cli":
        wait_until(lambda: nova.prefect.read_flow_run(UUID(task_id)).state_name == "Failed", 60, "its end")
        prefect_cli(nova, tmp_path, "flow-run", "retry", task_id)
    elif way == "ui":
        wait_until(lambda: nova.prefect.read_flow_run(UUID(task_id)).state_name == "Failed", 60, "its end")
        nova.prefect.set_flow_run_state(UUID(task_id), AwaitingRetry())
    else:
        assert nova.http.post(f"/tasks/{task_id}/retry").status_code == 202
    wait_until(lambda: nova.task(task_id)["status"] == "SUCCESS", 60, "the run to succeed")
    entries = nova.chain(nova.task(task_id), "none")
    assert [(entry["node_id"], entry["attempt"], entry["status"]) for entry in entries] == [
        ("start", 1, "success"),
        ("first", 1, "success"),
        ("second", 1, "failed"),
        ("second", 2, "success"),
        ("end", 1, "success"),
    ]
    assert (tmp_path / "ledger").read_text() == "first "


def test_deleting_a_workflow_stops_its_runs(nova: NovaUp) -> None:
    """DELETE cancels what runs, waits for its end, and takes workflow, executions and deployment away."""
    sleep = f"sleep {nap()}"
    workflow = nova.workflow(
        line(action("wait", f"import subprocess\nsubprocess.run({sleep.split()})", timeout=60))
    )
    task_id = nova.execute(workflow)
    wait_until(lambda: running(sleep), 60, "the node to run")
    answer = nova.http.delete(f"/workflows/{workflow['id']}", timeout=120)
    assert answer.status_code == 200, answer.text
    assert not running(sleep)
    assert nova.http.get(f"/workflows/{workflow['id']}").status_code == 404
    assert nova.http.get(f"/tasks/{task_id}").status_code in (200, 404)


def test_by_schedule(nova: NovaUp, sums: dict[str, Any]) -> None:
    """A cron schedule set over the API makes runs that do the same."""

    def scheduled() -> list[FlowRun]:
        deployment = nova.prefect.read_deployment_by_name(f"execute-workflow/{sums['slug']}")
        body = {
            "deployments": {"id": {"any_": [str(deployment.id)]}},
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        found = FlowRun.model_validate_list(nova.prefect._client.post("/flow_runs/filter", json=body).json())
        return [run for run in found if run.auto_scheduled]

    wait_until(lambda: bool(scheduled()), 120, "a scheduled run to be completed")
    run = scheduled()[0]
    assert run.state_type == StateType.COMPLETED
    check(nova, str(run.id))
    paused = nova.http.get(f"/workflows/{sums['id']}/schedules").json()["schedules"][0]
    assert nova.http.delete(f"/workflows/{sums['id']}/schedules/{paused['id']}").status_code == 200
