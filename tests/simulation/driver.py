"""Random simulations by the number: the same seed always does the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.acts import Acts
from tests.simulation.healing import Healing
from tests.simulation.site import Site
from tests.simulation.themes import THEMES
from tests.simulation.world import World

LENGTH = 2000
"""Choices that are made before everything is let come to rest."""
BITS = 16
IN_ORDER = 0.93
"""Share of the steps that are the first of those that may happen."""

MOST_LIVE = (1, 2, 4)
"""Runs that go on at the same time."""

ALWAYS: dict[str, float] = {
    "step": 1500,
    "poll_for_runs": 30,
    "reconcile": 12,
    "execute": 18,
    "stall": 50,
    "get_on": 200,
}
"""How often each act is chosen that every simulation has."""
AT_TIMES: dict[str, float] = {
    "hurry": 30,
    "pass_time": 20,
    "kill": 3,
    "pause": 6,
    "resume": 4,
    "lose": 5,
    "double": 4,
    "break_sandbox": 2,
    "cut_renewals": 1,
    "poll": 6,
    "cancel": 10,
    "retry": 14,
    "skip": 4,
    "run_in_prefect": 4,
    "cancel_in_prefect": 4,
    "retry_in_prefect": 10,
    "force_in_prefect": 5,
    "delete_in_prefect": 1,
    "suspend_in_prefect": 1,
    "resume_in_prefect": 1,
}
"""The same of those of which each simulation has some more often and some less."""
SHARES = (0.0, 0.3, 1.0, 1.0, 3.0)


@dataclass
class Result:
    """What came of one simulation."""

    seed: int
    steps: int
    runs: int
    violations: list[str]
    trace: list[str]


def simulate(site: Site, seed: int, length: int = LENGTH) -> Result:
    """Run one simulation to its end, or to the first violation."""
    chance = random.Random(seed)
    world = World(site, seed)
    theme = THEMES[seed % len(THEMES)]
    acts = Acts(world, chance.choice(MOST_LIVE), chance.choice(theme.failing), theme.late)
    acts.start(chance.getrandbits(32))
    shares = dict.fromkeys(ALWAYS, 1.0) | {name: chance.choice(SHARES) for name in AT_TIMES}
    shares.update(theme.shares)
    names = list(shares)
    weights = [(ALWAYS | AT_TIMES)[name] * share for name, share in shares.items()]
    try:
        for _ in range(length):
            name = chance.choices(names, weights)[0]
            act: Callable[..., None] = getattr(acts, name)
            numbers = [chance.getrandbits(BITS) for _ in range(numbers_of(name))]
            if name == "step" and chance.random() < IN_ORDER:
                numbers[0] = 0
            act(*numbers)
            world.check()
            if world.ledger.violations:
                break
        else:
            world.ledger.violations += Healing(world, acts).heal()
            world.check()
        return Result(seed, world.steps, len(world.ledger.rows), world.ledger.violations, world.trace)
    finally:
        world.end()


def numbers_of(name: str) -> int:
    """How many numbers an act is told."""
    code = getattr(Acts, name).__code__
    return int(code.co_argcount) - 1


def find(site: Site, seed: int, most: int) -> tuple[int, Result | None]:
    """Simulate with one seed after the other until something is found; how many steps that took, and what."""
    steps = 0
    while steps < most:
        result = simulate(site, seed)
        steps += result.steps
        if result.violations:
            return steps, result
        seed += 1
    return steps, None
