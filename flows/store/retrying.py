"""What a person may do about a run that failed or was cancelled: try it again, or go on behind a node."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError
from flows.graphs.graph import Graph, Node, load_graph
from flows.graphs.traversal import Visit, next_node
from flows.graphs.validation.inspection import MAX_STEPS
from flows.store import chain
from flows.store.executions import get, locked
from flows.store.models import Execution, WorkflowVersion
from flows.store.opening import open_again
from flows.store.values import Stored


def reopen(session: Session, execution_id: int, reopened_from: UUID | None = None) -> Execution:
    """Open a run that failed or was cancelled, for a person's retry: due now, all counters at zero.

    The error stays until it begins. `reopened_from` is the id of the state that Prefect has; who finds the
    row beside that state, if it is final, puts the run in its queue instead of closing the row again. And who
    has seen the row before knows by it that it was retried since. Raises NotFoundError, and
    ConflictError when there is nothing to retry.
    """
    _closed(session, execution_id)
    open_again(session, Execution.id == execution_id, reopened_from=reopened_from)
    return get(session, execution_id)


def skip(
    session: Session,
    execution_id: int,
    step: int,
    changes: Stored,
    branch: str | None = None,
    reopened_from: UUID | None = None,
) -> Execution:
    """Let a run that stopped at a step go on behind it, as if its node had changed the context so.

    One that was cancelled too: its node may have been under way, and done what must not be done twice.
    `branch` is the answer of a decision, and only of one. Opens the run like `reopen`. Raises NotFoundError,
    InvalidInputError for a branch that is none of the node's, and ConflictError that says which step can be
    skipped when this one cannot.
    """
    execution = _closed(session, execution_id)
    graph, at, node = _next(session, execution)
    if node is None or node.type not in ("action", "decision"):
        raise ConflictError(f"Execution {execution_id} did not stop at a node: there is none to skip.")
    if at != step:
        raise ConflictError(
            f"Execution {execution_id} is at step {at}, node {node.id!r}: only that one can be skipped."
        )
    target = _target(graph, node, branch)
    chain.add(
        session,
        execution_id,
        chain.Step(
            step=step,
            attempt=chain.next_attempt(session, execution_id, step),
            node_id=node.id,
            node_type=node.type,
            status="success",
            changes=changes,
            decision_result=branch,
            path_taken=target if node.type == "decision" else None,
            stdout="Skipped by a person.",
        ),
    )
    return reopen(session, execution_id, reopened_from)


def _closed(session: Session, execution_id: int) -> Execution:
    """Lock a row that failed or was cancelled, after it had started."""
    execution = locked(session, Execution.id == execution_id)
    if execution is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    if execution.error_kind == "not_started":
        raise ConflictError(f"Execution {execution_id} was never started. Start its workflow anew.")
    if execution.status not in ("failed", "cancelled"):
        raise ConflictError(f"Execution {execution_id} is {execution.status}, not failed or cancelled.")
    return execution


def _next(session: Session, execution: Execution) -> tuple[Graph, int, Node | None]:
    """The graph of a run, the number of its next step, and that step's node."""
    version = session.get(WorkflowVersion, execution.version_id) if execution.version_id else None
    if version is None:
        raise ConflictError(f"Execution {execution.id} never began: there is no node to skip.")
    graph = load_graph(version.graph)
    visits = [Visit(node_id, branch) for node_id, branch in chain.visits(session, execution.id)]
    return graph, len(visits), next_node(graph, visits, MAX_STEPS + 1)


def _target(graph: Graph, node: Node, branch: str | None) -> str:
    """The node behind this one; raises InvalidInputError for a branch that is none of its ways."""
    ways = {way.condition if node.type == "decision" else None: way.target for way in graph.ways(node.id)}
    if branch not in ways:
        wanted = (
            f"one of {', '.join(map(str, ways))}"
            if node.type == "decision"
            else "left out: it decides nothing"
        )
        message = f"must be {wanted}"
        raise InvalidInputError(f"branch {message}.", [{"field": "branch", "message": message}])
    return ways[branch]
