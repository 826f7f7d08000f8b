"""Read a batch's runs from NOVA's database: their executions and their Chains of Work."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass

from tests.chaos.runs import Batch


@dataclass(frozen=True)
class Execution:
    """A run's row in `executions`."""

    id: int
    task_id: str | None
    workflow: int
    status: str
    attempt: int
    error_kind: str | None
    error: str | None
    failed_at_node: str | None
    completed: float | None
    """Unix time."""

    def __str__(self) -> str:
        """Return its id, status and error."""
        parts = [self.status, self.error_kind, json.loads(self.error) if self.error else None]
        return f"execution {self.id}: " + ", ".join(each for each in parts if each)


@dataclass(frozen=True)
class Row:
    """A row of the Chain of Work, and when it was committed."""

    node: str
    status: str
    committed: float
    """Unix time."""
    stdout: str


def executions(batch: Batch) -> list[Execution]:
    """Return the executions of a batch's workflows, without those that were closed as `not_started`."""
    found = batch.stack.rows(
        "SELECT id, flow_run_id::text AS task_id, workflow_id AS workflow, status, attempt,"
        " error_kind, error, failed_at_node, extract(epoch FROM completed_at)::float8 AS completed"
        " FROM executions WHERE workflow_id = ANY(%s) AND error_kind IS DISTINCT FROM 'not_started'",
        batch.workflows,
    )
    for each in found:
        each["failed_at_node"] = json.loads(each["failed_at_node"] or "null")
    return [Execution(**each) for each in found]


def chain_rows(batch: Batch) -> dict[int, list[Row]]:
    """Return the Chains of Work of a batch: execution id → rows, in the order of their commits."""
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
