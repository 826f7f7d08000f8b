"""What really goes to PostgreSQL: the statements that this process sends, and the rows that come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

from flows.store.database import Database


@dataclass(frozen=True)
class Statement:
    """One statement that was sent."""

    sql: str
    rows: int
    """How many rows it answered, or changed."""
    parameters: Any
    """As the driver takes them."""

    @property
    def reads_a_graph(self) -> bool:
        """Whether it asks for graphs of workflows."""
        return self.sql.startswith("SELECT") and ".graph" in self.sql


@contextmanager
def recorded(database: Database | None = None) -> Iterator[list[Statement]]:
    """Collect the statements that are sent within the block: by a database's connections, or by all here.

    A thread that an earlier test has left may send some, too.
    """
    where = Engine if database is None else database._engine
    found: list[Statement] = []

    def note(_connection: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        found.append(Statement(sql, cursor.rowcount, parameters))

    event.listen(where, "after_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(where, "after_cursor_execute", note)
