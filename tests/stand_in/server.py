"""The stand-in on a port, in a thread: where a test would start Prefect's server as a process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from tests.servers import wait_until
from tests.stand_in.asgi import App
from tests.stand_in.prefect import StandIn

SERVICES_EVERY = 0.5
"""Seconds between two rounds of what Prefect's server does by itself."""


class StandInServer:
    """A stand-in that other processes reach at `api_url`; ready when made.

    Its tables are in `stand_in`, which a test may look into, and change, at any time. A server that is
    stopped and started again has them still, as a real one has its database. It writes a line per request
    to `log`, in the form that `tests.access_log` reads.
    """

    def __init__(self, log: Path, stand_in: StandIn | None = None, port: int = 0) -> None:
        self.stand_in = stand_in or StandIn(seed=random.randrange(2**63))
        self.port = port
        self.log = log
        log.touch()
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def api_url(self) -> str:
        """The URL of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = App(self.stand_in, self._note)
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        self._server = server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(server, listener)), name="stand-in", daemon=True
        )
        self._thread.start()
        wait_until(lambda: server.started, 30, "the stand-in to listen")

    def stop(self) -> None:
        """Break off all connections and listen no more."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._thread = None

    def _note(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line)

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        services = asyncio.create_task(self._run_services())
        with listener:
            await server.serve(sockets=[listener])
        services.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await services

    async def _run_services(self) -> None:
        while True:
            await asyncio.sleep(SERVICES_EVERY)
            await asyncio.to_thread(self.stand_in.run_services)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
