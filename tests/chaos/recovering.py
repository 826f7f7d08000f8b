"""Check how long a run waits after its worker was killed, with NOVA's default settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from math import ceil

import httpx

from tests.chaos.judging import Kill, Verdict, waits
from tests.chaos.ledger import Entry
from tests.chaos.runs import Batch, Run

LONGEST = 60.0
"""Seconds from a lost lease to the node's next start: the bar of issue 4, counted here from the kill."""
SLOW = "nodes that waited too long after a kill"


async def judge_waits(verdict: Verdict, batch: Batch, kills: Sequence[Kill]) -> None:
    """Check the time from each kill to the interrupted node's next start."""
    entries = batch.stack.entries()
    verdict.faults[SLOW], longest = [], 0.0
    for run in batch.runs.values():
        ours = [entry for entry in entries if entry.run_no == run.run_no]
        for killed, started in waits(ours, kills):
            others = begins(entry for entry in entries if entry.run_no != run.run_no)
            requeued = await asyncio.to_thread(_requeued_at, batch, run, killed)
            seconds = without_queue(killed, requeued, started, others)
            longest = max(longest, seconds)
            if seconds > LONGEST:
                verdict.fault(
                    SLOW, f"run {run.run_no}: {seconds:.0f} s, with the queue {started - killed:.0f} s"
                )
    verdict.facts["s at most of these without the wait for other runs"] = ceil(longest)


def begins(entries: Iterable[Entry]) -> list[float]:
    """Return when attempts began: the time of the first entry from each sandbox."""
    first: dict[str, float] = {}
    for entry in entries:
        first.setdefault(entry.sandbox, entry.at)
    return sorted(first.values())


def without_queue(killed: float, requeued: float | None, started: float, others: Sequence[float]) -> float:
    """Return the seconds from a kill to the node's next start, without the wait for other runs.

    That wait begins when the run is requeued and ends when the last other run begins before it (`others`):
    until then every slot was taken, or went to a run before it in the queue.
    """
    if requeued is None:
        return started - killed
    earlier = [at for at in others if requeued <= at <= started]
    return started - killed - (earlier[-1] - requeued if earlier else 0.0)


def _requeued_at(batch: Batch, run: Run, killed: float) -> float | None:
    """Return when Prefect scheduled a run again after a kill; None if it did not."""
    answer = httpx.get(
        f"{batch.stack.prefect_url}/flow_run_states/", params={"flow_run_id": str(run.task_id)}, timeout=30
    )
    answer.raise_for_status()
    times = [
        datetime.fromisoformat(state["timestamp"]).timestamp()
        for state in answer.json()
        if state["type"] == "SCHEDULED"
    ]
    return min((at for at in times if at >= killed), default=None)
