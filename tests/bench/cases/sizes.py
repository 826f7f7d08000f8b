"""Cases of size: large contexts, long graphs, many runs at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import string
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tests.bench.cases import LIMIT, Bench, trivial
from tests.bench.cases.rates import done
from tests.bench.client import POLL_MANY, Run
from tests.bench.site import Kind
from tests.bench.table import Bar, Row, median, percentile
from tests.bench.watching import Heartbeats, heartbeats_of, memory_of
from tests.builders import action, line

KILOBYTE, MEGABYTE = 1_000, 1_000_000
SIZES = {"1 KB": KILOBYTE, "1 MB": MEGABYTE, "10 MB": 10 * MEGABYTE}


def text(size: int) -> dict[str, Any]:
    """Return a context with one string of this many characters that compresses badly."""
    return {"blob": "".join(random.Random(size).choices(string.ascii_letters + string.digits, k=size))}


def tree(size: int) -> dict[str, Any]:
    """Return a context with one nested object of about this many bytes: invoices with their lines."""
    lines = [{"text": "hours", "amount": 12.5, "tax": 0.19}, {"text": "travel", "amount": 80, "tax": 0.07}]
    invoices = [
        {"number": i, "supplier": f"supplier {i % 97}", "lines": lines, "paid": i % 3 == 0, "note": None}
        for i in range(size // 185)
    ]
    return {"tree": {"invoices": invoices}}


async def contexts(bench: Bench) -> list[Row]:
    """Contexts of 1 KB, 1 MB and 10 MB: POST to done, and milliseconds per node over E2B's protocol."""
    rows = []
    with bench.site.e2b() as sandboxes:
        for name, size in SIZES.items():

            async def measure(kind: Kind, number: int, size: int = size) -> tuple[list[Run], list[float]]:
                with bench.site.worker(kind, LIMIT, sandboxes):
                    workflow = await bench.client.workflow(trivial(10))
                    await bench.client.run(workflow)
                    runs = await bench.client.in_turn(workflow, number, text(size))
                    return runs, await bench.client.per_node(runs)

            pair = await bench.pair(measure, nova=(7, 3), stock=(2, 1))
            note = pair.note(lambda found: len(found[0]), "a string, 10 nodes")
            bar = {"1 KB": Bar(10), "10 MB": Bar(30)}.get(name)
            rows += [
                pair.row(
                    "contexts", f"{name}: POST to done, p50", "s", lambda f: median(done(f[0])), note=note
                ),
                pair.row("contexts", f"{name}: per node, p50", "ms", lambda f: median(f[1]), bar=bar),
            ]
            bench.say(f"  {name}: {rows[-2].nova:.3f} s, {rows[-1].nova:.1f} ms per node")
    return rows


async def nested(bench: Bench) -> list[Row]:
    """A run whose nodes change a nested object of 10 MB: how much it delays the worker's other runs."""
    changing = line(*(action(f"n{i}", f"context['tree']['n'] = {i}") for i in range(10)))
    with (
        bench.site.e2b() as sandboxes,
        bench.site.worker("nova", LIMIT, sandboxes, **Heartbeats.SETTING) as worker,
    ):
        small, large = await bench.client.workflow(trivial()), await bench.client.workflow(changing)
        await bench.client.run(small)
        before = await bench.client.in_turn(small, bench.number(10, 5))
        big = bench.number(3, 1)
        async with heartbeats_of(worker, bench.client) as heartbeats:
            heavy = asyncio.create_task(bench.client.in_turn(large, big, tree(10 * MEGABYTE)))
            meanwhile = []
            while not heavy.done():
                meanwhile.append(await bench.client.run(small, pause=POLL_MANY))
        per_node = await bench.client.per_node(heavy.result())
        times = [
            [t for run in runs for t in await bench.client.node_times(run)] for runs in (before, meanwhile)
        ]
    undisturbed, disturbed = ([1000 * each for each in group] for group in times)
    note = f"{len(meanwhile)} runs during {big} with the object"
    gap = Bar(2 * Heartbeats.INTERVAL)
    return [
        Row("nested", "10 MB object changed by each node: per node, p50", "ms", median(per_node)),
        Row("nested", "nodes of other runs, before it: p50", "ms", median(undisturbed)),
        Row("nested", "nodes of other runs, during it: p50", "ms", median(disturbed), note=note),
        Row("nested", "nodes of other runs, before it: worst", "ms", max(undisturbed)),
        Row("nested", "nodes of other runs, during it: worst", "ms", max(disturbed)),
        Row("nested", "longest gap between heartbeats", "s", heartbeats.longest_gap, bar=gap, note=_EVERY),
    ]


_EVERY = f"one is due every {Heartbeats.INTERVAL} s"


async def graphs(bench: Bench) -> list[Row]:
    """Graphs of 4, 40 and 400 nodes: milliseconds per node over E2B's protocol."""
    rows = []
    lengths = {4: ((10, 4), (2, 1)), 40: ((5, 2), (1, 1)), 400: ((3, 1), (1, 1))}
    with bench.site.e2b() as sandboxes:
        for nodes, (ours, theirs) in lengths.items():

            async def measure(kind: Kind, number: int, nodes: int = nodes) -> list[float]:
                with bench.site.worker(kind, LIMIT, sandboxes):
                    workflow = await bench.client.workflow(trivial(nodes))
                    await bench.client.run(workflow)
                    return await bench.client.per_node(await bench.client.in_turn(workflow, number))

            pair = await bench.pair(measure, nova=ours, stock=theirs)
            note = pair.note(len)
            rows.append(pair.row("graphs", f"{nodes} nodes: per node, p50", "ms", median, note=note))
            bench.say(f"  {nodes} nodes: {rows[-1].nova:.1f} ms per node")
    at_400, at_40 = rows[2], rows[1]
    stock = at_400.stock / at_40.stock if at_400.stock and at_40.stock else None
    growth = Row(
        "graphs", "per node at 400, over that at 40", "", at_400.nova / at_40.nova, stock, bar=Bar(1.3)
    )
    return [*rows, growth]


async def at_once(bench: Bench) -> list[Row]:
    """1, 10 and 50 runs at once over E2B's protocol: POST to done, and the worker's memory."""
    rows = []
    with bench.site.e2b() as sandboxes:
        for number in (1, 10, bench.number(50, 20)):

            async def measure(kind: Kind, number: int) -> tuple[list[Run], float]:
                with bench.site.worker(kind, 50, sandboxes) as worker:
                    workflow = await bench.client.workflow(trivial())
                    await bench.client.run(workflow)
                    with memory_of(worker) as memory:
                        runs, _ = await bench.client.at_once(workflow, number)
                    return runs, memory.peak

            # At most ten stock runs: fifty interpreters at once would measure this machine, not Prefect.
            pair = await bench.pair(measure, nova=(number, number), stock=(min(number, 10),) * 2)
            case = f"{number} at once"
            note = pair.note(lambda found: len(found[0]), "--limit 50")
            rows += [
                pair.row(
                    "at-once", f"{case}: POST to done, p50", "s", lambda f: median(done(f[0])), note=note
                ),
                pair.row("at-once", f"{case}: POST to done, p95", "s", lambda f: percentile(done(f[0]), 95)),
                pair.row("at-once", f"{case}: the worker's peak memory", "MB", lambda f: f[1]),
            ]
            bench.say(f"  {case}: {rows[-3].nova:.2f} s, {rows[-1].nova:.0f} MB")
    return rows


async def memory(bench: Bench) -> list[Row]:
    """50 runs of 1 KB and ten of 10 MB in flight together: memory, heartbeats, failures."""
    rows = []
    first = "import time\ntime.sleep({seconds})\ncontext['n'] = 0"
    others = [action(f"n{i}", f"context['n'] = {i}") for i in range(1, 4)]
    few = bench.number(50, 20)
    for number, size, name, limit, seconds in (
        (few, KILOBYTE, "1 KB", 400, 20),
        (10, 10 * MEGABYTE, "10 MB", 512, 8),
    ):
        graph = line(action("n0", first.format(seconds=seconds), timeout=60), *others)
        with ExitStack() as parts:
            sandboxes = parts.enter_context(bench.site.e2b())
            worker = parts.enter_context(bench.site.worker("nova", number, sandboxes, **Heartbeats.SETTING))
            workflow = await bench.client.workflow(graph)
            peak = parts.enter_context(memory_of(worker))
            async with heartbeats_of(worker, bench.client) as heartbeats:
                runs, _ = await bench.client.at_once(workflow, number, text(size))
            found = await bench.client.executions(workflow)
        together = _together(found)
        what = f"{number} runs of {name}"
        note = f"{together} in flight together; all {len(runs)} succeeded"
        gap = Bar(2 * Heartbeats.INTERVAL)
        rows += [
            Row("memory", f"{what}: the worker's peak", "MB", peak.peak, bar=Bar(limit), note=note),
            Row(
                "memory",
                f"{what}: longest gap of heartbeats",
                "s",
                heartbeats.longest_gap,
                bar=gap,
                note=_EVERY,
            ),
        ]
        bench.say(f"  {what}: {peak.peak:.0f} MB, {note}")
    return rows


def _together(executions: Sequence[dict[str, Any]]) -> int:
    """Return the largest number of runs in flight at the same moment."""
    moments = [(each["started_at"], 1) for each in executions] + [
        (each["completed_at"], -1) for each in executions
    ]
    return max(itertools.accumulate(change for _, change in sorted(moments)))
