"""What came of a scenario's runs, held against the bars: every count here has to be 0."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

import httpx

from tests.chaos.ledger import Entry
from tests.chaos.records import Execution, Row, chain_rows, executions
from tests.chaos.runs import FINAL, GUARDED, NODES, Batch, Run

LOST = "accepted runs without an execution"
STUCK = "runs that are not over"
FAILED = "runs that ended as they must not"
STOPPED = "runs that stopped at their on_interrupt node for no reason"
DOUBLED = "executions beyond one a run"
GHOSTS = "nodes of runs that were refused"
TWICE = "successful nodes run twice"
AGAIN = "other nodes run again without a kill"
WITHIN = "nodes run again beyond one an attempt"
GUARD = "on_interrupt nodes started twice"
ROWS = "failed rows of nodes that nothing failed"
CONTEXT = "results that are not whole"
KEYS = "idempotency keys that are not one a step"
TAKEN_BACK = "final states taken back"
ODD = "answers that are not the contract's"
NOTHING = "nothing was interrupted"
BARS = (
    LOST,
    STUCK,
    FAILED,
    STOPPED,
    DOUBLED,
    GHOSTS,
    TWICE,
    AGAIN,
    WITHIN,
    GUARD,
    ROWS,
    CONTEXT,
    KEYS,
    TAKEN_BACK,
    ODD,
    NOTHING,
)
BEFORE = NODES[NODES.index(GUARDED) - 1]
"""The node whose success comes before the guarded one is started."""


Kill = tuple[float, float]
"""Unix times between which something interrupted nodes; the same twice for what took no time."""


@dataclass
class Verdict:
    """Counts of one scenario: facts to be read, and faults, of which there must be none."""

    facts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: {bar: [] for bar in BARS})
    """Bar → one sentence per violation."""
    strays: int | None = 0
    """How many sandboxes its kills may leave running for the cleanup to find; None: any number."""

    def fault(self, bar: str, sentence: str) -> None:
        """Note a violation."""
        self.faults.setdefault(bar, []).append(sentence)

    @property
    def missed(self) -> dict[str, list[str]]:
        """The bars that were missed."""
        return {bar: found for bar, found in self.faults.items() if found}


async def judge(batch: Batch, kills: Sequence[Kill]) -> Verdict:
    """Hold all runs of a batch against the bars, given what may have interrupted nodes."""
    verdict = Verdict()
    found = executions(batch)
    of_tasks = {execution.task_id: execution for execution in found}
    chains = chain_rows(batch)
    went_on: list[float] = []
    told: dict[int, list[Entry]] = defaultdict(list)
    for entry in batch.stack.entries():
        told[entry.run_no].append(entry)
    ours: list[Execution] = []
    for run in batch.runs.values():
        execution = of_tasks.get(str(run.task_id))
        if execution is None:
            verdict.fault(LOST, f"run {run.run_no}, task {run.task_id}")
            continue
        ours.append(execution)
        rows = chains.get(execution.id, [])
        judge_end(verdict, run, execution, rows, kills)
        judge_nodes(verdict, run, execution.attempt, told[run.run_no], rows, kills)
        judge_polls(verdict, run)
        went_on += [started - killed for killed, started in waits(told[run.run_no], kills)]
        await _judge_result(verdict, batch, run, execution)
    for run_no in batch.refused:
        for entry in told[run_no]:
            verdict.fault(GHOSTS, f"run {run_no}: {entry.node} {entry.what}")
    judge_number(verdict, [each for each in found if each not in ours], batch.unknown)
    judge_unknown(verdict, [entry for run_no in batch.unknown for entry in told[run_no]])
    judge_keys(verdict, [entry for run_no in batch.asked for entry in told[run_no]])
    for answer in batch.odd:
        verdict.fault(ODD, answer)
    started = [entry for run in batch.runs.values() for entry in told[run.run_no] if entry.what == "started"]
    verdict.facts |= {
        "runs": len(batch.runs),
        "refused": len(batch.refused),
        "SUCCESS": sum(each.status == "completed" for each in ours),
        "stopped": sum(each.error_kind == "interrupted" for each in ours),
        "kills": len(kills),
        "attempts": sum(each.attempt for each in ours),
        "nodes started": len(started),
        "again": len(started) - len({(entry.run_no, entry.node) for entry in started}),
    }
    if batch.unknown:
        verdict.facts["asked for without an answer"] = len(batch.unknown)
    if went_on:
        verdict.facts["s at most from a kill to the node's next start"] = ceil(max(went_on))
    return verdict


def explain(starts: Sequence[float], kills: Sequence[Kill]) -> tuple[int, list[Kill]]:
    """How many starts of a node have no kill between them and the start before, and the kills left over.

    A kill interrupts one node of a run: it explains one start, and none of another node.
    """
    left, without = sorted(kills), 0
    for before, after in pairwise(sorted(starts)):
        reason = next((kill for kill in left if before <= kill[1] and kill[0] <= after), None)
        if reason is None:
            without += 1
        else:
            left.remove(reason)
    return without, left


def waits(told: Sequence[Entry], kills: Sequence[Kill]) -> Iterator[tuple[float, float]]:
    """The end of each kill and the next start of the node that it interrupted, by the entries of one run."""
    for node in NODES:
        starts = [entry.at for entry in told if entry.node == node and entry.what == "started"]
        for before, after in pairwise(starts):
            yield from ((ended, after) for begun, ended in kills if before <= begun and ended <= after)


def judge_end(
    verdict: Verdict, run: Run, execution: Execution, rows: Sequence[Row], kills: Sequence[Kill]
) -> None:
    """Hold a run's end against the bars: as it was wanted, or stopped at a guarded node, for a reason."""
    told = f"run {run.run_no}, {execution}"
    stopped = execution.error_kind == "interrupted" and execution.failed_at_node == GUARDED
    if execution.status in ("pending", "running"):
        verdict.fault(STUCK, told)
    elif run.guarded and stopped:
        if not _is_explained(run, execution, rows, kills):
            verdict.fault(STOPPED, told)
    elif execution.status != run.wanted:
        verdict.fault(FAILED, told)


def _is_explained(run: Run, execution: Execution, rows: Sequence[Row], kills: Sequence[Kill]) -> bool:
    """Whether something befell a run after the node before its guarded one, and before it stopped."""
    if run.faulty and any(row.node == GUARDED and row.status != "success" for row in rows):
        return True
    before = next((row.committed for row in rows if row.node == BEFORE and row.status == "success"), None)
    if before is None or execution.completed is None:
        return False
    return any(before <= ended and begun <= execution.completed for begun, ended in kills)


def judge_nodes(
    verdict: Verdict, run: Run, attempts: int, told: list[Entry], rows: list[Row], kills: Sequence[Kill]
) -> None:
    """Hold what the ledger was told of a run's nodes against its attempts, its rows and the kills.

    A failed row excuses another start, but only where calls fail; a kill does so only where the run was
    started anew.
    """
    left, again = list(kills), 0
    for node in NODES:
        starts = [entry.at for entry in told if entry.node == node and entry.what == "started"]
        success = next((row.committed for row in rows if row.node == node and row.status == "success"), None)
        for at in starts:
            if success is not None and at > success:
                verdict.fault(
                    TWICE, f"run {run.run_no}: {node} started {at - success:.3f} s after its success"
                )
        failures = sum(run.faulty and row.node == node and row.status != "success" for row in rows)
        without, left = explain(starts, left)
        for _ in range(without - failures):
            verdict.fault(AGAIN, f"run {run.run_no}: {node} started at {starts}")
        again += max(0, len(starts) - 1 - failures)
        if run.guarded and node == GUARDED and len(starts) > 1:
            verdict.fault(GUARD, f"run {run.run_no}: {node} started at {starts}")
    if again >= max(1, attempts):
        verdict.fault(WITHIN, f"run {run.run_no}: {again} nodes run again in {attempts} attempts")
    for row in rows:
        if row.status != "success" and not run.faulty:
            verdict.fault(ROWS, f"run {run.run_no}: {row.node}, at {row.committed}")


def judge_polls(verdict: Verdict, run: Run) -> None:
    """Hold what a polling client saw against the bars."""
    for status, after in pairwise(run.seen):
        if status in FINAL or status.isdigit():
            verdict.fault(TAKEN_BACK, f"run {run.run_no}: {status}, then {after}")


def judge_keys(verdict: Verdict, told: Iterable[Entry]) -> None:
    """A step has one idempotency key on every attempt, and no other step of any run has the same."""
    keys: dict[tuple[int, str], set[str]] = defaultdict(set)
    steps: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for entry in told:
        keys[entry.run_no, entry.node].add(entry.key)
        steps[entry.key].add((entry.run_no, entry.node))
    for (run_no, node), several in keys.items():
        if len(several) > 1:
            verdict.fault(KEYS, f"run {run_no}: {node} with {sorted(several)}")
    for key, users in steps.items():
        if len(users) > 1:
            verdict.fault(KEYS, f"{key} for {sorted(users)}")


def judge_unknown(verdict: Verdict, told: Iterable[Entry]) -> None:
    """A run that was asked for without an answer may run or not, but each node of it once."""
    starts = Counter((entry.run_no, entry.node) for entry in told if entry.what == "started")
    for (run_no, node), times in starts.items():
        if times > 1:
            verdict.fault(TWICE, f"run {run_no}, whose client had no answer: {node} {times} times")


def judge_number(verdict: Verdict, beyond: Iterable[Execution], unknown: dict[int, int]) -> None:
    """Hold the executions that are no accepted run's against what was asked for without an answer.

    Of these (number of the run → workflow) each may have one, which ends as any other's.
    """
    left = Counter(unknown.values())
    for execution in beyond:
        left[execution.workflow] -= 1
        if left[execution.workflow] < 0:
            verdict.fault(DOUBLED, str(execution))
        elif execution.status in ("pending", "running"):
            verdict.fault(STUCK, f"asked for without an answer, {execution}")
        elif execution.status != "completed":
            verdict.fault(FAILED, f"asked for without an answer, {execution}")


async def _judge_result(verdict: Verdict, batch: Batch, run: Run, execution: Execution) -> None:
    """Ask the API for the run as its client does: a SUCCESS has what each of its nodes left."""
    try:
        task = await batch.task(run)
    except httpx.HTTPError as error:
        verdict.fault(ODD, f"run {run.run_no}: {error!r}")
        return
    expected = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}.get(execution.status)
    if expected is not None and task["status"] != expected:
        verdict.fault(ODD, f"run {run.run_no} is {execution.status}, but its task {task['status']}")
    if task["status"] == "SUCCESS":
        final = task["result"]["final_context"]
        if any(final.get(node) != run.run_no for node in NODES):
            verdict.fault(CONTEXT, f"run {run.run_no}: {sorted(final)}")
