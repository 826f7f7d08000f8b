"""The model-based test in short; `python -m tests.simulation` is the long form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.shared import SharedServers
from tests.simulation.driver import simulate
from tests.simulation.machine import Machine
from tests.simulation.site import Site, site


@pytest.fixture(scope="module")
def simulated(shared: SharedServers, worker_id: str) -> Iterator[Site]:
    """The tables of a database of the simulation's own, and a stand-in."""
    with site(shared.database_with_tables(f"simulation_{worker_id}")) as opened:
        yield opened


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_done_twice_lost_or_taken_back(simulated: Site, seed: int) -> None:
    """Processes are paused and killed, messages late, lost and doubled, people do what they like."""
    result = simulate(simulated, seed)
    assert result.violations == [], "\n".join(result.trace)
    assert result.runs > 0


def test_the_same_seed_does_the_same(simulated: Site) -> None:
    """What was found once is found again."""
    first, second = simulate(simulated, 4, 150), simulate(simulated, 4, 150)
    assert [line[:40] for line in first.trace] == [line[:40] for line in second.trace]


def test_the_machine_finds_nothing(simulated: Site) -> None:
    """Hypothesis chooses what happens; what it found it would tell as briefly as it can."""
    Machine.site = simulated
    short = settings(
        max_examples=4,
        stateful_step_count=30,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=short)
