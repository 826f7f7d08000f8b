"""The benchmark's HTTP client: submit runs, poll them, read their times."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from tests.waiting import eventually

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
POLL_ONE = 0.02
"""Seconds between two polls of a single run."""
POLL_MANY = 0.25
"""Seconds between two polls of each of many runs: polling must not be the load that is measured."""


class RunFailedError(Exception):
    """A run did not end as SUCCESS; its case fails."""


@dataclass(frozen=True)
class Run:
    """One run and its times, in seconds, as the client measured them."""

    task_id: str
    execution_id: int
    submitted: float
    """From POST to its answer."""
    done: float
    """From POST to SUCCESS."""


class Client:
    """Calls the API, and Prefect's server for what only that knows; use it as a context manager."""

    def __init__(self, api_url: str, prefect_url: str) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        self._api = httpx.AsyncClient(base_url=api_url, timeout=300, limits=limits, trust_env=False)
        self._prefect = httpx.AsyncClient(base_url=prefect_url, timeout=60, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.aclose()
        await self._prefect.aclose()

    async def workflow(self, graph: dict[str, Any]) -> int:
        """Create a workflow and return its id."""
        body = {"name": f"bench {uuid4().hex[:12]}", "graph_definition": graph}
        return int((await self._request("POST", "/workflows", json=body))["id"])

    async def drop(self, workflow: int) -> None:
        """Delete a workflow. This cancels its runs; the API refuses the deletion until all have ended."""
        await eventually(
            lambda: self._api.delete(f"/workflows/{workflow}"),
            lambda answer: answer.status_code != httpx.codes.CONFLICT,
            timeout=120,
        )

    async def post(self, workflow: int, context: dict[str, Any] | None = None, **body: Any) -> str:
        """Submit a run and return its task id."""
        body["initial_context"] = context or {}
        return str((await self._request("POST", f"/workflows/{workflow}/execute", json=body))["task_id"])

    async def run(
        self, workflow: int, context: dict[str, Any] | None = None, pause: float = POLL_ONE, **body: Any
    ) -> Run:
        """Submit a run and poll it every `pause` seconds until it ends; raises RunFailedError."""
        since = time.perf_counter()
        task_id = await self.post(workflow, context, **body)
        submitted = time.perf_counter() - since
        while True:
            task = await self._request("GET", f"/tasks/{task_id}")
            if task["status"] in FINAL:
                break
            await asyncio.sleep(pause)
        if task["status"] != "SUCCESS":
            raise RunFailedError(f"task {task_id} ended as {task['status']}: {task.get('error')}")
        return Run(task_id, task["execution_id"], submitted, time.perf_counter() - since)

    async def in_turn(self, workflow: int, number: int, context: dict[str, Any] | None = None) -> list[Run]:
        """Run a workflow so many times, one run after the other."""
        return [await self.run(workflow, context) for _ in range(number)]

    async def at_once(
        self, workflow: int, number: int, context: dict[str, Any] | None = None
    ) -> tuple[list[Run], float]:
        """Submit so many runs at once; return them, and how many ended per second.

        After all have ended, raises the first failed run's exception.
        """
        since = time.perf_counter()
        runs = [asyncio.create_task(self.run(workflow, context, POLL_MANY)) for _ in range(number)]
        try:
            await asyncio.wait(runs)
        finally:
            for run in runs:
                run.cancel()
        return [run.result() for run in runs], number / (time.perf_counter() - since)

    async def starts(self, workflow: int) -> dict[int, datetime]:
        """Return execution id → start time of a workflow's started executions."""
        found = await self.executions(workflow)
        return {
            each["id"]: datetime.fromisoformat(each["started_at"]) for each in found if each["started_at"]
        }

    async def until_running(self, workflow: int, number: int) -> None:
        """Wait until so many runs of a workflow have started."""
        await eventually(lambda: self.starts(workflow), lambda found: len(found) >= number, timeout=60)

    async def executions(self, workflow: int) -> list[dict[str, Any]]:
        """Return all executions of a workflow."""
        found = await self._request("GET", "/executions", params={"workflow_id": workflow, "limit": 500})
        return list(found["executions"])

    async def node_times(self, run: Run) -> list[float]:
        """Return the seconds from the start of each action to the start of the next one."""
        params: dict[str, Any] = {"contexts": "none", "limit": 1000}
        found = await self._request("GET", f"/executions/{run.execution_id}/chain", params=params)
        starts = [datetime.fromisoformat(entry["timestamp"]) for entry in found["entries"]]
        return [(b - a).total_seconds() for a, b in itertools.pairwise(starts[1:])]

    async def per_node(self, runs: Sequence[Run]) -> list[float]:
        """Return the milliseconds per node of each run."""
        times = [await self.node_times(run) for run in runs]
        return [1000 * sum(each) / len(each) for each in times]

    async def until_prefect_knows(self, runs: Sequence[Run]) -> None:
        """Wait until these runs are completed in Prefect, too; NOVA's row is closed earlier."""
        ids = {"id": {"any_": [run.task_id for run in runs]}}
        body = {"flow_runs": {**ids, "state": {"type": {"any_": ["COMPLETED"]}}}}
        await eventually(
            lambda: self._prefect.post("/flow_runs/count", json=body),
            lambda answer: int(answer.text) == len(runs),
        )

    async def last_heartbeat(self, worker: str) -> datetime | None:
        """Return when Prefect got a worker's last heartbeat; None if it got none."""
        answer = await self._prefect.post("/work_pools/nova/workers/filter", json={})
        times = [each["last_heartbeat_time"] for each in answer.json() if each["name"] == worker]
        return datetime.fromisoformat(times[0]) if times else None

    async def _request(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        answer = await self._api.request(method, path, **given)
        answer.raise_for_status()
        return dict(answer.json())
