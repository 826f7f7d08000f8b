"""Which rows of executions there may be, and how one becomes another.

`RULES` are constraints of the table: PostgreSQL refuses a row that breaks one. `ACROSS_ROWS` are rules that
it cannot state; after each test its database is checked for them. `TRANSITIONS` lists what the functions of
`flows/store/transitions/` do: tests hold the README's diagram and their docstrings to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flows.graphs.lifecycle import LIVE, REOPENABLE, ErrorKind, Status, StepStatus


def in_words(values: Iterable[str]) -> str:
    """Write words as the list behind SQL's `in`."""
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"


_CLOSED: Final = tuple(status for status in Status if status not in LIVE)
_OF_CANCELLED: Final = (ErrorKind.CANCELLED, ErrorKind.NOT_STARTED)
_OF_FAILED: Final = tuple(kind for kind in ErrorKind if kind not in _OF_CANCELLED)

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # There is no other status.
        "status": f"status in {in_words(tuple(Status))}",
        # Nor another kind of error.
        "error_kind": f"error_kind in {in_words(tuple(ErrorKind))}",
        # A run has an end when, and only when, it is closed.
        "completed_at": f"(status in {in_words(_CLOSED)}) = (completed_at is not null)",
        # A lease has an owner and an end, or neither.
        "lease": "(lease_owner is null) = (lease_until is null)",
        # A run that never began is pending, or was closed before; no other is.
        "attempt": f"attempt >= 0 and case status when '{Status.PENDING}' then attempt = 0"
        f" when '{Status.RUNNING}' then attempt > 0 when '{Status.COMPLETED}' then attempt > 0 else true end",
        # Only an attempt notes a start, a version, a sandbox, or a step in the row.
        "begun": "(attempt > 0) = (started_at is not null) and (attempt > 0 or (not stepping"
        " and sandbox_id is null and version_id is null and unrepeatable_step is null))",
        # A closed run says why, a completed one has nothing to say, and an open one says why it waits.
        # (A check that comes to NULL is passed: what may be NULL is asked first.)
        "error": f"case status when '{Status.COMPLETED}' then error is null and error_kind is null"
        " and failed_at_node is null"
        f" when '{Status.FAILED}' then error is not null and error_kind is not null"
        f" and error_kind in {in_words(_OF_FAILED)}"
        f" when '{Status.CANCELLED}' then error is not null and error_kind is not null"
        f" and error_kind in {in_words(_OF_CANCELLED)}"
        " else (error is null) = (error_kind is null) and (error is null or next_attempt_at is not null) end",
        # Only an open run has a next attempt.
        "next_attempt_at": f"next_attempt_at is null or status in {in_words(LIVE)}",
        # A run of which somebody was told that it is cancelled does not complete or fail.
        "revoked": f"not revoked or status in {in_words((*LIVE, Status.CANCELLED))}",
        # A run whose request was refused never begins.
        "not_started": f"error_kind is distinct from '{ErrorKind.NOT_STARTED}'"
        f" or (status = '{Status.CANCELLED}' and attempt = 0)",
        # A completed run has no node whose end is unknown.
        "unrepeatable_step": f"unrepeatable_step is null or status <> '{Status.COMPLETED}'",
        # Crashes are counted at a step.
        "crashes": "crashes >= 0 and (crashes = 0) = (crash_step is null)",
        "counters": "retries >= 0 and lost_starts >= 0",
        # Only a run that goes on is at a node.
        "current_node": f"current_node is null or status = '{Status.RUNNING}'",
    }
)
"""Name of the constraint → what holds for every row of `executions`, as SQL."""

_SUCCEEDED: Final = f"status = '{StepStatus.SUCCESS}'"

ACROSS_ROWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a step of a completed run failed for good": f"""
            SELECT e.id FROM executions e WHERE e.status = '{Status.COMPLETED}' AND EXISTS (
                SELECT FROM chain_entries c WHERE c.execution_id = e.id AND NOT EXISTS (
                    SELECT FROM chain_entries s
                    WHERE s.execution_id = e.id AND s.step = c.step AND s.{_SUCCEEDED}))""",
        "the node that must not start again has succeeded": f"""
            SELECT e.id FROM executions e JOIN chain_entries c ON c.execution_id = e.id
            WHERE c.step = e.unrepeatable_step AND c.{_SUCCEEDED}""",
        "a step succeeded and the one before it did not": f"""
            SELECT c.execution_id FROM chain_entries c
            WHERE c.{_SUCCEEDED} AND c.step > 0 AND NOT EXISTS (
                SELECT FROM chain_entries p
                WHERE p.execution_id = c.execution_id AND p.step = c.step - 1 AND p.{_SUCCEEDED})""",
        "a run that never began has a chain": """
            SELECT e.id FROM executions e JOIN chain_entries c ON c.execution_id = e.id
            WHERE e.attempt = 0""",
    }
)
"""What must not be → a query for the executions of which it is true."""


@dataclass(frozen=True)
class Transition:
    """One way in which a row changes: the name of its function, the states that it leads from and to."""

    name: str
    origins: tuple[Status, ...]
    """Empty: there was no row."""
    targets: tuple[Status, ...]
    """The origins themselves where only other fields change."""
    sentence: str


_OPEN: Final = LIVE
_RUN: Final = (Status.RUNNING,)

TRANSITIONS: Final = (
    Transition("create", (), (Status.PENDING,), "The API accepts a run."),
    Transition("adopt", (), (Status.PENDING,), "A run that was started in Prefect gets its row."),
    Transition("refuse", (Status.PENDING,), (Status.CANCELLED,), "The request is answered with 503."),
    Transition("take", _OPEN, _OPEN, "A worker takes the lease."),
    Transition("take_retried", REOPENABLE, _OPEN, "A worker takes a run that a person retried in Prefect."),
    Transition("begin", _OPEN, _RUN, "An attempt begins."),
    Transition("complete", _RUN, (Status.COMPLETED, Status.CANCELLED), "The run comes to an end."),
    Transition("fail", _OPEN, (Status.FAILED, Status.CANCELLED), "The run stops with an error."),
    Transition("schedule_retry", _RUN, _RUN, "Infrastructure broke: the run is due again later."),
    Transition("wait_for_provider", _RUN, _RUN, "E2B fails for everybody: the run is due again later."),
    Transition("revoke", _OPEN, _OPEN, "Somebody is told that the run is cancelled; it still runs."),
    Transition("cancel", _OPEN, (Status.CANCELLED,), "The run's own process has stopped it."),
    Transition("cancel_stopped", _OPEN, (Status.CANCELLED,), "The run that was told to stop has stopped."),
    Transition("close_as_seen", _OPEN, REOPENABLE, "Prefect says that the run is over."),
    Transition("recover", tuple(Status), tuple(Status), "A process takes the lease to look after the run."),
    Transition("close_recovered", _OPEN, REOPENABLE, "The process that looks after the run closes it."),
    Transition("requeue", _OPEN, _OPEN, "The run waits in its queue again."),
    Transition("resubmit", _OPEN, _OPEN, "The run is to be submitted to Prefect again."),
    Transition("reopen", REOPENABLE, _OPEN, "A person wants the run to go on."),
    Transition("reopen_recovered", REOPENABLE, _OPEN, "The reconciler finds a person's retry in Prefect."),
    Transition("undo_reopen", _OPEN, REOPENABLE, "Prefect refused the retry: all is as it was."),
)
"""All the ways in which an execution's state changes."""


def diagram() -> str:
    """Draw the transitions as a Mermaid state diagram: it stands in the README.

    An arrow is labelled with the functions that lead along it; those that leave the status are left out.
    """
    arrows: dict[tuple[str, str], list[str]] = {}
    for each in TRANSITIONS:
        if each.origins == each.targets:
            continue
        for origin in each.origins or ("[*]",):
            for target in each.targets:
                arrows.setdefault((origin, target), []).append(each.name)
    lines = [f"    {origin} --> {target}: {', '.join(names)}" for (origin, target), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", *lines])
