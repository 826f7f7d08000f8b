"""All of NOVA as its users have it: `nova up` as a process."""

from __future__ import annotations

import re
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from deployments.cli.datadir import DataDir
from deployments.cli.postgres import EmbeddedPostgres
from tests.builders import fresh_name
from tests.servers import ServerProcess, clean_environment, wait_until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}

_PREFECT = {
    # It looks for due schedules every minute; a test need not wait that long.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    # A line for each request.
    "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
    # What points elsewhere must not reach the parts.
    "PREFECT_PROFILE": "elsewhere",
    "PREFECT_API_URL": "http://127.0.0.1:1/api",
}


class NovaUp(ServerProcess):
    """`nova up` on the data in a folder and on ports of the system's choice; ready when made."""

    def __init__(self, data_dir: Path) -> None:
        self.data = DataDir(data_dir)
        ports = ["--api-port", "0", "--prefect-port", "0", "--limit", "3"]
        super().__init__(
            [sys.executable, "-m", "deployments.cli", "up", "--data-dir", str(data_dir), *ports],
            clean_environment(**_PREFECT),
            data_dir.parent / "nova-up.log",
        )
        try:
            wait_until(self._is_ready, 150, f"NOVA to be ready; log: {self.log}")
        except BaseException:
            self.stop()
            raise
        self.api_url = self.address("API docs").removesuffix("/docs")
        self.prefect_url = self.address("Prefect UI")
        self.postgres = EmbeddedPostgres(self.data.postgres)
        self.http = httpx.Client(base_url=self.api_url, timeout=60)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.said
        # A part may have warned of something since.
        return "NOVA is ready" in self.said.splitlines()

    @cached_property
    def prefect(self) -> SyncPrefectClient:
        """A client of Prefect's, whose import takes a second."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(f"{self.prefect_url}/api")

    @property
    def said(self) -> str:
        """What it has written to the terminal so far."""
        return self.log.read_text()

    def address(self, what: str) -> str:
        """An address that it has told."""
        found = re.search(rf"^{what}\s+(\S+)", self.said, re.MULTILINE)
        assert found, self.said
        return found.group(1)

    def part(self, words: str) -> psutil.Process | None:
        """The part whose command line has these words."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if words in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    def family(self) -> list[psutil.Process]:
        """All processes that descend from it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def database_url(self) -> str:
        """NOVA's own database."""
        return self.postgres.url("nova")

    def workflow(self, graph: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Create a workflow over the API and return the answer."""
        body = {"name": fresh_name("Acceptance"), "graph_definition": graph, **fields}
        answer = self.http.post("/workflows", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def execute(self, workflow: dict[str, Any], **body: Any) -> str:
        """POST a run and return its task id."""
        answer = self.http.post(f"/workflows/{workflow['id']}/execute", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """Poll a task once."""
        answer = self.http.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def finished(self, task_id: str, timeout: float = 90) -> dict[str, Any]:
        """Poll a task to its final state."""
        deadline = time.monotonic() + timeout
        while (task := self.task(task_id))["status"] not in FINAL:
            assert time.monotonic() < deadline, task
            time.sleep(0.25)
        return task

    def chain(self, task: dict[str, Any], contexts: str = "full") -> list[dict[str, Any]]:
        """Read the Chain of Work of a finished task."""
        answer = self.http.get(
            f"/executions/{task['execution_id']}/chain", params={"limit": 1000, "contexts": contexts}
        )
        assert answer.status_code == 200, answer.text
        return list(answer.json()["entries"])
