"""Cases of speed: one run at a time, a burst, slow sandboxes, limited creations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

from tests.bench.cases import LIMIT, Bench, trivial
from tests.bench.client import Run, RunFailedError
from tests.bench.site import Kind
from tests.bench.table import Bar, Row, median, percentile


def done(runs: Sequence[Run]) -> list[float]:
    """Return each run's seconds from POST to done."""
    return [run.done for run in runs]


async def alone(bench: Bench) -> list[Row]:
    """One run at a time: four trivial nodes in local sandboxes."""

    async def measure(kind: Kind, number: int) -> list[Run]:
        with bench.site.worker(kind, LIMIT):
            workflow = await bench.client.workflow(trivial())
            await bench.client.run(workflow)
            return await bench.client.in_turn(workflow, number)

    pair = await bench.pair(measure, nova=(40, 10), stock=(6, 2))
    note = pair.note(len, "local sandbox")
    return [
        pair.row("alone", "POST to its answer, p50", "s", lambda r: median([x.submitted for x in r])),
        pair.row("alone", "POST to done, p50", "s", lambda r: median(done(r)), bar=Bar(0.35), note=note),
        pair.row("alone", "POST to done, p95", "s", lambda r: percentile(done(r), 95), bar=Bar(0.6)),
    ]


@dataclass(frozen=True)
class Burst:
    """A burst's figures: runs per second, and requests to Prefect's server per run."""

    number: int
    rate: float
    of_runs: float
    polls: float
    heartbeats: float
    websockets: float


async def burst(bench: Bench) -> list[Row]:
    """A burst of 60 runs in local sandboxes: runs per second, and requests to Prefect's server per run."""

    async def measure(kind: Kind, number: int) -> Burst:
        with bench.site.worker(kind, LIMIT):
            workflow = await bench.client.workflow(trivial())
            await bench.client.until_prefect_knows([await bench.client.run(workflow)])
            bench.site.access_log.mark()
            runs, rate = await bench.client.at_once(workflow, number)
            await bench.client.until_prefect_knows(runs)
            asked = bench.site.access_log.requests()
            del asked.of_runs["POST /flow_runs/count"]  # from until_prefect_knows
            for name, count in asked.of_runs.most_common():
                bench.say(f"  {kind}: {count / number:5.2f} per run  {name}")
            kinds = (asked.of_runs.total(), asked.polls, asked.heartbeats, asked.websockets)
            return Burst(number, rate, *(count / number for count in kinds))

    pair = await bench.pair(measure, nova=(60, 30), stock=(20, 6))
    note = pair.note(lambda found: found.number, f"local sandbox, --limit {LIMIT}")
    bar = Bar(4, at_most=False)
    rows = [pair.row("burst", "rate", "runs/s", lambda f: f.rate, bar=bar, note=note, more_is_better=True)]
    for what, figure, limit in (
        ("requests to Prefect's server, per run", "of_runs", Bar(8)),
        ("  besides: a worker's polls, per run", "polls", None),
        ("  besides: heartbeats, per run", "heartbeats", None),
        ("  besides: websocket connections, per run", "websockets", None),
    ):
        rows.append(pair.row("burst", what, "", attrgetter(figure), bar=limit))
    return rows


async def delays(bench: Bench) -> list[Row]:
    """Sandboxes that take 0, 0.3 and 2 s to start: POST to done, and bursts at 0.3 s."""
    rows = []
    for delay in (0.0, 0.3, 2.0):
        with bench.site.e2b("--start-delay", str(delay)) as sandboxes:

            async def measure(kind: Kind, number: int, sandboxes: dict[str, str] = sandboxes) -> list[Run]:
                with bench.site.worker(kind, LIMIT, sandboxes):
                    workflow = await bench.client.workflow(trivial())
                    await bench.client.run(workflow)
                    return await bench.client.in_turn(workflow, number)

            pair = await bench.pair(measure, nova=(15, 5), stock=(3, 1))
            rows.append(
                pair.row(
                    "delays",
                    f"sandbox starts in {delay:g} s: POST to done, p50",
                    "s",
                    lambda runs: median(done(runs)),
                    bar=Bar(0.8) if delay == 0.3 else None,
                    note=pair.note(len),
                )
            )
            bench.say(f"  {delay:g} s: {rows[-1].nova:.3f} s, stock {rows[-1].stock or 0:.3f} s")
            if delay == 0.3:
                rows += [await _burst_at(bench, sandboxes, limit) for limit in (LIMIT, 2)]
    return rows


async def _burst_at(bench: Bench, sandboxes: dict[str, str], limit: int) -> Row:
    async def measure(kind: Kind, number: int) -> tuple[int, float]:
        with bench.site.worker(kind, limit, sandboxes):
            workflow = await bench.client.workflow(trivial())
            await bench.client.run(workflow)
            return number, (await bench.client.at_once(workflow, number))[1]

    many = limit > 2
    pair = await bench.pair(measure, nova=(60, 20) if many else (30, 10), stock=(12, 4) if many else (6, 2))
    return pair.row(
        "delays",
        f"sandbox starts in 0.3 s: burst at --limit {limit}",
        "runs/s",
        lambda found: found[1],
        bar=Bar(4 if many else 1.48, at_most=False),
        note=pair.note(lambda found: found[0]),
        more_is_better=True,
    )


async def creations(bench: Bench) -> list[Row]:
    """E2B's limits on creations, 1/s and 5/s: runs per second, and runs that fail because of them."""
    rows = []
    cases = itertools.product(((1, bench.number(15, 5)), (5, bench.number(50, 20))), (True, False))
    for (per_second, number), is_set in cases:
        setting = {"NOVA_E2B_CREATIONS_PER_SECOND": str(per_second)} if is_set else {}
        with (
            bench.site.e2b("--creations-per-second", str(per_second)) as sandboxes,
            bench.site.worker("nova", LIMIT, sandboxes, **setting),
        ):
            workflow = await bench.client.workflow(trivial())
            await bench.client.run(workflow)
            try:
                await bench.client.at_once(workflow, number)
            except RunFailedError as error:
                bench.say(f"  {per_second}/s: {error}")
            found = await bench.client.executions(workflow)
        failed = sum(each["status"] != "completed" for each in found)
        rate = _rate([datetime.fromisoformat(e["completed_at"]) for e in found if e["status"] == "completed"])
        what = f"{per_second} sandbox(es)/s allowed, {'set' if is_set else 'not set'}"
        note = f"n={number}, --limit {LIMIT}; stock Prefect is slower than either limit"
        # 10 % less, because the duration of the first and the last run may differ.
        bar = Bar(0.9 * per_second, at_most=False) if is_set else None
        rows.append(Row("creations", f"{what}: rate", "runs/s", rate, bar=bar, note=note))
        rows.append(Row("creations", f"{what}: runs that failed", "", failed, bar=Bar(0)))
    return rows


def _rate(moments: Sequence[datetime]) -> float:
    """Return the ends per second, without the first run, which was the warm-up."""
    later = sorted(moments)[1:]
    return (len(later) - 1) / (later[-1] - later[0]).total_seconds() if len(later) > 1 else 0.0
