"""The Chain of Work: one row per attempt of a step, and the contexts put together from its changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, NotFoundError
from flows.graphs.lifecycle import StepStatus
from flows.store import values
from flows.store.base import utcnow
from flows.store.database import constraint
from flows.store.last_values import last_values
from flows.store.leases import Lease
from flows.store.models import ChainEntry, Execution
from flows.store.transitions import attempts
from flows.store.values import Stored


@dataclass(frozen=True)
class Step:
    """What there is to say about one attempt of one step; times in seconds, texts as they may be shown."""

    step: int
    attempt: int
    node_id: str
    node_type: str
    status: str
    """`success` or `failed`."""
    timestamp: datetime = field(default_factory=utcnow)
    execution_time: float = 0.0
    changes: Stored = field(default_factory=dict)
    """Keys that the node changed. What a failed attempt changed does not count, and is not stored."""
    decision_result: str | None = None
    path_taken: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    stdout: str = ""
    stderr: str = ""


def append(session: Session, lease: Lease, step: Step, current_node: str | None = None) -> ChainEntry:
    """Write a row of the run that is ours, the values that are new with it, and the node that comes next.

    A step that succeeded is unrepeatable no longer. One that failed stays unrepeatable: if the run's process
    dies before it closes the run, nobody may start that node again. Raises LeaseLostError, and what `add`
    raises.
    """
    attempts.step_done(session, lease, succeeded=step.status == StepStatus.SUCCESS, next_node=current_node)
    return add(session, lease.execution_id, step)


def add(session: Session, execution_id: int, step: Step) -> ChainEntry:
    """Write a row and the values that are new with it; the caller keeps other writers away.

    Raises ConflictError when that attempt has a row already, or the step one that succeeded: somebody else
    runs this execution, too. Raises NotFoundError when the execution is gone (its workflow was deleted).
    """
    texts = {name: getattr(step, name) for name in _COPIED}
    changes = step.changes if step.status == StepStatus.SUCCESS else {}
    try:
        entry = ChainEntry(
            execution_id=execution_id, changes=values.put(session, execution_id, changes), **texts
        )
        session.add(entry)
        session.flush()
    except IntegrityError as error:
        if constraint(error).startswith("fk_"):
            raise NotFoundError(f"There is no execution {execution_id}.") from None
        if constraint(error).startswith("uq_"):
            raise ConflictError(
                f"Step {step.step} of execution {execution_id} was written by another run already."
            ) from None
        raise
    return entry


_COPIED = [name for name in Step.__dataclass_fields__ if name != "changes"]


def visits(session: Session, execution_id: int) -> list[tuple[str, str | None]]:
    """The steps that succeeded, in order: (node id, decision result). What a resumed run goes on from."""
    rows = session.execute(
        select(ChainEntry.node_id, ChainEntry.decision_result)
        .where(ChainEntry.execution_id == execution_id, ChainEntry.status == StepStatus.SUCCESS)
        .order_by(ChainEntry.step)
    )
    return [(node_id, result) for node_id, result in rows]


def next_attempt(session: Session, execution_id: int, step: int) -> int:
    """Number of the next attempt of a step, from 1."""
    last = session.scalar(
        select(func.max(ChainEntry.attempt)).where(
            ChainEntry.execution_id == execution_id, ChainEntry.step == step
        )
    )
    return 1 + (last or 0)


def count(session: Session, execution_id: int) -> int:
    """How many rows the chain has, failed attempts included."""
    return (
        session.scalar(
            select(func.count()).select_from(ChainEntry).where(ChainEntry.execution_id == execution_id)
        )
        or 0
    )


def counts(session: Session, execution_ids: Sequence[int]) -> dict[int, int]:
    """Execution id → how many of its steps succeeded; one without any is left out."""
    rows = session.execute(
        select(ChainEntry.execution_id, func.count())
        .where(ChainEntry.execution_id.in_(execution_ids), ChainEntry.status == StepStatus.SUCCESS)
        .group_by(ChainEntry.execution_id)
    )
    return dict(rows.tuples().all())


def entries(session: Session, execution_id: int, skip: int = 0, limit: int = 100) -> list[ChainEntry]:
    """A page of the chain, in the order of steps and attempts."""
    return list(session.scalars(_in_order(execution_id, limit).offset(skip)))


def entries_after(session: Session, execution_id: int, last: ChainEntry, limit: int) -> list[ChainEntry]:
    """The page that follows this entry."""
    place = tuple_(ChainEntry.step, ChainEntry.attempt)
    return list(session.scalars(_in_order(execution_id, limit).where(place > (last.step, last.attempt))))


def _in_order(execution_id: int, limit: int) -> Select[tuple[ChainEntry]]:
    return (
        select(ChainEntry)
        .where(ChainEntry.execution_id == execution_id)
        .order_by(ChainEntry.step, ChainEntry.attempt)
        .limit(limit)
    )


def state(session: Session, execution_id: int, before_step: int | None = None) -> dict[str, str]:
    """The context before a step (None: after the last), as key → digest: no value is loaded.

    Raises NotFoundError when the execution is gone.
    """
    initial = session.scalars(select(Execution.initial).where(Execution.id == execution_id)).one_or_none()
    if initial is None:
        raise NotFoundError(f"There is no execution {execution_id}.")
    return initial | last_values(session, execution_id, before_step)


@dataclass(frozen=True)
class Frame:
    """A row of the chain with the whole context around it, as key → digest (see `values.load`)."""

    entry: ChainEntry
    before: Mapping[str, str]
    after: Mapping[str, str]
    """The same as `before` for an attempt that failed."""


def frames(session: Session, execution_id: int, page: Sequence[ChainEntry]) -> Iterator[Frame]:
    """The contexts before and after each row of a page, which `entries` gave.

    Reads the database at once, for the state before the page; the iterator then only computes, one row at a
    time, and may be used after the session has ended. Raises NotFoundError when the execution is gone.
    """
    before = state(session, execution_id, page[0].step) if page else {}
    return _walk(before, page)


def frames_after(last: Frame, page: Sequence[ChainEntry]) -> Iterator[Frame]:
    """The contexts around each row of a page that `entries_after` gave: they go on from the last frame's."""
    return _walk(last.after, page)


def _walk(context: Mapping[str, str], page: Sequence[ChainEntry]) -> Iterator[Frame]:
    for entry in page:
        after = {**context, **entry.changes} if entry.changes else context
        yield Frame(entry, context, after)
        context = after
