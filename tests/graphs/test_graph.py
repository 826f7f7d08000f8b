"""Graphs as the rest of NOVA reads them."""

from __future__ import annotations

import pytest

from flows.graphs.errors import InvalidGraphError, NotFoundError
from flows.graphs.graph import load_graph
from tests.graphs.strategies import invoice_graph, line_graph, node
from tests.graphs.validating import CODE_LIMIT, parse_graph, validate_graph


def test_nodes_and_ways_are_found_by_id() -> None:
    """A node by its id; its ways in the order of the graph; an end has none."""
    graph = parse_graph(invoice_graph())
    assert graph.node("save").type == "action"
    assert [(way.target, way.condition) for way in graph.edges_from("amount")] == [
        ("reject", "high"),
        ("save", "low"),
    ]
    assert graph.edges_from("end") == ()
    assert graph.start.id == "start"


def test_a_node_that_the_graph_lacks_is_an_error_that_names_it() -> None:
    """That happens where a run is given another graph than it began with."""
    with pytest.raises(NotFoundError, match='no node "gone"'):
        parse_graph(invoice_graph()).node("gone")


def test_json_truths_are_the_same_as_text() -> None:
    """Graphs of the old build have both `true` and `"true"` as conditions."""
    graph = parse_graph(invoice_graph())
    assert [way.condition for way in graph.edges_from("pdf?")] == ["true", "false"]


def test_what_is_left_out_has_its_default() -> None:
    """Ten seconds for a node; no bound of the graph's own on steps. JSON null is the same as left out."""
    data = line_graph("a")
    data["max_steps"] = None
    node(data, "a").update(
        timeout=None, label=None, condition=None, executor=None, retries=None, on_interrupt=None
    )
    graph = parse_graph(data)
    assert graph.node("a").timeout == 10.0
    assert (graph.node("a").retries, graph.node("a").on_interrupt) == (0, "rerun")
    assert graph.max_steps is None


def test_bounds_of_a_graph_are_kept() -> None:
    """Timeouts in seconds, whole or not, and its own `max_steps`."""
    data = {**line_graph("a", "b"), "max_steps": 5}
    node(data, "a")["timeout"] = 1
    node(data, "b")["timeout"] = 59.5
    graph = parse_graph(data)
    assert [graph.node(step).timeout for step in "ab"] == [1.0, 59.5]
    assert graph.max_steps == 5


def test_a_node_says_how_often_it_is_tried() -> None:
    """After its code failed, and after nobody knows what became of it."""
    data = line_graph("a", "b")
    node(data, "a")["retries"] = 10
    node(data, "b").update(retries=0, on_interrupt="fail")
    result = validate_graph(data)
    assert (result.faults, result.warnings) == ([], [])
    assert result.graph is not None
    found = [result.graph.node(step) for step in "ab"]
    assert [(one.retries, one.on_interrupt) for one in found] == [(10, "rerun"), (0, "fail")]


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("Read the mailbox", "Read the mailbox"),
        (None, "a"),
        ("", "a"),
        (" \n", "a"),
        ("Read\n  the mail", "Read the mail"),
    ],
)
def test_a_nodes_title_is_its_label_in_one_line_or_its_id(label: str | None, title: str) -> None:
    """It names the task run in the Prefect UI."""
    data = line_graph("a")
    node(data, "a")["label"] = label
    assert parse_graph(data).node("a").title == title


def test_fields_of_editors_do_not_get_into_the_graph() -> None:
    """Not even those that are called like something of ours: the store keeps them, a run needs them not."""
    data = invoice_graph()
    data["start"] = "mail"
    data["edges"][0] |= {"source": "elsewhere", "target": "elsewhere"}
    node(data, "mail")["title"] = "Other"
    graph = parse_graph(data)
    assert graph.start.id == "start"
    assert graph.edges_from("start")[0].target == "mail"
    assert graph.node("mail").title == "Read the mailbox"


def test_reading_a_graph_changes_nothing_in_what_was_given() -> None:
    """The caller stores it exactly as it came."""
    data = invoice_graph()
    parse_graph(data)
    assert data == invoice_graph()


def test_a_stored_graph_is_read_without_a_look_at_its_code() -> None:
    """It was looked at when it was saved, perhaps under another Python or limit; each run would pay again."""
    data = invoice_graph()
    node(data, "save")["code"] = code = "print 'old'  # " + "x" * CODE_LIMIT
    assert load_graph(data).node("save").code == code


@pytest.mark.parametrize(
    "data", [None, [], {}, {"nodes": [], "edges": []}, {"nodes": [{"id": 1}], "edges": [3]}]
)
def test_a_stored_graph_that_is_none_says_so(data: object) -> None:
    """Never pydantic's own error: InvalidGraphError, as everywhere."""
    with pytest.raises(InvalidGraphError):
        load_graph(data)
