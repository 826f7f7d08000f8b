"""Scenarios: calls to E2B fail; a client polls runs that are cancelled, crash and are retried."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.chaos.judging import NOT_INTERRUPTED, ON_ITS_WAY, Verdict, judge
from tests.chaos.runs import Batch, Run
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack
from tests.e2b_server.faults import KINDS

RATE = 0.05
"""Share of the calls to E2B that fail."""
TOO_FEW = "too few failed calls"
UNTRIED = "kinds of faults that did not happen"
UNSEEN = "statuses that a client did not see"
SLOW = (0.5, 0.8)
"""Seconds that a node takes here: long enough to be interrupted."""


async def calls_fail(stack: Stack, size: Size) -> Verdict:
    """A share of all calls to E2B is refused, is cut off, or finds its sandbox gone."""
    stack.worker()
    stack.worker()
    async with Batch(stack, poll=size.poll, faulty=True) as batch:
        plain = batch.workflow(max_concurrent_runs=50)
        unrepeatable = batch.workflow(unrepeatable=True, max_concurrent_runs=50)
        before = stack.let_fail(RATE)
        try:
            await batch.submit(plain, size.runs)
            await batch.submit(unrepeatable, size.unrepeatable, unrepeatable=True)
            size.say(f"all runs are submitted, {batch.open()} are open")
            await batch.over(size.patience)
        finally:
            done = Counter(stack.let_fail(0))
        done.subtract(before)
        verdict = await judge(batch, kills=())
        verdict.strays = None  # the call that ends a sandbox may fail, too
        _judge_kinds(verdict, size, done)
        calls, well = sum(done.values()), done.pop("none", 0)
        verdict.facts |= {"calls": calls, "failed calls": calls - well, **done}
        verdict.faults[TOO_FEW] = [f"of {calls} calls"] if calls - well < calls * RATE / 2 else []
        return verdict


def _judge_kinds(verdict: Verdict, size: Size, done: Counter[str]) -> None:
    """Check, in a large scenario, that every kind of fault occurred and some node started again."""
    verdict.faults[UNTRIED] = []
    if not size.is_large:
        return
    verdict.faults[UNTRIED] = [kind for kind in KINDS if not done[kind]]
    if not verdict.facts["started again"]:
        verdict.fault(NOT_INTERRUPTED, "no node started again")


async def polled(stack: Stack, size: Size) -> Verdict:
    """A client polls runs that are cancelled, lose their worker, and are retried, also after their end."""
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
        await asyncio.sleep(3 * size.poll)  # the client polls on after the end
        verdict = await judge(batch, [kill], ON_ITS_WAY)
        verdict.strays = None
        _judge_seen(verdict, cancelled, "REVOKED")
        _judge_seen(verdict, crashed, "SUCCESS")
        _judge_seen(verdict, retried, "RETRY", "SUCCESS")
        return verdict


async def _cancelled(batch: Batch, workflow: int) -> Run:
    """Cancel a run over the API while a node runs; it must end as REVOKED and stay so."""
    run = await batch.ask(workflow)
    run.wanted = "cancelled"
    await _started(batch, run)
    answer = await batch.call(f"/tasks/{run.task_id}/cancel")
    if answer.status_code != 202:
        batch.bad_answers.append(f"cancel: {answer.status_code}: {answer.text[:200]}")
    await batch.over(60)
    return run


async def _started(batch: Batch, run: Run) -> None:
    await batch.until(lambda: batch.all_started([run]), 60, f"run {run.run_no} to start")


def _judge_seen(verdict: Verdict, run: Run, *statuses: str) -> None:
    """Check that the client saw these statuses, the last of them at the end."""
    verdict.faults.setdefault(UNSEEN, [])
    missing = [status for status in statuses if status not in run.seen]
    if missing or run.seen[-1] != statuses[-1]:
        verdict.fault(UNSEEN, f"run {run.run_no}: {run.seen} without {missing or statuses[-1]}")
