"""What is not to be taken for a while: runs that somebody else still has, or every run during an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from deployments.worker.claims import Claim


class ClaimBackoff:
    """Remembers refusals until their time is over, and calls `over` then; belongs to the worker's loop."""

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._runs: set[UUID] = set()
        self._outages = 0

    @property
    def number(self) -> int:
        """How many runs wait by themselves."""
        return len(self._runs)

    @property
    def all_wait(self) -> bool:
        """Whether no run at all is to be taken."""
        return self._outages > 0

    def allow(self, flow_run_id: UUID) -> bool:
        """Whether this run may be tried."""
        return flow_run_id not in self._runs

    def note(self, flow_run_id: UUID, claim: Claim) -> None:
        """Take note of a refusal, if it is one that passes with time."""
        if claim.pause == 0:
            return
        loop = asyncio.get_running_loop()
        if claim.for_all:
            self._outages += 1
            loop.call_later(claim.pause, self._end_outage)
        else:
            self._runs.add(flow_run_id)
            loop.call_later(claim.pause, self._end, flow_run_id)

    def _end_outage(self) -> None:
        self._outages -= 1
        self._over()

    def _end(self, flow_run_id: UUID) -> None:
        self._runs.discard(flow_run_id)
        self._over()
