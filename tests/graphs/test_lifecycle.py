"""Rules in plain words about what is done about a run, held over every situation that can occur."""

from __future__ import annotations

from collections.abc import Iterator

from flows.graphs.lifecycle import REOPENABLE, Action, Asker, Status
from tests.graphs.situations import FOLLOWED, Situation, situations

OPENS = (Action.REOPEN, Action.RESUBMIT)
CLOSES = (Action.CLOSE, Action.CANCEL)


def answers(asker: Asker) -> Iterator[tuple[Situation, Action]]:
    """Every situation with the answer that this asker gets."""
    for each in situations():
        yield each, each.answer(asker)


def all_answers() -> Iterator[tuple[Asker, Situation, Action]]:
    """Every situation with the answer to each asker."""
    for asker in Asker:
        for each, answer in answers(asker):
            yield asker, each, answer


# -- whoever asks ------------------------------------------------------------------------------------


def test_a_completed_run_is_never_opened() -> None:
    """By nobody, whatever Prefect says and whoever asked there."""
    for asker, each, answer in all_answers():
        if each.row is not None and each.row.status is Status.COMPLETED:
            assert answer not in (*OPENS, Action.TAKE, Action.REQUEUE, Action.TELL_RETRY), (asker, each)


def test_a_run_that_was_refused_is_never_opened() -> None:
    """503 was answered, which said that it never starts."""
    for asker, each, answer in all_answers():
        if each.was_refused:
            assert answer not in (*OPENS, Action.TAKE, Action.REQUEUE, Action.TELL_RETRY), (asker, each)


def test_a_closed_run_is_opened_only_where_a_person_asked() -> None:
    """Over the API, or by a state in Prefect that nobody has followed; and nobody has its lease."""
    for asker, each, answer in all_answers():
        if each.is_closed and answer in OPENS:
            assert asker is Asker.RETRY or each.is_asked_for, (asker, each)
            assert not each.is_held, (asker, each)


def test_a_request_is_followed_once() -> None:
    """The state that opened the row is no reason to open it again."""
    for asker, each, answer in all_answers():
        if each.is_closed and each.request == FOLLOWED and each.row and each.row.reopened_from == FOLLOWED:
            assert asker is Asker.RETRY or answer not in OPENS, (asker, each)


def test_a_closed_run_is_not_closed_again() -> None:
    """No final answer is taken back."""
    for asker, each, answer in all_answers():
        if each.is_closed:
            assert answer not in (*CLOSES, Action.REVOKE), (asker, each)


def test_a_closed_run_is_neither_taken_nor_requeued() -> None:
    """Only one that is opened first goes on."""
    for asker, each, answer in all_answers():
        if each.is_closed:
            assert answer not in (Action.TAKE, Action.REQUEUE, Action.TELL_RETRY, Action.STOP), (asker, each)


def test_a_run_that_somebody_was_told_is_cancelled_never_goes_on() -> None:
    """It is not taken, requeued or handed on; all that comes is its end."""
    goes_on = (Action.TAKE, Action.REQUEUE, Action.TELL_RETRY, *OPENS)
    for asker, each, answer in all_answers():
        if each.is_open and each.row is not None and each.row.revoked:
            assert answer not in goes_on, (asker, each)


def test_nothing_is_done_to_a_row_that_there_is_not() -> None:
    """Without a row there is nothing to close, revoke, requeue or resubmit; a retry has Prefect do it."""
    of_rows = (*CLOSES, Action.REVOKE, Action.REQUEUE, Action.RESUBMIT, Action.TELL_RETRY)
    for asker, each, answer in all_answers():
        if each.row is None:
            assert answer not in of_rows, (asker, each)


def test_the_kind_of_error_and_the_number_of_attempts_do_not_matter_but_where_they_are_named() -> None:
    """A run that was refused is one; a run that has begun waits where Prefect's limit stops it."""
    for asker in Asker:
        seen: dict[tuple[object, ...], Action] = {}
        for each in situations():
            if each.row is None:
                continue
            alike = (
                *(each.row.status, each.row.revoked, each.row.reopened_from, each.row.leased),
                *(each.row.expired, each.state, each.request, each.lost),
                *(each.was_refused, each.is_over_limit),
            )
            assert seen.setdefault(alike, each.answer(asker)) is each.answer(asker), (asker, each)


# -- a worker ----------------------------------------------------------------------------------------


def test_a_worker_runs_nothing_that_a_living_process_has() -> None:
    """It waits, of a run that is over, too: Prefect has not heard of its end yet."""
    for each, answer in answers(Asker.WORKER):
        if each.is_held:
            assert answer is Action.WAIT, each
        else:
            assert answer is not Action.WAIT, each


def test_a_worker_takes_every_open_run_that_nobody_has() -> None:
    """Unless it is being cancelled; what Prefect says of it counts when the worker claims it there."""
    for each, answer in answers(Asker.WORKER):
        free = each.is_open and not each.is_held and each.row is not None
        if free:
            assert (answer is Action.TAKE) == (not each.row.revoked), each  # type: ignore[union-attr]


def test_a_worker_opens_what_a_person_retried_in_prefect() -> None:
    """Of the closed runs that nobody has, those and no others; the late claim of an old run opens nothing."""
    for each, answer in answers(Asker.WORKER):
        if each.is_closed and not each.is_held:
            ended_badly = each.row is not None and each.row.status in REOPENABLE and not each.was_refused
            assert (answer is Action.REOPEN) == (ended_badly and each.is_asked_for), each
            assert answer in (Action.REOPEN, Action.REFUSE), each


# -- a poll ------------------------------------------------------------------------------------------


def test_a_poll_only_notes_what_prefect_says_of_an_open_run() -> None:
    """It closes one that is over there, notes one that is being cancelled, and does nothing else."""
    for each, answer in answers(Asker.POLL):
        assert answer in (Action.LEAVE, Action.CLOSE, Action.REVOKE), each
        if not each.is_open:
            assert answer is Action.LEAVE, each
        if answer is Action.CLOSE:
            assert each.kind in ("cancelled", "failed", "completed"), each
        if answer is Action.REVOKE:
            assert each.kind == "cancelling", each


def test_a_poll_closes_no_run_that_goes_on() -> None:
    """Not one that waits for its retry or its worker, whose worker died, or that Prefect does not know."""
    for each, answer in answers(Asker.POLL):
        waits = each.kind in (None, "scheduled", "pending", "running", "paused", "crashed")
        if waits or each.is_unheard or each.is_over_limit:
            assert answer is Action.LEAVE, each


def test_a_poll_sees_every_end() -> None:
    """A run that a person ended in Prefect does not read as running for ever."""
    for each, answer in answers(Asker.POLL):
        ended = each.kind in ("cancelled", "failed", "completed")
        if each.is_open and ended and not each.is_unheard and not each.is_over_limit:
            assert answer is Action.CLOSE, each


# -- a cancellation ----------------------------------------------------------------------------------


def test_a_cancellation_is_refused_where_the_run_is_over() -> None:
    """And only there: every run that goes on can be cancelled, now or in a moment."""
    for each, answer in answers(Asker.CANCEL):
        over_in_prefect = each.state is None or each.state.final
        over = over_in_prefect if each.row is None else each.is_closed
        assert (answer is Action.REFUSE) == over, each


def test_a_run_is_cancelled_at_once_where_nobody_runs_it() -> None:
    """Where somebody may run it, Prefect is told, and the run is closed when it has stopped."""
    for each, answer in answers(Asker.CANCEL):
        if each.is_open and each.row is not None and not each.row.leased:
            assert answer is Action.CANCEL, each
        elif each.is_open and each.is_held:
            assert answer in (Action.STOP, Action.WAIT), each


def test_a_cancellation_waits_until_prefect_has_heard_of_a_retry() -> None:
    """What the retry sends late would undo it."""
    for each, answer in answers(Asker.CANCEL):
        if each.is_open and each.is_held and each.is_unheard:
            assert answer is Action.WAIT, each


def test_whoever_is_told_that_a_run_is_cancelled_was_told_the_truth() -> None:
    """After Prefect was told: the row is closed, or it is noted that the run will end as cancelled."""
    for each, answer in answers(Asker.CANCEL_TOLD):
        assert answer in (Action.WAIT, Action.REVOKE, Action.CLOSE), each
        if answer is Action.CLOSE:
            assert each.state is None or each.state.final, each
        if answer is not Action.WAIT:
            assert each.is_open, each


def test_a_cancellation_does_not_wait_for_what_prefect_never_says() -> None:
    """Prefect cancels no run that it has ended: crashed, or stopped by its limit. The row goes on."""
    for each, answer in answers(Asker.CANCEL_TOLD):
        asked = each.answer(Asker.CANCEL) is Action.STOP and each.row is not None
        if asked and (each.kind == "crashed" or each.is_over_limit) and not each.is_unheard:
            assert answer is Action.REVOKE, each


# -- a retry -----------------------------------------------------------------------------------------


def test_a_retry_is_refused_where_there_is_nothing_to_retry() -> None:
    """A run that goes on; one that was refused or is completed, once nobody has it any more."""
    for each, answer in answers(Asker.RETRY):
        row = each.row
        if row is None:
            continue
        goes_on = each.is_open and not row.revoked
        done = each.was_refused or row.status is Status.COMPLETED
        assert (answer is Action.REFUSE) == (goes_on or (done and not each.is_held)), each


def test_a_retry_opens_a_run_that_has_come_to_rest() -> None:
    """In its row and in Prefect; before it waits. Where Prefect does not have it, it gets it anew."""
    for each, answer in answers(Asker.RETRY):
        if each.row is None or each.row.status not in REOPENABLE or each.was_refused:
            continue
        at_work = each.kind in ("pending", "running", "paused", "cancelling") and not each.is_asked_for
        if each.is_held or at_work:
            assert answer is Action.WAIT, each
        else:
            assert answer is (Action.RESUBMIT if each.state is None else Action.REOPEN), each


def test_a_run_without_a_row_is_retried_where_it_ended_badly() -> None:
    """Prefect starts it again; its row comes with its start."""
    for each, answer in answers(Asker.RETRY):
        if each.row is None:
            ended_badly = each.kind in ("cancelled", "failed", "crashed")
            assert answer is (Action.REOPEN if ended_badly else Action.REFUSE), each


# -- the reconciler ----------------------------------------------------------------------------------


def test_the_reconciler_never_touches_what_a_living_process_has() -> None:
    """Whatever Prefect says."""
    for each, answer in answers(Asker.RECONCILER):
        if each.is_held:
            assert answer is Action.LEAVE, each


def test_the_reconciler_leaves_what_waits_in_its_queue() -> None:
    """Nobody has the run, and Prefect gives it to the next worker."""
    for each, answer in answers(Asker.RECONCILER):
        waits = each.is_open and each.row is not None and not each.row.leased and not each.row.revoked
        if waits and each.kind == "scheduled":
            assert answer is Action.LEAVE, each


def test_a_run_whose_worker_died_goes_on() -> None:
    """It is requeued, unless a person stopped or suspended it, or Prefect does not know it."""
    for each, answer in answers(Asker.RECONCILER):
        orphaned = each.is_open and each.row is not None and each.row.expired and not each.row.revoked
        if not orphaned:
            continue
        if each.is_unheard:
            assert answer is Action.TELL_RETRY, each
        elif each.kind in ("scheduled", "pending", "running", "crashed") or each.is_over_limit:
            assert answer is Action.REQUEUE, each
        elif each.kind is None:
            assert answer is (Action.RESUBMIT if each.lost else Action.CLOSE), each
        else:
            assert answer is (Action.LEAVE if each.kind == "paused" else Action.CLOSE), each


def test_what_prefect_lost_is_no_reason_to_close_a_run() -> None:
    """A restored database or another server is no person's order."""
    for each, answer in answers(Asker.RECONCILER):
        if each.lost and each.row is not None and not each.row.revoked:
            assert answer not in CLOSES, each
            if each.is_open and not each.is_held:
                assert answer is Action.RESUBMIT, each


def test_a_run_that_has_begun_waits_where_prefects_limit_stopped_it() -> None:
    """`overlap: skip` is for new runs."""
    for each, answer in answers(Asker.RECONCILER):
        open_run = each.is_open and not each.is_held and each.row is not None and not each.row.revoked
        if open_run and each.kind == "cancelled" and each.state and each.state.is_over_limit:
            if each.is_unheard:
                assert answer is Action.TELL_RETRY, each
            else:
                assert answer is (Action.REQUEUE if each.is_over_limit else Action.CLOSE), each


def test_a_run_that_reads_cancelled_is_closed_when_nobody_has_it() -> None:
    """Whatever Prefect has of it."""
    for each, answer in answers(Asker.RECONCILER):
        if each.is_open and not each.is_held and each.row is not None and each.row.revoked:
            assert answer is Action.CLOSE, each


def test_a_closed_run_does_not_go_on_in_prefect() -> None:
    """A flow run that is at work, or will be, beside a closed row is ended as the row says."""
    for each, answer in answers(Asker.RECONCILER):
        if not each.is_closed or each.is_held or each.row is None:
            continue
        may_be_opened = each.row.status in REOPENABLE and not each.was_refused
        if each.is_asked_for and may_be_opened:
            assert answer is Action.REOPEN, each
        elif each.kind in ("pending", "running", "cancelling") or (
            each.kind == "scheduled" and may_be_opened
        ):
            assert answer in (Action.END_FLOW_RUN, Action.LEAVE), each
            assert answer is Action.END_FLOW_RUN or each.is_asked_for, each


def test_a_flow_run_without_a_row_gets_one_where_it_is_at_work() -> None:
    """Its worker died before it made it; what waits in its queue, or is over, is left alone."""
    for each, answer in answers(Asker.RECONCILER):
        if each.row is None:
            at_work = each.kind in ("pending", "running", "cancelling") and not each.is_asked_for
            assert answer is (Action.ADOPT if at_work else Action.LEAVE), each
