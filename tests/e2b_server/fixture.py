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
from tests.e2b_server.faults import Faults
from tests.e2b_server.limits import Bucket
from tests.e2b_server.places import Places, SandboxSession


class E2BServer:
    """A running server. `sandboxes` can be looked at while it runs and after."""

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
        self.places = Places(start_delay, creations_per_second, at_once)
        self._limits = (creations_per_second, at_once)
        self.builds = Builds(self.places)
        self._start_delay = start_delay
        self._socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms each
        config = uvicorn.Config(
            Faults(application(self.places, self.builds, api_key), self.places, fail, seed),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=3600,  # else a connection closes just as the SDK takes it up again
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="e2b server")

    @property
    def url(self) -> str:
        """Its address: control plane and sandboxes alike."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes E2B's SDK speak to it, in this process or in one that a test starts."""
        return {"E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url, "E2B_API_KEY": "e2b_" + "0" * 40}

    @property
    def sandboxes(self) -> list[SandboxSession]:
        """Every sandbox that was ever made, in order."""
        return list(self.places.all)

    def vanish(self, sandbox_id: str) -> None:
        """Make a sandbox disappear without anybody's doing, as a few do."""
        place = self.places.find(sandbox_id)
        if place is not None:
            self._call(lambda: self.places.kill(place, "vanished"))

    def cut_streams(self, sandbox_id: str) -> None:
        """Break the connections to a sandbox's programs; the programs run on."""
        place = self.places.find(sandbox_id)
        if place is not None:
            self._call(place.cut_off)

    def hold(self) -> None:
        """Answer no creation until `release` is called."""
        self._call(self.places.open.clear)

    def release(self) -> None:
        """Answer the creations that were held, and those to come."""
        self._call(self.places.open.set)

    def set_timeout(self, sandbox_id: str, seconds: float) -> None:
        """Let a sandbox's time run out in that many seconds."""
        place = self.places.find(sandbox_id)
        if place is not None:
            self._call(functools.partial(self.places.set_timeout, place, seconds))

    def _call(self, work: Callable[[], object]) -> None:
        async def called() -> None:
            work()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result(timeout=30)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> None:
        """Start serving; the address answers from then on."""
        self._thread.start()

    def forget(self) -> None:
        """End every sandbox and become as new, the knobs too."""
        for place in self.sandboxes:
            self._call(functools.partial(self.places.kill, place, "stop"))
        self.places.all.clear()
        self.places.keys.clear()
        self.places.installed.clear()
        self.builds.forget()
        self.places.asked = 0
        self.places.start_delay, self.places.refuse_with, self.places.envs = self._start_delay, None, {}
        self.places.creations_per_second, self.places.at_once = self._limits
        self.places.starts_refused_with = iter(())
        self.places.too_many, self.places.refused, self.places.bucket = 0, 0, Bucket()
        self.release()

    def stop(self) -> None:
        """End every sandbox, then the server."""
        self.forget()
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
    """One server for all tests of a session; tests ask for `e2b_server`, which tidies it up."""
    with E2BServer() as server:
        yield server


@pytest.fixture
def e2b_server(e2b_session_server: E2BServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[E2BServer]:
    """A server of E2B's protocol on this machine without any sandbox, and the SDK's variables set for it."""
    for name, value in e2b_session_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("E2B_DEBUG", raising=False)
    e2b_session_server.forget()
    yield e2b_session_server
    e2b_session_server.forget()
