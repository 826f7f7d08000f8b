"""What a simulation is about: simulations take turns, so that each thing happens often enough in some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.simulation.lateness import CLAIM, KINDS, RECOVERY, WORK


@dataclass(frozen=True)
class Theme:
    """What happens more often in a simulation, and what less."""

    late: tuple[str, ...] = KINDS
    """The kinds of transactions that come late."""
    failing: tuple[int, ...] = (1, 4, 7)
    """Of eight nodes, how many raise: one of these."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Act → how many times as often as usual it is chosen, where that is not left to chance."""


ANYTHING = Theme()
LATE_CLAIMS = Theme(
    late=(CLAIM,),
    failing=(7,),
    shares={"stall": 2, "retry": 0.3, "retry_in_prefect": 0.3, "skip": 0.3, "pause": 0.3, "reconcile": 0.7},
)
"""Workers come late to runs that others have run, and that failed."""
LATE_WORK = Theme(late=(WORK,), failing=(1,), shares={"stall": 2, "pause": 0.3, "cancel": 0.3})
"""Workers go on with runs that others have taken over."""
LATE_RECOVERY = Theme(
    late=(RECOVERY,),
    failing=(1, 4),
    shares={
        "stall": 2,
        "kill": 4,
        "pass_time": 2,
        "reconcile": 1.5,
        "cancel": 0,
        "retry": 0.3,
        "skip": 0,
        "poll": 0,
        "cancel_in_prefect": 2,
        "force_in_prefect": 4,
        "delete_in_prefect": 2,
    },
)
"""Workers die, people end runs in Prefect, and who looks after those comes late."""

THEMES = (ANYTHING, LATE_RECOVERY, LATE_CLAIMS, LATE_WORK, LATE_RECOVERY)
"""Of the simulations whose numbers follow each other, one after the other. Recoveries are rarest: two."""
