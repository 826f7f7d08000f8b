"""Servers and workers killed at random moments while runs come and go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.chaos.judging import TWICE, Kill, Verdict, judge
from tests.chaos.parts import Postgres
from tests.chaos.runs import Batch, graph
from tests.chaos.sizes import Size, shares
from tests.chaos.stack import Stack


async def worker_killed(stack: Stack, size: Size) -> Verdict:
    """One of two workers gets SIGKILL, again and again, while it is at runs; some of these must not go on."""
    chance = size.chance("worker_killed")
    workers = [stack.worker(), stack.worker()]
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
    kills: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        times = max(len(Postgres.WAYS), size.kills // 3)
        for number, share in enumerate(shares(size.runs, times)):
            submitting = asyncio.create_task(batch.submit(plain, share))
            await _busy(batch)
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            way = Postgres.WAYS[number % len(Postgres.WAYS)]
            at = time.time()
            await asyncio.to_thread(stack.postgres.restart, way, chance.uniform(0.2, 2.0))
            kills.append((at, time.time()))
            size.say(f"PostgreSQL restarted ({way}), {number + 1} of {times}; {batch.open()} runs are open")
            await submitting
        await batch.over(size.patience)
        return await judge(batch, kills)


async def api_killed(stack: Stack, size: Size) -> Verdict:
    """The API gets SIGKILL within a moment of each POST; the client asks again with its Idempotency-Key.

    Every fourth client has no key and gives up: nobody knows whether its run is to be, but if it runs, it
    does so once and to its end.
    """
    chance = size.chance("api_killed")
    stack.worker()
    stack.worker()
    forgotten: list[int] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unknown = stack.workflow(graph(stack))
        for number in range(1, size.posts + 1):
            asking = asyncio.create_task(batch.ask(plain))
            giving_up = asyncio.create_task(batch.ask_and_forget(unknown)) if number % 4 == 0 else None
            await asyncio.sleep(chance.uniform(0.0, 0.15))
            await asyncio.to_thread(stack.api.kill)
            stack.api.start()
            await batch.ask_again(await asking)
            if giving_up is not None:
                forgotten.append(await giving_up)
            if number % 10 == 0 or number == size.posts:
                size.say(f"the API killed, {number} of {size.posts}; {batch.open()} runs are open")
        await asyncio.to_thread(stack.wait_for_api)
        await batch.over(size.patience)
        verdict = await judge(batch, kills=())
        starts = Counter((e.run_no, e.node) for e in stack.entries() if e.what == "started")
        for (run_no, node), times in starts.items():
            if run_no in forgotten and times > 1:
                verdict.fault(TWICE, f"run {run_no}, which was given up: {node} {times} times")
        return verdict


async def _busy(batch: Batch) -> None:
    """Return when a node has started since this was called, or when there is nothing left to start."""
    before = len(batch.stack.entries())
    await batch.until(lambda: len(batch.stack.entries()) > before or not batch.open(), 60, "a node to start")
