"""Which runs are not claimed for a while: those that another process holds, or all during an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from deployments.worker.claims import Claim


class ClaimBackoff:
    """Remembers refused claims until their pause is over, then calls `over`; for the worker's loop only."""

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._runs: set[UUID] = set()
        self._outages = 0

    @property
    def number(self) -> int:
        """Return how many single runs have a pause."""
        return len(self._runs)

    @property
    def all_wait(self) -> bool:
        """Return whether no run at all may be claimed."""
        return self._outages > 0

    def allow(self, flow_run_id: UUID) -> bool:
        """Return whether this run may be claimed now."""
        return flow_run_id not in self._runs

    def note(self, flow_run_id: UUID, claim: Claim) -> None:
        """Start the pause of a refused claim, if it has one."""
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
