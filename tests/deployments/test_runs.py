"""`nova runs`: a run that failed, and what an operator does about it, with a worker that goes on."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.builders import action, fresh_name, line
from tests.deployments.conftest import Nova
from tests.nova_up import NovaUp
from tests.servers import wait_until

AWAY = "the mail server is away, and its operator says that nobody knows for how long that is going to last"
GRAPH = line(
    action("mail", f"raise OSError({AWAY!r})"),
    action("note", "context['noted'] = context['sent']"),
)


@pytest.fixture
def api(up: NovaUp) -> list[str]:
    """The option that points a command at the running NOVA."""
    return ["--api-url", up.api_url]


@pytest.fixture
def run(up: NovaUp) -> str:
    """The number of a run that failed at its first node."""
    with httpx.Client(base_url=up.api_url, timeout=60) as client:
        body = {"name": fresh_name("Mail"), "graph_definition": GRAPH}
        workflow = client.post("/workflows", json=body).json()["id"]
        task = client.post(f"/workflows/{workflow}/execute").json()["task_id"]
        wait_until(lambda: client.get(f"/tasks/{task}").json()["status"] == "FAILURE", 60, "the run to fail")
        return str(client.get(f"/tasks/{task}").json()["execution_id"])


def test_a_failed_run_is_retried_and_led_past_its_node(
    nova: Nova, up: NovaUp, api: list[str], run: str
) -> None:
    """It fails again, the node is skipped with what it should have left, and the run completes."""

    def attempts() -> int:
        return nova("runs", "show", run, *api).stdout.count("OSError: the mail server is away")

    listed = nova("runs", "list", "--status", "failed", *api).stdout
    [row] = [row for row in listed.splitlines() if row.split()[:1] == [run]]
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +mail +OSError: .{70}…", row)
    assert attempts() == 2  # its row, and the run's error
    shown = nova("runs", "show", run, *api).stdout
    assert f"OSError: {AWAY}\n" in shown
    assert re.search(r" failed +\d+\.\d{3} ", shown)
    assert nova("runs", "retry", run, *api).stdout == "Task is queued again\n"
    wait_until(lambda: attempts() == 3, 60, "the second attempt to fail")
    wait_until(
        lambda: nova("runs", "skip", run, "1", "--context", '{"sent": "by hand"}', *api).returncode == 0,
        60,
        "the node to be skipped",
    )
    wait_until(lambda: "successfully" in nova("runs", "show", run, *api).stdout, 60, "the run to complete")
    final = httpx.get(f"{up.api_url}/executions/{run}").json()["result"]["final_context"]
    assert final == {"sent": "by hand", "noted": "by hand"}
    refused = nova("runs", "cancel", run, *api)
    assert (refused.returncode, refused.stderr) == (1, f"nova: Execution {run} is completed already.\n")


def test_what_is_wrong_is_said_in_a_sentence(nova: Nova, api: list[str]) -> None:
    """A number that no run has, no number, and a context that is not JSON."""
    assert nova("runs", "show", "999999", *api).stderr == "nova: There is no execution 999999.\n"
    assert nova("runs", "cancel", "abc", *api).returncode == 2
    for context in ("{", "[" * 100_000):
        wrong = nova("runs", "skip", "1", "1", "--context", context, *api)
        assert (wrong.returncode, "--context is not JSON" in wrong.stderr) == (2, True)


def test_a_fault_is_told_once(nova: Nova, api: list[str], run: str) -> None:
    """Its sentence is enough; several faults stand one below the other."""
    one = nova("runs", "skip", run, "1", "--branch", "true", *api)
    assert one.stderr == "nova: branch must be left out: it decides nothing.\n"
    more = nova("runs", "skip", run, "1", "--context", "3", *api)
    assert more.stderr == "nova: The request is not valid:\n  context: Input should be a valid dictionary\n"
