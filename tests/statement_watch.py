"""Watches what this process sends to PostgreSQL: an execution's state is changed by the transitions alone.

Each INSERT and UPDATE of `executions` that sets one of `STATE` has a function of `flows/store/transitions` in
its stack, or the test fails in which it was sent. Leases are renewed in `flows/store/leases.py`, and tests
change rows by hand in the functions that are named here, and nowhere else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from sqlalchemy import Engine, event

ROOT = f"{Path(__file__).parents[1]}/"
STATE = frozenset(
    {
        *("status", "lease_owner", "lease_until", "revoked", "next_attempt_at", "reopened_from"),
        *("unrepeatable_step", "retries", "crashes"),
    }
)
"""The columns of an execution's state."""
TRANSITIONS = ("flows/store/transitions/", "flows/store/migrations/")
RENEWALS = "flows/store/leases.py"
BY_HAND = frozenset(
    {
        ("tests/store/rows.py", "change"),
        ("tests/store/rows.py", "expire"),
        ("tests/simulation/mutations.py", "step_done"),
        # Rows of before, and rows in bulk.
        ("tests/store/test_migrations.py", "test_runs_of_before_the_leases_are_kept"),
        ("tests/store/test_lifecycle_migration.py", "test_rows_of_every_odd_kind_become_rows_that_may_be"),
        ("tests/store/test_lifecycle_migration.py", "test_a_run_that_was_refused_is_no_failed_one"),
        ("tests/store/test_live_runs.py", "busy"),
    }
)
"""The functions of tests that change rows by hand: file and name."""

_CHANGE = re.compile(r"(?:^|[;(])\s*(UPDATE\s+executions\s+SET|INSERT\s+INTO\s+executions)\b", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?<![\w.])(\w+)\s*=")
_WHERE = re.compile(r"\bWHERE\b|\bRETURNING\b", re.IGNORECASE)


@dataclass(frozen=True)
class Violation:
    """A statement that changed an execution's state from elsewhere."""

    columns: frozenset[str]
    sql: str
    stack: tuple[str, ...]
    """The project's functions that led to it, the innermost first."""

    def __str__(self) -> str:
        """What it is, for whoever reads why a test failed."""
        lines = [f"{', '.join(sorted(self.columns))} changed by {' '.join(self.sql.split())[:200]}"]
        return "\n    ".join([*lines, *self.stack])


_violations: list[Violation] = []


def take_violations() -> list[Violation]:
    """Return what was found since the last call."""
    found = _violations[:]
    del _violations[: len(found)]
    return found


def changed(sql: str) -> frozenset[str]:
    """The columns of an execution's state that a statement sets."""
    columns: set[str] = set()
    for found in _CHANGE.finditer(sql):
        rest = sql[found.end() :]
        if found[1].upper().startswith("INSERT"):
            columns.update(re.findall(r"\w+", rest.partition(")")[0]))
        else:
            columns.update(_ASSIGNED.findall(_WHERE.split(rest)[0]))
    return STATE & columns


def _watch(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
    columns = changed(sql)
    if not columns:
        return
    stack = list(_stack())
    for code in stack:
        path = code.co_filename.removeprefix(ROOT)
        if path.startswith(TRANSITIONS) or (path == RENEWALS and columns == {"lease_until"}):
            return
        if any(path == file and _is_in(code, function) for file, function in BY_HAND):
            return
    named = tuple(f"{code.co_filename.removeprefix(ROOT)}: {code.co_qualname}" for code in stack)
    _violations.append(Violation(columns, sql, named))


def _stack() -> Iterator[CodeType]:
    """The project's functions that are under way in this thread, the innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOT) and frame.f_code.co_filename != __file__:
            yield frame.f_code
        frame = frame.f_back  # type: ignore[assignment]


def _is_in(code: CodeType, function: str) -> bool:
    return code.co_qualname == function or code.co_qualname.startswith(f"{function}.")


def pytest_configure() -> None:
    """Begin to watch."""
    event.listen(Engine, "before_cursor_execute", _watch)


def pytest_unconfigure() -> None:
    """Watch no more."""
    event.remove(Engine, "before_cursor_execute", _watch)


@pytest.fixture(autouse=True)
def states_are_changed_by_transitions() -> Iterator[None]:
    """Fail the test in which an execution's state was changed from elsewhere, by its fixtures too."""
    yield
    found = "\n".join(map(str, take_violations()))
    assert not found, f"changed past flows/store/transitions:\n{found}"
