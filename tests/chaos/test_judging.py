"""The judge of the chaos suite: what it lets pass, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from tests.chaos import judging, recovering
from tests.chaos.judging import Verdict, explain
from tests.chaos.ledger import Entry
from tests.chaos.records import Execution, Row
from tests.chaos.runs import Run


def started(at: float, node: str, key: str | None = None, *, run_no: int = 1) -> Entry:
    """A node's entry in the ledger."""
    return Entry(at, "started", run_no, node, key or f"key of {node}", "sandbox")


def succeeded(at: float, node: str) -> Row:
    """A node's row in the Chain of Work."""
    return Row(node, "success", at, "sandbox")


def failed(at: float, node: str) -> Row:
    """The row of a try of a node that failed."""
    return Row(node, "failed", at, "")


def asked(*, guarded: bool = False, faulty: bool = False) -> Run:
    """A run that the API accepted."""
    return Run(1, uuid4(), 1, guarded, None, faulty=faulty)


def ended(status: str, kind: str | None = None, node: str | None = None, *, at: float = 10) -> Execution:
    """The execution of a run, closed at a time."""
    return Execution(1, None, 1, status, 1, kind, None, node, at)


def counted(verdict: Verdict) -> dict[str, int]:
    """How often each bar is missed."""
    return {bar: len(found) for bar, found in verdict.missed.items()}


def missed(
    entries: list[Entry],
    rows: list[Row],
    kills: Sequence[float] = (),
    *,
    guarded: bool = False,
    faulty: bool = False,
    attempts: int = 2,
) -> dict[str, int]:
    """How often each bar is missed by a run that the ledger and the Chain of Work tell this of."""
    verdict, run = Verdict(), asked(guarded=guarded, faulty=faulty)
    judging.judge_nodes(verdict, run, attempts, entries, rows, [(at, at) for at in kills])
    return counted(verdict)


def missed_at_the_end(
    execution: Execution, rows: list[Row], kills: Sequence[float] = (), *, faulty: bool = False
) -> dict[str, int]:
    """How often each bar is missed by a guarded run that ended like this."""
    verdict = Verdict()
    run = asked(guarded=True, faulty=faulty)
    judging.judge_end(verdict, run, execution, rows, [(at, at) for at in kills])
    return counted(verdict)


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
    rows = [succeeded(5, "n0"), succeeded(5, "n1")]
    assert missed(entries, rows, [2], attempts=3) == {judging.AGAIN: 1}


def test_a_kill_is_no_excuse_without_a_new_attempt() -> None:
    """Where the run was not started anew, nobody had a reason to start its node again."""
    entries = [started(1, "n0"), started(3, "n0")]
    assert missed(entries, [succeeded(4, "n0")], [2], attempts=1) == {judging.WITHIN: 1}


def test_a_failed_attempt_excuses_another() -> None:
    """Where calls fail and the Chain of Work has a failed try, the node was started again for its sake."""
    rows = [failed(2, "n0"), succeeded(4, "n0")]
    twice = [started(1, "n0"), started(3, "n0")]
    assert missed(twice, rows, faulty=True, attempts=1) == {}
    assert missed([*twice, started(3.5, "n0")], rows, faulty=True) == {judging.AGAIN: 1}


def test_a_failed_row_where_nothing_fails_is_a_violation() -> None:
    """These nodes do not fail: without a fault of E2B's such a row is somebody's who had lost the run."""
    rows = [failed(2, "n0"), succeeded(4, "n0")]
    assert missed([started(1, "n0")], rows) == {judging.ROWS: 1}
    assert missed([started(1, "n0"), started(3, "n0")], rows) == {judging.ROWS: 1, judging.AGAIN: 1}


def test_a_run_ends_as_it_must() -> None:
    """With success, and not stopped at a node that may be started again."""
    assert missed_at_the_end(ended("completed"), []) == {}
    assert missed_at_the_end(ended("failed", "node"), [], [5]) == {judging.FAILED: 1}
    assert missed_at_the_end(ended("running"), [], [5]) == {judging.STUCK: 1}
    assert missed_at_the_end(ended("failed", "interrupted", "n3"), [], [5]) == {judging.FAILED: 1}


def test_a_guarded_run_stops_for_a_reason_alone() -> None:
    """Something was killed after the node before it had succeeded, and before the run was stopped."""
    stopped, rows = ended("failed", "interrupted", "n2", at=10), [succeeded(4, "n1")]
    assert missed_at_the_end(stopped, rows, [5]) == {}
    for kills in ([], [3], [11]):
        assert missed_at_the_end(stopped, rows, kills) == {judging.STOPPED: 1}
    assert missed_at_the_end(stopped, [], [5]) == {judging.STOPPED: 1}


def test_a_guarded_run_stops_where_its_sandbox_broke() -> None:
    """Where calls fail the reason is the node's failed row; where none does, such a row is no reason."""
    stopped, rows = ended("failed", "interrupted", "n2"), [succeeded(4, "n1"), failed(5, "n2")]
    assert missed_at_the_end(stopped, rows, faulty=True) == {}
    assert missed_at_the_end(stopped, rows[:1], faulty=True) == {judging.STOPPED: 1}
    assert missed_at_the_end(stopped, rows) == {judging.STOPPED: 1}


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
    assert list(judging.waits(told, [(3, 4), (10, 11)])) == [(4, 9)]


@pytest.mark.parametrize(
    ("back", "others", "seconds"),
    [
        (40, [], 100),
        (40, [10, 30], 100),
        (40, [10, 50, 90], 50),
        (40, [50, 120], 90),
        (None, [50], 100),
    ],
)
def test_a_wait_behind_others_is_no_lost_lease(
    back: float | None, others: list[float], seconds: float
) -> None:
    """Killed at 0, started at 100: what counts is the time before it was queued, and after others began."""
    assert recovering.without_queue(0, back, 100, others) == seconds


def test_a_step_has_one_key_of_its_own() -> None:
    """A key that changes between attempts, or serves two nodes, is a violation."""
    for told in (
        [started(1, "n0", "a"), started(3, "n0", "b")],
        [started(1, "n0", "a"), started(3, "n1", "a")],
        [started(1, "n0", "a"), started(3, "n0", "a", run_no=2)],
    ):
        verdict = Verdict()
        judging.judge_keys(verdict, told)
        assert counted(verdict) == {judging.KEYS: 1}
    verdict = Verdict()
    judging.judge_keys(verdict, [started(1, "n0"), started(3, "n0"), started(5, "n1")])
    assert counted(verdict) == {}


def test_what_a_client_without_an_answer_asked_for() -> None:
    """It may have one execution, which ends as others do, and no node of it runs twice."""
    for beyond, missed in (
        ([ended("completed")], {}),
        ([ended("completed"), ended("completed")], {judging.DOUBLED: 1}),
        ([ended("pending")], {judging.STUCK: 1}),
        ([ended("failed")], {judging.FAILED: 1}),
    ):
        verdict = Verdict()
        judging.judge_number(verdict, beyond, {7: 1})
        assert counted(verdict) == missed
    verdict = Verdict()
    judging.judge_unknown(verdict, [started(1, "n0"), started(2, "n1"), started(3, "n1")])
    assert counted(verdict) == {judging.TWICE: 1}


def test_an_execution_that_nobody_asked_for() -> None:
    """An answer that is missing in one workflow is no excuse for an execution of another."""
    verdict = Verdict()
    judging.judge_number(verdict, [ended("completed")], {7: 2})
    assert counted(verdict) == {judging.DOUBLED: 1}


def test_a_final_state_that_is_taken_back() -> None:
    """A client that saw FAILURE and then something else was told wrong."""
    verdict = Verdict()
    run = Run(1, uuid4(), 1, False, None, seen=["PENDING", "RUNNING", "FAILURE", "RETRY", "SUCCESS"])
    judging.judge_polls(verdict, run)
    assert verdict.missed == {judging.TAKEN_BACK: ["run 1: FAILURE, then RETRY"]}
