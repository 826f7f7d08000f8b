"""How a run changes its state: the proposal passes the rules, is noted in the run and answered.

Written after Prefect's `server/orchestration/rules.py` (a rule acts only while the proposal is still the one
that was made) and `server/orchestration/global_policy.py` (what is noted with every new state).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from tests.stand_in.records import (
    JSON,
    NO_DETAILS,
    RUNNING,
    SCHEDULED,
    TYPES,
    FlowRun,
    Run,
    State,
    TaskRun,
)
from tests.stand_in.world import Refusal, World, moment

R = TypeVar("R", bound=Run)

TICK = timedelta(microseconds=1)


@dataclass
class Transition(Generic[R]):
    """One proposal on its way; `proposed` is None once nothing is to be written."""

    world: World
    run: R
    initial: State | None
    proposed: State | None
    intended: str = ""
    status: str = "ACCEPT"
    reason: str | None = None
    delay: int | None = None
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    """Called once the state is written, the last first."""

    def __post_init__(self) -> None:
        self.intended = self.proposed.type if self.proposed else ""

    @property
    def before(self) -> State:
        """The state that the run had, for rules that ask for one."""
        if self.initial is None:
            raise RuntimeError("The run has no state yet.")
        return self.initial

    @property
    def goal(self) -> State:
        """The proposal, for rules that act on one."""
        if self.proposed is None:
            raise RuntimeError("Nothing is proposed any more.")
        return self.proposed

    @property
    def is_as_intended(self) -> bool:
        """Whether the proposal is still of the type that was asked for."""
        return self.proposed is not None and self.proposed.type == self.intended

    def reject(self, reason: str, instead: State | None = None) -> None:
        """Refuse the proposal: the run keeps its state, or gets another one `instead`."""
        self.proposed, self.status, self.reason = instead, "REJECT", reason

    def abort(self, reason: str) -> None:
        """Refuse the proposal, and tell the client to let go of the run."""
        self.proposed, self.status, self.reason = None, "ABORT", reason

    def wait(self, seconds: int, reason: str) -> None:
        """Tell the client to propose the same again in some seconds."""
        self.proposed, self.status, self.reason, self.delay = None, "WAIT", reason, seconds

    def state(self, type_: str, name: str | None = None, message: str | None = None, **details: Any) -> State:
        """A state that the server itself makes."""
        if type_ == SCHEDULED:
            details.setdefault("scheduled_time", self.world.now())
        return new_state(self.world, {"type": type_, "name": name, "message": message}, details)


Rule = Callable[[Transition[R]], None]


def rule(
    sources: frozenset[str], targets: frozenset[str]
) -> Callable[[Callable[[Transition[R]], None]], Rule[R]]:
    """Have a rule act only on transitions between these types, and only while nobody changed the proposal."""

    def wrap(act: Callable[[Transition[R]], None]) -> Rule[R]:
        def guarded(transition: Transition[R]) -> None:
            source = transition.initial.type if transition.initial else None
            if source in sources and transition.intended in targets and transition.is_as_intended:
                act(transition)

        return guarded

    return wrap


def new_state(world: World, body: JSON, details: JSON | None = None) -> State:
    """Make a state of what a client, or a rule, wrote."""
    kind = body.get("type")
    if kind not in TYPES:
        raise Refusal(422, f"Input should be a type of state, not {kind!r}")
    given = {**NO_DETAILS, **(body.get("state_details") or {}), **(details or {})}
    given["scheduled_time"] = moment(given["scheduled_time"])
    given["pause_timeout"] = moment(given["pause_timeout"])
    now = world.now()
    if kind == SCHEDULED and given["scheduled_time"] is None:
        given["scheduled_time"] = now
    name = body.get("name") or kind.capitalize()
    return State(world.new_id(), kind, name, now, body.get("message"), body.get("data"), given)


def carry_out(transition: Transition[R], rules: Sequence[Rule[R]]) -> JSON:
    """Take a proposal through the rules, write what is left of it and return the server's answer."""
    policy = transition.run.policy
    try:
        for each in rules:
            each(transition)
    except Refusal:
        transition.run.policy = policy  # the server rolls back what it fails at
        raise
    state = transition.proposed
    data = None
    if state is not None:
        note(transition, state)
        data = state.data
        if isinstance(data, dict) and data.get("type") == "unpersisted":
            state.data = None  # answered once, and not kept
    for after in reversed(transition.afterwards):
        after()
    current = transition.run.state
    shown = state_json(current) if current else None
    if shown is not None and state is not None:
        shown["data"] = data
    return {"state": shown, "status": transition.status, "details": _details(transition)}


def note(transition: Transition[R], state: State) -> None:
    """Write the new state and all that a run notes of it."""
    run, initial = transition.run, transition.initial
    if run.states and state.timestamp <= run.states[-1].timestamp:
        state.timestamp = run.states[-1].timestamp + TICK
    at = state.timestamp
    if state.type == RUNNING and run.start_time is None:
        run.start_time = at
    if initial is not None and initial.is_final and not state.is_final:
        run.end_time = None
    if state.is_final and run.end_time is None:
        run.start_time = run.start_time or at
        run.end_time = at
    if initial is not None and initial.type == RUNNING:
        run.total_run_time += (at - initial.timestamp).total_seconds()
    scheduled: datetime | None = state.details["scheduled_time"]
    if run.expected_start_time is None:
        run.expected_start_time = scheduled if state.type == SCHEDULED else at
    if initial is not None and initial.type == SCHEDULED:
        run.next_scheduled_start_time = None
    if state.type == SCHEDULED:
        run.next_scheduled_start_time = scheduled
    if isinstance(run, FlowRun):
        _note_of_flow_run(run, state)
    elif isinstance(run, TaskRun):
        state.details["flow_run_id"], state.details["task_run_id"] = run.flow_run_id, run.id
        run.run_count += state.type == RUNNING
    run.state = state
    run.states.append(state)
    run.updated = transition.world.now()


def _note_of_flow_run(run: FlowRun, state: State) -> None:
    state.details["flow_run_id"] = run.id
    if state.type == RUNNING and not run.policy["resuming"]:
        run.run_count += 1
    if state.type == RUNNING or state.is_final:
        run.policy = {**run.policy, "resuming": False}


def state_json(state: State) -> JSON:
    """A state as the API shows it."""
    return {
        "id": state.id,
        "type": state.type,
        "name": state.name,
        "timestamp": state.timestamp,
        "message": state.message,
        "data": state.data,
        "state_details": state.details,
    }


def _details(transition: Transition[R]) -> JSON:
    details: JSON = {"type": f"{transition.status.lower()}_details"}
    if transition.status != "ACCEPT":
        details["reason"] = transition.reason
    if transition.delay is not None:
        details["delay_seconds"] = transition.delay
    return details
