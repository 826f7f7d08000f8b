"""The programs that run in a sandbox, and the streams of their events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

CHUNK = 32 * 1024
"""Bytes of output per event, as E2B's daemon sends them."""

Event = dict[str, Any]
CUT_OFF: Event = {"cut": True}
"""The event that ends a stream because its connection broke."""


class Process:
    """A started program. Output without a follower is lost; the exit code is kept."""

    def __init__(self, child: asyncio.subprocess.Process, config: dict[str, Any], tag: str | None) -> None:
        self.child = child
        self.config = config
        self.tag = tag
        self.end: Event | None = None
        self._followers: list[asyncio.Queue[Event]] = []
        self._watcher = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.end is not None

    @classmethod
    async def start(
        cls,
        command: list[str],
        config: dict[str, Any],
        environment: dict[str, str],
        cwd: Path,
        *,
        stdin: bool,
        tag: str | None,
    ) -> Process:
        """Start a program in a session of its own; raises OSError."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        return cls(child, config, tag)

    async def _watch(self) -> None:
        await asyncio.gather(self._publish_output("stdout"), self._publish_output("stderr"))
        code = await self.child.wait()
        if code >= 0:
            self.end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
        else:
            name = signal.strsignal(-code) or f"signal {-code}"
            self.end = {"exitCode": -1, "exited": False, "status": f"signal: {name.lower()}"}
        if code:
            self.end["error"] = self.end["status"]
        self._publish({"end": self.end})

    async def _publish_output(self, name: str) -> None:
        stream = self.child.stdout if name == "stdout" else self.child.stderr
        while stream is not None and (data := await stream.read(CHUNK)):
            self._publish({"data": {name: base64.b64encode(data).decode("ascii")}})

    def _publish(self, event: Event) -> None:
        for follower in self._followers:
            follower.put_nowait(event)

    def cut_off(self) -> None:
        """Break every stream that follows it, as when the sandbox or the network is lost."""
        self._publish(CUT_OFF)

    async def follow(self) -> AsyncIterator[Event]:
        """Yield its start, then its output from now on, then its end."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._followers.append(queue)
        try:
            yield {"start": {"pid": self.pid}}
            if self.end is not None:
                yield {"end": self.end}
                return
            while True:
                event = await queue.get()
                yield event
                if "end" in event or event is CUT_OFF:
                    return
        finally:
            self._followers.remove(queue)

    async def write(self, data: bytes) -> None:
        """Write to its stdin; raises BrokenPipeError if it has none or has ended."""
        stdin = self.child.stdin
        if stdin is None or self.over or stdin.is_closing():
            raise BrokenPipeError("stdin not enabled or closed")
        stdin.write(data)
        await stdin.drain()

    def close_stdin(self) -> None:
        """Close its stdin."""
        if self.child.stdin is not None:
            self.child.stdin.close()

    def kill(self, number: int) -> bool:
        """Send a signal to this process only; return False if it has ended."""
        if self.over:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return True
