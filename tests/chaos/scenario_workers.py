"""Scenarios: one of two workers is paused until its leases expire, or gets SIGTERM."""

from __future__ import annotations

import asyncio
import functools
import itertools
import signal
import time
from collections import Counter
from datetime import datetime

from tests.chaos.judging import NOT_INTERRUPTED, Kill, Verdict, judge
from tests.chaos.records import chain_rows
from tests.chaos.runs import Batch
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack

TOGETHER = "runs in two sandboxes at once"
LATE = "rows written after the lease was lost"
NODE_TWICE = "nodes started twice"
SLOW = (0.8, 1.2)
"""Seconds that a node takes here: long enough that a pause interrupts each run in a node."""
SLOWER = (1.8, 2.2)
"""The same, long enough that the last of ten runs begins before the first ends."""


async def worker_paused(stack: Stack, size: Size) -> Verdict:
    """A worker is paused until another has taken its runs over, then continues.

    A run has one owner at a time: the paused worker's sandboxes have ended before the other's first node, and
    its late writes are refused. Afterwards it works as before.
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
            verdict.fault(
                NOT_INTERRUPTED, f"of {4 * len(pauses)} runs {verdict.facts['taken over']} were taken over"
            )
        return verdict


async def worker_stopped(stack: Stack, size: Size) -> Verdict:
    """One of two workers gets SIGTERM with ten runs in flight; no node runs twice.

    Runs last longer than its grace time, nodes do not: runs move to the other worker between two nodes.
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
    """The same with a grace time shorter than a node: the interrupted node may run again."""
    async with Batch(stack, poll=size.poll) as batch:
        kill = await _stop_one_of_two(stack, size, batch, NOVA_WORKER_GRACE="1")
        verdict = await judge(batch, [kill])
        _judge_changed(verdict, batch)
        return verdict


async def _stop_one_of_two(stack: Stack, size: Size, batch: Batch, **settings: str) -> Kill:
    """Give ten runs to one of two workers, send it SIGTERM and wait until all runs have ended.

    Returns the times of the SIGTERM and of the worker's end.
    """
    stopped, other = stack.worker(10, **settings), stack.worker(10)
    await asyncio.to_thread(stack.wait_for_workers)
    other.signal(signal.SIGSTOP)  # so that the first one gets all ten
    plain = batch.workflow(SLOWER)
    runs = await batch.submit(plain, 10)
    await batch.until(lambda: batch.all_started(runs), 90, "ten runs to start")
    other.signal(signal.SIGCONT)
    sigterm_at = time.time()
    size.say(f"{stopped.name} gets SIGTERM; {batch.open()} runs are open")
    await asyncio.to_thread(stopped.stop, 40)
    stopped_at = time.time()
    await batch.over(size.patience)
    return sigterm_at, stopped_at


def _taken_over(stack: Stack, numbers: set[int]) -> bool:
    """Return whether each of these runs has started a node in a second sandbox."""
    seen = {(entry.run_no, entry.sandbox) for entry in stack.entries() if entry.run_no in numbers}
    return len(seen) >= 2 * len(numbers)


def _judge_changed(verdict: Verdict, batch: Batch) -> None:
    """Check that some runs went on in the other worker, as the grace time is too short for all."""
    seen = {(entry.run_no, entry.sandbox) for entry in batch.stack.entries() if entry.run_no in batch.runs}
    changed = sum(times > 1 for times in Counter(run_no for run_no, _ in seen).values())
    verdict.facts["went on elsewhere"] = changed
    if not changed:
        verdict.fault(NOT_INTERRUPTED, "every run ended in the stopped worker")


def _judge_owners(verdict: Verdict, batch: Batch) -> None:
    """Check that each run has one sandbox at a time, and that none writes after the next one's start."""
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
