"""The checks of the chaos suite: what they accept and what they report."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from tests.chaos import judging, recovering
from tests.chaos.judging import ON_ITS_WAY, Verdict, as_felt, explain
from tests.chaos.ledger import Entry
from tests.chaos.records import Execution, Row
from tests.chaos.runs import Run
from tests.chaos.stack import SHORT


def started(at: float, node: str, key: str | None = None, *, run_no: int = 1) -> Entry:
    """Return the ledger's entry for a node's start."""
    return Entry(at, "started", run_no, node, key or f"key of {node}", "sandbox")


def succeeded(at: float, node: str) -> Row:
    """Return a node's success row in the Chain of Work."""
    return Row(node, "success", at, "sandbox")


def failed(at: float, node: str) -> Row:
    """Return a node's failed row in the Chain of Work."""
    return Row(node, "failed", at, "")


def asked(*, unrepeatable: bool = False, faulty: bool = False) -> Run:
    """Return a run that the API accepted."""
    return Run(1, uuid4(), 1, unrepeatable, None, faulty=faulty)


def ended(status: str, kind: str | None = None, node: str | None = None, *, at: float = 10) -> Execution:
    """Return a run's execution, closed at this time."""
    return Execution(1, None, 1, status, 1, kind, None, node, at)


def counted(verdict: Verdict) -> dict[str, int]:
    """Return the number of violations per bar."""
    return {bar: len(found) for bar, found in verdict.missed.items()}


def missed(
    entries: list[Entry],
    rows: list[Row],
    kills: Sequence[float] = (),
    *,
    unrepeatable: bool = False,
    faulty: bool = False,
    attempts: int = 2,
) -> dict[str, int]:
    """Return the violations per bar of a run with these entries, rows and kills."""
    verdict, run = Verdict(), asked(unrepeatable=unrepeatable, faulty=faulty)
    judging.judge_nodes(verdict, run, attempts, entries, rows, [(at, at) for at in kills])
    return counted(verdict)


def missed_at_the_end(
    execution: Execution, rows: list[Row], kills: Sequence[float] = (), *, faulty: bool = False
) -> dict[str, int]:
    """Return the violations per bar of an unrepeatable run with this end."""
    verdict = Verdict()
    run = asked(unrepeatable=True, faulty=faulty)
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
    """A second start needs a kill since the start before; a kill counts for one start."""
    assert explain(starts, [(at, at) for at in kills]) == (without, [(at, at) for at in left])


def test_a_restart_explains_an_overlapping_start() -> None:
    """A restart may interrupt a node at any moment of its duration."""
    assert explain([1, 5], [(0.5, 1.5)]) == (0, [])
    assert explain([1, 5], [(4, 6)]) == (0, [])
    assert explain([2, 5], [(0.5, 1.5)]) == (1, [(0.5, 1.5)])


def test_a_killed_worker_may_have_told_a_node_to_start() -> None:
    """The sandbox starts the node shortly after the kill; a node that starts later has another reason."""
    kill = as_felt([(1, 1)], ON_ITS_WAY)
    assert explain([1.5, 5], kill) == (0, [])
    assert explain([2.5, 5], kill) == (1, kill)


def test_a_last_message_is_shorter_than_a_lease() -> None:
    """Leases are renewed every third of their time: two thirds are left at least when a worker is killed."""
    assert float(SHORT["NOVA_LEASE_SECONDS"]) * 2 / 3 > ON_ITS_WAY


def test_a_killed_worker_may_have_sent_a_commit() -> None:
    """The row before an unrepeatable node is committed shortly after the kill: a reason to stop."""
    verdict, run = Verdict(), asked(unrepeatable=True)
    stopped = ended("failed", "interrupted", "n2")
    judging.judge_end(verdict, run, stopped, [succeeded(1.5, "n1")], as_felt([(1, 1)], ON_ITS_WAY))
    assert verdict.missed == {}


def test_an_uninterrupted_run_passes() -> None:
    """A run whose nodes each start once, succeed and have one key has no violation."""
    assert missed([started(1, "n0"), started(3, "n1")], [succeeded(2, "n0"), succeeded(4, "n1")]) == {}


def test_a_node_that_was_in_flight_may_run_again() -> None:
    """A node that was killed between its start and its row may start again."""
    entries = [started(1, "n0"), started(3, "n0")]
    assert missed(entries, [succeeded(4, "n0")], [2]) == {}


def test_one_kill_is_no_excuse_for_two_nodes() -> None:
    """A kill interrupts one node of a run, so a second node that starts again is a violation."""
    entries = [started(1, "n0"), started(1.5, "n1"), started(3, "n0"), started(4, "n1")]
    rows = [succeeded(5, "n0"), succeeded(5, "n1")]
    assert missed(entries, rows, [2], attempts=3) == {judging.STARTED_AGAIN: 1}


def test_a_kill_is_no_excuse_without_a_new_attempt() -> None:
    """A node that starts again within the same attempt is a violation, even after a kill."""
    entries = [started(1, "n0"), started(3, "n0")]
    assert missed(entries, [succeeded(4, "n0")], [2], attempts=1) == {judging.TOO_MANY_AGAIN: 1}


def test_a_failed_attempt_excuses_another() -> None:
    """If calls fail, a failed row of a node excuses another start of it."""
    rows = [failed(2, "n0"), succeeded(4, "n0")]
    twice = [started(1, "n0"), started(3, "n0")]
    assert missed(twice, rows, faulty=True, attempts=1) == {}
    assert missed([*twice, started(3.5, "n0")], rows, faulty=True) == {judging.STARTED_AGAIN: 1}


def test_a_failed_row_without_a_fault_is_a_violation() -> None:
    """The nodes never fail, so without a fault of E2B a failed row comes from a worker without the lease."""
    rows = [failed(2, "n0"), succeeded(4, "n0")]
    assert missed([started(1, "n0")], rows) == {judging.FAILED_ROWS: 1}
    assert missed([started(1, "n0"), started(3, "n0")], rows) == {
        judging.FAILED_ROWS: 1,
        judging.STARTED_AGAIN: 1,
    }


def test_a_run_ends_as_it_must() -> None:
    """A run must complete; it must not stop at a node that may start again."""
    assert missed_at_the_end(ended("completed"), []) == {}
    assert missed_at_the_end(ended("failed", "node"), [], [5]) == {judging.FAILED: 1}
    assert missed_at_the_end(ended("running"), [], [5]) == {judging.STUCK: 1}
    assert missed_at_the_end(ended("failed", "interrupted", "n3"), [], [5]) == {judging.FAILED: 1}


def test_an_unrepeatable_run_stops_only_for_a_reason() -> None:
    """A kill must come after the success of the node before, and before the run stopped."""
    stopped, rows = ended("failed", "interrupted", "n2", at=10), [succeeded(4, "n1")]
    assert missed_at_the_end(stopped, rows, [5]) == {}
    for kills in ([], [3], [11]):
        assert missed_at_the_end(stopped, rows, kills) == {judging.STOPPED: 1}
    assert missed_at_the_end(stopped, [], [5]) == {judging.STOPPED: 1}


def test_an_unrepeatable_run_may_stop_when_its_sandbox_broke() -> None:
    """The node's failed row is a reason to stop only if calls to E2B fail."""
    stopped, rows = ended("failed", "interrupted", "n2"), [succeeded(4, "n1"), failed(5, "n2")]
    assert missed_at_the_end(stopped, rows, faulty=True) == {}
    assert missed_at_the_end(stopped, rows[:1], faulty=True) == {judging.STOPPED: 1}
    assert missed_at_the_end(stopped, rows) == {judging.STOPPED: 1}


def test_a_start_after_the_success_is_never_excused() -> None:
    """A start after the node's committed success is a violation, even after a kill."""
    entries = [started(1, "n0"), started(4, "n0")]
    assert missed(entries, [succeeded(2, "n0")], [3]) == {judging.SUCCESS_AGAIN: 1}


def test_an_unrepeatable_node_starts_once() -> None:
    """A second start of an `on_interrupt: fail` node is a violation, whatever the reason."""
    entries = [started(1, "n2"), started(4, "n2")]
    assert missed(entries, [succeeded(5, "n2")], [3], unrepeatable=True) == {judging.UNREPEATABLE_AGAIN: 1}


def test_how_long_an_interrupted_node_waits() -> None:
    """An interrupted node waits from the kill's end to its next start; other nodes do not count."""
    entries = [started(1, "n0"), started(2, "n1"), started(9, "n1")]
    assert list(judging.waits(entries, [(3, 4), (10, 11)])) == [(4, 9)]


@pytest.mark.parametrize(
    ("requeued", "others", "seconds"),
    [
        (40, [], 100),
        (40, [10, 30], 100),
        (40, [10, 50, 90], 50),
        (40, [50, 120], 90),
        (None, [50], 100),
    ],
)
def test_the_wait_for_other_runs_does_not_count(
    requeued: float | None, others: list[float], seconds: float
) -> None:
    """From a kill at 0 to a start at 100, the time from the requeue to the last other start is left out."""
    assert recovering.without_queue(0, requeued, 100, others) == seconds


def test_a_step_has_one_key_of_its_own() -> None:
    """A key that changes between attempts, or is used for two nodes or runs, is a violation."""
    for entries in (
        [started(1, "n0", "a"), started(3, "n0", "b")],
        [started(1, "n0", "a"), started(3, "n1", "a")],
        [started(1, "n0", "a"), started(3, "n0", "a", run_no=2)],
    ):
        verdict = Verdict()
        judging.judge_keys(verdict, entries)
        assert counted(verdict) == {judging.KEYS: 1}
    verdict = Verdict()
    judging.judge_keys(verdict, [started(1, "n0"), started(3, "n0"), started(5, "n1")])
    assert counted(verdict) == {}


def test_a_request_without_an_answer_has_at_most_one_execution() -> None:
    """It may have one execution, which must complete and run no node twice."""
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
    assert counted(verdict) == {judging.SUCCESS_AGAIN: 1}


def test_an_execution_without_a_request_is_a_violation() -> None:
    """A request without an answer explains an execution of its own workflow only."""
    verdict = Verdict()
    judging.judge_number(verdict, [ended("completed")], {7: 2})
    assert counted(verdict) == {judging.DOUBLED: 1}


def test_a_final_status_that_changes_is_a_violation() -> None:
    """A client that sees FAILURE and then another status is a violation."""
    verdict = Verdict()
    run = Run(1, uuid4(), 1, False, None, seen=["PENDING", "RUNNING", "FAILURE", "RETRY", "SUCCESS"])
    judging.judge_polls(verdict, run)
    assert verdict.missed == {judging.STATUS_CHANGED: ["run 1: FAILURE, then RETRY"]}
