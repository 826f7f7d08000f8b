"""Real servers that tests start as processes and stop by their id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx
import psutil

from deployments.cli.environment import tuned
from deployments.cli.postgres import EmbeddedPostgres
from tests.fork_server.client import ForkedProcess


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def database_name(url: str) -> str:
    """The name of a PostgreSQL URL's database."""
    return urlsplit(url).path.removeprefix("/")


def reachable_folder(prefix: str) -> Path:
    """Make a folder below which PostgreSQL can run: as root it does so as a user who must get there."""
    # Not below a private home.
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    folder.chmod(0o755)
    return folder


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return as soon as `condition` holds; fail after `timeout` seconds with `what` was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(0.05)


def nap() -> str:
    """Some fifty seconds, for `sleep` to be told apart from every other one on this machine."""
    return f"{random.uniform(50, 59):.12f}"


def running(words: str) -> bool:
    """Whether a process of this machine has these words in its command line."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return words in listing.stdout


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of these processes that have not ended; one that nobody has reaped yet has ended."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of this process without what would point a child at other servers."""
    foreign = ("PREFECT_", "NOVA_", "E2B_", "DATABASE_URL")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | extra


class ServerProcess:
    """A process in a group of its own, killed with its children at the end; its output is in a file.

    With a `fork_server` it is a fork of that, which runs the module that the arguments name.
    """

    process: subprocess.Popen[bytes] | ForkedProcess

    def __init__(
        self, arguments: list[str], environment: dict[str, str], log: Path, fork_server: Path | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            if fork_server:
                python, _, module, *rest = arguments
                assert python == sys.executable
                self.process = ForkedProcess(
                    fork_server, module, rest, environment, cwd=log.parent, stdout=log, stderr=log
                )
                return
            self.process = subprocess.Popen(
                arguments,
                env=environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, timeout: float = 15.0) -> None:
        """Ask it to end, and kill what is left of its group afterwards."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for_http(self, url: str, timeout: float = 120.0) -> None:
        """Return when `url` answers 200; fail with the log's end when the process dies or time runs out."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
            try:
                return client.get(url).status_code == 200
            except httpx.HTTPError:
                return False

        with httpx.Client(timeout=5) as client:  # to make one costs more than to ask
            wait_until(answers, timeout, f"{url} to answer; log: {self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_postgres(server: EmbeddedPostgres, log: Path, *, durable: bool = False) -> subprocess.Popen[bytes]:
    """Start the embedded PostgreSQL, in a folder that its system user can reach; `wait` for it then."""
    server.prepare()
    part = server.part(log, {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"})
    settings = ["max_connections=400"]  # the pools of many processes
    if not durable:  # nothing of a test's need survive a power cut
        settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*part.command, *(word for setting in settings for word in ("-c", setting))],
            env=part.env,
            cwd=part.cwd,
            user=part.user,
            group=part.user,
            extra_groups=[] if part.user else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextlib.contextmanager
def postgres_server(folder: Path, *, durable: bool = False) -> Iterator[EmbeddedPostgres]:
    """Run the embedded PostgreSQL in a folder that its system user can reach."""
    server = EmbeddedPostgres(folder / "pg")
    process = start_postgres(server, folder / "postgresql.log", durable=durable)
    try:
        asyncio.run(server.wait())
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)


class PrefectServer(ServerProcess):
    """Prefect's server on a PostgreSQL database, tuned as NOVA's is; ready when made.

    `settings` are further variables of Prefect's.
    """

    def __init__(
        self, database_url: str, home: Path, port: int | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        self.port = port or free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        database = database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
        own = {
            "PREFECT_HOME": str(home),
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": self.api_url,
        }
        self._environment = clean_environment(**{**tuned(), **own, **settings})
        self._home = home
        self._start()

    def restart(self) -> None:
        """End it and start it again, at the same address and with a new log."""
        self.stop()
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        super().__init__([*command, "--port", str(self.port)], self._environment, self._home / "server.log")
        try:
            self.wait_for_http(f"{self.api_url}/ready")
        except BaseException:
            self.stop()
            raise
