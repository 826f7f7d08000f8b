"""What is wrong with a graph: each kind of fault, where it is pinned, and what is left unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.graphs.errors import Fault, InvalidGraphError
from flows.graphs.validation import inspection
from tests.graphs.strategies import (
    Json,
    broken_graphs,
    damaged_graphs,
    invoice_graph,
    line_graph,
    nested,
    node,
    sound_graphs,
)
from tests.graphs.validating import CODE_LIMIT, parse_graph, validate_graph

SandboxSession = tuple[str, str | None, int | None]
"""A fault's code, node and edge."""


def places(faults: list[Fault]) -> list[SandboxSession]:
    """Return what kind of faults there are, and where."""
    return [(fault.code, fault.node, fault.edge) for fault in faults]


def graph_without(name: str) -> Json:
    """Return a sound graph that lacks one of its fields."""
    graph = invoice_graph()
    del graph[name]
    return graph


def with_field(name: str, value: object) -> Callable[[], Json]:
    """Return a sound graph with one more field, or another value in it."""
    return lambda: {**invoice_graph(), name: value}


def with_node(node_id: str, **fields: object) -> Callable[[], Json]:
    """Return a sound graph with other fields in one node."""

    def build() -> Json:
        graph = invoice_graph()
        node(graph, node_id).update(fields)
        return graph

    return build


def with_edge(index: int, **fields: object) -> Callable[[], Json]:
    """Return a sound graph with other fields in one edge."""

    def build() -> Json:
        graph = invoice_graph()
        graph["edges"][index].update(fields)
        return graph

    return build


def with_more(*, nodes: list[Any] | None = None, edges: list[Any] | None = None) -> Callable[[], Json]:
    """Return a sound graph with more nodes and edges at its end; the first new edge has the index 8."""

    def build() -> Json:
        graph = invoice_graph()
        graph["nodes"] += nodes or []
        graph["edges"] += edges or []
        return graph

    return build


def without_edges(*indexes: int) -> Callable[[], Json]:
    """Return a sound graph that lacks some edges."""

    def build() -> Json:
        graph = invoice_graph()
        graph["edges"] = [edge for index, edge in enumerate(graph["edges"]) if index not in indexes]
        return graph

    return build


def numbered_field() -> dict[Any, Any]:
    """Return a sound graph with a field that is called 1, as YAML can say it."""
    graph: dict[Any, Any] = invoice_graph()
    graph[1] = 2
    return graph


def action(node_id: object, **fields: object) -> Json:
    """Return an action that does nothing."""
    return {"id": node_id, "type": "action", "code": "pass", **fields}


def edge(source: object, target: object) -> Json:
    """Return an edge without a condition."""
    return {"from": source, "to": target}


FAULTS: dict[str, tuple[Callable[[], object], list[SandboxSession]]] = {
    # -- the graph
    "a graph that is a list": (lambda: [], [("not-an-object", None, None)]),
    "a graph that is nothing": (lambda: None, [("not-an-object", None, None)]),
    "no nodes at all": (lambda: graph_without("nodes"), [("no-nodes", None, None)]),
    "nodes that are an object": (with_field("nodes", {}), [("no-nodes", None, None)]),
    "no edges at all": (lambda: graph_without("edges"), [("no-edges", None, None)]),
    "edges that are a string": (with_field("edges", "a-b"), [("no-edges", None, None)]),
    "max_steps of 0": (with_field("max_steps", 0), [("invalid-max-steps", None, None)]),
    "max_steps past the bound": (with_field("max_steps", 1_000_001), [("invalid-max-steps", None, None)]),
    "max_steps that is true": (with_field("max_steps", True), [("invalid-max-steps", None, None)]),
    "max_steps with a fraction": (with_field("max_steps", 10.5), [("invalid-max-steps", None, None)]),
    "max_steps of 5000 digits": (with_field("max_steps", 10**5000), [("invalid-max-steps", None, None)]),
    "a field that JSON lacks": (with_field("zoom", float("nan")), [("invalid-value", None, None)]),
    "a field nested too deep": (with_node("mail", data=nested(101)), [("invalid-value", "mail", None)]),
    "a field whose name is no string": (numbered_field, [("invalid-value", None, None)]),
    # -- starts and ends
    "no start": (with_node("start", type="action", code="pass"), [("no-start", None, None)]),
    "two starts": (
        with_more(nodes=[{"id": "again", "type": "start"}], edges=[edge("again", "mail")]),
        [("several-starts", "again", None)],
    ),
    "no end": (
        lambda: {"nodes": [{"id": "start", "type": "start"}], "edges": [edge("start", "start")]},
        [("no-end", None, None)],
    ),
    "an empty graph": (
        lambda: {"nodes": [], "edges": []},
        [("no-start", None, None), ("no-end", None, None)],
    ),
    # -- nodes
    "a node that is a string": (with_more(nodes=["mail"]), [("node-not-an-object", None, None)]),
    "a node without an id": (with_more(nodes=[{"type": "end"}]), [("missing-id", None, None)]),
    "an id that is a number": (with_more(nodes=[{"id": 7, "type": "end"}]), [("invalid-id", None, None)]),
    "an empty id": (
        with_more(nodes=[action("")], edges=[edge("", "end")]),
        [("invalid-id", None, None), ("unreachable-node", None, None)],
    ),
    "an id of 256 characters": (
        with_more(nodes=[action("x" * 256)], edges=[edge("x" * 256, "x" * 256)]),
        [("invalid-id", None, None), ("unreachable-node", None, None), ("no-path-to-end", None, None)],
    ),
    "an id with a NUL": (
        lambda: line_graph("a\0b"),
        [("invalid-id", None, None)],
    ),
    "an id with a lone surrogate": (lambda: line_graph("\ud800"), [("invalid-id", None, None)]),
    "an id taken twice": (with_more(nodes=[action("mail")]), [("duplicate-id", "mail", None)]),
    "a node without a type": (with_node("save", type=None), [("missing-type", "save", None)]),
    "an unknown type": (with_node("save", type="email"), [("unknown-type", "save", None)]),
    "a type in capitals": (with_node("start", type="START"), [("unknown-type", "start", None)]),
    "a type that is a list": (with_node("save", type=["action"]), [("unknown-type", "save", None)]),
    "a label that is a number": (with_node("mail", label=3), [("invalid-label", "mail", None)]),
    "a label of 256 characters": (with_node("mail", label="x" * 256), [("invalid-label", "mail", None)]),
    "a label with a NUL": (with_node("mail", label="a\0"), [("invalid-label", "mail", None)]),
    "a timeout of 0": (with_node("mail", timeout=0), [("invalid-timeout", "mail", None)]),
    "a timeout of 61 seconds": (with_node("mail", timeout=61), [("invalid-timeout", "mail", None)]),
    "a timeout that is NaN": (with_node("mail", timeout=float("nan")), [("invalid-timeout", "mail", None)]),
    "a timeout that is true": (with_node("mail", timeout=True), [("invalid-timeout", "mail", None)]),
    "a timeout in words": (with_node("mail", timeout="10"), [("invalid-timeout", "mail", None)]),
    "11 retries": (with_node("mail", retries=11), [("invalid-retries", "mail", None)]),
    "retries below 0": (with_node("mail", retries=-1), [("invalid-retries", "mail", None)]),
    "retries that are true": (with_node("mail", retries=True), [("invalid-retries", "mail", None)]),
    "retries that are no whole number": (with_node("mail", retries=1.0), [("invalid-retries", "mail", None)]),
    "another on_interrupt": (
        with_node("mail", on_interrupt="FAIL"),
        [("invalid-on-interrupt", "mail", None)],
    ),
    "an on_interrupt that is a list": (
        with_node("mail", on_interrupt=["fail"]),
        [("invalid-on-interrupt", "mail", None)],
    ),
    # -- code
    "an action without code": (with_node("mail", code=None), [("missing-code", "mail", None)]),
    "an action with blank code": (with_node("mail", code=" \n"), [("missing-code", "mail", None)]),
    "a decision without code": (with_node("amount", code=""), [("missing-code", "amount", None)]),
    "a decision with code and condition": (
        with_node("amount", condition="True"),
        [("code-and-condition", "amount", None)],
    ),
    "code that is a list": (with_node("mail", code=["pass"]), [("invalid-code", "mail", None)]),
    "code that does not compile": (with_node("mail", code="def"), [("invalid-code", "mail", None)]),
    "code with a NUL": (with_node("mail", code="x = '\0'"), [("invalid-code", "mail", None)]),
    "code with a lone surrogate": (with_node("mail", code="'\ud800'"), [("invalid-code", "mail", None)]),
    "code with a return": (with_node("mail", code="return 1"), [("invalid-code", "mail", None)]),
    "code with too many brackets": (with_node("mail", code="[" * 500), [("invalid-code", "mail", None)]),
    "code that is nested too deep": (
        with_node("mail", code="x" + ".a" * 30_000),
        [("invalid-code", "mail", None)],
    ),
    "code that exhausts the parser": (
        with_node("mail", code="-" * 60_000),
        [("invalid-code", "mail", None)],
    ),
    "code of a byte too much": (
        with_node("mail", code="#" + "é" * (CODE_LIMIT // 2)),
        [("code-too-long", "mail", None)],
    ),
    "a condition of a byte too much": (
        with_node("pdf?", condition="1" + "+1" * (CODE_LIMIT // 2)),
        [("code-too-long", "pdf?", None)],
    ),
    "code of a node without a type": (
        with_node("mail", type=None, code="def"),
        [("missing-type", "mail", None), ("invalid-code", "mail", None)],
    ),
    "a condition that is a number": (with_node("pdf?", condition=1), [("invalid-condition", "pdf?", None)]),
    "a condition that is a statement": (
        with_node("pdf?", condition="x = 1"),
        [("invalid-condition", "pdf?", None)],
    ),
    # -- edges
    "an edge that is a list": (with_more(edges=[["mail", "end"]]), [("edge-not-an-object", None, 8)]),
    "an edge without from": (with_more(edges=[{"to": "end"}]), [("edge-without-from", None, 8)]),
    "an edge without to": (with_edge(6, to=None), [("edge-without-to", None, 6)]),
    "an edge from nowhere": (with_more(edges=[edge("gone", "end")]), [("edge-from-nowhere", "gone", 8)]),
    "an edge to nowhere": (with_edge(6, to="gone"), [("edge-to-nowhere", "gone", 6)]),
    "an edge from a number": (with_more(edges=[edge(3, "end")]), [("invalid-edge-from", None, 8)]),
    "an edge to a list": (with_edge(6, to=["end"]), [("invalid-edge-to", None, 6)]),
    "a condition of an edge that is a number": (
        with_edge(2, condition=1),
        [("invalid-edge-condition", None, 2)],
    ),
    "a label with a line break": (with_edge(4, condition="a\nb"), [("invalid-edge-condition", None, 4)]),
    "a truth in capitals": (with_edge(2, condition="True"), [("invalid-edge-condition", None, 2)]),
    # -- ways
    "an action without a way out": (without_edges(6), [("no-way-out", "reject", None)]),
    "an action with two ways out": (
        with_more(edges=[edge("save", "mail")]),
        [("several-ways-out", "save", 8)],
    ),
    "the same way twice": (with_more(edges=[edge("save", "end")]), [("several-ways-out", "save", 8)]),
    "a start with two ways out": (
        with_more(edges=[edge("start", "save")]),
        [("several-ways-out", "start", 8)],
    ),
    "an end with a way out": (with_more(edges=[edge("end", "mail")]), [("end-with-way-out", "end", 8)]),
    "true without false": (without_edges(3), [("missing-way", "pdf?", None)]),
    "false without true": (
        without_edges(2),
        [
            ("missing-way", "pdf?", None),
            *(("unreachable-node", lost, None) for lost in ("amount", "reject", "save", "end")),
        ],
    ),
    "a single label": (
        without_edges(4),
        [("missing-way", "amount", None), ("unreachable-node", "reject", None)],
    ),
    "a decision without any way": (
        lambda: {
            "nodes": [*line_graph()["nodes"], {"id": "which", "type": "decision", "condition": "1"}],
            "edges": [edge("start", "which")],
        },
        [("missing-way", "which", None), ("unreachable-node", "end", None)],
    ),
    "the same label twice": (with_edge(5, condition="high"), [("doubled-way", "amount", 5)]),
    "a truth twice, as text and as JSON": (
        with_more(edges=[{"from": "pdf?", "to": "end", "condition": True}]),
        [("doubled-way", "pdf?", 8)],
    ),
    "a way without a condition": (with_edge(3, condition=None), [("way-without-condition", "pdf?", 3)]),
    "a truth and another label": (with_edge(3, condition="maybe"), [("mixed-ways", "pdf?", None)]),
    "true, false and another label": (
        with_more(edges=[{"from": "pdf?", "to": "end", "condition": "maybe"}]),
        [("mixed-ways", "pdf?", None)],
    ),
    # -- paths
    "a node that no path reaches": (
        with_more(nodes=[action("lost")], edges=[edge("lost", "end")]),
        [("unreachable-node", "lost", None)],
    ),
    "nodes that reach no end": (
        with_edge(6, to="reject"),
        [("no-path-to-end", "reject", None)],
    ),
    "a loop of two that nothing leaves": (
        lambda: {
            "nodes": [*line_graph("ask")["nodes"], action("ping"), action("pong")],
            "edges": [edge("start", "ping"), edge("ping", "pong"), edge("pong", "ping"), edge("ask", "end")],
        },
        [
            ("unreachable-node", "ask", None),
            ("unreachable-node", "end", None),
            ("no-path-to-end", "start", None),
            ("no-path-to-end", "ping", None),
            ("no-path-to-end", "pong", None),
        ],
    ),
}

WARNINGS: dict[str, tuple[Callable[[], object], list[SandboxSession]]] = {
    "a field that the graph lacks": (with_field("viewport", {"zoom": 2}), [("unknown-fields", None, None)]),
    "an editor's fields in a node": (
        with_node("mail", position={"x": 1}, data={}),
        [("unknown-fields", "mail", None)],
    ),
    "an editor's fields in an edge": (with_edge(0, animated=True), [("unknown-fields", None, 0)]),
    "an edge's condition after an action": (with_edge(1, condition="true"), [("ignored-condition", None, 1)]),
    "an edge's odd condition after an action": (
        with_edge(1, condition={"always": 1}),
        [("ignored-condition", None, 1)],
    ),
    "code in an end": (with_node("end", code="pass"), [("ignored-code", "end", None)]),
    "a condition in an action": (with_node("mail", condition="True"), [("ignored-condition", "mail", None)]),
    "retries in a start": (with_node("start", retries=2), [("ignored-retries", "start", None)]),
    "on_interrupt in an end": (
        with_node("end", on_interrupt="fail"),
        [("ignored-on-interrupt", "end", None)],
    ),
    "retries of a node that is never started twice": (
        with_node("mail", retries=2, on_interrupt="fail"),
        [("ignored-retries", "mail", None)],
    ),
    "another executor": (with_node("mail", executor="docker"), [("ignored-executor", "mail", None)]),
}


def test_a_sound_graph_has_neither_faults_nor_warnings() -> None:
    """Loops, labels, conditions and JSON's own true and false are all in order."""
    result = validate_graph(invoice_graph())
    assert (result.faults, result.warnings) == ([], [])
    assert result.graph is not None


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_once_where_it_is(case: str) -> None:
    """One thing wrong gives one fault, at its node or edge, and no other faults that only follow from it."""
    build, expected = FAULTS[case]
    result = validate_graph(build())
    assert places(result.faults) == expected
    assert result.graph is None


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_not_used_is_a_warning(case: str) -> None:
    """Fields that NOVA does not know, or does not use in that place, refuse nothing."""
    build, expected = WARNINGS[case]
    result = validate_graph(build())
    assert places(result.warnings) == expected
    assert result.faults == []


def test_all_faults_are_named_at_once() -> None:
    """Who sends a graph with many faults learns of all of them from one answer, in one error."""
    graph = invoice_graph()
    node(graph, "mail")["timeout"] = 600
    node(graph, "save")["code"] = "x = = 1"
    graph["edges"][6]["to"] = "gone"
    graph["edges"][3]["condition"] = "true"
    graph["nodes"].append(action("lost"))
    with pytest.raises(InvalidGraphError) as caught:
        parse_graph(graph)
    assert places(caught.value.faults) == [
        ("invalid-timeout", "mail", None),
        ("invalid-code", "save", None),
        ("edge-to-nowhere", "gone", 6),
        ("doubled-way", "pdf?", 3),
        ("missing-way", "pdf?", None),
        ("no-way-out", "lost", None),
        ("unreachable-node", "lost", None),
    ]
    assert len(caught.value.problems) == 7
    assert "The graph has 7 faults" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "line", "column"),
    [
        ("x = 1\nif x:\n  y = (\n", 3, 7),
        ("x = 1\nfor", 2, 4),
        ("return", 1, 1),
        ("x = 1\ny = '\0'", 2, 6),
        ("\ud800", 1, 1),
        ("x = '" + "9" * 10 + "\nz", 1, 5),
    ],
)
def test_code_that_does_not_compile_is_shown_by_line_and_column(code: str, line: int, column: int) -> None:
    """Both count from 1 and stand in the sentence as well."""
    (fault,) = validate_graph(with_node("mail", code=code)()).faults
    assert (fault.line, fault.column) == (line, column)
    assert f"(line {line}, column {column})" in fault.message


def test_code_is_compiled_without_the_futures_of_this_package() -> None:
    """`from __future__ import annotations` in NOVA's own modules changes nothing in a node's code."""
    assert validate_graph(with_node("mail", code="x: (y := 1) = 2")()).faults == []


@pytest.mark.parametrize(
    "condition", ["  context['mail']", "context['mail']\n", "(\n  1\n)", "a if b else c"]
)
def test_a_condition_may_have_blanks_around_it(condition: str) -> None:
    """People and YAML leave them there; Python's own compiler would refuse the first ones."""
    graph = validate_graph(with_node("pdf?", condition=condition)()).graph
    assert graph is not None
    assert graph.node("pdf?").condition == condition.strip()


def test_code_that_is_too_long_is_told_with_its_size_and_the_setting() -> None:
    """Bytes of UTF-8, not characters; whoever operates NOVA can allow more."""
    graph = with_node("save", code="x = '" + "é" * 50 + "'")()
    (fault,) = validate_graph(graph, code_limit=105).faults
    assert fault.message == (
        'The code of node "save" has 106 bytes; a node may have 105 (NOVA_NODE_CODE_LIMIT). '
        "Move data out of it."
    )
    assert validate_graph(graph, code_limit=106).faults == []


def test_code_that_is_too_long_is_not_compiled() -> None:
    """The limit comes before anything that could be dear."""
    inspected = inspection.inspect_graph(with_node("mail", code="(" * 1000)(), code_limit=999)
    assert "mail" not in [program.node for program in inspected.programs]


def test_code_of_all_nodes_together_is_bounded() -> None:
    """Ten nodes of a MiB each could keep a process compiling for half a minute."""
    graph = line_graph(*(f"n{number}" for number in range(10)))
    for step in graph["nodes"][1:-1]:
        step["code"] = "#" + "x" * (2**20 - 1)
    assert places(validate_graph(graph, code_limit=2**20).faults) == [("code-too-long", None, None)]


@pytest.mark.parametrize(("name", "most"), [("nodes", inspection.MAX_NODES), ("edges", inspection.MAX_EDGES)])
def test_nodes_and_edges_are_bounded(name: str, most: int) -> None:
    """Past the bound the parts are not looked at one by one."""
    graph = {**line_graph("a"), name: [{}] * (most + 1)}
    faults = validate_graph(graph).faults
    assert places(faults) == [(f"too-many-{name}", None, None)]
    assert f"{most:,} are allowed" in faults[0].message


def test_the_largest_graph_is_validated_in_seconds() -> None:
    """5,000 nodes in a line, each with code and an editor's fields."""
    graph = line_graph(*(f"n{number}" for number in range(inspection.MAX_NODES - 2)))
    for step in graph["nodes"]:
        step["position"] = {"x": 1}
    result = validate_graph(graph)
    assert result.faults == []
    assert len(result.warnings) == inspection.MAX_NODES


def test_a_number_as_an_id_is_one_fault_and_not_one_for_each_edge() -> None:
    """The edges that name the number are as wrong as it, and right once it is a string."""
    graph = json.loads(json.dumps(line_graph("one")).replace('"one"', "1"))
    assert places(validate_graph(graph).faults) == [("invalid-id", None, None)]


class Colliding(int):
    """A number whose hash all others share, as multiples of 2**61 - 1 do; counts how often it is compared."""

    comparisons = 0

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        Colliding.comparisons += 1
        return int(self) == other


def test_numbers_that_are_chosen_to_be_slow_are_not() -> None:
    """A set of 15,000 ids with one and the same hash would compare each with all: 100 million times."""
    nodes = [action(Colliding(number)) for number in range(1, 4_900)]
    edges = [edge(Colliding(number), Colliding(number)) for number in range(5_000, 15_000)]
    inspected = inspection.inspect_graph(with_more(nodes=nodes, edges=edges)(), CODE_LIMIT)
    assert len(inspected.found) > len(nodes) + 2 * len(edges)
    assert Colliding.comparisons < 10 * (len(nodes) + len(edges))


def test_what_a_node_without_id_could_have_been_is_not_missed() -> None:
    """A start without an id is no reason to say that there is no start; that there is no end is said."""
    graph = {"nodes": [{"type": "start"}, action("a")], "edges": []}
    assert places(validate_graph(graph).faults) == [
        ("missing-id", None, None),
        ("no-end", None, None),
        ("no-way-out", "a", None),
    ]


def test_sentences_stay_short_and_printable_whatever_is_quoted() -> None:
    """Ids and labels of a megabyte, or with control characters, are cut and escaped in messages."""
    graph = with_more(edges=[edge("x" * 1_000_000, "\x1b[2J"), edge("\ud800", "a\nb")])()
    for fault in validate_graph(graph).faults:
        assert len(fault.message) < 300
        assert fault.message.isprintable()
        assert fault.node is None


def test_an_error_with_thousands_of_faults_has_a_short_sentence() -> None:
    """All of them stand in `problems`, the first ten in the message."""
    graph = with_more(edges=[edge("a", "b")] * 5_000)()
    with pytest.raises(InvalidGraphError) as caught:
        parse_graph(graph)
    assert len(caught.value.problems) == 10_000
    assert str(caught.value).endswith("And 9990 more.")


def test_a_graph_that_holds_itself_is_refused() -> None:
    """JSON cannot say that, but Python can: the walk through it ends all the same."""
    graph: Json = invoice_graph()
    graph["self"] = graph
    assert places(validate_graph(graph).faults) == [("invalid-value", None, None)]


@settings(max_examples=400, deadline=None)
@given(broken_graphs | damaged_graphs())
def test_validation_never_raises(data: object) -> None:
    """Whatever is sent, it is either a graph or has faults, each with a slug and a sentence."""
    result = validate_graph(data)
    assert (result.graph is None) == bool(result.faults)
    for fault in [*result.faults, *result.warnings]:
        assert fault.code.replace("-", "").isalpha()
        assert fault.code != "unreadable-graph"  # that would be pydantic finding what validation missed
        assert fault.message.endswith((".", "?"))
        assert fault.message.isprintable()
        assert (fault.line is None) == (fault.column is None)


@given(sound_graphs())
def test_every_sound_graph_is_accepted(data: Json) -> None:
    """Whatever the order of its nodes and edges, and wherever its loops lead."""
    result = validate_graph(data)
    assert (result.faults, result.warnings) == ([], [])


@given(sound_graphs(), st.data())
def test_an_edge_less_is_always_noticed(data: Json, chance: st.DataObject) -> None:
    """A node is left without a way out, or a decision with a single way, unless it had three or more."""
    lost = chance.draw(st.sampled_from(data["edges"]))
    data["edges"].remove(lost)
    ways = [edge for edge in data["edges"] if edge["from"] == lost["from"]]
    faults = [fault.code for fault in validate_graph(data).faults]
    if len(ways) == 0:
        assert "no-way-out" in faults
    elif len(ways) == 1:
        assert "missing-way" in faults
