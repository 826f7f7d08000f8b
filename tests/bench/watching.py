"""Watch a worker while it works: its memory and its heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import psutil

from tests.bench.client import Client
from tests.servers import ServerProcess
from tests.waiting import eventually

POLL_INTERVAL = 0.1
"""Seconds between two measurements of the memory."""


@dataclass
class Memory:
    """A worker's peak resident memory, in MB."""

    peak: float = 0.0


@contextlib.contextmanager
def memory_of(worker: ServerProcess) -> Iterator[Memory]:
    """Measure the memory of a worker and its child processes; stock workers run each flow in one."""
    found = Memory()
    done = threading.Event()

    def watch() -> None:
        process = psutil.Process(worker.process.pid)
        while not done.wait(POLL_INTERVAL):
            found.peak = max(found.peak, _resident(process) / 1e6)

    # In a thread: an answer of 10 MB can block the client's event loop.
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _resident(process: psutil.Process) -> int:
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total


@dataclass
class Heartbeats:
    """The times of a worker's heartbeats, from Prefect."""

    INTERVAL = 2
    """Seconds between two heartbeats; Prefect varies it by a third."""
    SETTING = {"PREFECT_WORKER_HEARTBEAT_SECONDS": str(INTERVAL)}  # noqa: RUF012
    """The worker's setting for it: Prefect's default of 30 s is too long for a case."""

    times: list[datetime] = field(default_factory=list)

    @property
    def longest_gap(self) -> float:
        """The longest time between two heartbeats, in seconds."""
        return max(((b - a).total_seconds() for a, b in itertools.pairwise(self.times)), default=0.0)


@contextlib.asynccontextmanager
async def heartbeats_of(worker: ServerProcess, client: Client) -> AsyncIterator[Heartbeats]:
    """Collect the heartbeats of a worker that was started with `Heartbeats.SETTING`."""
    found = Heartbeats()

    async def look() -> int:
        latest = await client.last_heartbeat(worker.log.stem)
        if latest is not None and latest not in found.times[-1:]:
            found.times.append(latest)
        return len(found.times)

    async def watch() -> None:
        while True:
            await look()
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watcher.cancel()
    # Wait for one more, so that the last gap counts, too.
    seen = len(found.times)
    await eventually(look, lambda number: number > seen)
