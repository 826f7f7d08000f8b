"""Sandboxes as child processes on this machine, for development and trusted code.

A node's code runs under the worker's own account. It can reach every file and the network; only the worker's
environment variables are hidden from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

from flows.graphs.errors import SandboxError
from flows.sandbox.channel import GRACE, Channel
from flows.sandbox.port import FoundSandbox, Sandbox, SandboxSpec
from flows.sandbox.processes import LINUX, is_alive, kill_tree
from flows.sandbox.protocol import BOOT, RUNNER, Chunks, Message

CHUNK = 256 * 1024
"""Bytes that are written to the runner's stdin at once."""
PATIENCE = 3.0
"""Seconds that a runner may take to end by itself before it is killed."""
START = 30.0
"""Seconds that a runner may take to start."""
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""The worker's environment variables that nodes get, too."""


class LocalProvider:
    """Creates sandboxes that are child processes; `grace` is in seconds (see Channel)."""

    def __init__(self, *, grace: float = GRACE) -> None:
        self._grace = grace

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Start a runner and return its sandbox; raises SandboxError if it cannot be started."""
        folder: Path | None = None
        sandbox: LocalSandbox | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="nova-sandbox-"))
            token = secrets.token_hex(6)
            process = await _start(folder, token, spec.output_limit)
            sandbox = LocalSandbox(process, f"local-{process.pid}-{token}", folder, self._grace)
            await sandbox.wait_started()
        except BaseException as error:
            if sandbox is not None:
                await sandbox.kill()
            elif folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError | TimeoutError):
                raise SandboxError(f"The local sandbox could not be started: {error!r}.") from error
            raise
        return sandbox

    async def kill(self, sandbox_id: str) -> None:
        """End a local sandbox of any worker on this machine; does nothing if it has ended already.

        Raises SandboxError if the id is not a local sandbox's.
        """
        kind, _, rest = sandbox_id.partition("-")
        number, _, token = rest.partition("-")
        if kind != "local" or not number.isdigit() or not token:
            raise SandboxError(f"{sandbox_id} is not the id of a local sandbox.")
        await asyncio.to_thread(_kill_by_token, int(number), token)

    async def list(self) -> Sequence[FoundSandbox]:
        """Return nothing: a local sandbox ends with its worker, since its runner's stdin ends then."""
        return []


class LocalSandbox(Channel):
    """One runner process."""

    def __init__(self, process: Process, name: str, folder: Path, grace: float) -> None:
        super().__init__(grace)
        self._process = process
        self._name = name
        self._folder = folder
        self._chunks = Chunks(CHUNK)
        self._stderr = b""
        self._readers = [asyncio.create_task(self._read()), asyncio.create_task(self._read_stderr())]

    @property
    def id(self) -> str:
        """`local-<process id>-<token>`; the token is needed since the system reuses process ids."""
        return self._name

    async def wait_started(self) -> None:
        """Wait until the runner is ready; raises TimeoutError and SandboxError."""
        async with asyncio.timeout(START):
            await self._ready

    async def _send(self, message: Message) -> None:
        stdin = self._process.stdin
        try:
            if stdin is None or stdin.is_closing():
                raise BrokenPipeError("its stdin is closed")
            for chunk in self._chunks.cut(message):
                stdin.write(chunk)
                await stdin.drain()
        except (OSError, RuntimeError) as error:
            self.mark_broken(f"its process is gone ({error})")
            raise self._error() from None

    async def _read(self) -> None:
        stdout = self._process.stdout
        while stdout is not None and (data := await stdout.read(1 << 20)):
            self.receive(data)
        code = await self._process.wait()
        said = self._stderr.decode("utf-8", "replace").strip()
        self.mark_broken(f"its process ended with status {code}" + (f": {said}" if said else ""), "runner")

    async def _read_stderr(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (data := await stderr.read(1 << 16)):
            self._stderr = (self._stderr + data)[-2000:]

    async def kill(self) -> None:
        """End the runner and all processes below it. Never raises; may be called twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # a healthy runner ends at this
        self.mark_broken("it was ended")
        try:
            async with asyncio.timeout(PATIENCE):
                await self._process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            kill_tree(self._process.pid)
            if isinstance(error, asyncio.CancelledError):
                raise
            await self._process.wait()
        finally:
            for reader in self._readers:
                reader.cancel()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


async def _start(folder: Path, token: str, output_limit: int) -> Process:
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment.setdefault("LANG", "C.UTF-8")
    environment.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
    options = ["--id", token, "--folder", str(folder), "--output-limit", str(output_limit)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-u", "-c", BOOT, str(RUNNER.parent), *options),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=1 << 20,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )


def _kill_by_token(pid: int, token: str) -> None:
    """End the runner with this process id if it has this token; blocks until it has ended."""
    if token not in _arguments(pid):
        return
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)  # it ends its nodes and itself
    deadline = time.monotonic() + PATIENCE
    while token in (_arguments(pid) or [token]) and is_alive(pid):  # an ending process has no arguments
        if time.monotonic() > deadline:
            kill_tree(pid)
        time.sleep(0.005)


def _arguments(pid: int) -> list[str]:
    """Return a running process's arguments; empty if there is no such process."""
    try:
        if LINUX:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
            return [argument for argument in line.split("\0") if argument]
        shown = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
        )
        return shown.stdout.decode("utf-8", "replace").split()
    except OSError:
        return []
