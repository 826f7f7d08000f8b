"""Nothing lost, nothing twice: the chaos suite in short.

One scenario stands for all, the one that most others are made of: workers are killed between any two of their
steps, and others take over. All of them run with `--everything`, and by `python -m tests.chaos [--short]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import leftovers, scenario_kills, scenarios
from tests.chaos.sizes import SHORT
from tests.chaos.stack import Stack

ALWAYS = scenario_kills.worker_killed.__name__

pytestmark = pytest.mark.timeout(400)  # what a scenario waits for is bounded by itself


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All of NOVA as processes that a scenario may kill, with short leases."""
    with Stack() as running:
        yield running


@pytest.mark.parametrize(
    "name",
    [name if name == ALWAYS else pytest.param(name, marks=pytest.mark.long) for name in scenarios.SCENARIOS],
)
async def test_whatever_dies_nothing_is_lost_and_nothing_twice(stack: Stack, name: str) -> None:
    """A few runs through each scenario: all of them end, and the ledger has no node once too often."""
    verdict = await scenarios.run(stack, name, SHORT)
    assert verdict.missed == {}, verdict.facts
    assert verdict.facts["runs"] > 0


def test_nothing_is_left_over(stack: Stack) -> None:
    """After all of it: no open run, no sandbox, no slot; once it is stopped, no process, no connection."""
    left = scenarios.left_over(stack) | leftovers.in_stopped_stack(stack)
    assert {kind: found for kind, found in left.items() if found} == {}
