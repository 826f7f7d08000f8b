"""How large a scenario is: the full form, and the short one of the tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What bounds a scenario."""

    runs: int = 200
    guarded: int = 50
    """Runs with a node that must not be started twice, beside the others."""
    posts: int = 200
    """Runs that are asked for while the API is killed after each."""
    kills: int = 20
    """Times that a worker is killed, a sixth of it for a server, which takes longer to come back."""
    poll: float = 2.0
    """Seconds between two polls of a client."""
    patience: float = 600.0
    """Seconds that the runs get to their end after the last kill."""
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    """Takes a line of progress."""

    @property
    def is_large(self) -> bool:
        """Whether there is so much of everything that what is likely happens for sure."""
        return self.runs >= 100

    def chance(self, name: str) -> random.Random:
        """The chance of one scenario, the same for the same seed."""
        return random.Random(f"{self.seed} {name}")


SHORT = Size(runs=12, guarded=4, posts=4, kills=2, poll=0.2, patience=60)
"""A few of everything: the form of the tests."""


def shares(total: int, parts: int) -> list[int]:
    """Divide a number into whole parts that differ by one at most."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
