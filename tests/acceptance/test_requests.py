"""What a run costs Prefect's server: its requests are counted over a burst, from POST to the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.conftest import NovaUp
from tests.access_log import AccessLog
from tests.builders import action, line
from tests.servers import wait_until

RUNS = 60
ALLOWED = 8
"""Requests per run, of all processes together."""


@pytest.fixture
def logged() -> Iterator[tuple[NovaUp, AccessLog]]:
    """A running NOVA of its own, whose Prefect server writes a line per request."""
    folder = Path(tempfile.mkdtemp(prefix="nova-up-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None))
    folder.chmod(0o755)
    try:
        with NovaUp(folder / "data", PREFECT_SERVER_LOGGING_LEVEL="INFO") as running:
            yield running, AccessLog(running.data.logs / "prefect-server.log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_costs_prefect_few_requests(logged: tuple[NovaUp, AccessLog]) -> None:
    """Of 60 runs that are submitted at once and polled by their clients none costs more than 8 requests."""
    nova, access_log = logged
    workflow = nova.workflow(line(*(action(f"n{i}", f"context['n'] = {i}") for i in range(4))))
    nova.finished(nova.execute(workflow))  # from here on the worker and the API know all that they ask once
    access_log.mark()
    with ThreadPoolExecutor(RUNS) as clients:
        tasks = list(clients.map(lambda _: nova.finished(nova.execute(workflow)), range(RUNS)))
    assert {task["status"] for task in tasks} == {"SUCCESS"}
    ids = [task["task_id"] for task in tasks]

    def all_completed() -> bool:
        """Prefect hears of the end of a run after NOVA's own row was closed."""
        body = {"flow_runs": {"id": {"any_": ids}, "state": {"type": {"any_": ["COMPLETED"]}}}}
        return bool(nova.prefect._client.post("/flow_runs/count", json=body).json() == RUNS)

    wait_until(all_completed, 30, "all runs to be completed in Prefect")
    counted = access_log.requests()
    del counted.of_runs["POST /flow_runs/count"]  # this test's own
    assert counted.of_runs["POST /deployments/{id}/create_flow_run"] == RUNS
    assert counted.of_runs["POST /flow_runs/{id}/set_state"] >= 3 * RUNS
    assert counted.of_runs.total() <= ALLOWED * RUNS, counted
