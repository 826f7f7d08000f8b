"""Servers that a scenario kills, pauses and restarts; each keeps its address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg2

from deployments.cli.postgres import EmbeddedPostgres
from tests.servers import ServerProcess, wait_until


class Part:
    """A server of the stack; `make` starts its process, which logs to the given file."""

    def __init__(self, name: str, folder: Path, make: Callable[[Path], ServerProcess]) -> None:
        self.name = name
        self._folder = folder
        self._make = make
        self._server: ServerProcess | None = None
        self.starts = 0

    @property
    def server(self) -> ServerProcess:
        """Its last process; it must have been started once."""
        assert self._server is not None, f"{self.name} was never started"
        return self._server

    @property
    def pid(self) -> int:
        """The id of its last process."""
        return self.server.process.pid

    @property
    def runs(self) -> bool:
        """Whether its process runs."""
        return self._server is not None and self._server.process.poll() is None

    def start(self) -> None:
        """Start its process; it may not answer yet."""
        self.starts += 1
        self._server = self._make(self._folder / f"{self.name}-{self.starts}.log")

    def kill(self) -> None:
        """Kill its process group and wait until its process has ended."""
        self.signal(signal.SIGKILL)
        self.server.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self, timeout: float = 15.0) -> None:
        """Stop it, if it was started; after `timeout` seconds kill what is left."""
        if self._server is not None:
            self.signal(signal.SIGCONT)
            self._server.stop(timeout)


class Postgres:
    """The embedded PostgreSQL; it records the time of each commit and can be restarted in three modes."""

    MODES = ("fast", "immediate", "backend")
    """How `restart` stops it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.server = EmbeddedPostgres(folder / "pg")
        self._log = folder / "postgresql.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            "TZ": "UTC",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of its last process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.server.prepare()
        part = self.server.part(self._log, self._environment)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # Without fsync: processes are killed, not the machine, so written data survives.
                [*part.command, "-c", "fsync=off", "-c", "track_commit_timestamp=on"],
                env=part.env,
                cwd=part.cwd,
                user=part.user,
                group=part.user,
                extra_groups=[] if part.user else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def restart(self, mode: str, pause: float = 0.5) -> None:
        """Restart it and wait until it accepts connections.

        `fast` disconnects all clients, `immediate` is a crash from which the next start recovers, `backend`
        kills one of its processes, after which it restarts by itself.
        """
        if mode == "backend":
            self._kill_backend()
        else:
            self._end(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            time.sleep(pause)
            self.start()
        self._wait()

    def stop(self) -> None:
        """Stop it, if it was started."""
        if self._process is not None:
            self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def _kill_backend(self) -> None:
        """Kill one backend process and wait until PostgreSQL has ended all others."""
        url = self.server.url("nova")
        victim, witness = psycopg2.connect(url), psycopg2.connect(url)
        try:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            with contextlib.suppress(psycopg2.Error):
                witness.cursor().execute("SELECT pg_sleep(10)")
        finally:
            victim.close()
            witness.close()

    def _wait(self) -> None:
        asyncio.run(self.server.wait())


def wait_for_line(part: Part, words: str, timeout: float = 60.0) -> None:
    """Wait until a part has logged these words; raises AssertionError with its log if it ends before."""

    def said() -> bool:
        assert part.runs, f"{part.name} ended:\n{part.server.log.read_text()[-3000:]}"
        return words in part.server.log.read_text()

    wait_until(said, timeout, f"{part.name} to say {words!r}")
