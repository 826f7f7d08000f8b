"""The server as pytest fixtures; a conftest imports both: `e2b_server` and `e2b_session_server`."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest
import uvicorn

from tests.e2b_server.app import application
from tests.e2b_server.builds import Builds
from tests.e2b_server.cloud import Cloud
from tests.e2b_server.faults import Faults
from tests.e2b_server.limits import Bucket
from tests.e2b_server.simulated_sandbox import SimulatedSandbox


class E2BServer:
    """A server in a thread; `sandboxes` can be read while it runs and after."""

    def __init__(
        self,
        *,
        port: int = 0,
        start_delay: float = 0.0,
        creations_per_second: float | None = None,
        at_once: int | None = None,
        api_key: str | None = None,
        fail: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.cloud = Cloud(start_delay, creations_per_second, at_once)
        self._limits = (creations_per_second, at_once)
        self.builds = Builds(self.cloud)
        self._start_delay = start_delay
        self._socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self._socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # else each answer takes 40 ms longer
        config = uvicorn.Config(
            Faults(application(self.cloud, self.builds, api_key), self.cloud, fail, seed),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=3600,  # else a connection may close just as the SDK reuses it
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="e2b server")

    @property
    def url(self) -> str:
        """URL of the control plane and of every sandbox."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make E2B's SDK use this server."""
        return {"E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url, "E2B_API_KEY": "e2b_" + "0" * 40}

    @property
    def sandboxes(self) -> list[SimulatedSandbox]:
        """Every sandbox that was created, oldest first."""
        return list(self.cloud.all)

    def vanish(self, sandbox_id: str) -> None:
        """End a sandbox without a request, as happens in the cloud."""
        sandbox = self.cloud.find(sandbox_id)
        if sandbox is not None:
            self._call(lambda: self.cloud.kill(sandbox, "vanished"))

    def cut_streams(self, sandbox_id: str) -> None:
        """Break the connections to a sandbox's programs; the programs run on."""
        sandbox = self.cloud.find(sandbox_id)
        if sandbox is not None:
            self._call(sandbox.cut_off)

    def hold(self) -> None:
        """Leave every creation unanswered until `release`."""
        self._call(self.cloud.open.clear)

    def release(self) -> None:
        """Answer the held creations and all later ones."""
        self._call(self.cloud.open.set)

    def set_timeout(self, sandbox_id: str, seconds: float) -> None:
        """Let a sandbox's timeout come in so many seconds."""
        sandbox = self.cloud.find(sandbox_id)
        if sandbox is not None:
            self._call(functools.partial(self.cloud.set_timeout, sandbox, seconds))

    def _call(self, work: Callable[[], object]) -> None:
        async def called() -> None:
            work()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result(timeout=30)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def reset(self) -> None:
        """End every sandbox and reset limits, faults and counters."""
        for sandbox in self.sandboxes:
            self._call(functools.partial(self.cloud.kill, sandbox, "stop"))
        self.cloud.all.clear()
        self.cloud.keys.clear()
        self.cloud.installed.clear()
        self.builds.reset()
        self.cloud.asked = 0
        self.cloud.start_delay, self.cloud.refuse_with, self.cloud.envs = self._start_delay, None, {}
        self.cloud.creations_per_second, self.cloud.at_once = self._limits
        self.cloud.starts_refused_with = iter(())
        self.cloud.too_many, self.cloud.refused, self.cloud.bucket = 0, 0, Bucket()
        self.release()

    def stop(self) -> None:
        """End every sandbox, then stop the server."""
        self.reset()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> E2BServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@pytest.fixture(scope="session")
def e2b_session_server() -> Iterator[E2BServer]:
    """One server for all tests of a session; tests use `e2b_server`, which resets it."""
    with E2BServer() as server:
        yield server


@pytest.fixture
def e2b_server(e2b_session_server: E2BServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[E2BServer]:
    """A server of E2B's protocol without sandboxes; the SDK's environment variables point to it."""
    for name, value in e2b_session_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("E2B_DEBUG", raising=False)
    e2b_session_server.reset()
    yield e2b_session_server
    e2b_session_server.reset()
