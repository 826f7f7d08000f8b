"""Traversal: what comes next, given a graph and what happened so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import overload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.graphs.errors import NodeError, NotFoundError, StepLimitError
from flows.graphs.graph import Graph
from flows.graphs.traversal import Visit, branch_label, next_node
from tests.graphs.strategies import Json, invoice_graph, line_graph, sound_graphs
from tests.graphs.validating import parse_graph


@pytest.fixture
def invoices() -> Graph:
    """Reads mail in a loop, then branches on a label."""
    return parse_graph(invoice_graph())


def walk(graph: Graph, visits: list[Visit], max_steps: int = 1000) -> str | None:
    """Return the id of what comes next."""
    following = next_node(graph, visits, max_steps)
    return following.id if following else None


def test_a_run_begins_with_the_start(invoices: Graph) -> None:
    """Nothing happened yet, so the start comes next."""
    assert walk(invoices, []) == "start"


def test_an_action_leads_to_the_node_behind_its_only_edge(invoices: Graph) -> None:
    """So does the start."""
    assert walk(invoices, [Visit("start")]) == "mail"
    assert walk(invoices, [Visit("start"), Visit("mail")]) == "pdf?"


def test_nothing_comes_after_an_end(invoices: Graph) -> None:
    """The run is over, however many steps it took."""
    assert walk(invoices, [Visit("start"), Visit("end")], max_steps=2) is None


@pytest.mark.parametrize(("truth", "following"), [(True, "amount"), (False, "mail")])
def test_truth_picks_true_or_false(invoices: Graph, truth: bool, following: str) -> None:
    """Whatever the answer was: a decision that left 0 or "" answered false."""
    assert walk(invoices, [Visit("pdf?", truth=truth)]) == following
    assert walk(invoices, [Visit("pdf?", branch="yes, there is one", truth=truth)]) == following


def test_a_string_picks_the_way_with_that_label(invoices: Graph) -> None:
    """Labels are compared exactly."""
    assert walk(invoices, [Visit("amount", branch="high", truth=True)]) == "reject"
    assert walk(invoices, [Visit("amount", branch="low", truth=True)]) == "save"


def test_the_text_false_picks_false_although_it_is_true_in_python(invoices: Graph) -> None:
    """A label that fits goes before truth."""
    assert walk(invoices, [Visit("pdf?", branch="false", truth=True)]) == "mail"


def test_a_run_goes_on_from_its_chain_of_work(invoices: Graph) -> None:
    """What a row keeps of a decision is the label that it picked; that is enough to go on from."""
    label = branch_label(invoices, "pdf?", "some text", True)
    assert label == "true"
    assert walk(invoices, [Visit("pdf?", branch=label)]) == "amount"


@pytest.mark.parametrize(
    ("visit", "sentence"),
    [
        (
            Visit("amount", "middle", True),
            'Decision "amount" answered "middle", but its edges have the conditions "high", "low".',
        ),
        (
            Visit("amount", "true", True),
            'Decision "amount" answered "true", but its edges have the conditions "high", "low".',
        ),
        (
            Visit("amount", "High", True),
            'Decision "amount" answered "High", but its edges have the conditions "high", "low".',
        ),
        (
            Visit("amount", "", False),
            'Decision "amount" answered "", but its edges have the conditions "high", "low".',
        ),
        (Visit("pdf?"), 'Decision "pdf?" did not decide, but its edges have the conditions "true", "false".'),
    ],
)
def test_an_answer_that_is_none_of_the_ways_fails_the_decision(
    invoices: Graph, visit: Visit, sentence: str
) -> None:
    """The error names the node, the answer and the labels that there are."""
    with pytest.raises(NodeError) as caught:
        walk(invoices, [visit])
    assert str(caught.value) == sentence
    assert caught.value.node_id == visit.node_id
    assert caught.value.error_type == "UnknownBranch"


def test_a_loop_is_bounded(invoices: Graph) -> None:
    """A mailbox that stays empty: after max_steps nodes the run ends with an error that says why."""
    visits: list[Visit] = []
    while len(visits) < 20:
        visits.append(Visit(walk(invoices, visits, max_steps=20) or "", truth=False))
    with pytest.raises(StepLimitError, match=r"taken 20 steps.*max_steps \(20\)"):
        walk(invoices, visits, max_steps=20)


def test_start_and_end_count_as_steps() -> None:
    """A graph of three nodes takes three steps: it passes with max_steps 3, and not with 2."""
    graph = parse_graph(line_graph("only"))
    visits = [Visit("start"), Visit("only")]
    assert walk(graph, visits, max_steps=3) == "end"
    assert walk(graph, [*visits, Visit("end")], max_steps=3) is None
    with pytest.raises(StepLimitError):
        walk(graph, visits, max_steps=2)


def test_a_visit_of_another_graph_is_an_error(invoices: Graph) -> None:
    """Runs are pinned to a version of their graph, so this is a mistake of ours, and said to be one."""
    with pytest.raises(NotFoundError, match='no node "gone"'):
        walk(invoices, [Visit("gone")])


class Counted(Sequence[Visit]):
    """A million visits that count how often somebody looks at one."""

    def __init__(self, last: Visit) -> None:
        self.last = last
        self.looks = 0

    @overload
    def __getitem__(self, index: int) -> Visit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Visit]: ...
    def __getitem__(self, index: int | slice) -> Visit | Sequence[Visit]:
        """Return the last visit, whichever is asked for."""
        self.looks += 1
        return self.last

    def __len__(self) -> int:
        """Return a million."""
        return 1_000_000

    def __iter__(self) -> Iterator[Visit]:
        """Refuse: who goes through all visits is not O(1)."""
        raise AssertionError("the traversal went through all visits")


def test_the_next_node_costs_the_same_however_long_the_run_was(invoices: Graph) -> None:
    """Only the last visit and their number are looked at."""
    visits = Counted(Visit("pdf?", truth=False))
    following = next_node(invoices, visits, 2_000_000)
    assert following is not None
    assert following.id == "mail"
    assert visits.looks <= 2


def test_the_next_node_costs_the_same_however_large_the_graph_is() -> None:
    """Ten thousand steps through 5,000 nodes are a matter of milliseconds, not of a search for each."""
    ids = [f"n{number}" for number in range(4_998)]
    graph = parse_graph(line_graph(*ids))
    visits = [Visit("n2500")]
    walk(graph, visits)
    began = time.perf_counter()
    for _ in range(10_000):
        assert walk(graph, visits) == "n2501"
    assert time.perf_counter() - began < 1


@given(sound_graphs(), st.randoms(use_true_random=False))
def test_every_sound_graph_walks_to_an_end_or_to_the_limit(data: Json, chance: object) -> None:
    """Whatever the decisions answer, each step is along an edge, and asking again gives the same one."""
    graph = parse_graph(data)
    visits: list[Visit] = []
    try:
        while following := next_node(graph, visits, 50):
            if visits:
                assert following.id in [way.target for way in graph.edges_from(visits[-1].node_id)]
            assert next_node(graph, visits, 50) == following
            labels = [way.condition for way in graph.edges_from(following.id)]
            branch = chance.choice(labels) if following.type == "decision" else None  # type: ignore[attr-defined]
            visits.append(Visit(following.id, branch))
        assert graph.node(visits[-1].node_id).type == "end"
    except StepLimitError:
        assert len(visits) == 50
