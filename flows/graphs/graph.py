"""Graphs: nodes, edges, and how they are read from what a caller gave.

A graph is `{"nodes": [...], "edges": [{"from", "to", "condition"?}], "max_steps"?}`. What NOVA does not know
(editors add positions and colours) is left out of these models; a stored graph keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from flows.graphs.errors import Fault, InvalidGraphError, NotFoundError
from flows.graphs.names import one_line, quoted
from flows.graphs.validation.inspection import MAX_STEPS, Inspection, edge_condition
from flows.graphs.validation.node_policy import MAX_RETRIES, MAX_TIMEOUT, MIN_TIMEOUT, OnInterrupt

NodeType = Literal["start", "action", "decision", "end"]

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds that a node may run where it does not say."""


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
    retries: int = Field(default=0, ge=0, le=MAX_RETRIES)
    """How often it is tried again after its code failed; does not apply where `on_interrupt` is fail."""
    on_interrupt: OnInterrupt = "rerun"
    """fail: never started a second time once it was started, even if nobody knows what became of it."""
    executor: object = None
    """"e2b" in graphs of the old build; not used, since a setting says where nodes run."""

    @field_validator("timeout", "retries", "on_interrupt", mode="before")
    @classmethod
    def _default(cls, value: object, info: ValidationInfo) -> object:
        return cls.model_fields[str(info.field_name)].default if value is None else value

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
    """An edge from a node to the next; `condition` is the answer of a decision that picks it."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    condition: str | None = None
    """"true", "false" or a label; None on the edge of a node that decides nothing."""

    @field_validator("condition", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return edge_condition(value)


class Graph(_Part):
    """A graph that can be walked; `load_graph` reads it."""

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
    def _edges_by_source(self) -> dict[str, tuple[Edge, ...]]:
        found: dict[str, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(edge.source, []).append(edge)
        return {source: tuple(edges) for source, edges in found.items()}

    def node(self, node_id: str) -> Node:
        """Return a node by its id; raises NotFoundError."""
        try:
            return self._nodes[node_id]
        except KeyError:
            raise NotFoundError(f"The graph has no node {quoted(node_id)}.") from None

    def edges_from(self, node_id: str) -> tuple[Edge, ...]:
        """Return the edges that leave a node, in the graph's order; none for an end."""
        return self._edges_by_source.get(node_id, ())


@dataclass(frozen=True)
class Validation:
    """The result of validating a graph: `graph` is None exactly where there are faults."""

    graph: Graph | None
    faults: list[Fault]
    warnings: list[Fault]


def judge_graph(data: object, inspection: Inspection, verdicts: Sequence[Fault | None]) -> Validation:
    """Read a graph that was inspected and compiled, and name everything that is wrong; never raises.

    `verdicts` has what came of compiling each of the inspection's programs: its fault, or None.
    Warnings are no reason to refuse a graph: fields that NOVA does not know, or does not use in that place.
    """
    faults = inspection.faults(verdicts)
    if faults:
        return Validation(None, faults, inspection.warnings)
    try:
        return Validation(load_graph(data), [], inspection.warnings)
    except InvalidGraphError as error:
        return Validation(None, error.faults, inspection.warnings)


def load_graph(data: object) -> Graph:
    """Read a stored graph: one that was validated when it was saved, so its code is not looked at again.

    Raises InvalidGraphError where it cannot be read all the same.
    """
    try:
        return Graph.model_validate(data)
    except ValidationError as error:
        raise InvalidGraphError(_unreadable(error)) from None


def _unreadable(error: ValidationError) -> list[Fault]:
    """Say what pydantic found, as faults."""
    return [
        Fault("unreadable-graph", f"{'.'.join(map(str, found['loc'])) or 'The graph'}: {found['msg']}.")
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]
