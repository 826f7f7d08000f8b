"""What the benchmark measures: PostgreSQL, Prefect's server and the API, set up as `nova up` does it.

Each case starts its own workers and E2B servers. Everything runs on this machine, on the loopback interface.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from deployments.cli import environment
from flows.credentials.cipher import generate_key
from flows.store import migrations
from tests.access_log import AccessLog
from tests.servers import ServerProcess, clean_environment, free_port, postgres_server, wait_until

Kind = Literal["nova", "process"]
"""Worker types: NOVA's, and Prefect's own, which starts a process for each run."""

ROOT = Path(__file__).parents[2]
_NOVA = [sys.executable, "-m", "deployments.cli"]
_E2B_KEY = "e2b_" + "0" * 40


class Site:
    """The URLs of the running servers; starts workers and E2B servers."""

    def __init__(self, folder: Path, env: dict[str, str], api_url: str) -> None:
        self.folder = folder
        self.env = env
        self.api_url = api_url
        self.prefect_url = env["PREFECT_API_URL"]
        self.access_log = AccessLog(folder / "prefect.log")
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def worker(
        self, kind: Kind, limit: int, sandboxes: dict[str, str] | None = None, **extra: str
    ) -> Iterator[ServerProcess]:
        """Run one worker and wait until it polls.

        `sandboxes` are the variables from `e2b`; without them its sandboxes are local. The worker's name in
        Prefect is its log file's name without the suffix.
        """
        name = f"{kind}-{next(self._numbers)}"
        command = [*_NOVA, "worker", "--type", kind, "--limit", str(limit), "--name", name]
        env = self.env | (sandboxes or {}) | {"NOVA_WORKER_GRACE": "0"} | extra
        with ServerProcess(command, env, self.folder / f"{name}.log") as process:
            _wait_for_log(process, "started!")
            yield process

    @contextlib.contextmanager
    def e2b(self, *options: str) -> Iterator[dict[str, str]]:
        """Run a server of E2B's protocol; yield the variables that make a worker use it."""
        command = [sys.executable, "-u", "-m", "tests.e2b_server", *options]
        with ServerProcess(command, self.env, self.folder / f"e2b-{next(self._numbers)}.log") as process:
            _wait_for_log(process, "http://")
            url = next(row for row in process.log.read_text().splitlines() if row.startswith("http://"))
            yield {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": _E2B_KEY}


@contextlib.contextmanager
def start_site(folder: Path) -> Iterator[Site]:
    """Start the servers that all cases share."""
    with contextlib.ExitStack() as parts:
        postgres = parts.enter_context(postgres_server(folder, durable=True))
        for database in ("nova", "prefect"):
            postgres.make_database(database)
        migrations.upgrade(postgres.url("nova"))
        api_port, prefect_port = free_port(), free_port()
        env = environment.parts(
            clean_environment(PYTHONPATH=str(ROOT), PREFECT_SERVER_LOGGING_LEVEL="INFO"),
            database_url=postgres.url("nova"),
            prefect_database_url=postgres.prefect_url("prefect"),
            encryption_key=generate_key(),
            api_port=api_port,
            prefect_port=prefect_port,
            prefect_home=folder,
        )
        prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        server = ServerProcess([*prefect, "--port", str(prefect_port)], env, folder / "prefect.log")
        parts.enter_context(server).wait_for_http(f"{env['PREFECT_API_URL']}/ready")
        deploy = ServerProcess([*_NOVA, "deploy"], env, folder / "deploy.log")
        if parts.enter_context(deploy).process.wait():
            raise RuntimeError(deploy.log.read_text())
        api = ServerProcess([*_NOVA, "api", "--port", str(api_port)], env, folder / "api.log")
        url = f"http://127.0.0.1:{api_port}"
        parts.enter_context(api).wait_for_http(f"{url}/health")
        yield Site(folder, env, url)


def _wait_for_log(process: ServerProcess, words: str) -> None:
    """Wait until a process has logged these words; raises RuntimeError if it ends before."""

    def said() -> bool:
        text = process.log.read_text()
        if process.process.poll() is not None:
            raise RuntimeError(f"{process.log.name} ended:\n{text[-3000:]}")
        return words in text

    wait_until(said, 60, f"{words} in {process.log}")
