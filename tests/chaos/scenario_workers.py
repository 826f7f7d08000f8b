"""One worker of two is paused past its leases, or told to stop."""

from __future__ import annotations

import asyncio
import functools
import itertools
import signal
import time
from collections import Counter
from datetime import datetime

from tests.chaos.judging import NOTHING, Kill, Verdict, judge
from tests.chaos.records import chain_rows
from tests.chaos.runs import Batch
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack

TOGETHER = "runs in two sandboxes at a time"
LATE = "rows of an owner that was gone"
NODE_TWICE = "nodes started twice"
SLOW = (0.8, 1.2)
"""Seconds that a node takes here: a pause meets each run in the middle of one."""
SLOWER = (1.8, 2.2)
"""The same where the first of ten runs must not be over before the last has begun."""


async def worker_paused(stack: Stack, size: Size) -> Verdict:
    """A worker gets SIGSTOP until another has taken its runs over, then SIGCONT.

    One owner at any time: the paused one's sandboxes are dead before the other's first node, and what it
    writes late is refused. It goes on as a worker afterwards.
    """
    slow = stack.worker()
    pauses: list[Kill] = []
    async with Batch(stack, poll=size.poll) as batch:
        plain = batch.workflow(SLOW)
        for _ in range(max(1, size.kills // 6)):
            runs = await batch.submit(plain, 4)
            await batch.until(functools.partial(batch.all_started, runs), 60, "the runs to start")
            other = stack.worker()
            paused_at = time.time()
            slow.signal(signal.SIGSTOP)
            size.say(f"{slow.name} paused, {len(pauses) + 1} times so far")
            taken = functools.partial(_taken_over, stack, {run.run_no for run in runs})
            await batch.until(taken, size.patience, "another worker to take the runs over")
            slow.signal(signal.SIGCONT)
            pauses.append((paused_at, time.time()))
            await batch.over(size.patience)
            await asyncio.to_thread(other.stop, 40)
            stack.workers.remove(other)
        runs = await batch.submit(plain, 1)
        await batch.over(size.patience)
        verdict = await judge(batch, pauses)
        _judge_owners(verdict, batch)
        if verdict.facts["taken over"] < 4 * len(pauses):
            verdict.fault(NOTHING, f"of {4 * len(pauses)} runs {verdict.facts['taken over']} were taken over")
        return verdict


async def worker_stopped(stack: Stack, size: Size) -> Verdict:
    """A worker gets SIGTERM with ten runs in flight, while another one is there; no node runs twice.

    The runs are longer than its grace time and their nodes shorter: they change over between two nodes.
    """
    async with Batch(stack, poll=size.poll) as batch:
        await _stop_one_of_two(stack, size, batch, NOVA_WORKER_GRACE="8")
        verdict = await judge(batch, kills=())
        _judge_changed(verdict, batch)
    starts = Counter((e.run_no, e.node) for e in stack.entries() if e.what == "started")
    verdict.faults[NODE_TWICE] = [
        f"run {run_no}: {node} {times} times"
        for (run_no, node), times in starts.items()
        if run_no in batch.runs and times > 1
    ]
    return verdict


async def worker_hurried(stack: Stack, size: Size) -> Verdict:
    """The same with a grace time that is too short for the node that a run is at: that one may run again."""
    async with Batch(stack, poll=size.poll) as batch:
        kill = await _stop_one_of_two(stack, size, batch, NOVA_WORKER_GRACE="1")
        verdict = await judge(batch, [kill])
        _judge_changed(verdict, batch)
        return verdict


async def _stop_one_of_two(stack: Stack, size: Size, batch: Batch, **settings: str) -> Kill:
    """Give ten runs to one of two workers, tell that one to stop, and wait for all to be over.

    Returns the times of the SIGTERM and of the worker's end.
    """
    told, other = stack.worker(10, **settings), stack.worker(10)
    await asyncio.to_thread(stack.wait_for_workers)
    other.signal(signal.SIGSTOP)  # so that all ten are the first one's
    plain = batch.workflow(SLOWER)
    runs = await batch.submit(plain, 10)
    await batch.until(lambda: batch.all_started(runs), 90, "ten runs to start")
    other.signal(signal.SIGCONT)
    told_at = time.time()
    size.say(f"{told.name} is told to stop; {batch.open()} runs are open")
    await asyncio.to_thread(told.stop, 40)
    stopped_at = time.time()
    await batch.over(size.patience)
    return told_at, stopped_at


def _taken_over(stack: Stack, numbers: set[int]) -> bool:
    """Whether each of these runs has a node in a second sandbox."""
    seen = {(entry.run_no, entry.sandbox) for entry in stack.entries() if entry.run_no in numbers}
    return len(seen) >= 2 * len(numbers)


def _judge_changed(verdict: Verdict, batch: Batch) -> None:
    """Some of the runs went on in the other worker: the first one's grace time is not enough for all."""
    seen = {(entry.run_no, entry.sandbox) for entry in batch.stack.entries() if entry.run_no in batch.runs}
    changed = sum(times > 1 for times in Counter(run_no for run_no, _ in seen).values())
    verdict.facts["went on elsewhere"] = changed
    if not changed:
        verdict.fault(NOTHING, "every run ended in the worker that was told to stop")


def _judge_owners(verdict: Verdict, batch: Batch) -> None:
    """Hold the sandboxes of each run against the bars: one at a time, and none writes after its end."""
    ended = {each["id"]: each["ended"] for each in batch.stack.sandboxes()}
    verdict.faults |= {TOGETHER: [], LATE: []}
    took_over: dict[str, float] = {}
    for run_no in batch.runs:
        entries = [entry for entry in batch.stack.entries() if entry.run_no == run_no]
        for before, after in itertools.pairwise(entries):
            if before.sandbox == after.sandbox:
                continue
            took_over[before.sandbox] = after.at
            end = ended.get(before.sandbox)
            if end is None or datetime.fromisoformat(end).timestamp() > after.at:
                verdict.fault(TOGETHER, f"run {run_no}: {before.sandbox} ended {end}, the next at {after.at}")
    for execution, rows in chain_rows(batch).items():
        for row in rows:
            if row.stdout in took_over and row.committed > took_over[row.stdout]:
                verdict.fault(LATE, f"execution {execution}: {row.node}, {row.status}, of {row.stdout}")
    verdict.facts["taken over"] = len(took_over)
