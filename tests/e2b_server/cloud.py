"""The simulated cloud: all its sandboxes, its limits, and the faults that tests switch on."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.e2b_server.limits import Bucket, LimitReachedError
from tests.e2b_server.simulated_sandbox import SimulatedSandbox


class Cloud:
    """Every sandbox that the server created, its limits, and the faults that tests switch on."""

    def __init__(
        self,
        start_delay: float = 0.0,
        creations_per_second: float | None = None,
        at_once: int | None = None,
    ) -> None:
        self.all: list[SimulatedSandbox] = []
        self.start_delay = start_delay
        self.creations_per_second = creations_per_second
        self.at_once = at_once
        self.too_many = 0
        """Creations that one of these two limits refused."""
        self.bucket = Bucket()
        self.making = 0
        self.open = asyncio.Event()
        """While it is not set, no creation is answered."""
        self.open.set()
        self.asked = 0
        """Creations that began, unfinished ones included."""
        self.refuse_with: tuple[int, str] | None = None
        """Status and message of the answer to every creation while it is set."""
        self.refused = 0
        """Creations that `refuse_with` refused."""
        self.starts_refused_with: Iterator[int] = iter(())
        """Status of the answer to each of the next program starts; 0 lets it start."""
        self.envs: dict[str, str] = {}
        """Environment variables of the next sandboxes, as if their template had set them."""
        self.keys: dict[str, SimulatedSandbox] = {}
        self.installed: dict[str, dict[str, bytes]] = {}
        """Template name → the files of its sandboxes, path → content."""

    def find(self, sandbox_id: str) -> SimulatedSandbox | None:
        """Return the running or paused sandbox with this id; None if there is none."""
        return next((p for p in self.all if p.id == sandbox_id and not p.killed), None)

    async def create(self, body: dict[str, Any], key: str | None) -> SimulatedSandbox:
        """Create a sandbox; a repeated idempotency key returns the earlier one; raises LimitReachedError."""
        if key and key in self.keys:
            return self.keys[key]
        try:
            self.check_limits()
        except LimitReachedError:
            self.too_many += 1
            raise
        self.asked += 1
        self.making += 1
        try:
            await asyncio.sleep(self.start_delay)
            await self.open.wait()
        finally:
            self.making -= 1
        sandbox = SimulatedSandbox(
            id="i" + secrets.token_hex(10),
            template=body["templateID"],
            metadata=dict(body.get("metadata") or {}),
            envs={**self.envs, **(body.get("envVars") or {})},
            timeout=int(body.get("timeout", 15)),
            pauses=bool(body.get("autoPause", False)),
        )
        sandbox.home.mkdir()
        (sandbox.folder / "tmp").mkdir()
        sandbox.install(self.installed.get(sandbox.template, {}))
        sandbox.home.chmod(0o755)
        self.all.append(sandbox)
        if key:
            self.keys[key] = sandbox
        self.set_timeout(sandbox, sandbox.timeout)
        return sandbox

    def check_limits(self) -> None:
        """Raise LimitReachedError if no sandbox may be created now."""
        running = self.making + sum(sandbox.state == "running" for sandbox in self.all)
        if self.at_once is not None and running >= self.at_once:
            raise LimitReachedError(
                f"you have reached the maximum number of concurrent E2B sandboxes ({self.at_once})"
            )
        if self.creations_per_second is not None and not self.bucket.take(self.creations_per_second):
            raise LimitReachedError(f"more than {self.creations_per_second:g} sandboxes a second")

    def set_timeout(self, sandbox: SimulatedSandbox, seconds: float) -> None:
        """End a sandbox in so many seconds, or pause it if it was created with `autoPause`."""
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        sandbox.ends = datetime.now(UTC) + timedelta(seconds=seconds)
        sandbox.timer = asyncio.get_running_loop().call_later(seconds, self._expire, sandbox)

    def _expire(self, sandbox: SimulatedSandbox) -> None:
        if sandbox.pauses:
            self.pause(sandbox)
        else:
            self.kill(sandbox, "timeout")

    def pause(self, sandbox: SimulatedSandbox) -> None:
        """Stop a sandbox's processes until `resume`."""
        sandbox.state = "paused"
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        sandbox.signal(signal.SIGSTOP)
        sandbox.cut_off()

    def resume(self, sandbox: SimulatedSandbox) -> None:
        """Continue a paused sandbox."""
        sandbox.state = "running"
        sandbox.signal(signal.SIGCONT)

    def kill(self, sandbox: SimulatedSandbox, by: str) -> None:
        """End a sandbox: break its streams, kill its processes, remove its folder."""
        if sandbox.killed:
            return
        sandbox.state, sandbox.ended_by = "killed", by
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        sandbox.cut_off()
        for _ in range(100):
            if not sandbox.signal(signal.SIGKILL):
                break
        sandbox.ended = datetime.now(UTC)
        shutil.rmtree(sandbox.folder, ignore_errors=True)
