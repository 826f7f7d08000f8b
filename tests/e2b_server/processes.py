"""Programs that run in a sandbox, with the streams that follow them."""

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
"""Stands in a stream for the end of its connection."""


class Process:
    """A started program. Output that comes while nobody follows it is lost, its exit code is kept."""

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
        await asyncio.gather(self._pass_on("stdout"), self._pass_on("stderr"))
        code = await self.child.wait()
        if code >= 0:
            self.end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
        else:
            name = signal.strsignal(-code) or f"signal {-code}"
            self.end = {"exitCode": -1, "exited": False, "status": f"signal: {name.lower()}"}
        if code:
            self.end["error"] = self.end["status"]
        self._tell({"end": self.end})

    async def _pass_on(self, name: str) -> None:
        stream = self.child.stdout if name == "stdout" else self.child.stderr
        while stream is not None and (data := await stream.read(CHUNK)):
            self._tell({"data": {name: base64.b64encode(data).decode("ascii")}})

    def _tell(self, event: Event) -> None:
        for follower in self._followers:
            follower.put_nowait(event)

    def cut_off(self) -> None:
        """Break every stream that follows it, as a lost sandbox or network does."""
        self._tell(CUT_OFF)

    async def follow(self) -> AsyncIterator[Event]:
        """Give its start, then what it prints from now on, then its end."""
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
        """Write to its stdin; raises BrokenPipeError when it has none or is over."""
        stdin = self.child.stdin
        if stdin is None or self.over or stdin.is_closing():
            raise BrokenPipeError("stdin not enabled or closed")
        stdin.write(data)
        await stdin.drain()

    def close_stdin(self) -> None:
        """End its stdin."""
        if self.child.stdin is not None:
            self.child.stdin.close()

    def kill(self, number: int) -> bool:
        """Send it, and it alone, a signal; False when it is over."""
        if self.over:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return True
