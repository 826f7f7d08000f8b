"""Rows of before the lifecycle: whatever a database holds, the migration makes rows of it that may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, text

from flows.graphs.row_states import RULES
from flows.store import migrations
from tests.row_checks import illegal_rows

ROWS = 4000
WORKFLOW = """
    INSERT INTO workflows (id, name, slug, priority, overlap, version, created_at, updated_at)
        VALUES (1, 'Mail in', 'mail-in', 'normal', 'queue', 1, now(), now());
    INSERT INTO workflow_versions (id, workflow_id, number, graph, created_at)
        VALUES (1, 1, 1, '{"nodes":[],"edges":[]}', now());
"""
ODD_ROWS = f"""
    SELECT setseed(0.42);
    INSERT INTO executions (
        id, public_id, flow_run_id, workflow_id, version_id, priority, status, initial, error, error_kind,
        failed_at_node, current_node, attempt, sandbox_id, created_at, started_at, completed_at,
        lease_owner, lease_until, stepping, guarded_step, retries, next_attempt_at, crashes, crash_step,
        lost_starts, revoked, reopened_from)
    SELECT
        n, gen_random_uuid(), pick(ARRAY[gen_random_uuid(), NULL]), 1, pick(ARRAY[1, NULL]), 'normal',
        pick(ARRAY['pending', 'running', 'completed', 'failed', 'cancelled']), '{{}}',
        pick(ARRAY['"boom"', NULL]),
        pick(ARRAY['node', 'limit', 'infrastructure', 'interrupted', 'internal', 'crashed', 'cancelled',
                   'not_started', 'closed', 'lease', 'odd', NULL, NULL, NULL]),
        pick(ARRAY['"mail"', NULL]), pick(ARRAY['"mail"', NULL]), pick(ARRAY[-1, 0, 0, 1, 7]),
        pick(ARRAY['sbx', NULL]), now() - interval '2 h', pick(ARRAY[now() - interval '1 h', NULL]),
        pick(ARRAY[now(), NULL]), pick(ARRAY[gen_random_uuid(), NULL]), pick(ARRAY[now(), NULL]),
        pick(ARRAY[true, false]), pick(ARRAY[3, NULL]), pick(ARRAY[0, 2, -1]), pick(ARRAY[now(), NULL]),
        pick(ARRAY[0, 2, -1]), pick(ARRAY[3, NULL]), pick(ARRAY[0, 2, -1]), pick(ARRAY[true, false]),
        pick(ARRAY[gen_random_uuid(), NULL])
    FROM generate_series(1, {ROWS}) AS n
"""
"""Every column is drawn by itself, so that it contradicts others in every way."""
PICK = """
    CREATE FUNCTION pick(anyarray) RETURNS anyelement LANGUAGE sql VOLATILE
        AS 'SELECT $1[1 + floor(random() * cardinality($1))::int]'
"""
GOOD_ROWS = """
    UPDATE executions SET {tidy} WHERE id <= 2000
"""
TIDY = {
    "attempt": "greatest(attempt, 0)",
    "error_kind": "CASE WHEN error_kind IN ('closed', 'lease', 'odd') THEN NULL ELSE error_kind END",
    "lease_until": "CASE WHEN lease_owner IS NULL THEN NULL ELSE now() END",
    "retries": "greatest(retries, 0)",
    "lost_starts": "greatest(lost_starts, 0)",
    "crashes": "CASE WHEN crash_step IS NULL THEN 0 ELSE 2 END",
    "completed_at": "CASE WHEN status IN ('pending', 'running') THEN NULL ELSE now() END",
    "next_attempt_at": "CASE WHEN status IN ('pending', 'running') THEN next_attempt_at END",
    "started_at": "CASE WHEN attempt > 0 THEN now() END",
    "current_node": "CASE WHEN status = 'running' THEN current_node END",
    "revoked": "revoked AND status NOT IN ('completed', 'failed')",
}
"""So many rules are followed by half of the rows that some of these follow all."""


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    """A connection of the test's own, committed at its end."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def rows(url: str, where: str = "true") -> dict[int, dict[str, Any]]:
    """Rows of executions by their ids, as JSON."""
    with connect(url) as connection:
        found = connection.execute(text(f"SELECT id, to_jsonb(e) FROM executions e WHERE {where}"))
        return dict(found.tuples().all())


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of before, with the names of today."""
    kept = {name: value for name, value in row.items() if name != "guarded_step"}
    return kept | {"unrepeatable_step": row["guarded_step"], "task_id": row["flow_run_id"]}


def test_rows_of_every_odd_kind_become_rows_that_may_be(empty_database_url: str) -> None:
    """Up, down, up again: none is lost, all can be read, and those that follow the rules stay as they are."""
    url = empty_database_url
    migrations.upgrade(url, "0002")
    tidy = GOOD_ROWS.format(tidy=", ".join(f"{name} = {value}" for name, value in TIDY.items()))
    with connect(url) as connection:
        for statement in (WORKFLOW, PICK, ODD_ROWS, tidy):
            connection.execute(text(statement))
    before = rows(url)
    every_rule = " AND ".join(f"coalesce({rule}, true)" for rule in RULES.values())
    good = rows(url, every_rule.replace("unrepeatable_step", "guarded_step"))
    assert len(before) == ROWS
    assert {row["status"] for row in good.values()} == {
        "pending",
        "running",
        "completed",
        "failed",
        "cancelled",
    }

    migrations.upgrade(url)
    after = rows(url)
    assert after.keys() == before.keys()
    assert illegal_rows(url) == {}
    for row_id, row in good.items():
        assert after[row_id] == renamed(row)

    migrations.downgrade(url, "0002")
    assert rows(url).keys() == before.keys()
    migrations.upgrade(url)
    assert rows(url) == after


def test_a_run_that_was_refused_is_no_failed_one(empty_database_url: str) -> None:
    """It counts as cancelled from now on; the version before finds it as it was."""
    url = empty_database_url
    migrations.upgrade(url, "0002")
    refused = """
        INSERT INTO executions (
            id, public_id, workflow_id, priority, status, initial, error, error_kind, attempt, created_at,
            completed_at, stepping, retries, crashes, lost_starts, revoked)
        VALUES (1, gen_random_uuid(), 1, 'normal', 'failed', '{}', '"Prefect does not answer."',
                'not_started', 0, now(), now(), false, 0, 0, 0, false)
    """
    with connect(url) as connection:
        for statement in (WORKFLOW, refused):
            connection.execute(text(statement))
    before = rows(url)
    migrations.upgrade(url)
    (row,) = rows(url).values()
    assert (row["status"], row["error_kind"], row["completed_at"]) == (
        "cancelled",
        "not_started",
        before[1]["completed_at"],
    )
    migrations.downgrade(url, "0002")
    assert rows(url) == before
