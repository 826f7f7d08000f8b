"""Cases under load: how long POSTs take, and whether urgent runs start first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.cases import Bench, trivial
from tests.bench.client import POLL_MANY, Run
from tests.bench.site import Kind
from tests.bench.table import Bar, Row, median, percentile
from tests.builders import action, line

IN_FLIGHT = 10
PAUSE = 0.5
"""Seconds between two timed POSTs."""


async def posts(bench: Bench) -> list[Row]:
    """Latency of 200 POSTs at 2/s while ten four-node runs are in flight: their own, or others."""
    # The bar is for the first part: POSTs at 2/s with runs of 5 s keep ten runs in flight. The second part
    # measures POSTs while ten clients use the full capacity: each starts a run as soon as its last one ends.
    seconds = IN_FLIGHT * PAUSE / 4
    waiting = line(*(action(f"n{i}", f"import time\ntime.sleep({seconds})") for i in range(4)))
    rows = []
    for what, graph, others, bars in (
        (f"their own runs, of {4 * seconds:g} s", waiting, 0, (Bar(100), Bar(300))),
        ("with ten others, back to back", trivial(), IN_FLIGHT, (None, None)),
    ):

        async def measure(
            kind: Kind, number: int, graph: dict[str, Any] = graph, others: int = others
        ) -> tuple[list[float], float]:
            with bench.site.worker(kind, 2 * IN_FLIGHT):
                workflow = await bench.client.workflow(graph)
                await bench.client.run(workflow)
                async with _kept_in_flight(bench, workflow, others) as ended:
                    since = time.perf_counter()
                    times = await _timed_posts(bench, workflow, number)
                    rate = len(ended) / (time.perf_counter() - since)
                await bench.client.drop(workflow)
                return times, rate

        pair = await bench.pair(measure, nova=(200, 40), stock=(30, 8))
        note = pair.note(lambda found: len(found[0]), f"local sandbox, --limit {2 * IN_FLIGHT}")
        rows += [
            pair.row("posts", f"{what}: p50", "ms", lambda f: median(f[0]), bar=bars[0], note=note),
            pair.row("posts", f"{what}: p99", "ms", lambda f: percentile(f[0], 99), bar=bars[1]),
        ]
        bench.say(f"  {what}: p50 {rows[-2].nova:.0f} ms, p99 {rows[-1].nova:.0f} ms")
    rate = pair.row("posts", f"{what}: their rate", "runs/s", lambda f: f[1], more_is_better=True)
    return [*rows, rate]


@asynccontextmanager
async def _kept_in_flight(bench: Bench, workflow: int, number: int) -> AsyncIterator[list[Run]]:
    """Keep so many runs in flight: start a new one when one ends; yield the list of the ended ones."""
    ended: list[Run] = []

    async def keep() -> None:
        while True:
            ended.append(await bench.client.run(workflow, pause=POLL_MANY))

    keepers = [asyncio.create_task(keep()) for _ in range(number)]
    try:
        yield ended
        if failed := [keeper for keeper in keepers if keeper.done()]:
            failed[0].result()  # raises: with fewer runs the load was smaller
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


async def _timed_posts(bench: Bench, workflow: int, number: int) -> list[float]:
    """Submit runs at fixed times, without waiting for earlier answers; return the milliseconds of each."""

    async def timed(after: float) -> float:
        await asyncio.sleep(after)
        since = time.perf_counter()
        await bench.client.post(workflow)
        return 1000 * (time.perf_counter() - since)

    return await asyncio.gather(*(timed(PAUSE * i) for i in range(number)))


async def priorities(bench: Bench) -> list[Row]:
    """Priority: how many of 40 waiting normal runs start before high ones that come later."""
    two_seconds = line(action("wait", "import time\ntime.sleep(2)"))
    slots, urgent = 4, 4

    async def measure(kind: Kind, number: int) -> tuple[int, int]:
        workflow = await bench.client.workflow(two_seconds)
        await asyncio.gather(*(bench.client.post(workflow) for _ in range(number)))
        with bench.site.worker(kind, slots):
            # These runs fill the worker: until they end, no other run can start.
            await bench.client.until_running(workflow, slots)
            posted = (bench.client.run(workflow, pause=POLL_MANY, priority="high") for _ in range(urgent))
            high = {run.execution_id for run in await asyncio.gather(*posted)}
            starts = await bench.client.starts(workflow)
            await bench.client.drop(workflow)
        last = max(starts[each] for each in high)
        return sum(each not in high and start < last for each, start in starts.items()) - slots, number

    pair = await bench.pair(measure, nova=(40, 20), stock=(12, 8))
    what = f"normal runs that start before the last of {urgent} high ones"
    note = pair.note(lambda found: found[1], f"waiting, --limit {slots}")
    return [pair.row("priorities", what, "", lambda found: found[0], bar=Bar(0), note=note)]
