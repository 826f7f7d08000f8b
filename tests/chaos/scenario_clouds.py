"""E2B calls that fail, and a client that watches runs through what may befall them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.chaos.judging import NOTHING, Verdict, judge
from tests.chaos.runs import Batch, Run
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack
from tests.e2b_server.faults import KINDS

RATE = 0.05
"""Share of the calls to E2B that fail."""
TOO_FEW = "fewer failed calls than were asked for"
UNTRIED = "kinds of faults that did not happen"
UNSEEN = "statuses that should have been seen"
SLOW = (0.5, 0.8)
"""Seconds that a node takes here: what befalls a run finds it in the middle of one."""


async def calls_fail(stack: Stack, size: Size) -> Verdict:
    """A share of all calls to E2B is refused, breaks off, or finds its sandbox gone."""
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll, faulty=True) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        guarded = batch.workflow(guarded=True, max_concurrent_runs=50)
        before = stack.let_fail(RATE)
        try:
            await batch.submit(plain, size.runs)
            await batch.submit(guarded, size.guarded, guarded=True)
            size.say(f"all runs are submitted, {batch.open()} are open")
            await batch.over(size.patience)
        finally:
            done = Counter(stack.let_fail(0))
        done.subtract(before)
        verdict = await judge(batch, kills=())
        verdict.strays = None  # the call that ends a sandbox may fail as well
        _judge_kinds(verdict, size, done)
        calls, well = sum(done.values()), done.pop("none", 0)
        verdict.facts |= {"calls": calls, "failed calls": calls - well, **done}
        verdict.faults[TOO_FEW] = [f"of {calls} calls"] if calls - well < calls * RATE / 2 else []
        return verdict


def _judge_kinds(verdict: Verdict, size: Size, done: Counter[str]) -> None:
    """Every kind of fault happened, and met a node that was started: sure where there are many calls."""
    verdict.faults[UNTRIED] = []
    if not size.is_large:
        return
    verdict.faults[UNTRIED] = [kind for kind in KINDS if not done[kind]]
    if not verdict.facts["again"]:
        verdict.fault(NOTHING, "no node that was started had to be started again")


async def polled(stack: Stack, size: Size) -> Verdict:
    """A client polls runs that are cancelled, whose worker crashes, and that are retried, past their ends."""
    worker = stack.worker()
    async with Batch(stack, poll=size.poll, watched=100) as batch:
        plain = batch.workflow(SLOW)
        cancelled = await _cancelled(batch, plain)
        size.say("a run was cancelled")
        crashed = await batch.ask(plain)
        await _started(batch, crashed)
        at = time.time()
        await asyncio.to_thread(worker.kill)
        kill = at, time.time()
        worker.start()
        await batch.over(size.patience)
        size.say("a run was crashed and requeued")
        retried = await batch.ask(plain)
        retried.faulty = True
        await _started(batch, retried)
        stack.let_fail(1.0, "sandbox gone")
        try:
            await batch.until(lambda: "RETRY" in retried.seen, 60, "a run to wait for its retry")
        finally:
            stack.let_fail(0)
        await batch.over(size.patience)
        size.say("a run was retried")
        await asyncio.sleep(3 * size.poll)  # the client looks on after the end
        verdict = await judge(batch, [kill])
        verdict.strays = None
        _judge_seen(verdict, cancelled, "REVOKED")
        _judge_seen(verdict, crashed, "SUCCESS")
        _judge_seen(verdict, retried, "RETRY", "SUCCESS")
        return verdict


async def _cancelled(batch: Batch, workflow: int) -> Run:
    """Cancel a run over the API while a node of it runs; it must end, and stay, REVOKED."""
    run = await batch.ask(workflow)
    run.wanted = "cancelled"
    await _started(batch, run)
    answer = await batch.call(f"/tasks/{run.task_id}/cancel")
    if answer.status_code != 202:
        batch.odd.append(f"cancel: {answer.status_code}: {answer.text[:200]}")
    await batch.over(60)
    return run


async def _started(batch: Batch, run: Run) -> None:
    await batch.until(lambda: batch.all_started([run]), 60, f"run {run.run_no} to start")


def _judge_seen(verdict: Verdict, run: Run, *statuses: str) -> None:
    """The client saw these statuses, the last of them at the end, and one final status alone."""
    verdict.faults.setdefault(UNSEEN, [])
    missing = [status for status in statuses if status not in run.seen]
    if missing or run.seen[-1] != statuses[-1]:
        verdict.fault(UNSEEN, f"run {run.run_no}: {run.seen} without {missing or statuses[-1]}")
