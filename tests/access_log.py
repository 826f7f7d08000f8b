"""The requests that a Prefect server answered, read from its log (level INFO writes a line for each)."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import eventually

_POLL = "POST /work_pools/{name}/get_scheduled_flow_runs"
_HEARTBEATS = ("POST /work_pools/{name}/workers/heartbeat", "GET /work_pools/{name}")
"""What a worker asks at every heartbeat, whether or not there is a run."""


@dataclass(frozen=True)
class Requests:
    """Method and path → how often; ids and pools' names are left out of the paths."""

    of_runs: Counter[str]
    """All but those below: what it cost to bring runs from their creation to their end."""
    polls: int
    """Look-ups of a worker for what is due: at every poll, and when it is woken."""
    heartbeats: int
    websockets: int

    @property
    def total(self) -> int:
        """Requests of runs, polls and heartbeats."""
        return self.of_runs.total() + self.polls + self.heartbeats


class AccessLog:
    """The log of one server, counted from a mark on."""

    _LINE = re.compile(r'"(GET|POST|PATCH|PUT|DELETE|WebSocket) /api(\S*)')
    _ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
    _POOL = re.compile(r"/work_pools/[^/]+")

    def __init__(self, log: Path) -> None:
        self._log = log
        self._from = 0

    def mark(self) -> None:
        """Count from here."""
        self._from = self._log.stat().st_size

    async def until_told(self) -> None:
        """Wait until a worker has read how its run stands, since the mark.

        The line is written before the answer is sent: two look-ups for due runs later the worker has it.
        """
        read = "GET /flow_runs/{id}"
        polls = (await self._until(lambda found: found.of_runs[read] > 0)).polls
        await self._until(lambda found: found.polls >= polls + 2)

    async def _until(self, enough: Callable[[Requests], bool]) -> Requests:
        return await eventually(lambda: asyncio.to_thread(self.requests), enough)

    def requests(self) -> Requests:
        """Count what came since the mark."""
        with self._log.open("rb") as file:
            file.seek(self._from)
            text = file.read().decode("utf-8", "replace")
        found: Counter[str] = Counter()
        for method, path in self._LINE.findall(text):
            short = self._ID.sub("{id}", path.partition("?")[0].rstrip('"'))
            found[f"{method} {self._POOL.sub('/work_pools/{name}', short)}"] += 1
        polls = found.pop(_POLL, 0)
        heartbeats = sum(found.pop(name, 0) for name in _HEARTBEATS)
        websockets = sum(found.pop(name) for name in list(found) if name.startswith("WebSocket "))
        return Requests(found, polls, heartbeats, websockets)
