"""Keeps long-running programs alive: starts them, writes their output to files, starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.cli.processes import dies_with_parent, family, kill_all

_TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL|FATAL|PANIC|Traceback)\b")
_LINE = 65_536
"""Bytes that a line may have before it is cut in two."""

Say = Callable[[str], None]
"""Prints one line on the terminal."""


@dataclass(frozen=True)
class Pauses:
    """How long to wait before a part is started again: seconds that double up to a bound."""

    first: float = 1.0
    longest: float = 30.0
    healthy_after: float = 60.0
    """Seconds after which a part counts as healthy: its next pause is the first again."""

    def after(self, deaths: int) -> float:
        """Return the pause after this many deaths in a row (1 or more)."""
        return min(self.first * 2.0 ** min(deaths - 1, 30), self.longest)


@dataclass(frozen=True)
class Part:
    """One program to keep running."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    user: str | None = None
    """System user that it runs as; None is ours."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 10.0
    """Seconds that it has to stop by itself."""
    shows_trouble: bool = True
    """Whether warnings and errors in its output are repeated on the terminal."""


@dataclass
class _Running:
    part: Part
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None
    deaths: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Owns the processes of the parts that it was given; knows nothing of what they do.

    Use it from one event loop, in the main thread (see `dies_with_parent`).
    """

    def __init__(self, say: Say, *, verbose: bool = False, pauses: Pauses | None = None) -> None:
        self._say = say
        self._verbose = verbose
        self._pauses = pauses or Pauses()
        self._running: dict[str, _Running] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def start(self, part: Part) -> None:
        """Start a part and keep it running; returns when its process exists.

        Raises OSError when the program cannot be started at all.
        """
        running = _Running(part)
        self._running[part.name] = running
        running.task = asyncio.create_task(self._keep(running), name=f"keep {part.name}")
        started = asyncio.create_task(running.started.wait())
        try:
            await asyncio.wait({started, running.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if running.task.done():
            del self._running[part.name]
            running.task.result()

    def pid(self, name: str) -> int | None:
        """Return a part's process id; None between its death and its next start."""
        running = self._running.get(name)
        return running.process.pid if running and running.process else None

    def deaths(self, name: str) -> int:
        """Return how often in a row a part has died before it counted as healthy."""
        running = self._running.get(name)
        return running.deaths if running else 0

    async def stop(self, name: str) -> None:
        """Stop a part and all its descendants; one that is not running is no error."""
        running = self._running.pop(name, None)
        if running is None or running.task is None:
            return
        process = running.process
        running.process = None
        # First the loop that would start it again, then the process itself.
        running.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running.task
        if process is not None:
            await self._end(running.part, process)

    async def stop_all(self) -> None:
        """Stop every part, the last one started first.

        Children of parts that died earlier are not found here: see `Stack`.
        """
        for name in reversed(list(self._running)):
            await self.stop(name)
        if self._readers:  # the last output is read, unless a process still holds a pipe
            _, late = await asyncio.wait(self._readers, timeout=1.0)
            for reader in late:
                reader.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _keep(self, running: _Running) -> None:
        part = running.part
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            try:
                process = running.process = await self._spawn(part)
            except OSError as error:
                if not running.started.is_set():
                    raise
                ending = str(error)
            else:
                running.started.set()
                ending = _ending(await process.wait())
                running.process = None
            # Its children are not killed: runs of a dead worker can finish.
            lived = loop.time() - since
            running.deaths = 1 if lived >= self._pauses.healthy_after else running.deaths + 1
            pause = self._pauses.after(running.deaths)
            self._say(f"{part.name} ended ({ending}); it is started again in {pause:g} s. Log: {part.log}")
            await asyncio.sleep(pause)

    async def _spawn(self, part: Part) -> asyncio.subprocess.Process:
        # A pipe of our own: with asyncio's, the end of a process whose children hold the pipe goes unnoticed,
        # and those children would lose their output, or their lives, with the process.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *part.command,
                env=dict(part.env),
                cwd=part.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal reaches only us; we stop the parts in order
                preexec_fn=dies_with_parent(part.stop_signal),
                user=part.user,
                group=part.user,
                extra_groups=[] if part.user else None,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        reader = asyncio.create_task(self._read(part, reading), name=f"read {part.name}")
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        return process

    async def _read(self, part: Part, pipe: int) -> None:
        """Write a pipe's output to the part's log, and warnings and errors to the terminal, until it ends."""
        stream = asyncio.StreamReader(limit=_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(pipe, "rb", buffering=0)
        )
        try:
            with part.log.open("ab", buffering=0) as log:
                while line := await _line(stream):
                    log.write(line)
                    text = line.decode(errors="replace").rstrip()
                    if text and (self._verbose or (part.shows_trouble and _TROUBLE.search(text))):
                        self._say(f"{part.name}: {text}")
        finally:
            transport.close()

    async def _end(self, part: Part, process: asyncio.subprocess.Process) -> None:
        members = family(process.pid)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(part.stop_signal)
            try:
                await asyncio.wait_for(process.wait(), part.grace)
            except TimeoutError:
                members += family(process.pid)
                self._say(f"{part.name} did not stop in {part.grace:g} s and is killed.")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await asyncio.to_thread(kill_all, members)
        _sweep_group(process.pid)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, or a piece of one that is too long; empty at the end."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)


def _sweep_group(group: int) -> None:
    """Kill the rest of a process group whose leader has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
