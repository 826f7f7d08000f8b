"""Graphs that the engine's tests begin with, and hypothesis strategies for JSON and for graphs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]


def invoice_graph() -> Json:
    """Read the mail, loop until there is one with a PDF, decide on the amount; a sound graph."""
    return {
        "nodes": [
            {"id": "start", "type": "start"},
            {"id": "mail", "type": "action", "label": "Read the mailbox", "code": "context['mail'] = 1"},
            {"id": "pdf?", "type": "decision", "condition": "context['mail'] > 0"},
            {"id": "amount", "type": "decision", "code": "context['branch_decision'] = 'high'"},
            {"id": "reject", "type": "action", "code": "context['sent'] = True", "timeout": 30},
            {"id": "save", "type": "action", "code": "context['saved'] = True", "executor": "e2b"},
            {"id": "end", "type": "end"},
        ],
        "edges": [
            {"from": "start", "to": "mail"},
            {"from": "mail", "to": "pdf?"},
            {"from": "pdf?", "to": "amount", "condition": "true"},
            {"from": "pdf?", "to": "mail", "condition": False},
            {"from": "amount", "to": "reject", "condition": "high"},
            {"from": "amount", "to": "save", "condition": "low"},
            {"from": "reject", "to": "end"},
            {"from": "save", "to": "end"},
        ],
    }


def line_graph(*actions: str) -> Json:
    """Return start → the actions → end."""
    ids = ["start", *actions, "end"]
    return {
        "nodes": [
            {"id": "start", "type": "start"},
            *({"id": node, "type": "action", "code": "pass"} for node in actions),
            {"id": "end", "type": "end"},
        ],
        "edges": [{"from": here, "to": there} for here, there in pairwise(ids)],
    }


def node(graph: Json, node_id: str) -> Json:
    """Return one node of a graph, to be changed in place."""
    found: Json = next(node for node in graph["nodes"] if node["id"] == node_id)
    return found


def nested(levels: int) -> Any:
    """Return lists and dicts in turn, so many levels of them."""
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
"""Text of any code point: NUL, quotes, backslashes and lone surrogates included."""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**999), max_value=10**999)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)
"""Any JSON value within NOVA's bounds."""


def _object(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({}, optional={**fields, "position": json_values})


_ids: st.SearchStrategy[Any] = st.sampled_from(
    ["a", "b", "c", "d", "start", "end", "", "x" * 300, "\x00", "\ud800", 1, None, True, [], {}]
)
_odd = json_values | st.floats() | st.just({1: 2}) | st.just({3}) | st.just(b"x") | st.builds(object)
_types = st.sampled_from(["start", "action", "decision", "end", "END", "other", None, 3])
_codes = st.sampled_from(
    ["pass", "x = (", "return", "\0", "\ud800", "(" * 300, "-" * 100_000, "", " ", 5, None, "1 is 1"]
)

broken_graphs = _odd | _object(
    {
        "nodes": _odd
        | st.lists(
            _odd
            | _object(
                {
                    "id": _ids | _odd,
                    "type": _types,
                    "code": _codes | any_text,
                    "condition": _codes | any_text,
                    "label": _odd,
                    "timeout": st.sampled_from([0, 1, 60, 61, 10**400, "5", True]) | st.floats(),
                    "retries": st.sampled_from([0, 10, 11, -1, 10**400, True, None]) | _odd,
                    "on_interrupt": st.sampled_from(["fail", "rerun", "", None]) | _odd,
                    "executor": _odd,
                }
            ),
            max_size=6,
        ),
        "edges": _odd
        | st.lists(
            _odd
            | _object(
                {
                    "from": _ids | _odd,
                    "to": _ids | _odd,
                    "condition": st.sampled_from(["true", "false", True, False, "x", "", "True", None])
                    | _odd,
                }
            ),
            max_size=8,
        ),
        "max_steps": st.sampled_from([0, 1, 10**400, True, 1.5, "7"]) | st.floats(),
    }
)
"""Things that look more or less like graphs."""


_labels: st.SearchStrategy[list[Any]] = st.one_of(
    st.sampled_from([["true", "false"], [True, False]]),
    st.lists(st.sampled_from(["low", "middle", "high", "ask"]), min_size=2, unique=True),
)


@st.composite
def sound_graphs(draw: st.DrawFn) -> Json:
    """Any valid graph: a line from start to end on which every node may also lead back or forward."""
    count = draw(st.integers(0, 12))
    ids = ["start", *(f"n{number}" for number in range(count)), "end"]
    nodes: list[Json] = [{"id": "start", "type": "start"}]
    edges: list[Json] = [{"from": "start", "to": ids[1]}]
    for here, following in pairwise(ids[1:]):
        if draw(st.booleans()):
            nodes.append({"id": here, "type": "action", "code": "pass"})
            edges.append({"from": here, "to": following})
            continue
        nodes.append({"id": here, "type": "decision", "condition": "True"})
        labels: list[Any] = draw(_labels)
        edges.append({"from": here, "to": following, "condition": labels[0]})
        edges += [
            {"from": here, "to": draw(st.sampled_from(ids)), "condition": label} for label in labels[1:]
        ]
    nodes.append({"id": "end", "type": "end"})
    return {"nodes": draw(st.permutations(nodes)), "edges": draw(st.permutations(edges))}


@st.composite
def damaged_graphs(draw: st.DrawFn) -> Json:
    """A sound graph with a few fields lost or replaced, and a few parts lost or doubled."""
    graph = draw(sound_graphs())
    for _ in range(draw(st.integers(1, 5))):
        parts = graph[draw(st.sampled_from(["nodes", "edges"]))]
        if not parts:
            continue
        index = draw(st.integers(0, len(parts) - 1))
        part = parts[index]
        match draw(st.sampled_from(["field", "field", "lost field", "lost", "doubled", "odd"])):
            case "field" if isinstance(part, dict):
                name = draw(
                    st.sampled_from(["id", "type", "code", "condition", "timeout", "from", "to", "label"])
                )
                parts[index] = {**part, name: draw(_ids | _types | _codes | _odd)}
            case "lost field" if isinstance(part, dict):
                name = draw(st.sampled_from(list(part) or [""]))
                parts[index] = {key: value for key, value in part.items() if key != name}
            case "lost":
                del parts[index]
            case "doubled":
                parts.append(part)
            case _:
                parts[index] = draw(_odd)
    return graph
