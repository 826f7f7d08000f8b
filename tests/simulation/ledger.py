"""What happened: the rows as they changed, what people asked for, what they were answered, what nodes did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.simulation.database import Tables
from tests.simulation.gates import Process
from tests.simulation.sandboxes import Node

LIVE = ("pending", "running")
FINAL = ("SUCCESS", "FAILURE", "REVOKED")

Row = dict[str, Any]


@dataclass(eq=False)
class Word:
    """Something that a person asked for, at the API or in Prefect."""

    kind: str
    """retry, cancel, or another act in Prefect."""
    task_id: UUID
    began: int
    """Number of the step at which it was said."""
    ended: int | None = None
    """Number of the step at which it was answered, or given up; in Prefect that is at once."""
    is_void: bool = False
    """Whether it was refused, or followed until the run was over again everywhere."""
    used: set[Any] = field(default_factory=set)
    """What it was the reason of."""


@dataclass(frozen=True)
class Answer:
    """What a poll was told."""

    status: str
    asked: int
    given: int


@dataclass
class Start:
    """One start of a node."""

    at: int
    execution_id: int
    step: int
    node: str


class Ledger:
    """Writes down what happens, and reports what must not (`violations`)."""

    def __init__(self, tables: Tables, clock: Callable[[], int], unrepeatable: frozenset[str]) -> None:
        self._tables = tables
        self._now = clock
        self._unrepeatable = unrepeatable
        self.violations: list[str] = []
        self.rows: dict[int, Row] = {}
        self.words: list[Word] = []
        self.answers: dict[UUID, list[Answer]] = {}
        self.starts: list[Start] = []
        self._taken: set[int] = set()
        self._left: set[int] = set()
        self._holders: dict[UUID, tuple[Process, str]] = {}
        self._closed_at: dict[int, int] = {}
        self._opened_at: dict[UUID | None, int] = {}

    # -- what people say -----------------------------------------------------------------------------

    def say(self, kind: str, task_id: UUID) -> Word:
        """A person asks for something."""
        word = Word(kind, task_id, self._now())
        self.words.append(word)
        return word

    def answered(self, task_id: UUID, status: str, asked: int) -> None:
        """A poll was answered: a final answer is not taken back, unless a person retried the run."""
        now = self._now()
        for before in self.answers.setdefault(task_id, []):
            if before.status in FINAL and before.given < asked and before.status != status:
                # A retry in Prefect shows when a worker opens the row: until then polls read the closed row.
                opened = self._opened_at.get(task_id, -1) >= before.asked
                if not opened and not self._said_since(task_id, ("retry",), before.asked):
                    self._violated(f"Task {task_id} was answered {before.status}, and now {status}.")
                break
        self.answers[task_id].append(Answer(status, asked, now))

    def over(self, row: Row) -> None:
        """A run is over, in its row and in Prefect: what people asked for before its row closed is done with.

        What they asked for later, and took back in Prefect, may have been read before, and be followed late.
        """
        closed = self._closed_at.get(row["id"], -1)
        for word in self.words:
            if word.task_id == row["task_id"] and word.ended is not None and word.ended <= closed:
                word.is_void = True

    def holder(self, row: Row) -> tuple[Process, str] | None:
        """The part of a process that has the lease of a row; None where nobody has."""
        return None if self.is_free(row) else self._holders.get(row["lease_owner"])

    def is_free(self, row: Row) -> bool:
        """Whether nobody has the lease of a row, or it has run out."""
        return row["lease_owner"] is None or bool(row["lease_until"] <= self._tables.now)

    def turned(self) -> tuple[set[int], set[int]]:
        """The executions that were taken since the last time, and those that are over and free since."""
        turned = self._taken, self._left
        self._taken, self._left = set(), set()
        return turned

    def _said_since(self, task_id: UUID | None, kinds: tuple[str, ...], since: int) -> bool:
        return any(
            word.task_id == task_id and word.kind in kinds and (word.ended is None or word.ended >= since)
            for word in self.words
        )

    def _spend(self, task_id: UUID | None, purpose: Any, since: int = -1) -> bool:
        """Take a person's retry for the reason of something; False: there is none left.

        Those that were answered come first: one whose request is still on its way may be the reason of more.
        """
        for word in sorted(self.words, key=lambda word: word.ended is None):
            if word.task_id != task_id or word.kind != "retry" or purpose in word.used:
                continue
            if word.ended is None or (word.ended > since if since >= 0 else not word.is_void):
                word.used.add(purpose)
                return True
        return False

    # -- what nodes do -------------------------------------------------------------------------------

    def started(self, node: Node) -> None:
        """A node starts: never after it succeeded; an unrepeatable one again only for a person."""
        key = (node.execution_id, node.number)
        done = "SELECT 1 FROM chain_entries WHERE execution_id = %s AND step = %s AND status = 'success'"
        if self._tables.rows(done, *key):
            self._violated(
                f"Step {node.number} of execution {node.execution_id} runs again though it succeeded."
            )
        earlier = [one.at for one in self.starts if (one.execution_id, one.step) == key]
        if earlier and node.name in self._unrepeatable:
            row = self._tables.rows("SELECT task_id FROM executions WHERE id = %s", node.execution_id)
            if not self._spend(row[0][0] if row else None, ("start", *key), earlier[-1]):
                self._violated(f"Node {node.name!r} of execution {node.execution_id} starts again, unasked.")
        self.starts.append(Start(self._now(), *key, node.name))

    # -- what becomes of rows ------------------------------------------------------------------------

    def look(self, process: Process, part: str) -> None:
        """Note what a transaction of a part of a process has changed."""
        rows = self._tables.executions()
        actor = process, part
        for number, row in rows.items():
            before = self.rows.get(number)
            owner = row["lease_owner"]
            if owner is not None and owner not in self._holders:
                self._holders[owner] = actor
            if owner not in (None, before and before["lease_owner"]):
                self._taken.add(number)
            if _is_left(row) and not (before and _is_left(before)):
                self._left.add(number)
            if before is not None and before != row:
                self._changed(before, row, actor)
        self.rows = rows

    def _changed(self, before: Row, row: Row, actor: tuple[Process, str]) -> None:
        number = row["id"]
        was_live, is_live = before["status"] in LIVE, row["status"] in LIVE
        if was_live and not is_live:
            self._closed_at[number] = self._now()
            refused = row["error_kind"] == "not_started"
            cancelled = row["status"] == "cancelled" and not refused
            if cancelled and not self._said_since(row["task_id"], ("cancel",), -1):
                self._violated(f"Execution {number} is cancelled, unasked.")
        if is_live and not was_live:
            self._opened_at[row["task_id"]] = self._now()
            if before["status"] == "completed":
                self._violated(f"Execution {number} had succeeded and is opened again.")
            if not self._spend(row["task_id"], "opening"):
                self._violated(f"Execution {number} is opened again, unasked.")
        if not was_live and not is_live and _essence(before) != _essence(row):
            self._violated(f"Execution {number} is over, and changed: {_difference(before, row)}.")
        self._check_lease(before, row, actor)

    def _check_lease(self, before: Row, row: Row, actor: tuple[Process, str]) -> None:
        """While a lease lasts only its owner changes the row, or the API, to which people speak."""
        holder = self.holder(before)
        if holder is None or holder == actor or actor[1] == "api":
            return
        changed = _difference(before, row)
        if changed and set(changed) - {"flow_run_id", "task_id", "revoked"}:
            self._violated(f"Execution {row['id']} was {holder}'s, and {actor} changed {changed}.")

    def _violated(self, what: str) -> None:
        self.violations.append(what)


def _is_left(row: Row) -> bool:
    """Whether a run is over, and nobody has its lease any more."""
    return row["status"] not in LIVE and row["lease_owner"] is None


def _essence(row: Row) -> Row:
    return {key: row[key] for key in ("status", "error", "error_kind", "steps", "failed_at_node")}


def _difference(before: Row, row: Row) -> dict[str, tuple[Any, Any]]:
    return {key: (before[key], row[key]) for key in row if before[key] != row[key]}
