"""What a run costs Prefect's server: its requests are counted over a burst, from POST to the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.access_log import AccessLog
from tests.builders import action, line
from tests.nova_up import NovaUp
from tests.servers import wait_until

ALLOWED = 8
"""Requests per run, of all processes together."""


@pytest.mark.parametrize("runs", [20, pytest.param(60, marks=pytest.mark.long)])
def test_a_run_costs_prefect_few_requests(nova: NovaUp, runs: int) -> None:
    """Of runs that are submitted at once and polled by their clients none costs more than 8 requests."""
    access_log = AccessLog(nova.data.logs / "prefect-server.log")
    workflow = nova.workflow(line(*(action(f"n{i}", f"context['n'] = {i}") for i in range(4))))
    nova.finished(nova.execute(workflow))  # from here on the worker and the API know all that they ask once
    access_log.mark()
    with ThreadPoolExecutor(runs) as clients:
        tasks = list(clients.map(lambda _: nova.finished(nova.execute(workflow)), range(runs)))
    assert {task["status"] for task in tasks} == {"SUCCESS"}
    ids = [task["task_id"] for task in tasks]

    def all_completed() -> bool:
        """Prefect hears of the end of a run after NOVA's own row was closed."""
        body = {"flow_runs": {"id": {"any_": ids}, "state": {"type": {"any_": ["COMPLETED"]}}}}
        return bool(nova.prefect._client.post("/flow_runs/count", json=body).json() == runs)

    wait_until(all_completed, 30, "all runs to be completed in Prefect")
    counted = access_log.requests()
    del counted.of_runs["POST /flow_runs/count"]  # this test's own
    assert counted.of_runs["POST /deployments/{id}/create_flow_run"] == runs
    assert counted.of_runs["POST /flow_runs/{id}/set_state"] >= 3 * runs
    assert counted.of_runs.total() <= ALLOWED * runs, counted
