"""Starts Python programs as forks of itself, which has imported what they would each import for seconds.

    python -m tests.fork_server <path of its socket>

It takes one request per connection, a line of JSON, and answers with one (see `client`). A fork gets its own
session, environment, folder, input and output, and then runs a module as `python -m` would. What a program
makes of its command line and how it is installed, a test must see by a start of its own.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import prefect.context
import prefect.plugins

_OURS = ("api", "deployments", "flows")
_OTHERS = (
    "prefect.cli.deploy",
    "prefect.cli.deployment",
    "prefect.cli.worker",
    "prefect.task_engine",
    "psycopg2",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
"""What Prefect, SQLAlchemy and uvicorn import when they are used."""


class ForkServer:
    """The process that forks; it has one thread only, or its forks would wait for locks of the others."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"{path}.new")
        self._socket.listen(64)
        Path(f"{path}.new").rename(path)  # who sees it can connect
        self._returncodes: dict[int, int | None] = {}

    def serve(self) -> dict[str, Any] | None:
        """Answer requests until one says that it is over; returns, in a fork, what that was started for."""
        while True:
            connection, _ = self._socket.accept()
            with connection:
                request: dict[str, Any] = json.loads(connection.makefile().readline())
                answer: dict[str, int | None] = {}
                if "module" in request:
                    answer["pid"] = pid = os.fork()
                    if pid == 0:
                        self._socket.close()
                        return request
                    self._returncodes[pid] = None
                elif "pid" in request:
                    answer["returncode"] = self._poll(request["pid"])
                else:
                    self._kill_all()
                connection.sendall(json.dumps(answer).encode() + b"\n")
                if not answer:
                    return None

    def _kill_all(self) -> None:
        for pid in self._returncodes:
            if self._poll(pid) is None:
                os.kill(pid, signal.SIGKILL)

    def _poll(self, pid: int) -> int | None:
        if self._returncodes[pid] is None:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._returncodes[pid] = os.waitstatus_to_exitcode(status)
        return self._returncodes[pid]


def _import_all() -> None:
    """Import our modules and the others, and what Prefect's workers import to find their types."""
    # As in tests/conftest.py.
    ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]
    for name in _OTHERS:
        importlib.import_module(name)
    for folder in _OURS:
        package = importlib.import_module(folder)
        for module in pkgutil.walk_packages(package.__path__, f"{folder}."):
            # Those of alembic, and the mains, do their work when they are imported.
            if "migrations." not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    prefect.plugins.load_prefect_collections()


def _become(request: dict[str, Any]) -> None:
    """Make this fork what a process is that was started for the same request."""
    os.setsid()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(request[name], flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    sys.path.insert(0, request["cwd"])
    prefect.context.refresh_global_settings_context()


def main() -> None:
    """Serve; in a fork, run its module."""
    _import_all()
    gc.collect()
    gc.freeze()  # else each fork looks through all of it when it ends, for half a second of CPU
    assert threading.active_count() == 1, "a module that was imported has started a thread"
    request = ForkServer(sys.argv[1]).serve()
    if request:
        _become(request)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


main()
