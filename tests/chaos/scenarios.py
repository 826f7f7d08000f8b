"""Every scenario by its name; run one, and count what it leaves over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.chaos import leftovers
from tests.chaos.judging import Verdict
from tests.chaos.scenario_clouds import calls_fail, polled
from tests.chaos.scenario_kills import api_killed, postgres_restarted, prefect_killed, worker_killed
from tests.chaos.scenario_workers import worker_hurried, worker_paused, worker_stopped
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
        worker_hurried,
        polled,
    )
}


async def run(stack: Stack, name: str, size: Size) -> Verdict:
    """Run a scenario on a stack without workers, stop its workers and return the verdict."""
    before = {each["id"] for each in stack.sandboxes()}
    try:
        verdict = await SCENARIOS[name](stack, size)
        await asyncio.to_thread(leftovers.judge_sandboxes, stack, before, verdict)
        verdict.faults["processes below workers"] = leftovers.below_workers(stack)
    finally:
        await asyncio.to_thread(stack.stop_workers)
    return verdict


def left_over(stack: Stack) -> dict[str, list[str]]:
    """Return what is left over after the cleanup flow, without what an earlier scenario reported."""
    stack.worker()
    try:
        leftovers.sweep(stack)
        found = leftovers.in_idle_stack(stack)
    finally:
        stack.stop_workers()
    new = {kind: [line for line in lines if line not in stack.reported] for kind, lines in found.items()}
    stack.reported |= {line for lines in found.values() for line in lines}
    return new
