"""The server's sandboxes: what each was made with, its folder, its processes, its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from flows.sandbox.processes import is_alive
from tests.e2b_server.limits import Bucket, LimitReachedError
from tests.e2b_server.processes import Process

HOME = "/home/user"
"""Where a sandbox's own folder appears to the programs in it, if mounts can be made."""


@dataclass
class SandboxSession:
    """One sandbox. `killed` and `ended_by` stay readable after its end."""

    id: str
    template: str
    metadata: dict[str, str]
    envs: dict[str, str]
    timeout: int
    pauses: bool
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    ends: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: str = "running"
    ended_by: str = ""
    ended: datetime | None = None
    """When the last of its processes was dead."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="e2b-server-")))
    processes: dict[int, Process] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def killed(self) -> bool:
        """Whether it is over, by a kill or by its timeout."""
        return self.state == "killed"

    @property
    def home(self) -> Path:
        """The folder that its account sees as its home."""
        return self.folder / "home"

    @property
    def mounted_home(self) -> str:
        """The path under which programs in it see their home."""
        return HOME if can_mount() else str(self.home)

    def path(self, given: str) -> Path:
        """Where a path of the sandbox lies on this machine; relative ones are below its home.

        Other absolute paths are read from the machine itself, and written below the sandbox's folder.
        """
        below = "." + given[1:] if given.startswith("~") else given
        pure = PurePosixPath(os.path.normpath(PurePosixPath(self.mounted_home) / below))
        if pure.is_relative_to(self.mounted_home):
            return self.home / pure.relative_to(self.mounted_home)
        if pure.is_relative_to(self.folder):
            return Path(pure)
        inside = self.folder / "root" / pure.relative_to("/")
        return Path(pure) if Path(pure).exists() and not inside.exists() else inside

    def shown(self, path: Path) -> str:
        """The path in the sandbox of a file on this machine."""
        if path.is_relative_to(self.home):
            return str(PurePosixPath(self.mounted_home) / path.relative_to(self.home))
        root = self.folder / "root"
        return "/" + str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    def install(self, files: Mapping[str, bytes]) -> None:
        """Lay its template's files into it."""
        for name, data in files.items():
            pure = PurePosixPath(name)
            below_home = pure.is_relative_to(HOME)
            path = self.home / pure.relative_to(HOME) if below_home else self.folder / "root" / name[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.installed = list(files)

    def located(self, argument: str) -> str:
        """A program's argument with its template's files where they lie on this machine: it has no root."""
        for name in self.installed:
            argument = argument.replace(name, str(self.path(name)))
        return argument

    def environment(self, user: str) -> dict[str, str]:
        """What a command of the sandbox sees as its environment."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "LANG": "C.UTF-8",
            "HOME": self.mounted_home,
            "TMPDIR": str(self.folder / "tmp"),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.id,
            **self.envs,
        }

    def prefix(self) -> list[str]:
        """What makes a program see this sandbox's folder as its home: a mount namespace of its own."""
        if not can_mount():
            return []
        script = (
            "given=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin; "
            "mount -t tmpfs none /home && mkdir /home/user && "
            'mount --bind "$0" /home/user && cd "$1" && shift && PATH=$given && exec "$@"'
        )
        return [
            shutil.which("unshare") or "unshare",
            "--mount",
            "--",
            "/bin/sh",
            "-c",
            script,
            str(self.home),
        ]

    def members(self) -> set[int]:
        """All living processes of the sandbox, wherever they went: its id is in their environment."""
        mark = f"E2B_SANDBOX_ID={self.id}".encode("ascii")
        # `over` comes a turn of the loop after the end, `is_alive` alone may mean a later process.
        found = {p.pid for p in self.processes.values() if not p.over and is_alive(p.pid)}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
        return found

    def signal(self, number: int) -> int:
        """Send a signal to all of its processes; how many there were."""
        pids = self.members()
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        return len(pids)

    def cut_off(self) -> None:
        """Break every stream that follows one of its programs."""
        for process in self.processes.values():
            process.cut_off()

    def describe(self) -> dict[str, Any]:
        """Its entry in the control plane's answers."""
        return {
            "templateID": self.template,
            "alias": self.template,
            "sandboxID": self.id,
            "clientID": "local",
            "startedAt": self.started.isoformat().replace("+00:00", "Z"),
            "endAt": self.ends.isoformat().replace("+00:00", "Z"),
            "envdVersion": "0.6.7",
            "envdAccessToken": self.token,
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "state": self.state,
            "metadata": self.metadata,
            "domain": None,
        }


class Places:
    """All sandboxes that the server ever made, and the knobs that make it misbehave."""

    def __init__(
        self,
        start_delay: float = 0.0,
        creations_per_second: float | None = None,
        at_once: int | None = None,
    ) -> None:
        self.all: list[SandboxSession] = []
        self.start_delay = start_delay
        self.creations_per_second = creations_per_second
        self.at_once = at_once
        self.too_many = 0
        """Creations that were refused because of one of these two limits."""
        self.bucket = Bucket()
        self.making = 0
        self.open = asyncio.Event()
        """While it is not set, creations are not answered."""
        self.open.set()
        self.asked = 0
        """Creations that were begun, the ones that are not done yet included."""
        self.refuse_with: tuple[int, str] | None = None
        """Status and message with which the next creations are refused."""
        self.refused = 0
        """How many were."""
        self.starts_refused_with: Iterator[int] = iter(())
        """Statuses with which the next programs that sandboxes are to start are refused, one for each."""
        self.envs: dict[str, str] = {}
        """Variables that the next sandboxes have, as if their template had set them."""
        self.keys: dict[str, SandboxSession] = {}
        self.installed: dict[str, dict[str, bytes]] = {}
        """Name of a template → the files that its sandboxes have, path → content."""

    def find(self, sandbox_id: str) -> SandboxSession | None:
        """Find a sandbox that is running or paused."""
        return next((p for p in self.all if p.id == sandbox_id and not p.killed), None)

    async def create(self, body: dict[str, Any], key: str | None) -> SandboxSession:
        """Make a sandbox; a repeated idempotency key gives the one that it made before.

        Raises LimitReachedError.
        """
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
        place = SandboxSession(
            id="i" + secrets.token_hex(10),
            template=body["templateID"],
            metadata=dict(body.get("metadata") or {}),
            envs={**self.envs, **(body.get("envVars") or {})},
            timeout=int(body.get("timeout", 15)),
            pauses=bool(body.get("autoPause", False)),
        )
        place.home.mkdir()
        (place.folder / "tmp").mkdir()
        place.install(self.installed.get(place.template, {}))
        place.home.chmod(0o755)
        self.all.append(place)
        if key:
            self.keys[key] = place
        self.set_timeout(place, place.timeout)
        return place

    def check_limits(self) -> None:
        """Raise LimitReachedError when no sandbox may be made now."""
        running = self.making + sum(place.state == "running" for place in self.all)
        if self.at_once is not None and running >= self.at_once:
            raise LimitReachedError(
                f"you have reached the maximum number of concurrent E2B sandboxes ({self.at_once})"
            )
        if self.creations_per_second is not None and not self.bucket.take(self.creations_per_second):
            raise LimitReachedError(f"more than {self.creations_per_second:g} sandboxes a second")

    def set_timeout(self, place: SandboxSession, seconds: float) -> None:
        """Let a sandbox end, or pause if it was made so, in that many seconds."""
        if place.timer is not None:
            place.timer.cancel()
        place.ends = datetime.now(UTC) + timedelta(seconds=seconds)
        place.timer = asyncio.get_running_loop().call_later(seconds, self._expire, place)

    def _expire(self, place: SandboxSession) -> None:
        if place.pauses:
            self.pause(place)
        else:
            self.kill(place, "timeout")

    def pause(self, place: SandboxSession) -> None:
        """Stop a sandbox's processes until it is connected to again."""
        place.state = "paused"
        if place.timer is not None:
            place.timer.cancel()
        place.signal(signal.SIGSTOP)
        place.cut_off()

    def resume(self, place: SandboxSession) -> None:
        """Let a paused sandbox go on."""
        place.state = "running"
        place.signal(signal.SIGCONT)

    def kill(self, place: SandboxSession, by: str) -> None:
        """End a sandbox: kill its processes, cut its streams off, remove its folder."""
        if place.killed:
            return
        place.state, place.ended_by = "killed", by
        if place.timer is not None:
            place.timer.cancel()
        place.cut_off()
        for _ in range(100):
            if not place.signal(signal.SIGKILL):
                break
        place.ended = datetime.now(UTC)
        shutil.rmtree(place.folder, ignore_errors=True)


@functools.cache
def can_mount() -> bool:
    """Whether this process may make mounts in a namespace of its own, as root in Linux may."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    hidden = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, tempfile.gettempdir())]
    if any(path.is_relative_to("/home") for path in hidden):
        return False
    attempt = ["unshare", "--mount", "--", "/bin/sh", "-c", "mount -t tmpfs none /home && mkdir /home/user"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0
