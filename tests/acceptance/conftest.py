"""All of NOVA as its users have it: `nova up` as a process, spoken to over HTTP, with real mail servers."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.cli.datadir import DataDir
from deployments.cli.postgres import EmbeddedPostgres
from deployments.cli.remote import Api
from deployments.demo.mail import MailServers
from deployments.demo.sample import Sample
from tests.builders import fresh_name
from tests.servers import ServerProcess, clean_environment, wait_until

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}

FAST_SCHEDULER = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}
"""Prefect looks for due schedules every minute; a test need not wait that long."""


class NovaUp(ServerProcess):
    """`nova up` on ports of the system's choice; ready when made."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data = DataDir(data_dir)
        ports = ["--api-port", "0", "--prefect-port", "0", "--limit", "3"]
        super().__init__(
            [sys.executable, "-m", "deployments.cli", "up", "--data-dir", str(data_dir), *ports],
            clean_environment(**FAST_SCHEDULER, **environment),
            data_dir.parent / "nova-up.log",
        )
        try:
            wait_until(self._ready, 150, f"NOVA to be ready; log: {self.log}")
        except BaseException:
            self.stop()
            raise
        said = self.log.read_text()
        self.api_url = _address(r"API docs\s+(\S+)/docs", said)
        self.prefect_url = _address(r"Prefect UI\s+(\S+)", said)
        self.postgres = EmbeddedPostgres(self.data.postgres)
        self.http = httpx.Client(base_url=self.api_url, timeout=60)
        self.prefect = SyncPrefectClient(f"{self.prefect_url}/api")

    def _ready(self) -> bool:
        said = self.log.read_text()
        assert self.process.poll() is None, said
        return said.endswith("NOVA is ready\n")

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


def _address(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    assert found, said
    return found.group(1)


@pytest.fixture(scope="session")
def nova() -> Iterator[NovaUp]:
    """A running NOVA, the same for all acceptance tests."""
    folder = Path(tempfile.mkdtemp(prefix="nova-up-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None))
    folder.chmod(0o755)
    try:
        with NovaUp(folder / "data") as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mail() -> Iterator[MailServers]:
    """A real IMAP and a real SMTP server."""
    with MailServers() as servers:
        yield servers


class Idom:
    """The sample client with its mailbox, its own database and its invoice workflow."""

    def __init__(self, nova: NovaUp, mail: MailServers) -> None:
        self.nova = nova
        self.mail = mail
        self.sample = Sample(mail, nova.postgres)
        self.sample.set_up()
        with Api(nova.api_url) as api:
            self.workflow = self.sample.register(api)

    def run(self) -> dict[str, Any]:
        """Run the invoice workflow for this client and return the finished task."""
        return self.nova.finished(self.nova.execute(self.workflow, client_slug="idom"))


@pytest.fixture(scope="session")
def idom(nova: NovaUp, mail: MailServers) -> Idom:
    """The sample client, set up as the demo does it."""
    return Idom(nova, mail)
