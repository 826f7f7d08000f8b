"""Servers that all processes of a test session share: whoever needs one first starts it.

The process that begins the session (pytest's own, or xdist's controller) makes the folder and, at the end,
stops what was started in it, whatever became of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from psycopg2 import sql

from deployments.cli.postgres import EmbeddedPostgres
from flows.store import migrations
from tests.fork_server.client import ask
from tests.servers import (
    PrefectServer,
    ServerProcess,
    clean_environment,
    living,
    reachable_folder,
    start_postgres,
    wait_until,
)

_ROOT = Path(__file__).parents[1]
_WITH_TABLES = "with_tables"
"""A database with NOVA's tables, which those of tests are copies of."""


class SharedServers:
    """PostgreSQL, Prefect's server and a fork server, seen from one of the processes that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._postgres = EmbeddedPostgres(folder / "pg")
        self._prefect = folder / "prefect"

    @classmethod
    def begin(cls) -> SharedServers:
        """Make the folder; no server runs yet."""
        return cls(reachable_folder("nova-test-"))

    def empty_database(self, name: str) -> str:
        """Make a database without tables and return its URL."""
        with self._alone():
            return self._make_database(name, "template0")

    def database_with_tables(self, name: str) -> str:
        """Make a database with NOVA's tables and return its URL."""
        with self._alone():
            template = self._postgres.url(_WITH_TABLES)
            if not (self.folder / _WITH_TABLES).exists():
                self._make_database(_WITH_TABLES, "template0")
                migrations.upgrade(template)
                (self.folder / _WITH_TABLES).touch()
            return self._make_database(name, _WITH_TABLES)

    def prefect_url(self) -> str:
        """Address of the Prefect server's API."""
        address = self._prefect / "address"
        with self._alone():
            if not address.exists():
                self._prefect.mkdir()
                server = PrefectServer(self._make_database("prefect", "template0"), self._prefect)
                (self._prefect / "pid").write_text(str(server.process.pid))
                address.write_text(server.api_url)
        return address.read_text()

    def fork_server(self) -> Path:
        """The socket of the fork server."""
        path = self.folder / "forks"
        with self._alone():
            if not path.exists():
                command = [sys.executable, "-m", "tests.fork_server", str(path)]
                log = self.folder / "fork_server.log"
                # The width of a terminal is looked at when a module is imported that writes to it.
                own = {"PYTHONPATH": str(_ROOT), "PREFECT_HOME": str(self.folder / "home"), "COLUMNS": "120"}
                environment = clean_environment(**own)
                server = ServerProcess(command, environment, log)
                wait_until(lambda: path.exists() or server.process.poll() is not None, 60, "the fork server")
                assert server.process.poll() is None, log.read_text()
        return path

    def end(self) -> None:
        """Stop what runs and remove the folder; to be called by the process that began."""
        if (self.folder / "forks").exists():
            ask(self.folder / "forks")
        for file, stop in (
            (self._prefect / "pid", signal.SIGTERM),
            (self._postgres.data / "postmaster.pid", signal.SIGINT),
        ):
            if file.exists():
                _stop(int(file.read_text().split()[0]), stop)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes of the session out."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_database(self, name: str, template: str) -> str:
        if not (self._postgres.data / "postmaster.pid").exists():
            start_postgres(self._postgres, self.folder / "postgresql.log")
            asyncio.run(self._postgres.wait())
        connection = psycopg2.connect(self._postgres.url("postgres"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        finally:
            connection.close()
        return self._postgres.url(name)


def is_on_real_prefect(request: pytest.FixtureRequest) -> bool:
    """Whether a test is run on Prefect's own server, not on the stand-in."""
    everything: bool = request.config.getoption("--everything")
    return everything or request.node.get_closest_marker("real_prefect") is not None


def _stop(pid: int, number: signal.Signals) -> None:
    """End a process that may be nobody's child any more; kill it when it takes its time."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.send_signal(number)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not living([process]), 15, "its end")
        process.kill()
