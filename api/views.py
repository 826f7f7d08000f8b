"""Rows as answers: the contract's fields first, then NOVA's own."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.responses import timestamp
from api.schemas import SUCCEEDED
from flows.credentials.fields import FIELDS
from flows.graphs.errors import Fault
from flows.graphs.lifecycle import Status
from flows.prefect_gateway.cron_schedules import ScheduleView
from flows.store.models import Client, Credential, Execution, Schedule, Workflow


def workflow(row: Workflow) -> dict[str, Any]:
    """Return a workflow with its current graph."""
    return workflow_without_graph(row) | {"graph_definition": row.current.graph}


def workflow_without_graph(row: Workflow) -> dict[str, Any]:
    """Return a workflow without its graph, which is null here."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "graph_definition": None,
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
        "slug": row.slug,
        "version": row.version,
        "priority": row.priority,
        "max_concurrent_runs": row.max_concurrent_runs,
        "overlap": row.overlap,
    }


def fault(found: Fault) -> dict[str, Any]:
    """Return a fault or warning of a graph: its code, message, node, edge, line and column, if any."""
    return {key: value for key, value in vars(found).items() if value is not None}


def execution(row: Execution, nodes_executed: int) -> dict[str, Any]:
    """Return an execution as lists show it: its result has no final context."""
    result = None
    if row.status is Status.COMPLETED:
        result = {"execution_id": row.id, "status": SUCCEEDED, "nodes_executed": nodes_executed}
    return {
        "id": row.id,
        "workflow_id": row.workflow_id,
        "status": row.status,
        "started_at": timestamp(row.started_at),
        "completed_at": timestamp(row.completed_at),
        "result": result,
        "error": row.error,
        "created_at": timestamp(row.created_at),
        "client_slug": row.client_slug,
        "task_id": str(row.task_id) if row.task_id else None,
        "failed_at_node": row.failed_at_node,
        "workflow_version": row.version.number if row.version else None,
    }


def accepted(task_id: UUID, execution_id: int | None, status: str, message: str) -> dict[str, Any]:
    """Return the answer to what was done to a run."""
    return {
        "task_id": str(task_id),
        "status": status,
        "execution_id": execution_id,
        "message": message,
    }


def client(row: Client) -> dict[str, Any]:
    """Return a client with its credentials."""
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "active": row.active,
        "credentials": [credential(c) for c in row.credentials],
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }


def credential(row: Credential) -> dict[str, Any]:
    """Return credentials with `***` for each secret; the ciphertext is not decrypted."""
    return {
        "kind": row.kind,
        "label": row.label,
        "primary": row.is_primary,
        "fields": row.public | {field.name: "***" for field in FIELDS[row.kind] if field.secret},
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }


def schedule(row: Schedule) -> dict[str, Any]:
    """Return one of NOVA's schedules."""
    return {
        "id": row.id,
        "cron": row.cron,
        "timezone": row.timezone,
        "parameters": row.parameters,
        "active": row.active,
        "source": "nova",
    }


def prefect_schedule(found: ScheduleView) -> dict[str, Any]:
    """Return a schedule as Prefect has it; NOVA or somebody else made it."""
    return {
        "id": found.id,
        "cron": found.cron,
        "timezone": found.timezone,
        "parameters": found.parameters,
        "active": found.active,
        "source": "prefect" if found.id is None else "nova",
        "rule": found.rule,
    }
