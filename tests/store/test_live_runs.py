"""Looking for the runs that are not over, among many that are: by an index that holds no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import LIVE
from flows.store import executions, migrations, orphans, workflows
from flows.store.database import Database
from tests.statements import recorded

ROWS = """
    INSERT INTO executions (public_id, flow_run_id, workflow_id, priority, status, initial, attempt, stepping,
                            retries, crashes, lost_starts, revoked, created_at, started_at, version_id,
                            completed_at, error, error_kind)
    SELECT gen_random_uuid(), CASE WHEN n % 50 > 0 THEN gen_random_uuid() END, :workflow, 'normal',
           status, '{}', begun, false, 0, 0, 0, false, now() - n * interval '1 second',
           CASE WHEN begun = 1 THEN now() END,
           CASE WHEN begun = 1 THEN (SELECT id FROM workflow_versions LIMIT 1) END,
           CASE WHEN status NOT IN ('pending', 'running') THEN now() END,
           CASE WHEN status IN ('failed', 'cancelled') THEN '"Why."' END,
           CASE status WHEN 'failed' THEN 'node' WHEN 'cancelled' THEN 'cancelled' END
    FROM (SELECT n, (CAST(:statuses AS text[]))
                        [1 + n % cardinality(CAST(:statuses AS text[]))] AS status
          FROM generate_series(1, :number) AS n) AS each,
         LATERAL (SELECT CASE WHEN status = 'pending' THEN 0 ELSE 1 END AS begun) AS attempts
"""
CLOSED, OPEN = 50_000, 50
"""The plans are the same with 200,000, which take longer to make."""


@pytest.fixture(scope="module")
def busy(postgres: Callable[[str], str]) -> Iterator[Database]:
    """A workflow with many runs that are over, some of which Prefect never had, and fifty that are not."""
    url = postgres("live_runs")
    migrations.upgrade(url)
    database = Database(url)

    def fill(session: Session) -> None:
        workflow = workflows.create(session, name="Busy", graph={})
        closed = {"number": CLOSED, "statuses": ["completed", "failed", "cancelled"]}
        for some in (closed, {"number": OPEN, "statuses": list(LIVE)}):
            session.execute(text(ROWS), {"workflow": workflow.id, **some})

    database.run_sync(fill)
    database.run_sync(lambda session: session.execute(text("ANALYZE executions")))
    yield database
    database.close()


def plans(database: Database, question: Callable[[Session], object]) -> list[str]:
    """How PostgreSQL answers each statement of a question that reads executions: the lines that scan them."""
    with recorded(database) as found:
        database.run_sync(question)
    lines: list[str] = []
    for one in found:

        def explain(session: Session, sql: str = one.sql, parameters: object = one.parameters) -> list[str]:
            answer = session.connection().exec_driver_sql(f"EXPLAIN {sql}", parameters)  # type: ignore[arg-type]
            return list(answer.scalars())

        lines += [line for line in database.run_sync(explain) if "executions" in line and "Scan" in line]
    return lines


def test_what_asks_for_live_runs_looks_at_no_others(busy: Database) -> None:
    """Each by the index of live runs, whatever the planner takes them for."""
    questions: dict[str, Callable[[Session], object]] = {
        "waiting": lambda session: orphans.waiting(session, 0, 200),
        "the next that wait": lambda session: orphans.waiting(session, CLOSED + 10, 200),
        "unsubmitted": lambda session: orphans.unsubmitted(session, 50),
        "live": executions.live,
        "live of a workflow": lambda session: executions.live(session, 1),
    }
    for name, question in questions.items():
        found = plans(busy, question)
        assert found, name
        assert all("ix_executions_live" in line for line in found), (name, found)


def test_a_list_of_live_runs_counts_no_others(busy: Database) -> None:
    """Page and count come from an index that tells them from the others."""
    for status in LIVE:
        found = plans(busy, partial(executions.list_, status=status))
        assert len(found) == 2
        assert "ix_executions_live" in found[0]
        assert "ix_executions_live" in found[1] or "Index Only Scan using ix_executions_status" in found[1]
        _, total = busy.run_sync(partial(executions.list_, status=status))
        assert total == OPEN / 2
