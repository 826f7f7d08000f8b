"""What may happen to a run: its states, and what is done in each, by whom. Pure: no I/O, no clock.

An execution's row says what became of a run; Prefect's flow run says where it stands there. Every process
that acts on a run asks `decide`, with what it has read of both, and does what the answer says. Nobody else
decides. `flows/store/transitions/` changes the row; `row_states.TRANSITIONS` lists its functions with the
statuses that they lead from and to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Self
from uuid import UUID

from flows.graphs.flow_run_state import FlowRunState, PrefectState


class Named(StrEnum):
    """An enum of words, each with the sentence that explains it."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Self:
        """Make a member from its word and its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


class Status(Named):
    """The status of an execution, as its row and the HTTP contract have it."""

    PENDING = "pending", "No attempt of the run has begun yet."
    RUNNING = "running", "An attempt has begun; the run goes on, or waits for its next attempt."
    COMPLETED = "completed", "The run came to an end of its graph."
    FAILED = "failed", "The run stopped with an error; a person may retry it."
    CANCELLED = (
        "cancelled",
        "The run was cancelled, or refused before it began.",
    )


LIVE: Final = (Status.PENDING, Status.RUNNING)
"""The statuses of a run that is not over; all others are closed."""
REOPENABLE: Final = (Status.FAILED, Status.CANCELLED)
"""The statuses from which a person's retry opens a run again, unless it was never started."""


class StepStatus(Named):
    """The status of a row of the Chain of Work: one try of one step."""

    SUCCESS = "success", "The node did what it was to do; it never runs again at this step."
    FAILED = "failed", "The node failed, or its sandbox did."


class ErrorKind(Named):
    """Which kind of failure ended a run, or its last attempt."""

    NODE = "node", "The code of a node failed."
    LIMIT = "limit", "The run passed one of its bounds: steps, seconds, bytes."
    INFRASTRUCTURE = "infrastructure", "Something under the run broke; it may pass."
    REFUSED = "refused", "PostgreSQL refused for good what the run had to write."
    INTERRUPTED = "interrupted", "A node that must not be started twice was started, and its end is unknown."
    INTERNAL = "internal", "NOVA could not run it as it was asked for, or failed itself."
    CRASHED = "crashed", "The run's worker died too often, or the run was ended by hand in Prefect."
    CANCELLED = "cancelled", "Somebody cancelled the run."
    NOT_STARTED = "not_started", "The request was refused; the run was never started and never will be."


class Ending(Named):
    """How an attempt of a run ends."""

    COMPLETED = "completed", "The run came to an end of its graph."
    FAILED = "failed", "The run stopped with an error."
    CANCELLED = "cancelled", "The run was cancelled."
    RETRY_SCHEDULED = "retry scheduled", "Infrastructure broke; the next attempt is due later."
    REQUEUED = "requeued", "Its worker stops; another one goes on at once."


class Asker(Named):
    """Who asks what to do about a run."""

    WORKER = "worker", "A worker that is about to take the run."
    POLL = "poll", "The API, asked for the run's status."
    CANCEL = "cancel", "The API, asked to cancel the run."
    CANCEL_TOLD = "cancel told", "The API, after it has asked Prefect to cancel the run."
    RETRY = "retry", "The API, asked to retry the run or to skip its node."
    RECONCILER = "reconciler", "The reconciler, which looks after runs that nobody runs."


class RowCase(Named):
    """How an execution's row stands."""

    NONE = "no row", "There is no row: the run was started in Prefect and has not begun."
    WAITS = "waits", "The run is open and nobody has its lease."
    HELD = "held", "The run is open and a process has its lease."
    ORPHANED = "orphaned", "The run is open and its lease has run out."
    STOPPING = "stopping", "Somebody was told that the run is cancelled; a process still has its lease."
    REVOKED = "revoked", "Somebody was told that the run is cancelled; nobody has its lease."
    ENDING = "ending", "The run is closed; a process keeps the lease until Prefect has heard."
    ENDED = "ended", "The run failed or was cancelled."
    COMPLETED = "completed", "The run is completed."
    REFUSED = "refused", "The run was never started and never will be."


class PrefectCase(Named):
    """How a run's flow run stands in Prefect."""

    DELETED = "deleted", "Prefect does not know the flow run, though it has its other data."
    LOST = "lost", "Prefect lost the flow run with other data: it was restored, or is a new server."
    QUEUED = "queued", "It waits in its queue: it is new, or NOVA put it there."
    ASKED = "asked", "A person retried it in Prefect after it had ended, and it waits or starts by that."
    PENDING = "pending", "A worker has claimed it."
    RUNNING = "running", "A worker runs it."
    PAUSED = "paused", "A person suspended it."
    CANCELLING = "cancelling", "It is told to stop."
    CRASHED = "crashed", "Its process died."
    FULL = "full", "Prefect cancelled it, though it had begun, because too many runs of its workflow go on."
    UNHEARD = "unheard", "It ended; a person retried it over the API, and Prefect has not heard of that."
    OVER = "over", "It ended as cancelled or failed."
    COMPLETED = "completed", "It ended as completed."


class Action(Named):
    """What is done about a run."""

    LEAVE = "leave", "Nothing."
    WAIT = "wait", "Look again in a moment: the run changes hands."
    REFUSE = "refuse", "Say why it cannot be done."
    TAKE = "take", "Take the lease and run it."
    REOPEN = "reopen", "Open the row again: a person wants the run to go on."
    CLOSE = "close", "Close the row as Prefect says, or as cancelled."
    REVOKE = "revoke", "Note that the run is cancelled; it is closed when it has stopped."
    CANCEL = "cancel", "Take the lease, cancel the run in Prefect and close the row: nobody runs it."
    STOP = "stop", "Ask Prefect to stop the run, then ask again."
    REQUEUE = "requeue", "Requeue the run, or fail it where that was done too often."
    TELL_RETRY = "tell retry", "Put the flow run in its queue: Prefect has not heard of the retry."
    RESUBMIT = "resubmit", "Submit the run to Prefect again, as a new flow run."
    END_FLOW_RUN = "end flow run", "End the flow run as the row says."
    ADOPT = "adopt", "Make the row that the run's worker did not come to make."


@dataclass(frozen=True)
class RunSnapshot:
    """An execution's row, as far as decisions need it, at the moment it was read."""

    id: int
    flow_run_id: UUID | None
    public_id: UUID
    status: Status
    attempt: int
    """How often the run was started; 0: never."""
    error_kind: ErrorKind | None
    revoked: bool
    """Whether somebody was told that it is cancelled."""
    reopened_from: UUID | None
    """The state in Prefect from which a person's last retry opened it."""
    leased: bool
    """Whether some process has the lease, run out or not."""
    expired: bool = False
    """Whether the lease has run out."""

    @property
    def is_live(self) -> bool:
        """Whether the run is not over."""
        return self.status in LIVE

    @property
    def may_be_reopened(self) -> bool:
        """Whether a person's retry opens it again."""
        return self.status in REOPENABLE and self.error_kind != ErrorKind.NOT_STARTED


@dataclass(frozen=True)
class Closure:
    """How somebody other than its flow closes a row: status, sentence, kind of error."""

    status: Status
    error: str
    kind: ErrorKind


CANCELLED: Final = "The run was cancelled."
"""The error of a cancelled execution, where nobody gave a reason."""
DELETED: Final = "The flow run was deleted in Prefect."
COMPLETED_BY_HAND: Final = "The flow run was marked as completed in Prefect before it had run to its end."

_CASES_OF_STATE: Final[Mapping[PrefectState, PrefectCase]] = MappingProxyType(
    {
        PrefectState.SCHEDULED: PrefectCase.QUEUED,
        PrefectState.PENDING: PrefectCase.PENDING,
        PrefectState.RUNNING: PrefectCase.RUNNING,
        PrefectState.PAUSED: PrefectCase.PAUSED,
        PrefectState.CANCELLING: PrefectCase.CANCELLING,
        PrefectState.CRASHED: PrefectCase.CRASHED,
        PrefectState.CANCELLED: PrefectCase.OVER,
        PrefectState.FAILED: PrefectCase.OVER,
        PrefectState.COMPLETED: PrefectCase.COMPLETED,
    }
)

_ASKABLE: Final = (PrefectState.SCHEDULED, PrefectState.PENDING, PrefectState.RUNNING)
"""The states of a flow run that waits or starts; only there a person's request is followed."""


def row_case(row: RunSnapshot | None) -> RowCase:
    """Say how a row stands."""
    if row is None:
        return RowCase.NONE
    has_owner = row.leased and not row.expired
    if row.is_live:
        if row.revoked:
            return RowCase.STOPPING if has_owner else RowCase.REVOKED
        if has_owner:
            return RowCase.HELD
        return RowCase.ORPHANED if row.leased else RowCase.WAITS
    if has_owner:
        return RowCase.ENDING
    if row.error_kind == ErrorKind.NOT_STARTED:
        return RowCase.REFUSED
    return RowCase.COMPLETED if row.status is Status.COMPLETED else RowCase.ENDED


def prefect_case(
    row: RunSnapshot | None, state: FlowRunState | None, request: UUID | None = None, lost: bool = False
) -> PrefectCase:
    """Say how a flow run stands beside its row.

    `state` is None where Prefect does not know it, and then `lost` tells whether Prefect lost other data too.
    `request` is the state by which a person asks for the run to go on, and has it waiting or started: see
    `FlowRuns.request_of_start`.
    """
    if state is None:
        return PrefectCase.LOST if lost else PrefectCase.DELETED
    if row is not None and state.final and state.state_id == row.reopened_from:
        return PrefectCase.UNHEARD
    if row is not None and row.attempt > 0 and state.is_over_limit:
        return PrefectCase.FULL
    if state.kind in _ASKABLE and is_new_request(row, request):
        return PrefectCase.ASKED
    return _CASES_OF_STATE[state.kind]


def is_new_request(row: RunSnapshot | None, request: UUID | None) -> bool:
    """Whether a person's request was not followed yet: each opens a row once."""
    return request is not None and (row is None or request != row.reopened_from)


def needs_request(row: RunSnapshot | None, state: FlowRunState | None) -> bool:
    """Whether `decide` has to know the person's request, which costs a question to Prefect.

    A run that a worker of Prefect's own has claimed by it is Pending until its flow starts. NOVA's worker has
    opened the row before that.
    """
    if row is None or state is None or not row.may_be_reopened:
        return False
    return state.kind is PrefectState.SCHEDULED or (state.kind is PrefectState.PENDING and not state.by_nova)


_UNKNOWN: Final = (PrefectCase.DELETED, PrefectCase.LOST)
_QUEUED: Final = (PrefectCase.QUEUED, PrefectCase.ASKED)
_AT_WORK: Final = (PrefectCase.PENDING, PrefectCase.RUNNING, PrefectCase.CANCELLING)
_STOPPED: Final = (PrefectCase.CRASHED, PrefectCase.FULL, PrefectCase.UNHEARD, PrefectCase.OVER)
_BY_HAND: Final = (PrefectCase.OVER, PrefectCase.COMPLETED)

Cells = Mapping[PrefectCase, Action]
Rows = Mapping[RowCase, Cells]


def _cells(otherwise: Action, *given: tuple[tuple[PrefectCase, ...], Action]) -> Cells:
    """The action for each case in Prefect: `otherwise`, but for those that are given."""
    return MappingProxyType(
        dict.fromkeys(PrefectCase, otherwise) | {case: action for cases, action in given for case in cases}
    )


def _rows(otherwise: Action, *given: tuple[tuple[RowCase, ...], Cells]) -> Rows:
    """The cells for each case of the row: `otherwise` throughout, but for those that are given."""
    return MappingProxyType(
        dict.fromkeys(RowCase, _cells(otherwise)) | {case: cells for cases, cells in given for case in cases}
    )


_GO_ON: Final = (
    ((PrefectCase.DELETED, PrefectCase.CANCELLING, *_BY_HAND), Action.CLOSE),
    ((PrefectCase.LOST,), Action.RESUBMIT),
    ((PrefectCase.PAUSED,), Action.LEAVE),
    ((PrefectCase.UNHEARD,), Action.TELL_RETRY),
)
"""What the reconciler does about an open run; it requeues all others."""

TABLE: Final[Mapping[Asker, Rows]] = MappingProxyType(
    {
        Asker.WORKER: _rows(
            Action.REFUSE,
            ((RowCase.NONE, RowCase.WAITS, RowCase.ORPHANED), _cells(Action.TAKE)),
            ((RowCase.HELD, RowCase.STOPPING, RowCase.ENDING), _cells(Action.WAIT)),
            ((RowCase.ENDED,), _cells(Action.REFUSE, ((PrefectCase.ASKED,), Action.REOPEN))),
        ),
        Asker.POLL: _rows(
            Action.LEAVE,
            (
                (RowCase.WAITS, RowCase.HELD, RowCase.ORPHANED),
                _cells(Action.LEAVE, (_BY_HAND, Action.CLOSE), ((PrefectCase.CANCELLING,), Action.REVOKE)),
            ),
            ((RowCase.STOPPING, RowCase.REVOKED), _cells(Action.LEAVE, (_BY_HAND, Action.CLOSE))),
        ),
        Asker.CANCEL: _rows(
            Action.REFUSE,
            (
                (RowCase.NONE,),
                _cells(Action.STOP, ((*_UNKNOWN, *_STOPPED, PrefectCase.COMPLETED), Action.REFUSE)),
            ),
            ((RowCase.WAITS, RowCase.REVOKED), _cells(Action.CANCEL)),
            (
                (RowCase.HELD, RowCase.ORPHANED, RowCase.STOPPING),
                _cells(Action.STOP, ((PrefectCase.UNHEARD,), Action.WAIT)),
            ),
        ),
        Asker.CANCEL_TOLD: _rows(
            Action.WAIT,
            (
                (RowCase.HELD, RowCase.ORPHANED, RowCase.STOPPING),
                _cells(
                    Action.WAIT,
                    # Where Prefect has ended a run that goes on in its row, it takes no Cancelling.
                    ((PrefectCase.CANCELLING, PrefectCase.CRASHED, PrefectCase.FULL), Action.REVOKE),
                    ((*_UNKNOWN, *_BY_HAND), Action.CLOSE),
                ),
            ),
        ),
        Asker.RETRY: _rows(
            Action.REFUSE,
            ((RowCase.NONE,), _cells(Action.REFUSE, (_STOPPED, Action.REOPEN))),
            ((RowCase.STOPPING, RowCase.REVOKED, RowCase.ENDING), _cells(Action.WAIT)),
            (
                (RowCase.ENDED,),
                _cells(
                    Action.REOPEN,
                    (_UNKNOWN, Action.RESUBMIT),
                    ((*_AT_WORK, PrefectCase.PAUSED), Action.WAIT),
                ),
            ),
        ),
        Asker.RECONCILER: _rows(
            Action.LEAVE,
            (
                (RowCase.NONE,),
                _cells(Action.LEAVE, (_AT_WORK, Action.ADOPT)),
            ),
            ((RowCase.WAITS,), _cells(Action.REQUEUE, *_GO_ON, (_QUEUED, Action.LEAVE))),
            ((RowCase.ORPHANED,), _cells(Action.REQUEUE, *_GO_ON)),
            ((RowCase.REVOKED,), _cells(Action.CLOSE)),
            (
                (RowCase.ENDED,),
                _cells(
                    Action.LEAVE,
                    ((*_AT_WORK, PrefectCase.QUEUED), Action.END_FLOW_RUN),
                    ((PrefectCase.ASKED,), Action.REOPEN),
                ),
            ),
            ((RowCase.COMPLETED, RowCase.REFUSED), _cells(Action.LEAVE, (_AT_WORK, Action.END_FLOW_RUN))),
        ),
    }
)
"""Who asks → how the row stands → how the flow run stands → what is done."""


def decide(
    row: RunSnapshot | None,
    state: FlowRunState | None,
    asker: Asker,
    *,
    request: UUID | None = None,
    lost: bool = False,
) -> Action:
    """Say what `asker` is to do about a run, by its row and its flow run; see `prefect_case` for the rest."""
    return TABLE[asker][row_case(row)][prefect_case(row, state, request, lost)]


def closure_for(row: RunSnapshot, state: FlowRunState | None) -> Closure:
    """Say how a row is closed (`Action.CLOSE`), by what its flow run says."""
    if state is not None and state.status == "REVOKED" and not (row.revoked and state.is_over_limit):
        return Closure(Status.CANCELLED, state.state_message or CANCELLED, ErrorKind.CANCELLED)
    if row.revoked:  # a person's cancellation is why, not what Prefect says of another state
        return Closure(Status.CANCELLED, CANCELLED, ErrorKind.CANCELLED)
    if state is None:
        return Closure(Status.CANCELLED, DELETED, ErrorKind.CANCELLED)
    if state.kind is PrefectState.COMPLETED:
        return Closure(Status.FAILED, COMPLETED_BY_HAND, ErrorKind.CRASHED)
    return Closure(
        Status.FAILED, state.state_message or f"The flow run ended as {state.state_name}.", ErrorKind.CRASHED
    )
