"""One simulated sandbox: its folder, its processes, its environment."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from flows.sandbox.processes import is_alive
from tests.e2b_server.processes import Process

HOME = "/home/user"
"""The sandbox's home as its programs see it, if this process may mount."""


@dataclass
class SimulatedSandbox:
    """One sandbox; `killed` and `ended_by` can be read after its end, too."""

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
    """When its last process was dead."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="e2b-server-")))
    processes: dict[int, Process] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def killed(self) -> bool:
        """Whether it has ended, by a kill or by its timeout."""
        return self.state == "killed"

    @property
    def home(self) -> Path:
        """The folder on this machine that is its home."""
        return self.folder / "home"

    @property
    def mounted_home(self) -> str:
        """Its home's path as its programs see it."""
        return HOME if can_mount() else str(self.home)

    def path(self, given: str) -> Path:
        """Return a sandbox path's location on this machine; relative paths are below its home.

        Other absolute paths are this machine's if they exist there and the sandbox has not written them; else
        they are below the sandbox's folder.
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
        """Return the path in the sandbox of a file on this machine."""
        if path.is_relative_to(self.home):
            return str(PurePosixPath(self.mounted_home) / path.relative_to(self.home))
        root = self.folder / "root"
        return "/" + str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    def install(self, files: Mapping[str, bytes]) -> None:
        """Write its template's files, path → content."""
        for name, data in files.items():
            pure = PurePosixPath(name)
            below_home = pure.is_relative_to(HOME)
            path = self.home / pure.relative_to(HOME) if below_home else self.folder / "root" / name[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.installed = list(files)

    def located(self, argument: str) -> str:
        """Return a program's argument with the paths of the template's files on this machine."""
        for name in self.installed:
            argument = argument.replace(name, str(self.path(name)))
        return argument

    def environment(self, user: str) -> dict[str, str]:
        """Return the environment variables of the sandbox's commands."""
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
        """Return the command prefix that mounts the sandbox's home; empty if this process cannot mount."""
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
        """Return the ids of the sandbox's running processes, daemons too: its id is in their environment."""
        mark = f"E2B_SANDBOX_ID={self.id}".encode("ascii")
        # `over` is set one loop iteration late; `is_alive` alone may mean a newer process with the same id.
        found = {p.pid for p in self.processes.values() if not p.over and is_alive(p.pid)}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
        return found

    def signal(self, number: int) -> int:
        """Send a signal to all its processes and return how many there were."""
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
        """Return its entry in the control plane's answers."""
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


@functools.cache
def can_mount() -> bool:
    """Return whether this process can mount in its own namespace, as root on Linux can."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    hidden = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, tempfile.gettempdir())]
    if any(path.is_relative_to("/home") for path in hidden):
        return False
    attempt = ["unshare", "--mount", "--", "/bin/sh", "-c", "mount -t tmpfs none /home && mkdir /home/user"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0
