"""Fixtures of the store's tests: a workflow, and a run of it."""

from __future__ import annotations

import socket
import uuid
from typing import Any

import pytest

from flows.store import workflows
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from tests.leasing import begin

GRAPH: dict[str, Any] = {
    "nodes": [{"id": "start", "type": "start"}, {"id": "end", "type": "end"}],
    "edges": [{"from": "start", "to": "end"}],
}


@pytest.fixture
def graph() -> dict[str, Any]:
    """The smallest graph."""
    return GRAPH


@pytest.fixture
def workflow(database: Database) -> Workflow:
    """A workflow named Invoices with the smallest graph."""
    return database.run_sync(lambda session: workflows.create(session, name="Invoices", graph=GRAPH))


@pytest.fixture
def execution(database: Database, workflow: Workflow) -> Execution:
    """A running execution of that workflow, with an empty context."""
    return database.run_sync(
        lambda session: begin(
            session,
            flow_run_id=uuid.uuid4(),
            workflow_id=workflow.id,
        )
    )


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
