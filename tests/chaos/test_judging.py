"""The judge of the chaos suite: what it lets pass, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from tests.chaos import judging
from tests.chaos.judging import Row, Verdict, explain
from tests.chaos.ledger import Entry
from tests.chaos.runs import Run


def started(at: float, node: str, key: str | None = None) -> Entry:
    """A node's entry in the ledger."""
    return Entry(at, "started", 1, node, key or f"key of {node}", "sandbox")


def succeeded(at: float, node: str) -> Row:
    """A node's row in the Chain of Work."""
    return Row(node, "success", at, "sandbox")


def missed(
    entries: list[Entry], rows: list[Row], kills: Sequence[float] = (), *, guarded: bool = False
) -> dict[str, int]:
    """How often each bar is missed by a run that the ledger and the Chain of Work tell this of."""
    verdict = Verdict()
    judging.judge_nodes(verdict, Run(1, uuid4(), 1, guarded, None), entries, rows, [(at, at) for at in kills])
    return {bar: len(found) for bar, found in verdict.missed.items()}


@pytest.mark.parametrize(
    ("starts", "kills", "without", "left"),
    [
        ([1], [], 0, []),
        ([1, 3], [2], 0, []),
        ([1, 3], [4], 1, [4]),
        ([1, 3, 5], [2], 1, []),
        ([1, 3, 5], [2, 4], 0, []),
        ([1, 4], [2, 3], 0, [3]),
    ],
)
def test_a_kill_explains_one_start(
    starts: list[float], kills: list[float], without: int, left: list[float]
) -> None:
    """A start after the first needs a kill since the one before, and uses it up."""
    assert explain(starts, [(at, at) for at in kills]) == (without, [(at, at) for at in left])


def test_a_restart_explains_what_it_overlaps() -> None:
    """A server that was away for a while may have interrupted a node at any moment of it."""
    assert explain([1, 5], [(0.5, 1.5)]) == (0, [])
    assert explain([1, 5], [(4, 6)]) == (0, [])
    assert explain([2, 5], [(0.5, 1.5)]) == (1, [(0.5, 1.5)])


def test_a_run_that_nothing_befell_passes() -> None:
    """One start a node, a success each, one key each."""
    assert missed([started(1, "n0"), started(3, "n1")], [succeeded(2, "n0"), succeeded(4, "n1")]) == {}


def test_a_node_that_was_in_flight_may_run_again() -> None:
    """Killed between its start and its row, a node starts a second time."""
    entries = [started(1, "n0"), started(3, "n0")]
    assert missed(entries, [succeeded(4, "n0")], [2]) == {}


def test_one_kill_is_no_excuse_for_two_nodes() -> None:
    """A run has one node in flight: the second that is run again for the same kill is one too many."""
    entries = [started(1, "n0"), started(1.5, "n1"), started(3, "n0"), started(4, "n1")]
    assert missed(entries, [succeeded(5, "n0"), succeeded(5, "n1")], [2]) == {judging.AGAIN: 1}


def test_a_failed_attempt_excuses_another() -> None:
    """Where the Chain of Work has a failed attempt, the node was started again for its sake."""
    rows = [Row("n0", "failed", 2, ""), succeeded(4, "n0")]
    assert missed([started(1, "n0"), started(3, "n0")], rows) == {}
    assert missed([started(1, "n0"), started(3, "n0"), started(3.5, "n0")], rows) == {judging.AGAIN: 1}


def test_a_start_after_the_success_is_never_excused() -> None:
    """A kill explains a second start, but not of a node whose success was committed before."""
    entries = [started(1, "n0"), started(4, "n0")]
    assert missed(entries, [succeeded(2, "n0")], [3]) == {judging.TWICE: 1}


def test_a_guarded_node_is_started_once() -> None:
    """Of an `on_interrupt: fail` node a second start is a violation, whatever the reason."""
    entries = [started(1, "n2"), started(4, "n2")]
    assert missed(entries, [succeeded(5, "n2")], [3], guarded=True) == {judging.GUARD: 1}


def test_how_long_an_interrupted_node_waits() -> None:
    """From the end of the kill to the node's next start; what was not interrupted waits for nothing."""
    told = [started(1, "n0"), started(2, "n1"), started(9, "n1")]
    assert list(judging.waits(told, [(3, 4), (10, 11)])) == [5]


def test_a_step_has_one_key_of_its_own() -> None:
    """A key that changes between attempts, or serves two nodes, is a violation."""
    again = [started(1, "n0", "a"), started(3, "n0", "b")]
    assert missed(again, [succeeded(4, "n0")], [2]) == {judging.KEYS: 1}
    assert missed([started(1, "n0", "a"), started(3, "n1", "a")], []) == {judging.KEYS: 1}


def test_a_final_state_that_is_taken_back() -> None:
    """A client that saw FAILURE and then something else was told wrong."""
    verdict = Verdict()
    run = Run(1, uuid4(), 1, False, None, seen=["PENDING", "RUNNING", "FAILURE", "RETRY", "SUCCESS"])
    judging.judge_polls(verdict, run)
    assert verdict.missed == {judging.TAKEN_BACK: ["run 1: FAILURE, then RETRY"]}
