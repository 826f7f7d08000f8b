"""How a run is closed by others than its flow, and when one is given up."""

from __future__ import annotations

from flows.graphs.flow_run_state import CONCURRENCY_LIMIT, PrefectState
from flows.graphs.lifecycle import (
    CANCELLED,
    COMPLETED_BY_HAND,
    DELETED,
    Action,
    Asker,
    Closure,
    ErrorKind,
    Status,
    closure_for,
)
from flows.graphs.lost_attempts import LOST_STARTS, LostAttempt
from tests.graphs.situations import flow_run, row, situations


def test_a_row_is_closed_as_prefect_says() -> None:
    """Status, sentence and kind, for each end that a flow run may have; deleted counts as cancelled."""
    cancelled, failed = (Status.CANCELLED, ErrorKind.CANCELLED), (Status.FAILED, ErrorKind.CRASHED)
    of = row(Status.RUNNING)
    for state, sentence, (status, kind) in (
        (None, DELETED, cancelled),
        (flow_run(PrefectState.CANCELLED), CANCELLED, cancelled),
        (flow_run(PrefectState.CANCELLED, "By Ada."), "By Ada.", cancelled),
        (flow_run(PrefectState.CANCELLING, "By Ada."), "By Ada.", cancelled),
        (flow_run(PrefectState.FAILED), "The flow run ended as Failed.", failed),
        (flow_run(PrefectState.FAILED, "Ada gave up."), "Ada gave up.", failed),
        (flow_run(PrefectState.COMPLETED, "All done."), COMPLETED_BY_HAND, failed),
    ):
        assert closure_for(of, state) == Closure(status, sentence, kind)


def test_a_run_that_reads_cancelled_is_closed_as_that_with_a_reason_that_is_one() -> None:
    """What Prefect says of a failure, a success or a wait is not why it was cancelled."""
    told = row(Status.RUNNING, revoked=True)
    for kind in PrefectState:
        closure = closure_for(told, flow_run(kind, "E2B is away. The next attempt is at 12:00:00 UTC."))
        assert (closure.status, closure.kind) == (Status.CANCELLED, ErrorKind.CANCELLED)
        says_why = kind in (PrefectState.CANCELLED, PrefectState.CANCELLING)
        assert (closure.error == CANCELLED) == (not says_why)
    assert closure_for(told, None).error == CANCELLED
    full = flow_run(PrefectState.CANCELLED, CONCURRENCY_LIMIT)
    assert closure_for(told, full).error == CANCELLED


def test_every_answer_that_closes_a_row_has_its_closure() -> None:
    """Failed or cancelled, with a sentence and a kind that the row may have."""
    for each in situations():
        if each.row is not None and Action.CLOSE in map(each.answer, Asker):
            closure = closure_for(each.row, each.state)
            of_cancelled = closure.kind is ErrorKind.CANCELLED
            assert closure.status is (Status.CANCELLED if of_cancelled else Status.FAILED), each
            assert closure.error, each
            assert not each.row.revoked or of_cancelled, each


# -- attempts that nobody ended ----------------------------------------------------------------------


def lost(
    crashes: int = 0, crash_step: int | None = None, starts: int = 0, *, stepping: bool = True
) -> LostAttempt:
    """An attempt whose process died at step 3, node `mail`."""
    return LostAttempt(crashes, crash_step, starts, stepping, 3, "mail")


def test_crashes_are_counted_in_a_row_at_a_step() -> None:
    """At another step the count begins anew; starts that were lost are counted apart."""
    assert lost().counters() == {"crashes": 1, "crash_step": 3, "lost_starts": 0}
    assert lost(2, 3, starts=4).counters() == {"crashes": 3, "crash_step": 3, "lost_starts": 0}
    assert lost(2, 1).counters() == {"crashes": 1, "crash_step": 3, "lost_starts": 0}
    assert lost(2, 3, starts=4, stepping=False).counters() == {"lost_starts": 5}


def test_a_run_that_crashes_too_often_is_given_up() -> None:
    """At the limit, and not before; the reason names step and node."""
    assert lost(1, 3).why_given_up(3) is None
    assert lost(2, 3).why_given_up(3) == "The run's worker died 3 times in a row at step 3, node 'mail'."
    assert lost(2, 2).why_given_up(3) is None
    assert "node" not in (LostAttempt(0, None, 0, True, 0, None).why_given_up(1) or "")


def test_a_run_that_never_comes_to_start_is_given_up() -> None:
    """After many starts that were lost, whatever it crashed before."""
    assert lost(9, 3, LOST_STARTS - 2, stepping=False).why_given_up(3) is None
    why = lost(9, 3, LOST_STARTS - 1, stepping=False).why_given_up(3)
    assert (
        why
        == f"The run was taken {LOST_STARTS} times in a row and never came to start at step 3, node 'mail'."
    )
