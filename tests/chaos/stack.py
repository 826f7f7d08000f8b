"""All of NOVA as separate processes on this machine, which a scenario can kill."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx
import psycopg2
import psycopg2.extras

from flows.credentials.cipher import generate_key
from flows.store import migrations
from tests.builders import fresh_name
from tests.chaos import ledger
from tests.chaos.parts import Part, Postgres, wait_for_line
from tests.servers import PrefectServer, ServerProcess, clean_environment, free_port

ROOT = Path(__file__).parents[2]

SHORT = {
    "NOVA_LEASE_SECONDS": "3",
    "NOVA_RECOVERY_INTERVAL": "0.5",
    "NOVA_RETRY_DELAY": "1",
    "NOVA_RETRY_DELAY_MAX": "5",
    "NOVA_NODE_RETRY_DELAY": "0.1",
    "NOVA_BREAKER_PAUSE": "2",
    # Here kills are as frequent as nodes: three at one step do not mean that the node is the cause.
    "NOVA_CRASH_LIMIT": "20",
}
"""Settings that shorten NOVA's waits from minutes to seconds."""

MARK = "NOVA_CHAOS"
"""The environment variable that marks every process of a stack."""


class Stack:
    """PostgreSQL, Prefect's server, the API, workers, the E2B server and the ledger.

    A context manager: at its end all processes have ended and all files are removed. `shipped` keeps NOVA's
    default settings.
    """

    def __init__(self, seed: int = 0, *, shipped: bool = False) -> None:
        parent = "/var/tmp" if Path("/var/tmp").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="nova-chaos-", dir=parent))
        self.folder.chmod(0o755)  # PostgreSQL's system user must reach it
        self.seed = seed
        self.mark = uuid4().hex
        self.run_numbers = itertools.count(1)
        self.reported: set[str] = set()
        """Leftovers that an earlier scenario reported."""
        self._worker_numbers = itertools.count(1)
        self.is_shipped = shipped
        self._settings = {} if shipped else SHORT
        self._ports = {name: free_port() for name in ("api", "prefect", "e2b", "ledger")}
        self._key = generate_key()
        marked = {MARK: self.mark}
        self.postgres = Postgres(self.folder, marked)
        self.prefect = Part("prefect", self.folder, self._make_prefect)
        self.api = Part("api", self.folder, lambda log: self._nova(log, "api", "--port", self._port("api")))
        self.e2b = Part("e2b", self.folder, self._make_e2b)
        self.ledger = Part("ledger", self.folder, self._make_ledger)
        self.workers: list[Part] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def parts(self) -> list[Part]:
        """Every part but PostgreSQL, in the order in which they are stopped."""
        return [*self.workers, self.api, self.prefect, self.e2b, self.ledger]

    @property
    def api_url(self) -> str:
        """URL of NOVA's API."""
        return f"http://127.0.0.1:{self._port('api')}"

    @property
    def prefect_url(self) -> str:
        """URL of Prefect's API."""
        return f"http://127.0.0.1:{self._port('prefect')}/api"

    @property
    def e2b_url(self) -> str:
        """URL of the E2B server."""
        return f"http://127.0.0.1:{self._port('e2b')}"

    @property
    def ledger_port(self) -> int:
        """Port of the ledger."""
        return self._ports["ledger"]

    def entries(self) -> list[ledger.Entry]:
        """Return the ledger's entries so far."""
        return ledger.read(self.folder / "ledger.jsonl")

    def worker(self, limit: int = 4, **settings: str) -> Part:
        """Start another worker; `settings` are environment variables."""
        options = ("worker", "--limit", str(limit))
        name = f"worker-{next(self._worker_numbers)}"
        part = Part(name, self.folder, lambda log: self._nova(log, *options, **settings))
        self.workers.append(part)
        part.start()
        return part

    def wait_for_workers(self) -> None:
        """Wait until all running workers have started."""
        for worker in self.workers:
            if worker.runs:
                wait_for_line(worker, "started!")

    def stop_workers(self) -> None:
        """Stop all workers."""
        for worker in self.workers:
            worker.stop(40)
        self.workers.clear()

    def wait_for_api(self) -> None:
        """Wait until the API is healthy."""
        self.api.server.wait_for_http(f"{self.api_url}/health")

    def workflow(self, graph: dict[str, Any], **fields: Any) -> int:
        """Create a workflow over the API and return its id."""
        body = {"name": fresh_name("Chaos"), "graph_definition": graph, **fields}
        answer = httpx.post(f"{self.api_url}/workflows", json=body, timeout=60)
        answer.raise_for_status()
        return int(answer.json()["id"])

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query of NOVA's database; raises psycopg2.Error."""
        connection = psycopg2.connect(
            self.postgres.server.url("nova"),
            application_name="chaos",
            cursor_factory=psycopg2.extras.RealDictCursor,
        )
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                return [dict(row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def sandboxes(self) -> list[dict[str, Any]]:
        """Return every sandbox that the E2B server created, oldest first."""
        return list(httpx.get(f"{self.e2b_url}/made-here", timeout=30).json())

    def let_fail(self, rate: float, *kinds: str) -> dict[str, int]:
        """Let a share of the calls to the E2B server fail; return the counts of faults so far."""
        answer = httpx.put(f"{self.e2b_url}/faults", json={"rate": rate, "kinds": kinds}, timeout=30)
        return dict(answer.json()["done"])

    def close(self) -> None:
        """End every process and remove every file."""
        try:
            for part in self.parts:
                with contextlib.suppress(Exception):
                    part.stop(5)
            self.postgres.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _port(self, name: str) -> str:
        return str(self._ports[name])

    def _start(self) -> None:
        self.ledger.start()
        self.e2b.start()
        self.postgres.start()
        for name in ("nova", "prefect"):
            self.postgres.server.make_database(name)
        migrations.upgrade(self.postgres.server.url("nova"))
        self.prefect.start()
        done = self._nova(self.folder / "deploy.log", "deploy").process.wait(60)
        assert done == 0, (self.folder / "deploy.log").read_text()
        self.api.start()
        self.e2b.server.wait_for_http(f"{self.e2b_url}/made-here")
        self.wait_for_api()

    def _nova(self, log: Path, *arguments: str, **settings: str) -> ServerProcess:
        environment = self._environment(
            DATABASE_URL=self.postgres.server.url("nova"),
            NOVA_ENCRYPTION_KEY=self._key,
            PREFECT_API_URL=self.prefect_url,
            PREFECT_HOME=str(self.folder / "home"),
            E2B_API_URL=self.e2b_url,
            E2B_SANDBOX_URL=self.e2b_url,
            E2B_API_KEY="e2b_" + "0" * 40,
            **(self._settings | settings),
        )
        return ServerProcess([sys.executable, "-m", "deployments.cli", *arguments], environment, log)

    def _make_prefect(self, log: Path) -> ServerProcess:
        # With NOVA's settings: its leases of slots are files, which survive a restart.
        url, home = self.postgres.server.url("prefect"), self.folder / "prefect"
        home.mkdir(exist_ok=True)
        return PrefectServer(url, home, self._ports["prefect"], {MARK: self.mark})

    def _make_e2b(self, log: Path) -> ServerProcess:
        command = ["-m", "tests.e2b_server", "--port", self._port("e2b"), "--seed", str(self.seed)]
        return ServerProcess([sys.executable, *command], self._environment(), log)

    def _make_ledger(self, log: Path) -> ServerProcess:
        file = str(self.folder / "ledger.jsonl")
        command = ["-m", "tests.chaos.ledger", "--port", self._port("ledger"), "--file", file]
        return ServerProcess([sys.executable, *command], self._environment(), log)

    def _environment(self, **settings: str) -> dict[str, str]:
        return clean_environment(PYTHONPATH=str(ROOT), **{MARK: self.mark}, **settings)
