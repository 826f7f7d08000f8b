"""Check a scenario's runs against the bars: every violation is counted, and each count must be 0."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

import httpx

from tests.chaos.ledger import Entry
from tests.chaos.records import Execution, Row, chain_rows, executions
from tests.chaos.runs import FINAL, NODES, UNREPEATABLE, Batch, Run

LOST = "accepted runs without an execution"
STUCK = "runs that have not ended"
FAILED = "runs with a wrong end"
STOPPED = "runs that stopped at their on_interrupt node without a reason"
DOUBLED = "second executions of a run"
STARTED_THOUGH_REFUSED = "nodes started for refused runs"
SUCCESS_AGAIN = "successful nodes started again"
STARTED_AGAIN = "other nodes started again without a kill"
TOO_MANY_AGAIN = "more than one node started again per attempt"
UNREPEATABLE_AGAIN = "on_interrupt nodes started twice"
FAILED_ROWS = "failed rows without a fault of E2B"
CONTEXT = "incomplete results"
KEYS = "wrong idempotency keys"
STATUS_CHANGED = "final states that changed"
BAD_ANSWERS = "answers that the contract does not have"
NOT_INTERRUPTED = "scenarios that interrupted nothing"
BARS = (
    LOST,
    STUCK,
    FAILED,
    STOPPED,
    DOUBLED,
    STARTED_THOUGH_REFUSED,
    SUCCESS_AGAIN,
    STARTED_AGAIN,
    TOO_MANY_AGAIN,
    UNREPEATABLE_AGAIN,
    FAILED_ROWS,
    CONTEXT,
    KEYS,
    STATUS_CHANGED,
    BAD_ANSWERS,
    NOT_INTERRUPTED,
)
BEFORE = NODES[NODES.index(UNREPEATABLE) - 1]
"""The node before the unrepeatable one."""


ON_ITS_WAY = 1.0
"""Seconds until the last message of a killed worker has its effect: less than is left of its leases, so that
within them nobody takes its runs over."""

Kill = tuple[float, float]
"""Unix times of begin and end of an interruption; equal if it took no time."""


@dataclass
class Verdict:
    """A scenario's figures and its violations, of which there must be none."""

    facts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: {bar: [] for bar in BARS})
    """Bar → one sentence per violation."""
    strays: int | None = 0
    """Sandboxes that its kills may leave to the cleanup flow; None for any number."""

    def fault(self, bar: str, sentence: str) -> None:
        """Record a violation."""
        self.faults.setdefault(bar, []).append(sentence)

    @property
    def missed(self) -> dict[str, list[str]]:
        """The bars with violations."""
        return {bar: found for bar, found in self.faults.items() if found}


async def judge(batch: Batch, kills: Sequence[Kill], on_its_way: float = 0.0) -> Verdict:
    """Check all runs of a batch against the bars; `kills` are the interruptions.

    `on_its_way` is how many seconds longer they are felt: ON_ITS_WAY where a worker was killed.
    """
    verdict = Verdict()
    found = executions(batch)
    of_tasks = {execution.task_id: execution for execution in found}
    chains = chain_rows(batch)
    felt = as_felt(kills, on_its_way)
    went_on: list[float] = []
    entries: dict[int, list[Entry]] = defaultdict(list)
    for entry in batch.stack.entries():
        entries[entry.run_no].append(entry)
    ours: list[Execution] = []
    for run in batch.runs.values():
        execution = of_tasks.get(str(run.task_id))
        if execution is None:
            verdict.fault(LOST, f"run {run.run_no}, task {run.task_id}")
            continue
        ours.append(execution)
        rows = chains.get(execution.id, [])
        judge_end(verdict, run, execution, rows, felt)
        judge_nodes(verdict, run, execution.attempt, entries[run.run_no], rows, felt)
        judge_polls(verdict, run)
        went_on += [started - killed for killed, started in waits(entries[run.run_no], kills)]
        await _judge_result(verdict, batch, run, execution)
    for run_no in batch.refused:
        for entry in entries[run_no]:
            verdict.fault(STARTED_THOUGH_REFUSED, f"run {run_no}: {entry.node} {entry.what}")
    judge_number(verdict, [each for each in found if each not in ours], batch.unknown)
    judge_unknown(verdict, [entry for run_no in batch.unknown for entry in entries[run_no]])
    judge_keys(verdict, [entry for run_no in batch.asked for entry in entries[run_no]])
    for answer in batch.bad_answers:
        verdict.fault(BAD_ANSWERS, answer)
    started = [
        entry for run in batch.runs.values() for entry in entries[run.run_no] if entry.what == "started"
    ]
    verdict.facts |= {
        "runs": len(batch.runs),
        "refused": len(batch.refused),
        "SUCCESS": sum(each.status == "completed" for each in ours),
        "stopped": sum(each.error_kind == "interrupted" for each in ours),
        "kills": len(kills),
        "attempts": sum(each.attempt for each in ours),
        "nodes started": len(started),
        "started again": len(started) - len({(entry.run_no, entry.node) for entry in started}),
    }
    if batch.unknown:
        verdict.facts["requests without an answer"] = len(batch.unknown)
    if went_on:
        verdict.facts["s at most from a kill to the node's next start"] = ceil(max(went_on))
    return verdict


def as_felt(kills: Sequence[Kill], on_its_way: float) -> list[Kill]:
    """Return the kills with the seconds in which a killed worker's last message may still have its effect.

    A sandbox outlives its worker: it starts the node that it was told to start, and the ledger hears of it
    after the kill. In the same way PostgreSQL may commit what the worker sent.
    """
    return [(begun, ended + on_its_way) for begun, ended in kills]


def explain(starts: Sequence[float], kills: Sequence[Kill]) -> tuple[int, list[Kill]]:
    """Return how many restarts of a node no kill explains, and the unused kills.

    A kill between two starts of a node explains the second one. It interrupts one node of a run, so it
    explains only one start.
    """
    left, without = sorted(kills), 0
    for before, after in pairwise(sorted(starts)):
        reason = next((kill for kill in left if before <= kill[1] and kill[0] <= after), None)
        if reason is None:
            without += 1
        else:
            left.remove(reason)
    return without, left


def waits(entries: Sequence[Entry], kills: Sequence[Kill]) -> Iterator[tuple[float, float]]:
    """Yield, for one run's entries, each kill's end and the next start of the node that it interrupted."""
    for node in NODES:
        starts = [entry.at for entry in entries if entry.node == node and entry.what == "started"]
        for before, after in pairwise(starts):
            yield from ((ended, after) for begun, ended in kills if before <= begun and ended <= after)


def judge_end(
    verdict: Verdict, run: Run, execution: Execution, rows: Sequence[Row], kills: Sequence[Kill]
) -> None:
    """Check a run's end: the wanted status, or stopped at its unrepeatable node for a reason."""
    run_name = f"run {run.run_no}, {execution}"
    stopped = execution.error_kind == "interrupted" and execution.failed_at_node == UNREPEATABLE
    if execution.status in ("pending", "running"):
        verdict.fault(STUCK, run_name)
    elif run.unrepeatable and stopped:
        if not _is_explained(run, execution, rows, kills):
            verdict.fault(STOPPED, run_name)
    elif execution.status != run.wanted:
        verdict.fault(FAILED, run_name)


def _is_explained(run: Run, execution: Execution, rows: Sequence[Row], kills: Sequence[Kill]) -> bool:
    """Return whether a kill or fault came after the success of BEFORE and before the run stopped."""
    if run.faulty and any(row.node == UNREPEATABLE and row.status != "success" for row in rows):
        return True
    before = next((row.committed for row in rows if row.node == BEFORE and row.status == "success"), None)
    if before is None or execution.completed is None:
        return False
    return any(before <= ended and begun <= execution.completed for begun, ended in kills)


def judge_nodes(
    verdict: Verdict, run: Run, attempts: int, entries: list[Entry], rows: list[Row], kills: Sequence[Kill]
) -> None:
    """Check the ledger's entries of a run against its attempts, its rows and the kills.

    A failed row excuses another start, but only if calls to E2B fail. A kill does so only if the run has
    another attempt.
    """
    left, again = list(kills), 0
    for node in NODES:
        starts = [entry.at for entry in entries if entry.node == node and entry.what == "started"]
        success = next((row.committed for row in rows if row.node == node and row.status == "success"), None)
        for at in starts:
            if success is not None and at > success:
                verdict.fault(
                    SUCCESS_AGAIN, f"run {run.run_no}: {node} started {at - success:.3f} s after its success"
                )
        failures = sum(run.faulty and row.node == node and row.status != "success" for row in rows)
        without, left = explain(starts, left)
        for _ in range(without - failures):
            verdict.fault(STARTED_AGAIN, f"run {run.run_no}: {node} started at {starts}, kills felt: {kills}")
        again += max(0, len(starts) - 1 - failures)
        if run.unrepeatable and node == UNREPEATABLE and len(starts) > 1:
            verdict.fault(UNREPEATABLE_AGAIN, f"run {run.run_no}: {node} started at {starts}")
    if again >= max(1, attempts):
        verdict.fault(TOO_MANY_AGAIN, f"run {run.run_no}: {again} nodes run again in {attempts} attempts")
    for row in rows:
        if row.status != "success" and not run.faulty:
            verdict.fault(FAILED_ROWS, f"run {run.run_no}: {row.node}, at {row.committed}")


def judge_polls(verdict: Verdict, run: Run) -> None:
    """Check that no final status changed for a polling client."""
    for status, after in pairwise(run.seen):
        if status in FINAL or status.isdigit():
            verdict.fault(STATUS_CHANGED, f"run {run.run_no}: {status}, then {after}")


def judge_keys(verdict: Verdict, entries: Iterable[Entry]) -> None:
    """Check that each step has the same idempotency key on every attempt, and no other step has it."""
    keys: dict[tuple[int, str], set[str]] = defaultdict(set)
    steps: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for entry in entries:
        keys[entry.run_no, entry.node].add(entry.key)
        steps[entry.key].add((entry.run_no, entry.node))
    for (run_no, node), several in keys.items():
        if len(several) > 1:
            verdict.fault(KEYS, f"run {run_no}: {node} with {sorted(several)}")
    for key, users in steps.items():
        if len(users) > 1:
            verdict.fault(KEYS, f"{key} for {sorted(users)}")


def judge_unknown(verdict: Verdict, entries: Iterable[Entry]) -> None:
    """Check that each node of a run whose request got no answer started at most once."""
    starts = Counter((entry.run_no, entry.node) for entry in entries if entry.what == "started")
    for (run_no, node), times in starts.items():
        if times > 1:
            verdict.fault(SUCCESS_AGAIN, f"run {run_no}, whose client had no answer: {node} {times} times")


def judge_number(verdict: Verdict, beyond: Iterable[Execution], unknown: dict[int, int]) -> None:
    """Check the executions `beyond` those of accepted runs.

    Each request without an answer (`unknown`: number of the run → workflow) may have one; it must complete.
    """
    left = Counter(unknown.values())
    for execution in beyond:
        left[execution.workflow] -= 1
        if left[execution.workflow] < 0:
            verdict.fault(DOUBLED, str(execution))
        elif execution.status in ("pending", "running"):
            verdict.fault(STUCK, f"request without an answer, {execution}")
        elif execution.status != "completed":
            verdict.fault(FAILED, f"request without an answer, {execution}")


async def _judge_result(verdict: Verdict, batch: Batch, run: Run, execution: Execution) -> None:
    """Check the run's task over the API: its status, and after SUCCESS the changes of every node."""
    try:
        task = await batch.task(run)
    except httpx.HTTPError as error:
        verdict.fault(BAD_ANSWERS, f"run {run.run_no}: {error!r}")
        return
    expected = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}.get(execution.status)
    if expected is not None and task["status"] != expected:
        verdict.fault(BAD_ANSWERS, f"run {run.run_no} is {execution.status}, but its task {task['status']}")
    if task["status"] == "SUCCESS":
        final = task["result"]["final_context"]
        if any(final.get(node) != run.run_no for node in NODES):
            verdict.fault(CONTEXT, f"run {run.run_no}: {sorted(final)}")
