"""Every scenario by its name, and one call that runs one and counts what it left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from tests.chaos import leftovers
from tests.chaos.judging import Verdict
from tests.chaos.scenario_clouds import calls_fail, polled
from tests.chaos.scenario_kills import api_killed, postgres_restarted, prefect_killed, worker_killed
from tests.chaos.scenario_workers import worker_paused, worker_stopped
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack

Scenario = Callable[[Stack, Size], Awaitable[Verdict]]

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        worker_killed,
        prefect_killed,
        postgres_restarted,
        api_killed,
        calls_fail,
        worker_paused,
        worker_stopped,
        polled,
    )
}


async def run(stack: Stack, name: str, size: Size) -> Verdict:
    """Run a scenario on a stack that has no workers, end its workers, and count what is left over."""
    try:
        verdict = await SCENARIOS[name](stack, size)
        try:
            verdict.facts["sandboxes swept"] = await asyncio.to_thread(leftovers.sweep, stack)
        except (AssertionError, httpx.HTTPError) as error:
            verdict.fault("cleanups that failed", str(error))
        for kind, found in (await asyncio.to_thread(leftovers.while_it_stands, stack)).items():
            verdict.faults[kind] = [line for line in found if line not in stack.reported]
            stack.reported |= set(found)
    finally:
        await asyncio.to_thread(stack.stop_workers)
    return verdict


def at_the_end(stack: Stack) -> Verdict:
    """Stop the stack and count what is left over."""
    return Verdict(faults=leftovers.after_it_stopped(stack))
