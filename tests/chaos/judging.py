"""What came of a scenario's runs, held against the bars: every count here has to be 0."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Any

import httpx

from tests.chaos.ledger import Entry
from tests.chaos.runs import FINAL, GUARDED, NODES, Batch, Run

LOST = "accepted runs without an execution"
STUCK = "runs that are not over"
FAILED = "runs that ended as they must not"
DOUBLED = "executions beyond one a run"
GHOSTS = "nodes of runs that were refused"
TWICE = "successful nodes run twice"
AGAIN = "other nodes run again without a kill"
GUARD = "on_interrupt nodes started twice"
CONTEXT = "results that are not whole"
KEYS = "idempotency keys that are not one a step"
TAKEN_BACK = "final states taken back"
ODD = "answers that are not the contract's"
BARS = (LOST, STUCK, FAILED, DOUBLED, GHOSTS, TWICE, AGAIN, GUARD, CONTEXT, KEYS, TAKEN_BACK, ODD)


Kill = tuple[float, float]
"""Unix times between which something interrupted nodes; the same twice for what took no time."""


@dataclass
class Verdict:
    """Counts of one scenario: facts to be read, and faults, of which there must be none."""

    facts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: {bar: [] for bar in BARS})
    """Bar → one sentence per violation."""

    def fault(self, bar: str, sentence: str) -> None:
        """Note a violation."""
        self.faults.setdefault(bar, []).append(sentence)

    @property
    def missed(self) -> dict[str, list[str]]:
        """The bars that were missed."""
        return {bar: found for bar, found in self.faults.items() if found}


@dataclass(frozen=True)
class Row:
    """A row of the Chain of Work and when the database committed it."""

    node: str
    status: str
    committed: float
    """Unix time."""
    stdout: str


async def judge(batch: Batch, kills: Sequence[Kill]) -> Verdict:
    """Hold all runs of a batch against the bars, given what may have interrupted nodes."""
    verdict = Verdict()
    executions = _executions(batch)
    chains = chain_rows(batch)
    went_on: list[float] = []
    told: dict[int, list[Entry]] = defaultdict(list)
    for entry in batch.stack.entries():
        told[entry.run_no].append(entry)
    for run in batch.runs.values():
        row = executions.get(str(run.task_id))
        if row is None:
            verdict.fault(LOST, f"run {run.run_no}, task {run.task_id}")
            continue
        _judge_end(verdict, run, row)
        judge_nodes(verdict, run, told[run.run_no], chains.get(row["id"], []), kills)
        judge_polls(verdict, run)
        went_on += waits(told[run.run_no], kills)
        await _judge_result(verdict, batch, run, row)
    for run_no in batch.refused:
        for entry in told[run_no]:
            verdict.fault(GHOSTS, f"run {run_no}: {entry.node} {entry.what}")
    _judge_number(verdict, batch, executions)
    for answer in batch.odd:
        verdict.fault(ODD, answer)
    ours = [entry for run in batch.runs.values() for entry in told[run.run_no] if entry.what == "started"]
    verdict.facts |= {
        "runs": len(batch.runs),
        "refused": len(batch.refused),
        "SUCCESS": sum(row["status"] == "completed" for row in executions.values()),
        "stopped": sum(row["error_kind"] == "interrupted" for row in executions.values()),
        "kills": len(kills),
        "attempts": sum(row["attempt"] for row in executions.values()),
        "nodes started": len(ours),
        "again": len(ours) - len({(entry.run_no, entry.node) for entry in ours}),
    }
    if went_on:
        verdict.facts["s at most from a kill to the node's next start"] = ceil(max(went_on))
    return verdict


def chain_rows(batch: Batch) -> dict[int, list[Row]]:
    """The Chain of Work of all runs of a batch, by execution, in the order of their commits."""
    found = batch.stack.rows(
        "SELECT c.execution_id, c.node_id, c.status, c.stdout,"
        " extract(epoch FROM pg_xact_commit_timestamp(c.xmin))::float8 AS committed"
        " FROM chain_entries c JOIN executions e ON e.id = c.execution_id"
        " WHERE e.workflow_id = ANY(%s) ORDER BY committed",
        batch.workflows,
    )
    rows: dict[int, list[Row]] = defaultdict(list)
    for each in found:
        node, stdout = json.loads(each["node_id"]), json.loads(each["stdout"])
        rows[each["execution_id"]].append(Row(node, each["status"], each["committed"], stdout.strip()))
    return rows


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


def waits(told: Sequence[Entry], kills: Sequence[Kill]) -> Iterator[float]:
    """Seconds from each kill to the next start of the node that it interrupted, by the entries of one run."""
    for node in NODES:
        starts = [entry.at for entry in told if entry.node == node and entry.what == "started"]
        for before, after in pairwise(starts):
            yield from (after - ended for begun, ended in kills if before <= begun and ended <= after)


def _executions(batch: Batch) -> dict[str, dict[str, Any]]:
    ids = [str(run.task_id) for run in batch.runs.values()]
    found = batch.stack.rows(
        "SELECT id, flow_run_id::text, status, attempt, error_kind, error, failed_at_node"
        " FROM executions WHERE flow_run_id = ANY(%s::uuid[])",
        ids,
    )
    return {row["flow_run_id"]: row for row in found}


def _judge_end(verdict: Verdict, run: Run, row: dict[str, Any]) -> None:
    told = f"run {run.run_no}, execution {row['id']}: {row['status']}, {row['error_kind']}, {row['error']}"
    stopped = run.guarded and row["error_kind"] == "interrupted" and row["failed_at_node"] == f'"{GUARDED}"'
    if row["status"] in ("pending", "running"):
        verdict.fault(STUCK, told)
    elif row["status"] != run.wanted and not stopped:
        verdict.fault(FAILED, told)


def judge_nodes(
    verdict: Verdict, run: Run, told: list[Entry], rows: list[Row], kills: Sequence[Kill]
) -> None:
    """Hold what the ledger was told of a run's nodes against its rows and the kills."""
    left = list(kills)
    for node in NODES:
        starts = [entry.at for entry in told if entry.node == node and entry.what == "started"]
        success = next((row.committed for row in rows if row.node == node and row.status == "success"), None)
        for at in starts:
            if success is not None and at > success:
                verdict.fault(
                    TWICE, f"run {run.run_no}: {node} started {at - success:.3f} s after its success"
                )
        failures = sum(row.node == node and row.status != "success" for row in rows)
        without, left = explain(starts, left)
        for _ in range(without - failures):
            verdict.fault(AGAIN, f"run {run.run_no}: {node} started at {starts}")
        if run.guarded and node == GUARDED and len(starts) > 1:
            verdict.fault(GUARD, f"run {run.run_no}: {node} started at {starts}")
    keys = {(entry.node, entry.key) for entry in told}
    if len(keys) != len({node for node, _ in keys}) or len(keys) != len({key for _, key in keys}):
        verdict.fault(KEYS, f"run {run.run_no}: {sorted(keys)}")


def judge_polls(verdict: Verdict, run: Run) -> None:
    """Hold what a polling client saw against the bars."""
    for status, after in pairwise(run.seen):
        if status in FINAL or status.isdigit():
            verdict.fault(TAKEN_BACK, f"run {run.run_no}: {status}, then {after}")


async def _judge_result(verdict: Verdict, batch: Batch, run: Run, row: dict[str, Any]) -> None:
    """Ask the API for the run as its client does: a SUCCESS has what each of its nodes left."""
    try:
        task = await batch.task(run)
    except httpx.HTTPError as error:
        verdict.fault(ODD, f"run {run.run_no}: {error!r}")
        return
    expected = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}.get(row["status"])
    if expected is not None and task["status"] != expected:
        verdict.fault(ODD, f"run {run.run_no} is {row['status']}, but its task {task['status']}")
    if task["status"] == "SUCCESS":
        final = task["result"]["final_context"]
        if any(final.get(node) != run.run_no for node in NODES):
            verdict.fault(CONTEXT, f"run {run.run_no}: {sorted(final)}")


def _judge_number(verdict: Verdict, batch: Batch, executions: dict[str, dict[str, Any]]) -> None:
    """Every execution of the batch's workflows is of an accepted run, or was closed as never started."""
    started = batch.stack.rows(
        "SELECT id, status, error_kind FROM executions WHERE workflow_id = ANY(%s)"
        " AND error_kind IS DISTINCT FROM 'not_started'",
        batch.workflows,
    )
    known = {row["id"] for row in executions.values()}
    for row in started:
        if row["id"] not in known:
            verdict.fault(DOUBLED, f"execution {row['id']}: {row['status']}, {row['error_kind']}")
