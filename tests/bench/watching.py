"""What is watched of a worker while it works: its memory, and whether its heartbeats come."""

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

EVERY = 0.1
"""Seconds between two looks."""


@dataclass
class Memory:
    """The most that a worker held, in MB resident."""

    peak: float = 0.0


@contextlib.contextmanager
def memory_of(worker: ServerProcess) -> Iterator[Memory]:
    """Watch a worker with the processes that it started: stock ones run each flow in one."""
    found = Memory()
    done = threading.Event()

    def watch() -> None:
        process = psutil.Process(worker.process.pid)
        while not done.wait(EVERY):
            found.peak = max(found.peak, _resident(process) / 1e6)

    # In a thread: the client's loop is at times busy with an answer of 10 MB.
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
    """The heartbeats of a worker as Prefect noted them."""

    INTERVAL = 2
    """Seconds between two, give or take the third that Prefect adds or leaves out."""
    SETTING = {"PREFECT_WORKER_HEARTBEAT_SECONDS": str(INTERVAL)}  # noqa: RUF012
    """What the worker is started with: at Prefect's 30 s nothing would be seen."""

    times: list[datetime] = field(default_factory=list)

    @property
    def longest_gap(self) -> float:
        """Seconds between two heartbeats, at worst."""
        return max(((b - a).total_seconds() for a, b in itertools.pairwise(self.times)), default=0.0)


@contextlib.asynccontextmanager
async def heartbeats_of(worker: ServerProcess, client: Client) -> AsyncIterator[Heartbeats]:
    """Watch the heartbeats of a worker that was started with `Heartbeats.SETTING`."""
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
    # One more, so that a gap that is still open counts, too.
    seen = len(found.times)
    await eventually(look, lambda number: number > seen)
