"""Traversal: given a graph and what happened so far, what comes next. Pure, and O(1) in a run's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flows.graphs.errors import NodeError, StepLimitError
from flows.graphs.graph import Edge, Graph, Node
from flows.graphs.names import quoted

UNKNOWN_BRANCH: Final = "UnknownBranch"
"""Error type of a decision whose answer is the condition of none of its edges."""


@dataclass(frozen=True)
class Visit:
    """A node that succeeded. A decision's answer is in `branch`, and in `truth` where it was not a label.

    A run that goes on from its Chain of Work gives the `decision_result` of each row as `branch`.
    """

    node_id: str
    branch: str | None = None
    truth: bool | None = None


def next_node(graph: Graph, visits: Sequence[Visit], max_steps: int) -> Node | None:
    """Return the node after the last visit: the start where nothing happened yet, None after an end.

    `max_steps` is how many nodes a run may visit, start and end included. Raises StepLimitError when one
    more would be too many, NodeError when no edge has a decision's answer, NotFoundError when the last visit
    is of a node that the graph lacks.
    """
    if not visits:
        return graph.start
    last = graph.node(visits[-1].node_id)
    if last.type == "end":
        return None
    following = graph.node(_edge_taken(graph, last, visits[-1]).target)
    if len(visits) >= max_steps:
        raise StepLimitError(
            f"The run has taken {len(visits)} steps, and node {quoted(following.id)} would be one more than "
            f"max_steps ({max_steps}) allows. Does a loop of the graph never end?"
        )
    return following


def branch_label(graph: Graph, node_id: str, branch: str | None, truth: bool | None) -> str:
    """Return the condition of the edge that a decision's answer picks.

    `branch` is the answer as text: a label, or "true"/"false"; `truth` is its truth in Python. A string
    that equals an edge's label picks that edge; otherwise, where the labels are true and false, truth
    decides. Raises NodeError that names the labels when nothing fits.
    """
    labels = [edge.condition for edge in graph.edges_from(node_id) if edge.condition is not None]
    if branch is not None and branch in labels:
        return branch
    if truth is not None and set(labels) == {"true", "false"}:
        return "true" if truth else "false"
    answer = "did not decide" if branch is None else f"answered {quoted(branch)}"
    conditions = ", ".join(map(quoted, labels))
    raise NodeError(
        f"Decision {quoted(node_id)} {answer}, but its edges have the conditions {conditions}.",
        node_id=node_id,
        error_type=UNKNOWN_BRANCH,
    )


def _edge_taken(graph: Graph, node: Node, visit: Visit) -> Edge:
    """Return the edge by which a run leaves a node that succeeded."""
    edges = graph.edges_from(node.id)
    if node.type == "decision":
        label = branch_label(graph, node.id, visit.branch, visit.truth)
        edges = tuple(edge for edge in edges if edge.condition == label)
    if not edges:  # only in a graph that was never validated
        raise NodeError(f"No edge leaves node {quoted(node.id)}.", node_id=node.id, error_type="NoWayOut")
    return edges[0]
