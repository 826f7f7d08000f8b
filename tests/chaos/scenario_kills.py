"""Servers and workers killed at random moments while runs come and go."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.judging import Verdict, judge
from tests.chaos.parts import Postgres
from tests.chaos.runs import Batch
from tests.chaos.sizes import Size, shares
from tests.chaos.stack import Stack


async def worker_killed(stack: Stack, size: Size) -> Verdict:
    """One of two workers gets SIGKILL, again and again, while it is at runs; some of these must not go on."""
    chance = size.chance("worker_killed")
    workers = [stack.worker(), stack.worker()]
    kills: list[float] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        for ours, theirs in zip(shares(size.runs, size.kills), shares(size.guarded, size.kills), strict=True):
            await batch.submit(plain, ours)
            await batch.submit(guarded, theirs, guarded=True)
            victim = chance.choice(workers)
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            kills.append(time.time())
            await asyncio.to_thread(victim.kill)
            victim.start()
            size.say(f"{victim.name} killed, {len(kills)} of {size.kills}; {batch.open()} runs are open")
        await batch.over(size.patience)
        return await judge(batch, kills)


async def prefect_killed(stack: Stack, size: Size) -> Verdict:
    """Prefect's server gets SIGKILL while runs are submitted and run, and comes back seconds later."""
    chance = size.chance("prefect_killed")
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        times = max(1, size.kills // 6)
        for number, share in enumerate(shares(size.runs, times), 1):
            submitting = asyncio.create_task(batch.submit(plain, share))
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            await asyncio.to_thread(stack.prefect.kill)
            size.say(f"Prefect's server killed, {number} of {times}; {batch.open()} runs are open")
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            await asyncio.to_thread(stack.prefect.start)
            await submitting
        await batch.over(size.patience)
        return await judge(batch, kills=())


async def postgres_restarted(stack: Stack, size: Size) -> Verdict:
    """PostgreSQL is shut down, crashes, and loses a process while runs are submitted and run."""
    chance = size.chance("postgres_restarted")
    stack.worker()
    stack.worker()
    kills: list[float] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        times = max(len(Postgres.WAYS), size.kills // 3)
        for number, share in enumerate(shares(size.runs, times)):
            submitting = asyncio.create_task(batch.submit(plain, share))
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            way = Postgres.WAYS[number % len(Postgres.WAYS)]
            kills.append(time.time())
            await asyncio.to_thread(stack.postgres.restart, way, chance.uniform(0.2, 2.0))
            size.say(f"PostgreSQL restarted ({way}), {number + 1} of {times}; {batch.open()} runs are open")
            await submitting
        await batch.over(size.patience)
        return await judge(batch, kills)


async def api_killed(stack: Stack, size: Size) -> Verdict:
    """The API gets SIGKILL within a moment of each POST; the client asks again with its Idempotency-Key."""
    chance = size.chance("api_killed")
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        for number in range(1, size.runs + 1):
            asking = asyncio.create_task(batch.ask(plain))
            await asyncio.sleep(chance.uniform(0.0, 0.15))
            await asyncio.to_thread(stack.api.kill)
            stack.api.start()
            run = await asking
            await batch.ask_again(run)
            if number % 10 == 0 or number == size.runs:
                size.say(f"the API killed, {number} of {size.runs}; {batch.open()} runs are open")
        await asyncio.to_thread(stack.wait_for_api)
        await batch.over(size.patience)
        return await judge(batch, kills=())


async def _busy(batch: Batch) -> None:
    """Return when a node has started since this was called, or when there is nothing left to start."""
    before = len(batch.stack.entries())
    await batch.until(lambda: len(batch.stack.entries()) > before or not batch.open(), 60, "a node to start")
