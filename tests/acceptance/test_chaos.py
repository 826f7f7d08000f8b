"""Nothing lost, nothing twice: the short form of the chaos suite (in full: `python -m tests.chaos`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import leftovers, scenarios
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack

SHORT = Size(runs=12, unrepeatable=4, posts=4, kills=2, poll=0.2, patience=60)

pytestmark = pytest.mark.timeout(400)  # what a scenario waits for is bounded by itself


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All of NOVA as processes that a scenario may kill, with short leases."""
    with Stack() as running:
        yield running


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
async def test_whatever_dies_nothing_is_lost_and_nothing_twice(stack: Stack, name: str) -> None:
    """A few runs through each scenario: all of them end, and the ledger has no node once too often."""
    verdict = await scenarios.run(stack, name, SHORT)
    assert verdict.missed == {}, verdict.facts
    assert verdict.facts["runs"] > 0


def test_nothing_is_left_over(stack: Stack) -> None:
    """After all of it: no open run, no sandbox, no slot; once it is stopped, no process, no connection."""
    left = scenarios.left_over(stack) | leftovers.in_stopped_stack(stack)
    assert {kind: found for kind, found in left.items() if found} == {}
