"""Scenarios: servers and workers are killed at random moments while runs are submitted and run."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.judging import NOT_INTERRUPTED, ON_ITS_WAY, Kill, Verdict, judge
from tests.chaos.parts import Postgres
from tests.chaos.recovering import judge_waits
from tests.chaos.runs import Batch, Run
from tests.chaos.sizes import Size, shares
from tests.chaos.stack import Stack

LIMIT = 4
"""Runs that a worker has at once; a killed worker may leave as many sandboxes to the cleanup flow."""


async def worker_killed(stack: Stack, size: Size) -> Verdict:
    """One of two workers is killed while it has runs, again and again; some runs are unrepeatable."""
    chance = size.chance("worker_killed")
    workers = [stack.worker(LIMIT), stack.worker(LIMIT)]
    kills: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unrepeatable = batch.workflow(unrepeatable=True, max_concurrent_runs=50)
        for ours, theirs in zip(
            shares(size.runs, size.kills), shares(size.unrepeatable, size.kills), strict=True
        ):
            await batch.submit(plain, ours)
            await batch.submit(unrepeatable, theirs, unrepeatable=True)
            victim = chance.choice(workers)
            await asyncio.to_thread(stack.wait_for_workers)
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            at = time.time()
            await asyncio.to_thread(victim.kill)
            kills.append((at, time.time()))
            victim.start()
            size.say(f"{victim.name} killed, {len(kills)} of {size.kills}; {batch.open()} runs are open")
        await batch.over(size.patience)
        verdict = await judge(batch, kills, ON_ITS_WAY)
        verdict.strays = len(kills) * LIMIT
        if stack.is_shipped:
            await judge_waits(verdict, batch, kills)
        if size.is_large and verdict.facts["attempts"] <= verdict.facts["runs"]:
            verdict.fault(NOT_INTERRUPTED, f"{len(kills)} kills, but no run had a second attempt")
        return verdict


async def prefect_killed(stack: Stack, size: Size) -> Verdict:
    """Prefect's server is killed while runs are submitted and run, and starts again seconds later."""
    chance = size.chance("prefect_killed")
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unrepeatable = batch.workflow(unrepeatable=True, max_concurrent_runs=50)
        times = max(1, size.kills // 6)
        met: list[int] = []
        for number, (ours, theirs) in enumerate(_both(size, times), 1):
            submitting = _submitting(batch, plain, ours, unrepeatable, theirs)
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            await asyncio.to_thread(stack.prefect.kill)
            met.append(batch.open())
            size.say(f"Prefect's server killed, {number} of {times}; {met[-1]} runs are open")
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            await asyncio.to_thread(stack.prefect.start)
            await submitting
        await batch.over(size.patience)
        verdict = await judge(batch, kills=())
        _judge_met(verdict, size, met)
        return verdict


async def postgres_restarted(stack: Stack, size: Size) -> Verdict:
    """PostgreSQL is stopped, crashes and loses a process while runs are submitted and run."""
    chance = size.chance("postgres_restarted")
    stack.worker()
    stack.worker()
    kills: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unrepeatable = batch.workflow(unrepeatable=True, max_concurrent_runs=50)
        times = max(len(Postgres.MODES), size.kills // 3)
        met: list[int] = []
        for number, (ours, theirs) in enumerate(_both(size, times)):
            submitting = _submitting(batch, plain, ours, unrepeatable, theirs)
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            mode = Postgres.MODES[number % len(Postgres.MODES)]
            met.append(batch.open())
            at = time.time()
            await asyncio.to_thread(stack.postgres.restart, mode, chance.uniform(0.2, 2.0))
            kills.append((at, time.time()))
            size.say(f"PostgreSQL restarted ({mode}), {number + 1} of {times}; {met[-1]} runs were open")
            await submitting
        await batch.over(size.patience)
        verdict = await judge(batch, kills)
        _judge_met(verdict, size, met)
        return verdict


async def api_killed(stack: Stack, size: Size) -> Verdict:
    """The API is killed right after each POST; the client repeats its request with its Idempotency-Key.

    Every fourth time a second client has no key. It trusts its answer, and without one it stops: its run may
    exist or not, but if it does, it runs once and to its end.
    """
    chance = size.chance("api_killed")
    stack.worker()
    stack.worker()
    every = max(2, size.posts // max(1, size.unrepeatable // 2))
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unrepeatable = batch.workflow(unrepeatable=True, max_concurrent_runs=50)
        keyless = batch.workflow(max_concurrent_runs=50)
        for number in range(1, size.posts + 1):
            is_unrepeatable = number % every == 1
            asking = asyncio.create_task(
                batch.ask(unrepeatable if is_unrepeatable else plain, unrepeatable=is_unrepeatable)
            )
            asking_once = asyncio.create_task(batch.ask_once(keyless)) if number % 4 == 0 else None
            await asyncio.sleep(chance.uniform(0.0, 0.15))
            await asyncio.to_thread(stack.api.kill)
            stack.api.start()
            await batch.ask_again(await asking)
            if asking_once is not None:
                await asking_once
            if number % 10 == 0 or number == size.posts:
                size.say(f"the API killed, {number} of {size.posts}; {batch.open()} runs are open")
        await asyncio.to_thread(stack.wait_for_api)
        await batch.over(size.patience)
        verdict = await judge(batch, kills=())
        verdict.facts["requests that were cut off"] = batch.unanswered
        if size.is_large and not batch.unanswered:
            verdict.fault(NOT_INTERRUPTED, "every request had its answer before the API was killed")
        return verdict


def _both(size: Size, times: int) -> list[tuple[int, int]]:
    """Return the numbers of plain and unrepeatable runs to submit before each of so many kills."""
    return list(zip(shares(size.runs, times), shares(size.unrepeatable // 2, times), strict=True))


def _submitting(
    batch: Batch, plain: int, ours: int, unrepeatable: int, theirs: int
) -> asyncio.Future[tuple[list[Run], list[Run]]]:
    """Begin to submit so many runs of two workflows concurrently."""
    return asyncio.gather(batch.submit(plain, ours), batch.submit(unrepeatable, theirs, unrepeatable=True))


def _judge_met(verdict: Verdict, size: Size, met: list[int]) -> None:
    """Check, in a large scenario, that runs were open at each kill."""
    if size.is_large and not all(met):
        verdict.fault(NOT_INTERRUPTED, f"open runs at each kill: {met}")


async def _busy(batch: Batch) -> None:
    """Wait until another node reports to the ledger, or no run is open."""
    before = len(batch.stack.entries())
    await batch.until(lambda: len(batch.stack.entries()) > before or not batch.open(), 60, "a node to start")
