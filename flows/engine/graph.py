"""Graphs: nodes, edges, and how they are read from what a caller gave.

A graph is `{"nodes": [...], "edges": [{"from", "to", "condition"?}], "max_steps"?}`. What NOVA does not know
(editors add positions and colours) is left out of these models: who stores a graph stores it as it was given.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flows.engine.errors import Fault, InvalidGraphError, NotFoundError
from flows.engine.names import one_line, quoted

NodeType = Literal["start", "action", "decision", "end"]

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds that a node may run where it does not say."""
MIN_TIMEOUT: Final = 1
MAX_TIMEOUT: Final = 60
"""Seconds; the old build's bounds of a node's `timeout`."""
MAX_STEPS: Final = 1_000_000
"""The most that a graph's own `max_steps` may say."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Node(_Part):
    """One node. Decisions have either `code` or `condition` (a Python expression), actions `code`."""

    id: str
    type: NodeType
    label: str | None = None
    code: str | None = None
    condition: str | None = None
    timeout: float = Field(default=DEFAULT_TIMEOUT, ge=MIN_TIMEOUT, le=MAX_TIMEOUT)
    """Seconds."""
    executor: object = None
    """"e2b" in graphs of the old build; not used, since a setting says where nodes run."""

    @field_validator("timeout", mode="before")
    @classmethod
    def _default_timeout(cls, value: object) -> object:
        return DEFAULT_TIMEOUT if value is None else value

    @field_validator("code", "condition")
    @classmethod
    def _no_blank(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None

    @field_validator("condition")
    @classmethod
    def _strip(cls, value: str | None) -> str | None:
        # An expression may not begin with a blank, which YAML's block texts and people leave there.
        return value and value.strip()

    @property
    def title(self) -> str:
        """What a person calls the node: its label, else its id; one line that can be printed."""
        return one_line(self.label or "") or self.id


class Edge(_Part):
    """One way from a node to the next; `condition` is the answer of a decision that picks it."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    condition: str | None = None
    """"true", "false" or a label; None on the way out of a node that decides nothing."""

    @field_validator("condition", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return edge_condition(value)


def edge_condition(value: object) -> object:
    """Read a condition as it stands in JSON: true and false are "true" and "false", "" is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value == "" else value


class Graph(_Part):
    """A graph that can be walked: from a caller by `parse_graph`, from the store by `load_graph`."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Steps that a run may take; None leaves it to the setting."""

    @model_validator(mode="after")
    def _has_start(self) -> Graph:
        if not any(node.type == "start" for node in self.nodes):
            raise ValueError("there is no start node")
        return self

    @cached_property
    def start(self) -> Node:
        """The node that a run begins with."""
        return next(node for node in self.nodes if node.type == "start")

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def _ways(self) -> dict[str, tuple[Edge, ...]]:
        ways: dict[str, list[Edge]] = {}
        for edge in self.edges:
            ways.setdefault(edge.source, []).append(edge)
        return {source: tuple(edges) for source, edges in ways.items()}

    def node(self, node_id: str) -> Node:
        """Return a node by its id; raises NotFoundError."""
        try:
            return self._nodes[node_id]
        except KeyError:
            raise NotFoundError(f"The graph has no node {quoted(node_id)}.") from None

    def ways(self, node_id: str) -> tuple[Edge, ...]:
        """Return the edges that leave a node, in the graph's order; none for an end."""
        return self._ways.get(node_id, ())


def load_graph(data: Any) -> Graph:
    """Read a stored graph: one that was validated when it was saved, so its code is not looked at again.

    Raises InvalidGraphError where it cannot be read all the same.
    """
    try:
        return Graph.model_validate(data)
    except ValidationError as error:
        raise InvalidGraphError(unreadable(error)) from None


def unreadable(error: ValidationError) -> list[Fault]:
    """Say what pydantic found, as faults."""
    return [
        Fault("unreadable-graph", f"{'.'.join(map(str, found['loc'])) or 'The graph'}: {found['msg']}.")
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]
