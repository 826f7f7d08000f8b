"""Servers and workers killed at random moments while runs come and go."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.judging import NOTHING, Kill, Verdict, judge
from tests.chaos.parts import Postgres
from tests.chaos.recovering import judge_waits
from tests.chaos.runs import Batch, Run
from tests.chaos.sizes import Size, shares
from tests.chaos.stack import Stack

LIMIT = 4
"""Runs that a worker has at once: one that is killed may leave as many sandboxes to the cleanup."""


async def worker_killed(stack: Stack, size: Size) -> Verdict:
    """One of two workers gets SIGKILL, again and again, while it is at runs; some of these must not go on."""
    chance = size.chance("worker_killed")
    workers = [stack.worker(LIMIT), stack.worker(LIMIT)]
    kills: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        for ours, theirs in zip(shares(size.runs, size.kills), shares(size.guarded, size.kills), strict=True):
            await batch.submit(plain, ours)
            await batch.submit(guarded, theirs, guarded=True)
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
        verdict = await judge(batch, kills)
        verdict.strays = len(kills) * LIMIT
        if stack.is_shipped:
            await judge_waits(verdict, batch, kills)
        if size.is_large and verdict.facts["attempts"] <= verdict.facts["runs"]:
            verdict.fault(NOTHING, f"{len(kills)} kills, and no run was begun a second time")
        return verdict


async def prefect_killed(stack: Stack, size: Size) -> Verdict:
    """Prefect's server gets SIGKILL while runs are submitted and run, and comes back seconds later."""
    chance = size.chance("prefect_killed")
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        times = max(1, size.kills // 6)
        met: list[int] = []
        for number, (ours, theirs) in enumerate(_both(size, times), 1):
            submitting = _submitting(batch, plain, ours, guarded, theirs)
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
    """PostgreSQL is shut down, crashes, and loses a process while runs are submitted and run."""
    chance = size.chance("postgres_restarted")
    stack.worker()
    stack.worker()
    kills: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        times = max(len(Postgres.WAYS), size.kills // 3)
        met: list[int] = []
        for number, (ours, theirs) in enumerate(_both(size, times)):
            submitting = _submitting(batch, plain, ours, guarded, theirs)
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            way = Postgres.WAYS[number % len(Postgres.WAYS)]
            met.append(batch.open())
            at = time.time()
            await asyncio.to_thread(stack.postgres.restart, way, chance.uniform(0.2, 2.0))
            kills.append((at, time.time()))
            size.say(f"PostgreSQL restarted ({way}), {number + 1} of {times}; {met[-1]} runs were open")
            await submitting
        await batch.over(size.patience)
        verdict = await judge(batch, kills)
        _judge_met(verdict, size, met)
        return verdict


async def api_killed(stack: Stack, size: Size) -> Verdict:
    """The API gets SIGKILL within a moment of each POST; the client asks again with its Idempotency-Key.

    Every fourth client has no key and takes its answer by its word; without one it gives up: nobody knows
    whether its run is to be, but if it runs, it does so once and to its end.
    """
    chance = size.chance("api_killed")
    stack.worker()
    stack.worker()
    every = max(2, size.posts // max(1, size.guarded // 2))
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        keyless = batch.workflow(max_concurrent_runs=50)
        for number in range(1, size.posts + 1):
            is_guarded = number % every == 1
            asking = asyncio.create_task(batch.ask(guarded if is_guarded else plain, guarded=is_guarded))
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
        verdict.facts["requests that broke off"] = batch.unanswered
        if size.is_large and not batch.unanswered:
            verdict.fault(NOTHING, "every request had its answer before the API was killed")
        return verdict


def _both(size: Size, times: int) -> list[tuple[int, int]]:
    """How many plain and how many guarded runs are submitted before each of so many blows."""
    return list(zip(shares(size.runs, times), shares(size.guarded // 2, times), strict=True))


def _submitting(
    batch: Batch, plain: int, ours: int, guarded: int, theirs: int
) -> asyncio.Future[tuple[list[Run], list[Run]]]:
    """Begin to submit so many runs of two workflows, side by side."""
    return asyncio.gather(batch.submit(plain, ours), batch.submit(guarded, theirs, guarded=True))


def _judge_met(verdict: Verdict, size: Size, met: list[int]) -> None:
    """Each blow found runs that were not over, which only a large scenario can be sure of."""
    if size.is_large and not all(met):
        verdict.fault(NOTHING, f"runs that were open at each blow: {met}")


async def _busy(batch: Batch) -> None:
    """Return when a node has started since this was called, or when there is nothing left to start."""
    before = len(batch.stack.entries())
    await batch.until(lambda: len(batch.stack.entries()) > before or not batch.open(), 60, "a node to start")
