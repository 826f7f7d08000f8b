"""A PostgreSQL that refuses some rows, as one does whose disk is full or whose limits are too low."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2

from tests.servers import database_name

DISK_FULL, PROGRAM_LIMIT, STATEMENT_TIMEOUT = "53100", "54000", "57014"
WORDS = "no room for this row"
"""What PostgreSQL says where a test has it refuse a row."""

_TRIGGER = """
    CREATE SEQUENCE refusals;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse();
"""


def _execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextmanager
def refused_rows(
    url: str, event: str, table: str, condition: str = "true", code: str = DISK_FULL
) -> Iterator[Callable[[], int]]:
    """Within it PostgreSQL refuses, with this SQLSTATE, to INSERT or UPDATE rows that meet the condition.

    What it gives tells how often that has happened.
    """
    # A sequence goes on though the transaction is rolled back.
    body = f"PERFORM nextval('refusals'); RAISE EXCEPTION '{WORDS}' USING ERRCODE = '{code}';"
    count = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refusals"
    with _trigger(url, body, event, table, condition):
        yield lambda: int(_execute(url, count)[0][0])


@contextmanager
def slow_rows(
    url: str, event: str, table: str, condition: str = "true", limit: float = 2.0
) -> Iterator[None]:
    """Within it such rows take longer than a statement may: for new connections, `limit` seconds."""
    name = database_name(url)
    _execute(url, f"ALTER DATABASE \"{name}\" SET statement_timeout = '{limit}s'")
    try:
        with _trigger(url, "PERFORM pg_sleep(60);", event, table, condition):
            yield
    finally:
        _execute(url, f'ALTER DATABASE "{name}" RESET statement_timeout')


@contextmanager
def _trigger(url: str, body: str, event: str, table: str, condition: str) -> Iterator[None]:
    _execute(url, _TRIGGER.format(body=body, event=event, table=table, condition=condition))
    try:
        yield
    finally:
        _execute(url, "DROP FUNCTION refuse() CASCADE; DROP SEQUENCE refusals")
