"""The benchmark's clients: what they do over HTTP, and how long it takes."""

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
ALONE = 0.02
"""Seconds between two polls of a client that is alone."""
CROWD = 0.25
"""Seconds between two polls of one of many: they must not make the load that they measure."""


class RunFailedError(Exception):
    """A run did not end as SUCCESS, which ends its case."""


@dataclass(frozen=True)
class Run:
    """One run as its client saw it; seconds."""

    task_id: str
    execution_id: int
    submitted: float
    """POST to its answer."""
    done: float
    """POST to SUCCESS."""


class Client:
    """Speaks to the API, and asks Prefect's server what only that knows; use it as a context manager."""

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
        """Create a workflow; return its id."""
        body = {"name": f"bench {uuid4().hex[:12]}", "graph_definition": graph}
        return int((await self._asked("POST", "/workflows", json=body))["id"])

    async def drop(self, workflow: int) -> None:
        """Delete a workflow: its runs are cancelled, and until the last one has ended it is refused."""
        await eventually(
            lambda: self._api.delete(f"/workflows/{workflow}"),
            lambda answer: answer.status_code != httpx.codes.CONFLICT,
            timeout=120,
        )

    async def post(self, workflow: int, context: dict[str, Any] | None = None, **body: Any) -> str:
        """Submit a run; return its task id."""
        body["initial_context"] = context or {}
        return str((await self._asked("POST", f"/workflows/{workflow}/execute", json=body))["task_id"])

    async def run(
        self, workflow: int, context: dict[str, Any] | None = None, pause: float = ALONE, **body: Any
    ) -> Run:
        """Submit a run and poll it to its end every `pause` seconds; raises RunFailedError."""
        since = time.perf_counter()
        task_id = await self.post(workflow, context, **body)
        submitted = time.perf_counter() - since
        while True:
            task = await self._asked("GET", f"/tasks/{task_id}")
            if task["status"] in FINAL:
                break
            await asyncio.sleep(pause)
        if task["status"] != "SUCCESS":
            raise RunFailedError(f"task {task_id} ended as {task['status']}: {task.get('error')}")
        return Run(task_id, task["execution_id"], submitted, time.perf_counter() - since)

    async def in_turn(self, workflow: int, number: int, context: dict[str, Any] | None = None) -> list[Run]:
        """Run it again and again, one at a time."""
        return [await self.run(workflow, context) for _ in range(number)]

    async def at_once(
        self, workflow: int, number: int, context: dict[str, Any] | None = None
    ) -> tuple[list[Run], float]:
        """Submit all at the same moment; return the runs, and how many a second came to their end.

        Raises what the first that failed raised, once all have ended.
        """
        since = time.perf_counter()
        runs = [asyncio.create_task(self.run(workflow, context, CROWD)) for _ in range(number)]
        try:
            await asyncio.wait(runs)
        finally:
            for run in runs:
                run.cancel()
        return [run.result() for run in runs], number / (time.perf_counter() - since)

    async def starts(self, workflow: int) -> dict[int, datetime]:
        """Execution id → its start, of those of a workflow that have started."""
        found = await self.executions(workflow)
        return {
            each["id"]: datetime.fromisoformat(each["started_at"]) for each in found if each["started_at"]
        }

    async def until_running(self, workflow: int, number: int) -> None:
        """Wait until so many runs of a workflow have started."""
        await eventually(lambda: self.starts(workflow), lambda found: len(found) >= number, timeout=60)

    async def executions(self, workflow: int) -> list[dict[str, Any]]:
        """All executions of a workflow."""
        found = await self._asked("GET", "/executions", params={"workflow_id": workflow, "limit": 500})
        return list(found["executions"])

    async def node_times(self, run: Run) -> list[float]:
        """Seconds that each action took with all that belongs to it: from its start to the next one's."""
        params: dict[str, Any] = {"contexts": "none", "limit": 1000}
        found = await self._asked("GET", f"/executions/{run.execution_id}/chain", params=params)
        starts = [datetime.fromisoformat(entry["timestamp"]) for entry in found["entries"]]
        return [(b - a).total_seconds() for a, b in itertools.pairwise(starts[1:])]

    async def per_node(self, runs: Sequence[Run]) -> list[float]:
        """Milliseconds per node of each run."""
        times = [await self.node_times(run) for run in runs]
        return [1000 * sum(each) / len(each) for each in times]

    async def until_prefect_knows(self, runs: Sequence[Run]) -> None:
        """Wait until Prefect has the end of these runs as well: NOVA's own row is closed before."""
        ids = {"id": {"any_": [run.task_id for run in runs]}}
        body = {"flow_runs": {**ids, "state": {"type": {"any_": ["COMPLETED"]}}}}
        await eventually(
            lambda: self._prefect.post("/flow_runs/count", json=body),
            lambda answer: int(answer.text) == len(runs),
        )

    async def last_heartbeat(self, worker: str) -> datetime | None:
        """When Prefect last heard of a worker."""
        answer = await self._prefect.post("/work_pools/nova/workers/filter", json={})
        times = [each["last_heartbeat_time"] for each in answer.json() if each["name"] == worker]
        return datetime.fromisoformat(times[0]) if times else None

    async def _asked(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        answer = await self._api.request(method, path, **given)
        answer.raise_for_status()
        return dict(answer.json())
