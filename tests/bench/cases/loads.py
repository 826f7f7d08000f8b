"""What holds while there is much to do: POSTs are answered, and what is urgent comes first."""

from __future__ import annotations

import asyncio
import time

from tests.bench.cases import LIMIT, Bench, trivial
from tests.bench.client import CROWD
from tests.bench.site import Kind
from tests.bench.table import Bar, Row, median, percentile
from tests.builders import action, line

IN_FLIGHT = 10
PAUSE = 0.5
"""Seconds between two POSTs that are timed."""


async def posts(bench: Bench) -> list[Row]:
    """200 POSTs at 2/s while ten four-node runs are kept in flight by new ones: how long each takes."""

    async def measure(kind: Kind, number: int) -> tuple[list[float], float]:
        with bench.site.worker(kind, LIMIT):
            workflow = await bench.client.workflow(trivial())
            await bench.client.run(workflow)
            ended = 0

            async def keep_in_flight() -> None:
                nonlocal ended
                while True:
                    await bench.client.run(workflow, pause=CROWD)
                    ended += 1

            others = [asyncio.create_task(keep_in_flight()) for _ in range(IN_FLIGHT)]
            since = time.perf_counter()
            try:
                times = await _timed_posts(bench, workflow, number)
            finally:
                for other in others:
                    other.cancel()
                outcomes = await asyncio.gather(*others, return_exceptions=True)
            for outcome in outcomes:  # one that failed is no load
                if not isinstance(outcome, asyncio.CancelledError):
                    raise RuntimeError("a client gave up") from outcome
            rate = ended / (time.perf_counter() - since)
            await bench.client.drop(workflow)
            return times, rate

    pair = await bench.pair(measure, nova=(200, 40), stock=(40, 10))
    note = pair.note(lambda found: len(found[0]), f"local sandbox, --limit {LIMIT}")
    return [
        pair.row("posts", "POST to its answer, p50", "ms", lambda f: median(f[0]), bar=Bar(100), note=note),
        pair.row("posts", "POST to its answer, p99", "ms", lambda f: percentile(f[0], 99), bar=Bar(300)),
        pair.row("posts", "meanwhile the others", "runs/s", lambda f: f[1], more_is_better=True),
    ]


async def _timed_posts(bench: Bench, workflow: int, number: int) -> list[float]:
    """Submit at fixed times, whether or not the one before was answered; milliseconds."""

    async def timed(after: float) -> float:
        await asyncio.sleep(after)
        since = time.perf_counter()
        await bench.client.post(workflow)
        return 1000 * (time.perf_counter() - since)

    return await asyncio.gather(*(timed(PAUSE * i) for i in range(number)))


async def priorities(bench: Bench) -> list[Row]:
    """Runs of priority high that come while 40 normal ones wait: how many normal ones start before them."""
    two_seconds = line(action("wait", "import time\ntime.sleep(2)"))
    slots, urgent = 4, 4

    async def measure(kind: Kind, number: int) -> tuple[int, int]:
        workflow = await bench.client.workflow(two_seconds)
        await asyncio.gather(*(bench.client.post(workflow) for _ in range(number)))
        with bench.site.worker(kind, slots):
            # The first ones start together: until they end nothing else can.
            await bench.client.until_running(workflow, slots)
            posted = (bench.client.run(workflow, pause=CROWD, priority="high") for _ in range(urgent))
            high = {run.execution_id for run in await asyncio.gather(*posted)}
            starts = await bench.client.starts(workflow)
            await bench.client.drop(workflow)
        last = max(starts[each] for each in high)
        return sum(each not in high and start < last for each, start in starts.items()) - slots, number

    pair = await bench.pair(measure, nova=(40, 20), stock=(12, 8))
    what = f"normal runs that start before the last of {urgent} high ones"
    note = pair.note(lambda found: found[1], f"waiting, --limit {slots}")
    return [pair.row("priorities", what, "", lambda found: found[0], bar=Bar(0), note=note)]
