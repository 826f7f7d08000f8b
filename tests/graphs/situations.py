"""Every situation in which somebody may ask what is to be done about a run: its row beside its flow run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from uuid import UUID

from flows.graphs.flow_run_state import CONCURRENCY_LIMIT, FlowRunState, PrefectState, TaskStatus
from flows.graphs.lifecycle import Action, Asker, ErrorKind, RunSnapshot, Status, decide

STATE, REQUEST, FOLLOWED = (UUID(int=number) for number in (1, 2, 3))
"""The state that the flow run has; a person's request that nobody has followed; one that opened the row."""

_FINAL: dict[PrefectState, TaskStatus] = {
    PrefectState.CANCELLED: "REVOKED",
    PrefectState.CRASHED: "FAILURE",
    PrefectState.FAILED: "FAILURE",
    PrefectState.COMPLETED: "SUCCESS",
}
_OPEN: dict[PrefectState, TaskStatus] = {
    PrefectState.SCHEDULED: "PENDING",
    PrefectState.PENDING: "PENDING",
    PrefectState.RUNNING: "RUNNING",
    PrefectState.PAUSED: "RUNNING",
    PrefectState.CANCELLING: "REVOKED",
}
_OF_CANCELLED = (ErrorKind.CANCELLED, ErrorKind.NOT_STARTED)


@dataclass(frozen=True)
class Situation:
    """A row and a flow run, at the moment at which somebody asks."""

    row: RunSnapshot | None
    state: FlowRunState | None
    request: UUID | None = None
    """The state by which a person asks for the run to go on, as Prefect tells."""
    lost: bool = False
    """Prefect does not know the flow run, and lost other data with it."""

    def answer(self, asker: Asker) -> Action:
        """What the table says."""
        return decide(self.row, self.state, asker, request=self.request, lost=self.lost)

    @property
    def is_open(self) -> bool:
        """Whether there is a row, and the run is not over."""
        return self.row is not None and self.row.status in ("pending", "running")

    @property
    def is_closed(self) -> bool:
        """Whether there is a row, and the run is over."""
        return self.row is not None and not self.is_open

    @property
    def is_held(self) -> bool:
        """Whether a process has the lease, and gave a sign of life in time."""
        return self.row is not None and self.row.leased and not self.row.expired

    @property
    def was_refused(self) -> bool:
        """Whether the run was never started and never will be."""
        return self.row is not None and self.row.error_kind == "not_started"

    @property
    def is_asked_for(self) -> bool:
        """Whether a person retried it in Prefect, nobody has followed that, and it waits or starts by it."""
        asked = self.request is not None and (self.row is None or self.request != self.row.reopened_from)
        return asked and self.kind in ("scheduled", "pending", "running")

    @property
    def is_unheard(self) -> bool:
        """Whether a person retried it over the API and Prefect still has the end that it was retried from."""
        is_final = self.state is not None and self.state.final
        return is_final and self.row is not None and self.row.reopened_from == STATE

    @property
    def kind(self) -> PrefectState | None:
        """Prefect's type of state; None where it does not know the flow run."""
        return self.state.kind if self.state is not None else None

    @property
    def is_over_limit(self) -> bool:
        """Whether Prefect cancelled a run that had begun, because too many of its workflow go on."""
        begun = self.row is not None and self.row.attempt > 0
        return begun and self.state is not None and self.state.state_message == CONCURRENCY_LIMIT


@cache
def situations() -> tuple[Situation, ...]:
    """All that can occur, each once."""
    return tuple(
        Situation(row, state, request, lost)
        for row in (None, *_rows())
        for state, lost in _flow_runs()
        for request in (None, REQUEST, FOLLOWED)
        if request is None or (state is not None and not state.final)
    )


def flow_run(
    kind: PrefectState, message: str = "", state_id: UUID = STATE, *, by_nova: bool = False
) -> FlowRunState:
    """What Prefect says of a flow run in a state of this type."""
    return FlowRunState(
        flow_run_id=UUID(int=9),
        status=(_OPEN | _FINAL)[kind],
        kind=kind,
        state_id=state_id,
        state_name=kind.value.title(),
        state_message=message,
        final=kind in _FINAL,
        run_count=1,
        next_attempt=None,
        workflow_id=1,
        public_id=None,
        by_nova=by_nova,
    )


def row(
    status: Status,
    attempt: int = 1,
    error_kind: ErrorKind | None = None,
    *,
    revoked: bool = False,
    reopened_from: UUID | None = None,
    lease: str = "free",
) -> RunSnapshot:
    """A row as decisions see it; `lease` is free, held or expired."""
    return RunSnapshot(
        id=7,
        flow_run_id=UUID(int=9),
        public_id=UUID(int=8),
        status=status,
        attempt=attempt,
        error_kind=error_kind,
        revoked=revoked,
        reopened_from=reopened_from,
        leased=lease != "free",
        expired=lease == "expired",
    )


def _rows() -> Iterator[RunSnapshot]:
    """Every row that the table `executions` may hold: `flows/graphs/row_states.py` says which."""
    every = product(
        Status,
        (0, 3),
        (None, *ErrorKind),
        (False, True),
        (None, STATE, FOLLOWED),
        ("free", "held", "expired"),
    )
    for status, attempt, kind, revoked, reopened_from, lease in every:
        if _may_be(status, attempt, kind, revoked, reopened_from):
            yield row(status, attempt, kind, revoked=revoked, reopened_from=reopened_from, lease=lease)


def _may_be(
    status: Status,
    attempt: int,
    kind: ErrorKind | None,
    revoked: bool,
    reopened_from: UUID | None,
) -> bool:
    if kind is ErrorKind.NOT_STARTED and (attempt > 0 or revoked or reopened_from is not None):
        return False
    match status:
        case Status.PENDING:
            return attempt == 0 and kind is not ErrorKind.NOT_STARTED
        case Status.RUNNING:
            return attempt > 0 and kind is not ErrorKind.NOT_STARTED
        case Status.COMPLETED:
            return attempt > 0 and kind is None and not revoked
        case Status.FAILED:
            return kind is not None and kind not in _OF_CANCELLED and not revoked
        case Status.CANCELLED:
            return kind in _OF_CANCELLED


def _flow_runs() -> Iterator[tuple[FlowRunState | None, bool]]:
    yield None, False
    yield None, True
    for kind in PrefectState:
        yield flow_run(kind), False
    for kind in (PrefectState.SCHEDULED, PrefectState.PENDING):
        yield flow_run(kind, by_nova=True), False
    yield flow_run(PrefectState.CANCELLED, CONCURRENCY_LIMIT), False
