"""All of NOVA on one machine: PostgreSQL, Prefect's server, the API, the deployments and a worker."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli import environment
from deployments.cli.datadir import DataDir
from deployments.cli.postgres import EmbeddedPostgres
from deployments.cli.processes import adopt_orphans, dies_with_parent, family, kill_all, require_local
from deployments.cli.supervisor import Part, Pauses, Say, Supervisor
from flows.config import times
from flows.graphs.errors import ConflictError, InfrastructureError

if TYPE_CHECKING:
    import httpx

_LOG_SIZE = 20 * 1024 * 1024
"""Bytes above which a log file is renamed at the next start."""
_PATIENCE = 120.0
"""Seconds that a part may take to be ready."""
_WORKER = "nova-up"
"""Name of our worker, the same at every start: else Prefect would list one per start."""


@dataclass(frozen=True)
class Options:
    """What the user chooses at the start; port 0 is any free one."""

    data_dir: Path
    api_port: int = 8000
    prefect_port: int = 4200
    limit: int = 2
    """Runs that the worker does at once."""
    verbose: bool = False
    embedded: bool = False
    """Whether to start the embedded PostgreSQL also when NOVA's and Prefect's databases are elsewhere."""


class Stack:
    """Starts the parts in order, keeps them running, stops them in the opposite order.

    Run it in a process of its own: at the end, every descendant of that process is killed.
    """

    def __init__(
        self,
        options: Options,
        say: Say,
        *,
        pauses: Pauses | None = None,
        extra_env: dict[str, str] | None = None,
    ) -> None:
        self.options = options
        self.data = DataDir(options.data_dir)
        self.postgres: EmbeddedPostgres | None = None
        """The embedded server; None where both databases are elsewhere."""
        self.supervisor = Supervisor(say, verbose=options.verbose, pauses=pauses)
        self.api_port = options.api_port
        self.prefect_port = options.prefect_port
        self.env: dict[str, str] = {}
        """The parts' environment; filled by `start`."""
        self._extra_env = extra_env or {}
        self._say = say

    @property
    def api_url(self) -> str:
        """Address of the API, without a slash at its end."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def prefect_url(self) -> str:
        """Address of the Prefect UI, without a slash at its end."""
        return f"http://127.0.0.1:{self.prefect_port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stack]:
        """Hold the data folder and run all parts; everything is stopped on the way out, whatever happens.

        Raises ConflictError (a port or the folder is taken), ConfigurationError and InfrastructureError.
        """
        require_local()
        self.api_port = _usable_port(self.options.api_port, "--api-port")
        self.prefect_port = _usable_port(self.options.prefect_port, "--prefect-port")
        with self.data:
            adopt_orphans()
            try:
                await self._start()
                yield self
            finally:
                # Shielded: a cancellation must not leave some parts running.
                await asyncio.shield(asyncio.ensure_future(self._stop()))

    async def _stop(self) -> None:
        await self.supervisor.stop_all()
        # Children of parts that died earlier were adopted by this process.
        await asyncio.to_thread(kill_all, family(os.getpid()))

    async def _start(self) -> None:
        await self._start_databases()
        # The slowest comes up while the rest gets ready.
        await self.supervisor.start(self.prefect_part())
        ready = self._answers(f"{self.prefect_url}/api/ready")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timed("Prefect server", ready))
            group.create_task(self._start_api())
        await self._timed("worker", self._start_worker())

    async def _start_databases(self) -> None:
        base = environment.outside() | self._extra_env
        database_url = base.get("DATABASE_URL", "")
        prefect_database_url = base.get(environment.PREFECT_DATABASE, "")
        if self.options.embedded or not (database_url and prefect_database_url):
            postgres = self.postgres = EmbeddedPostgres(self.data.postgres)
            await self._timed("PostgreSQL", self._start_postgres(postgres))
            for name in [] if database_url else ["nova"]:
                await asyncio.to_thread(postgres.make_database, name)
                database_url = postgres.url(name)
            for name in [] if prefect_database_url else ["prefect"]:
                await asyncio.to_thread(postgres.make_database, name)
                prefect_database_url = postgres.prefect_url(name)
        self.env = environment.parts(
            base,
            database_url=database_url,
            prefect_database_url=prefect_database_url,
            encryption_key=base.get("NOVA_ENCRYPTION_KEY") or self.data.encryption_key(),
            api_port=self.api_port,
            prefect_port=self.prefect_port,
            prefect_home=self.data.prefect,
        )

    async def _start_postgres(self, postgres: EmbeddedPostgres) -> None:
        await asyncio.to_thread(postgres.prepare)
        await self.supervisor.start(postgres.part(self._log("postgresql"), environment.bare()))
        await postgres.wait()

    async def _start_api(self) -> None:
        await self._timed("tables", self._run_once("migrate"))
        await self.supervisor.start(self.api_part())
        # It loads what it needs while it waits for Prefect's server.
        await self._timed("deployments", self._run_once("deploy", "--wait", f"{_PATIENCE:g}"))
        await self._timed("API", self._answers(f"{self.api_url}/health"))

    async def _start_worker(self) -> None:
        since = datetime.now(UTC)

        def is_online(response: httpx.Response) -> bool:
            # A worker of an earlier start counts as online for a while after it has ended.
            beats = [w["last_heartbeat_time"] for w in response.json() if w["name"] == _WORKER]
            return any(datetime.fromisoformat(beat) >= since for beat in beats)

        await self.supervisor.start(self.worker_part())
        pool = self.env["NOVA_WORK_POOL"]
        await self._answers(
            f"{self.prefect_url}/api/work_pools/{pool}/workers/filter", is_online, method="POST"
        )

    def prefect_part(self) -> Part:
        """Prefect's server."""
        command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        return self._python("Prefect server", times.PREFECT_STOP, *command, "--port", str(self.prefect_port))

    def api_part(self) -> Part:
        """The API."""
        command = ["-m", "deployments.cli", "api", "--host", "127.0.0.1", "--port", str(self.api_port)]
        return self._python("API", times.API_STOP, *command)

    def worker_part(self) -> Part:
        """The worker."""
        grace = times.worker_stop(float(self.env["NOVA_WORKER_GRACE"]))
        command = ["-m", "deployments.cli", "worker", "--name", _WORKER, "--limit", str(self.options.limit)]
        return self._python("worker", grace, *command)

    def _python(self, name: str, grace: float, *arguments: str) -> Part:
        return Part(
            name=name,
            command=[sys.executable, *arguments],
            env=self.env,
            log=self._log(name.lower().replace(" ", "-")),
            cwd=self.data.work,
            grace=grace,
        )

    def _log(self, name: str) -> Path:
        log = self.data.logs / f"{name}.log"
        if log.exists() and log.stat().st_size > _LOG_SIZE:
            log.replace(log.with_suffix(".log.1"))
        return log

    async def _run_once(self, command: str, *arguments: str) -> None:
        """Run a nova command with the parts' environment; raises InfrastructureError with its output."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deployments.cli", command, *arguments),
            env=self.env,
            cwd=self.data.work,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        with self._log(command).open("ab") as log:
            log.write(output)
        if process.returncode:
            raise InfrastructureError(f"nova {command} failed: {output.decode(errors='replace').strip()}")

    async def _answers(
        self,
        url: str,
        good: Callable[[httpx.Response], bool] | None = None,
        *,
        method: str = "GET",
    ) -> None:
        """Wait until `url` answers 200 and `good`, if given, accepts the answer."""
        import httpx

        deadline = time.monotonic() + _PATIENCE
        last = "no answer"
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            while time.monotonic() < deadline:
                try:
                    response = await client.request(method, url, json={} if method == "POST" else None)
                    if response.status_code == 200 and (good is None or good(response)):
                        return
                    last = f"{response.status_code} {response.text[:300]}"
                except httpx.HTTPError as error:
                    last = f"no answer ({type(error).__name__})"
                await asyncio.sleep(0.1)
        raise InfrastructureError(
            f"{url} is not ready after {_PATIENCE:g} s: {last}. The parts' logs are in {self.data.logs}."
        )

    async def _timed(self, what: str, work: Awaitable[None]) -> None:
        since = time.monotonic()
        await work
        self._say(f"  {what:<15} {time.monotonic() - since:5.1f} s")


def _usable_port(port: int, option: str) -> int:
    """Return `port`, or a free one for 0; raises ConflictError, which names the option, when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise ConflictError(f"Port {port} needs more rights. Choose another with {option}.") from None
        except OSError:
            raise ConflictError(
                f"Port {port} is in use. Free it, or choose another with {option} (0 is a free one)."
            ) from None
        return int(probe.getsockname()[1])
