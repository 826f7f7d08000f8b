"""Attempts that nobody ended: how they are counted, and from how many a run is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOST_STARTS: Final = 10
"""Attempts in a row that ended before a node was started, from which a run is given up."""


@dataclass(frozen=True)
class LostAttempt:
    """An attempt that nobody ended: its process died, or was stopped from outside."""

    crashes: int
    """How often in a row the run's process died at `crash_step`, before this attempt."""
    crash_step: int | None
    lost_starts: int
    """How many attempts in a row ended before a node was started, before this one."""
    stepping: bool
    """Whether a node of this attempt may have been started."""
    step: int
    """The step at which it ended."""
    node: str | None

    def counters(self) -> dict[str, int | None]:
        """The row's counters with this attempt counted: a crash at its step, or a start that was lost."""
        if not self.stepping:
            return {"lost_starts": self.lost_starts + 1}
        crashes = self.crashes + 1 if self.crash_step == self.step else 1
        return {"crashes": crashes, "crash_step": self.step, "lost_starts": 0}

    def why_given_up(self, crash_limit: int) -> str | None:
        """Say why the run is not tried any more; None while it is."""
        counted = self.counters()
        where = f"at step {self.step}" + (f", node {self.node!r}" if self.node else "")
        if (crashes := counted.get("crashes") or 0) >= crash_limit:
            return f"The run's worker died {crashes} times in a row {where}."
        if (starts := counted.get("lost_starts") or 0) >= LOST_STARTS:
            return f"The run was taken {starts} times in a row and never came to start {where}."
        return None
