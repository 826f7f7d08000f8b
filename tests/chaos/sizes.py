"""The size of a scenario; the defaults are those of the full suite."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The numbers and times of a scenario."""

    runs: int = 200
    unrepeatable: int = 50
    """Runs with a node that must not start twice, in addition to `runs`."""
    posts: int = 200
    """Requests after each of which the API is killed."""
    kills: int = 20
    """Times that a worker is killed; a server, which restarts more slowly, is killed fewer times."""
    poll: float = 2.0
    """Seconds between two polls of a client."""
    patience: float = 600.0
    """Seconds that the runs may take to end after the last kill."""
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    """Called with each line of progress."""

    @property
    def is_large(self) -> bool:
        """Whether the scenario is large enough that likely events certainly occur."""
        return self.runs >= 100

    def chance(self, name: str) -> random.Random:
        """Return a scenario's random generator, the same for the same seed."""
        return random.Random(f"{self.seed} {name}")


SHORT = Size(runs=12, unrepeatable=4, posts=4, kills=2, poll=0.2, patience=60)
"""A few of everything: the form of the tests."""


def shares(total: int, parts: int) -> list[int]:
    """Divide a number into whole parts that differ by one at most."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
