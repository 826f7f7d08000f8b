"""Leading a run past the node at which it stopped: the row of that step, written for a person."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, InvalidInputError
from flows.graphs.graph import Graph, Node, load_graph
from flows.graphs.lifecycle import StepStatus
from flows.graphs.traversal import Visit, next_node
from flows.graphs.validation.inspection import MAX_STEPS
from flows.store import chain, values
from flows.store.models import ChainEntry, Execution, WorkflowVersion
from flows.store.transitions import interventions
from flows.store.transitions.interventions import Reopened
from flows.store.values import Stored


def skip(
    session: Session,
    execution_id: int,
    step: int,
    changes: Stored,
    branch: str | None = None,
    reopened_from: UUID | None = None,
) -> Reopened:
    """Let a run that stopped at a step go on behind it, as if its node had made these changes.

    A cancelled run too: its node may have been under way, and have done what must not be done twice.
    `branch` is the answer of a decision, and only of one. Opens the run as `interventions.reopen` does.
    Raises NotFoundError, InvalidInputError for a branch that is none of the node's, and ConflictError that
    says which step can be skipped when this one cannot.
    """
    execution = interventions.lock_reopenable(session, execution_id)
    graph, at, node = _next(session, execution)
    if node is None or node.type not in ("action", "decision"):
        raise ConflictError(f"Execution {execution_id} did not stop at a node: there is none to skip.")
    if at != step:
        raise ConflictError(
            f"Execution {execution_id} is at step {at}, node {node.id!r}: only that one can be skipped."
        )
    target = _target(graph, node, branch)
    entry = chain.add(
        session,
        execution_id,
        chain.Step(
            step=step,
            attempt=chain.next_attempt(session, execution_id, step),
            node_id=node.id,
            node_type=node.type,
            status=StepStatus.SUCCESS,
            changes=changes,
            decision_result=branch,
            path_taken=target if node.type == "decision" else None,
            stdout="Skipped by a person.",
        ),
    )
    return replace(interventions.reopen(session, execution_id, reopened_from), skipped=entry.id)


def undo(session: Session, reopened: Reopened) -> None:
    """Close a run again whose retry or skip Prefect refused: all is as it was. Raises LeaseLostError."""
    interventions.undo_reopen(session, reopened)
    if reopened.skipped is None:
        return
    skipped = delete(ChainEntry).where(ChainEntry.id == reopened.skipped).returning(ChainEntry.changes)
    given: set[str] = set().union(*(changes.values() for changes in session.scalars(skipped)))
    # What the person gave may be secret, and is none of this run's any more.
    values.forget(session, reopened.lease.execution_id, given - _used(session, reopened.lease.execution_id))


def _used(session: Session, execution_id: int) -> set[str]:
    """The digests of all values that a run's context had at one time."""
    started_with = session.scalar(select(Execution.initial).where(Execution.id == execution_id)) or {}
    changed = session.scalars(select(ChainEntry.changes).where(ChainEntry.execution_id == execution_id))
    return set(started_with.values()).union(*(changes.values() for changes in changed))


def _next(session: Session, execution: Execution) -> tuple[Graph, int, Node | None]:
    """The graph of a run, the number of its next step, and that step's node."""
    version = session.get(WorkflowVersion, execution.version_id) if execution.version_id else None
    if version is None:
        raise ConflictError(f"Execution {execution.id} never began: there is no node to skip.")
    graph = load_graph(version.graph)
    visits = [Visit(node_id, branch) for node_id, branch in chain.visits(session, execution.id)]
    return graph, len(visits), next_node(graph, visits, MAX_STEPS + 1)


def _target(graph: Graph, node: Node, branch: str | None) -> str:
    """The node behind this one; raises InvalidInputError for a branch that is none of its edges."""
    decides = node.type == "decision"
    targets = {edge.condition if decides else None: edge.target for edge in graph.edges_from(node.id)}
    if branch not in targets:
        wanted = f"one of {', '.join(map(str, targets))}" if decides else "left out: it decides nothing"
        message = f"must be {wanted}"
        raise InvalidInputError(f"branch {message}.", [{"field": "branch", "message": message}])
    return targets[branch]
