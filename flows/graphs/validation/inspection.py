"""Validation: every fault of a graph at once, by node and edge, whatever it is that was sent.

First the parts are looked at one by one, here; what is left of them is looked at as a whole, in `shape`. The
nodes' code is only measured: `flows.code_check` compiles it, and brings both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flows.graphs.errors import Fault
from flows.graphs.names import MAX_NAME, is_printable, quoted
from flows.graphs.validation import node_policy
from flows.graphs.validation.code import PROGRAM_FIELDS, Program, ProgramField, text_fault
from flows.graphs.validation.findings import Findings, JsonObject, capital
from flows.graphs.validation.shape import TRUTHS, Shape, Way

MAX_NODES: Final = 5_000
MAX_EDGES: Final = 20_000
MAX_GRAPH_CODE: Final = 8 * 1024 * 1024
"""Characters of code in all nodes together: compiling ordinary code takes up to four seconds a million."""
MAX_STEPS: Final = 1_000_000
"""The most that a graph's own `max_steps` may say."""

_PROGRAMS: Final[dict[str, tuple[ProgramField, ...]]] = {
    "start": (),
    "action": ("code",),
    "decision": ("code", "condition"),
    "end": (),
}
"""Type of a node → the fields that may say what it runs."""
_GRAPH_FIELDS: Final = frozenset(("nodes", "edges", "max_steps"))
_NODE_FIELDS: Final = frozenset(("id", "type", "label", "code", "condition")) | node_policy.FIELDS
_EDGE_FIELDS: Final = frozenset(("from", "to", "condition"))


def edge_condition(value: object) -> str | None:
    """Read an edge's condition as it stands in JSON: true and false are "true" and "false", "" is None.

    What cannot be a condition is None too; it may stand only where no decision reads it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) and _name_problem(value) is None else None


@dataclass(frozen=True)
class Inspection:
    """What a look at a graph found before any code is compiled."""

    found: list[Fault | Program]
    """Faults in order; a program that is still to be compiled stands where its fault would."""
    warnings: list[Fault]

    @property
    def programs(self) -> list[Program]:
        """The programs that are to be compiled, in order."""
        return [item for item in self.found if isinstance(item, Program)]

    def faults(self, verdicts: Sequence[Fault | None]) -> list[Fault]:
        """Return all faults, given what came of compiling each of `programs`: its fault, or None."""
        answers = iter(verdicts)
        every = (next(answers) if isinstance(item, Program) else item for item in self.found)
        return [fault for fault in every if fault is not None]


def inspect_graph(data: object, code_limit: int) -> Inspection:
    """Look at a graph as a caller sent it; never raises.

    `code_limit` is how many bytes of UTF-8 a node's code, or its condition, may have.
    """
    inspector = _Inspector(code_limit)
    inspector.graph(data)
    return Inspection(inspector.found, inspector.warnings)


class _Inspector(Findings):
    """One look at one graph; changes nothing that it is given."""

    def __init__(self, code_limit: int) -> None:
        super().__init__()
        self._code_limit = code_limit
        self._shape = Shape()
        self._odd_ids: set[str | None] = set()
        """Ids that are a fault themselves: no other fault names its node by them."""
        self._odd_numbers: set[str] = set()
        """Ids that are numbers, a fault themselves: edges that name them are not a second one."""
        self._code_left = MAX_GRAPH_CODE

    def graph(self, data: object) -> None:
        if not isinstance(data, dict):
            self.fault("not-an-object", "A graph is a JSON object with the lists nodes and edges.")
            return
        self._max_steps(data.get("max_steps"))
        self.unknown_fields(data, _GRAPH_FIELDS, "the graph")
        nodes = self._list(data, "nodes", MAX_NODES)
        edges = self._list(data, "edges", MAX_EDGES)
        for index, node in enumerate(nodes or ()):
            self._node(index, node)
        if self._code_left < 0:
            message = (
                f"The nodes' code is longer than {MAX_GRAPH_CODE:,} characters in all. Move data out of it."
            )
            self.fault("code-too-long", message)
        if nodes is None:
            return  # every edge would lead to nowhere
        for index, edge in enumerate(edges or ()):
            self._edge(index, edge)
        self._whole(self._shape.of_types())
        if edges is not None:
            self._whole(self._shape.of_ways())

    def _whole(self, faults: Iterator[Fault]) -> None:
        self.found.extend(replace(f, node=None) if f.node in self._odd_ids else f for f in faults)

    # -- the graph's own fields ----------------------------------------------------------------------

    def _list(self, data: JsonObject, name: str, most: int) -> list[Any] | None:
        value = data.get(name)
        if not isinstance(value, list):
            self.fault(f"no-{name}", f"The graph's {name} are missing or not a list.")
            return None
        if len(value) > most:
            self.fault(f"too-many-{name}", f"The graph has {len(value):,} {name}; {most:,} are allowed.")
            return None
        return value

    def _max_steps(self, value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STEPS:
            self.fault("invalid-max-steps", f"max_steps must be a whole number from 1 to {MAX_STEPS:,}.")

    # -- nodes ---------------------------------------------------------------------------------------

    def _node(self, index: int, node: object) -> None:
        place = f"nodes[{index}]"
        if not isinstance(node, dict):
            self.fault("node-not-an-object", f"{place} is not an object. A node has at least id and type.")
            self._shape.nameless.add(None)
            return
        node_id = self._id(place, node.get("id"))
        name = place if node_id is None else f"node {quoted(node_id)}"
        kind = self._type(node.get("type"), name, node_id)
        if isinstance(node.get("id"), str):
            self._shape.types.setdefault(node["id"], kind)
        else:
            self._shape.nameless.add(kind)
        node_policy.check_policy(self, kind, node, name, node_id)
        self._label(node.get("label"), name, node_id)
        self._program(kind, node, name, node_id)
        self.unknown_fields(node, _NODE_FIELDS, name, node=node_id)

    def _id(self, place: str, value: object) -> str | None:
        """Check an id; None where it is not fit to name its node."""
        if value is None:
            self.fault("missing-id", f"{place} has no id. Give it a string that no other node has.")
            return None
        if not isinstance(value, str):
            if isinstance(value, (int, float)):
                self._odd_numbers.add(_spelling(value))
            self.fault("invalid-id", f"The id of {place} is no string. Give it one that no other node has.")
            return None
        problem = _name_problem(value)
        if problem:
            self._odd_ids.add(value)
            self.fault("invalid-id", f"The id of {place} {problem}.")
            return None
        if value in self._shape.types:
            message = f"The id {quoted(value)} is taken twice: {place} has it too. Rename one and its edges."
            self.fault("duplicate-id", message, node=value)
        return value

    def _type(self, value: object, name: str, node_id: str | None) -> str | None:
        """Check a type; returns the one that is meant, None where that cannot be told."""
        if isinstance(value, str) and value in _PROGRAMS:
            return value
        types = f"Types are {', '.join(_PROGRAMS)}"
        if value is None:
            self.fault("missing-type", f"{capital(name)} has no type. {types}.", node=node_id)
            return None
        shown = f"the type {quoted(value)} is unknown" if isinstance(value, str) else "the type is no string"
        self.fault("unknown-type", f"{capital(name)}: {shown}. {types}, written so.", node=node_id)
        meant = value.strip().lower() if isinstance(value, str) else ""
        return meant if meant in _PROGRAMS else None

    def _label(self, value: object, name: str, node_id: str | None) -> None:
        if value is None:
            return
        # Line breaks are fine in a label, what else cannot be printed is not.
        if not isinstance(value, str) or len(value) > MAX_NAME or not is_printable(" ".join(value.split())):
            message = f"The label of {name} must be a string of at most {MAX_NAME} printable characters."
            self.fault("invalid-label", message, node=node_id)

    def _program(self, kind: str | None, node: JsonObject, name: str, node_id: str | None) -> None:
        """Check what a node runs: code, or in a decision a condition instead."""
        texts: dict[ProgramField, str] = {}
        for field in PROGRAM_FIELDS:
            value = node.get(field)
            if isinstance(value, str):
                if value.strip():
                    texts[field] = value
            elif value is not None:
                self.fault(f"invalid-{field}", f"The {field} of {name} must be a string.", node=node_id)
                texts[field] = ""
        # Where the type is unknown nothing is missing; the fields that there are get checked all the same.
        wanted = tuple(texts) if kind is None else _PROGRAMS[kind]
        for field in (field for field in texts if field not in wanted):
            message = f"The {field} of {name} is ignored: a node of type {kind} does not run it."
            self.warn(f"ignored-{field}", message, node=node_id)
        if wanted and not any(field in texts for field in wanted):
            instead = ", or a condition (a Python expression)" if kind == "decision" else ""
            self.fault(
                "missing-code", f"{capital(name)} has no code. Give it Python code{instead}.", node=node_id
            )
        if kind == "decision" and len(texts) == 2:
            message = f"{capital(name)} has both code and a condition. Keep the one that is to decide."
            self.fault("code-and-condition", message, node=node_id)
        for field in wanted:
            if source := texts.get(field):
                # An expression may not begin with a blank, and a graph is read without it.
                self._text(Program(node_id, name, field, source.strip() if field == "condition" else source))

    def _text(self, program: Program) -> None:
        self._code_left -= len(program.source)
        if self._code_left >= 0:
            self.found.append(text_fault(program, self._code_limit) or program)

    # -- edges ---------------------------------------------------------------------------------------

    def _edge(self, index: int, edge: object) -> None:
        if not isinstance(edge, dict):
            message = (
                f"edges[{index}] is not an object. An edge has from and to, and a condition after a decision."
            )
            self.fault("edge-not-an-object", message, edge=index)
            return
        source = self._edge_end(index, edge, "from")
        target = self._edge_end(index, edge, "to")
        kind = self._shape.types[source] if source is not None else None
        condition, readable = None, True
        if kind in (None, "decision"):
            condition, readable = self._condition(index, edge.get("condition"))
        elif edge.get("condition") not in (None, ""):
            message = f"The condition of edge {index} is ignored: {quoted(source or '')} is not a decision."
            self.warn("ignored-condition", message, edge=index)
            self.value(edge["condition"], f"The condition of edge {index}", edge=index)
        if source is not None or target is not None:
            self._shape.ways.append(Way(index, source, target, condition, readable))
        self.unknown_fields(edge, _EDGE_FIELDS, f"edge {index}", edge=index)

    def _edge_end(self, index: int, edge: JsonObject, field: str) -> str | None:
        value = edge.get(field)
        if isinstance(value, str):
            if value in self._shape.types:
                return value
            node = value if _name_problem(value) is None else None
            message = f'Edge {index} has {quoted(value)} as its "{field}", but there is no such node.'
            self.fault(f"edge-{field}-nowhere", message, node=node, edge=index)
        elif value is None:
            self.fault(
                f"edge-without-{field}",
                f'Edge {index} has no "{field}". Give it the id of a node.',
                edge=index,
            )
        elif not isinstance(value, (int, float)) or _spelling(value) not in self._odd_numbers:
            self.fault(
                f"invalid-edge-{field}",
                f'The "{field}" of edge {index} must be a string: a node\'s id.',
                edge=index,
            )
        return None

    def _condition(self, index: int, value: object) -> tuple[str | None, bool]:
        """Read a condition; returns it and whether it was in order."""
        if value is None or value == "":
            return None, True
        name = f"The condition of edge {index}"
        condition = edge_condition(value)
        if condition is None:
            problem = _name_problem(value) if isinstance(value, str) else None
            must = 'must be "true", "false" or a string label'
            self.fault("invalid-edge-condition", f"{name} {problem or must}.", edge=index)
            return None, False
        meant = condition.strip().lower()
        if meant in TRUTHS and condition != meant:
            message = f'{name} is {quoted(condition)}. Write "{meant}": the answer must match it exactly.'
            self.fault("invalid-edge-condition", message, edge=index)
            return meant, True
        return condition, True


def _name_problem(value: str) -> str | None:
    if not value.strip():
        return "is empty"
    if len(value) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    if not is_printable(value):
        return "holds control characters or lone surrogates"
    return None


def _spelling(number: int | float) -> str:
    """Write a number as text that equal numbers share, and no others.

    Numbers can be chosen to have one and the same hash, which makes a set of them slow; texts cannot.
    """
    if isinstance(number, float) and not number.is_integer():
        return number.hex()
    return hex(int(number))
