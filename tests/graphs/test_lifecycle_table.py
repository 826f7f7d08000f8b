"""The whole table of what is done about a run, cell by cell, and how its rows and columns are told apart."""

from __future__ import annotations

from uuid import UUID

import pytest

from flows.graphs.flow_run_state import CONCURRENCY_LIMIT, PrefectState
from flows.graphs.lifecycle import (
    REOPENABLE,
    TABLE,
    Action,
    Asker,
    ErrorKind,
    PrefectCase,
    RowCase,
    Status,
    needs_request,
    prefect_case,
    row_case,
)
from tests.graphs.situations import FOLLOWED, REQUEST, STATE, flow_run, row, situations

COLUMNS = (
    *("deleted", "lost", "queued", "asked", "pending", "running", "paused", "cancelling"),
    *("crashed", "full", "unheard", "over", "completed"),
)
"""How the flow run stands, from left to right."""
EXPECTED = {
    # A row with one word has it in every column. In capitals: what changes a run. The columns are:
    #      deletd lost   queued asked  pendng runnng paused cancel crashd full   unhrd  over   done
    Asker.WORKER: """
no row     take
waits      take
held       wait
orphaned   take
stopping   wait
revoked    refuse
ending     wait
ended      refuse refuse refuse REOPEN refuse refuse refuse refuse refuse refuse refuse refuse refuse
completed  refuse
refused    refuse
""",
    Asker.POLL: """
no row     .
waits      .      .      .      .      .      .      .      revoke .      .      .      CLOSE  CLOSE
held       .      .      .      .      .      .      .      revoke .      .      .      CLOSE  CLOSE
orphaned   .      .      .      .      .      .      .      revoke .      .      .      CLOSE  CLOSE
stopping   .      .      .      .      .      .      .      .      .      .      .      CLOSE  CLOSE
revoked    .      .      .      .      .      .      .      .      .      .      .      CLOSE  CLOSE
ending     .
ended      .
completed  .
refused    .
""",
    Asker.CANCEL: """
no row     refuse refuse stop   stop   stop   stop   stop   stop   refuse refuse refuse refuse refuse
waits      CANCEL
held       stop   stop   stop   stop   stop   stop   stop   stop   stop   stop   wait   stop   stop
orphaned   stop   stop   stop   stop   stop   stop   stop   stop   stop   stop   wait   stop   stop
stopping   stop   stop   stop   stop   stop   stop   stop   stop   stop   stop   wait   stop   stop
revoked    CANCEL
ending     refuse
ended      refuse
completed  refuse
refused    refuse
""",
    Asker.CANCEL_TOLD: """
no row     wait
waits      wait
held       CLOSE  CLOSE  wait   wait   wait   wait   wait   revoke revoke revoke wait   CLOSE  CLOSE
orphaned   CLOSE  CLOSE  wait   wait   wait   wait   wait   revoke revoke revoke wait   CLOSE  CLOSE
stopping   CLOSE  CLOSE  wait   wait   wait   wait   wait   revoke revoke revoke wait   CLOSE  CLOSE
revoked    wait
ending     wait
ended      wait
completed  wait
refused    wait
""",
    Asker.RETRY: """
no row     refuse refuse refuse refuse refuse refuse refuse refuse REOPEN REOPEN REOPEN REOPEN refuse
waits      refuse
held       refuse
orphaned   refuse
stopping   wait
revoked    wait
ending     wait
ended      RESUB  RESUB  REOPEN REOPEN wait   wait   wait   wait   REOPEN REOPEN REOPEN REOPEN REOPEN
completed  refuse
refused    refuse
""",
    Asker.RECONCILER: """
no row     .      .      .      .      ADOPT  ADOPT  .      ADOPT  .      .      .      .      .
waits      CLOSE  RESUB  .      .      REQUE  REQUE  .      CLOSE  REQUE  REQUE  TELL   CLOSE  CLOSE
held       .
orphaned   CLOSE  RESUB  REQUE  REQUE  REQUE  REQUE  .      CLOSE  REQUE  REQUE  TELL   CLOSE  CLOSE
stopping   .
revoked    CLOSE
ending     .
ended      .      .      END    REOPEN END    END    .      END    .      .      .      .      .
completed  .      .      .      .      END    END    .      END    .      .      .      .      .
refused    .      .      .      .      END    END    .      END    .      .      .      .      .
""",
}
SHORT = {".": "leave", "resub": "resubmit", "reque": "requeue", "tell": "tell retry", "end": "end flow run"}


def read_table(text: str) -> dict[tuple[str, str], Action]:
    """A table as it is written above: (case of the row, case in Prefect) → action."""
    actions_by_word = {action.value: action for action in Action}
    cells: dict[tuple[str, str], Action] = {}
    for line in text.strip().splitlines():
        case, words = line[:11].strip(), line[11:].lower().split()
        actions = words if len(words) > 1 else words * len(COLUMNS)
        for column, action in zip(COLUMNS, actions, strict=True):
            cells[case, column] = actions_by_word[SHORT.get(action, action)]
    return cells


@pytest.mark.parametrize("asker", Asker)
def test_the_table_is_as_it_was_agreed(asker: Asker) -> None:
    """Every cell, in capitals where something happens to the run; a change of the table is made here, too."""
    table = {(row, case): action for row, cells in TABLE[asker].items() for case, action in cells.items()}
    assert table == read_table(EXPECTED[asker])


def test_every_case_can_occur() -> None:
    """No row and no column of the table is there for nothing."""
    assert {row_case(each.row) for each in situations()} == set(RowCase)
    found = {prefect_case(each.row, each.state, each.request, each.lost) for each in situations()}
    assert found == set(PrefectCase)


# -- how rows and flow runs are told apart -----------------------------------------------------------


def test_how_a_row_stands() -> None:
    """By its status, its lease, and whether somebody was told that it is cancelled."""
    running, failed = Status.RUNNING, Status.FAILED
    assert row_case(None) is RowCase.NONE
    for lease, case, told in (
        ("free", RowCase.WAITS, RowCase.REVOKED),
        ("held", RowCase.HELD, RowCase.STOPPING),
        ("expired", RowCase.ORPHANED, RowCase.REVOKED),
    ):
        for open_row in (row(Status.PENDING, 0, lease=lease), row(running, lease=lease)):
            assert row_case(open_row) is case
        assert row_case(row(running, lease=lease, revoked=True)) is told
    for lease, case in (("free", RowCase.ENDED), ("held", RowCase.ENDING), ("expired", RowCase.ENDED)):
        assert row_case(row(failed, 1, ErrorKind.NODE, lease=lease)) is case
    assert row_case(row(Status.CANCELLED, 1, ErrorKind.CANCELLED, revoked=True)) is RowCase.ENDED
    for lease, case in (("free", RowCase.REFUSED), ("held", RowCase.ENDING), ("expired", RowCase.REFUSED)):
        assert row_case(row(Status.CANCELLED, 0, ErrorKind.NOT_STARTED, lease=lease)) is case
    assert row_case(row(Status.COMPLETED)) is RowCase.COMPLETED
    assert row_case(row(Status.COMPLETED, lease="held")) is RowCase.ENDING


@pytest.mark.parametrize("kind", PrefectState)
def test_how_a_flow_run_stands(kind: PrefectState) -> None:
    """By its type of state, where neither a person's retry nor a limit says more."""
    others = {"scheduled": PrefectCase.QUEUED, "cancelled": PrefectCase.OVER, "failed": PrefectCase.OVER}
    plain = others.get(kind, kind)
    for of in (None, row(Status.RUNNING), row(Status.FAILED, 1, ErrorKind.NODE, reopened_from=FOLLOWED)):
        assert prefect_case(of, flow_run(kind)) == plain


def test_a_flow_run_that_prefect_does_not_know() -> None:
    """Deleted, unless other data went with it."""
    assert prefect_case(None, None) is PrefectCase.DELETED
    assert prefect_case(row(Status.RUNNING), None, lost=True) is PrefectCase.LOST


@pytest.mark.parametrize("kind", [PrefectState.SCHEDULED, PrefectState.PENDING, PrefectState.RUNNING])
def test_a_person_asks_by_a_state_that_was_not_followed(kind: PrefectState) -> None:
    """The run waits or starts by it; one that is told to stop, is suspended or over, is asked for no more."""
    closed = row(Status.FAILED, 1, ErrorKind.NODE, reopened_from=FOLLOWED)
    assert prefect_case(closed, flow_run(kind), REQUEST) is PrefectCase.ASKED
    assert prefect_case(closed, flow_run(kind), FOLLOWED) is not PrefectCase.ASKED
    assert prefect_case(None, flow_run(kind), FOLLOWED) is PrefectCase.ASKED
    for other in set(PrefectState) - {PrefectState.SCHEDULED, PrefectState.PENDING, PrefectState.RUNNING}:
        assert prefect_case(closed, flow_run(other), REQUEST) is not PrefectCase.ASKED


@pytest.mark.parametrize("kind", [kind for kind in PrefectState if flow_run(kind).final])
def test_prefect_has_not_heard_of_a_retry_while_the_end_stands_that_it_was_retried_from(
    kind: PrefectState,
) -> None:
    """The API died before it told Prefect; any younger state says that something has happened since."""
    opened = row(Status.RUNNING, reopened_from=STATE)
    assert prefect_case(opened, flow_run(kind)) is PrefectCase.UNHEARD
    assert prefect_case(opened, flow_run(kind, state_id=UUID(int=5))) is not PrefectCase.UNHEARD


def test_prefects_limit_skips_new_runs_only() -> None:
    """One that has begun waits; another reason to be cancelled is none of the limit's."""
    full = flow_run(PrefectState.CANCELLED, CONCURRENCY_LIMIT)
    assert prefect_case(row(Status.PENDING, 0), full) is PrefectCase.OVER
    assert prefect_case(row(Status.RUNNING, 1), full) is PrefectCase.FULL
    for other in (flow_run(PrefectState.CANCELLED), flow_run(PrefectState.FAILED, CONCURRENCY_LIMIT)):
        assert prefect_case(row(Status.RUNNING, 1), other) is PrefectCase.OVER


def test_prefect_is_asked_for_a_persons_request_only_where_one_may_matter() -> None:
    """It costs a question: the row may be reopened, and the run waits, or Prefect's own worker has it."""
    for each in situations():
        bad = each.row is not None and each.row.status in REOPENABLE and not each.was_refused
        claimed = each.kind == "pending" and each.state is not None and not each.state.by_nova
        assert needs_request(each.row, each.state) == (bad and (each.kind == "scheduled" or claimed)), each
