"""How long a run waits after its worker was killed, with the settings that NOVA is shipped with."""

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
"""Seconds from a lost lease to a run that runs again: the bar of issue 4, counted here from the kill."""
SLOW = "nodes that waited too long after a kill"


async def judge_waits(verdict: Verdict, batch: Batch, kills: Sequence[Kill]) -> None:
    """Hold the time from each kill to the interrupted node's next start against the bar."""
    told = batch.stack.entries()
    verdict.faults[SLOW], longest = [], 0.0
    for run in batch.runs.values():
        ours = [entry for entry in told if entry.run_no == run.run_no]
        for killed, started in waits(ours, kills):
            others = begins(entry for entry in told if entry.run_no != run.run_no)
            back = await asyncio.to_thread(_put_back, batch, run, killed)
            seconds = without_queue(killed, back, started, others)
            longest = max(longest, seconds)
            if seconds > LONGEST:
                verdict.fault(
                    SLOW, f"run {run.run_no}: {seconds:.0f} s, {started - killed:.0f} with its queue"
                )
    verdict.facts["s at most of these not behind others in the queue"] = ceil(longest)


def begins(told: Iterable[Entry]) -> list[float]:
    """When attempts of runs began: at the first entry from each sandbox."""
    first: dict[str, float] = {}
    for entry in told:
        first.setdefault(entry.sandbox, entry.at)
    return sorted(first.values())


def without_queue(killed: float, back: float | None, started: float, others: Sequence[float]) -> float:
    """Seconds from a kill to a node's next start, without those that its run stood behind others.

    It does so from when it is back in its queue until the last time that another run begins before it: up
    to then there was no place, or it went to one that was ahead. What follows is the run's own.
    """
    if back is None:
        return started - killed
    ahead = [at for at in others if back <= at <= started]
    return started - killed - (ahead[-1] - back if ahead else 0.0)


def _put_back(batch: Batch, run: Run, killed: float) -> float | None:
    """When a run was scheduled anew after a kill, as Prefect tells it; None: it was not."""
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
