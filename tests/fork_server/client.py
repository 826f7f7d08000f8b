"""Processes that the fork server starts, with the interface of `subprocess.Popen`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def ask(server: Path, **request: Any) -> dict[str, Any]:
    """Send the fork server a request and return its answer; an empty request ends it and its forks."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
        return answer


class ForkedProcess:
    """A fork that runs a module; it is a child of the fork server."""

    def __init__(
        self,
        server: Path,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: Path,
        stdin: Path = Path(os.devnull),
        stdout: Path,
        stderr: Path,
    ) -> None:
        self._server = server
        self._command = [module, *arguments]
        self.returncode: int | None = None
        files = {"stdin": str(stdin), "stdout": str(stdout), "stderr": str(stderr)}
        self.pid: int = ask(
            server,
            module=module,
            arguments=list(arguments),
            environment=dict(environment),
            cwd=str(cwd),
            **files,
        )["pid"]

    def poll(self) -> int | None:
        """Its return code; None while it runs."""
        if self.returncode is None:
            self.returncode = ask(self._server, pid=self.pid)["returncode"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its return code when it has ended; raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._command, timeout or 0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)
