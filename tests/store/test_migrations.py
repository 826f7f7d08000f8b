"""Migrations: up, down, up again, and the same tables as the models describe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, text

from flows.graphs.errors import ConfigurationError, DatabaseUnavailableError
from flows.graphs.lifecycle import Status
from flows.store import chain, executions, migrations
from flows.store.base import Base
from flows.store.database import Database
from tests.leasing import begin

EVERYTHING = """
    SELECT 'relation', relname::text, relkind::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'type', typname::text, typtype::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', proname::text, prokind::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""
DEFINITIONS = """
    SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    UNION ALL
    SELECT tablename::text, indexname::text, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    UNION ALL
    SELECT table_name, column_name, concat_ws(' ', data_type, character_maximum_length, is_nullable,
                                              column_default)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
    UNION ALL
    SELECT sequencename::text, data_type::text, max_value::text FROM pg_sequences WHERE schemaname = 'public'
    ORDER BY 1, 2, 3
"""
UNINDEXED_FOREIGN_KEYS = """
    SELECT c.conname FROM pg_constraint c
    WHERE c.contype = 'f' AND NOT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = c.conrelid AND i.indpred IS NULL
          AND (i.indkey::smallint[])[0:cardinality(c.conkey) - 1] = c.conkey
    )
"""


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    """A connection of the test's own, committed at its end."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """What a query answers."""
    with connect(url) as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_up_down_and_up_again(empty_database_url: str) -> None:
    """Going down to base leaves nothing behind, not even a type, and the way up is open again."""
    assert migrations.current(empty_database_url) is None
    migrations.upgrade(empty_database_url)
    assert migrations.current(empty_database_url) == "0004"
    before = rows(empty_database_url, DEFINITIONS)

    migrations.downgrade(empty_database_url, "base")
    assert rows(empty_database_url, EVERYTHING) == []
    assert migrations.current(empty_database_url) is None

    migrations.upgrade(empty_database_url)
    assert rows(empty_database_url, DEFINITIONS) == before


FIRST_ROWS = """
    INSERT INTO workflows (id, name, slug, priority, overlap, version, created_at, updated_at)
        VALUES (1, 'Mail in', 'mail-in', 'normal', 'queue', 1, now(), now());
    INSERT INTO workflow_versions (id, workflow_id, number, graph, created_at)
        VALUES (1, 1, 1, '{"nodes":[{"id":"start","type":"start"}],"edges":[]}', now());
    INSERT INTO executions (id, public_id, flow_run_id, workflow_id, version_id, priority, status, initial,
                            error, attempt, sandbox_id, created_at, started_at)
        SELECT n, gen_random_uuid(), gen_random_uuid(), 1, 1, 'high', status, '{"a":"d"}',
               '"boom \\ud800"', n, 'sbx', now(), now()
        FROM unnest(ARRAY['pending', 'running', 'completed', 'failed', 'cancelled'])
             WITH ORDINALITY AS t(status, n);
    INSERT INTO chain_entries (id, execution_id, step, attempt, node_id, node_type, status, timestamp,
                               execution_time, changes, stdout, stderr)
        VALUES (1, 2, 0, 1, '"start"', 'start', 'success', now(), 0, '{}', '""', '""');
    INSERT INTO context_values (execution_id, digest, data, compressed, sealed)
        VALUES (2, 'd', '1', false, false);
"""
"""What a database of revision 0001 may hold."""
FIRST_TABLES = ("workflows", "workflow_versions", "executions", "chain_entries", "context_values")


def contents(url: str) -> dict[str, list[dict[str, object]]]:
    """All rows of the tables of revision 0001."""
    with connect(url) as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1"))]
            for name in FIRST_TABLES
        }


REPAIRED: dict[str, dict[str, object]] = {
    # It has begun, so it is not pending; an open run has no error unless it waits for its retry.
    "pending": {"status": "running", "error": None},
    "running": {"error": None},
    "completed": {"error": None},
    "failed": {"error_kind": "internal"},
    "cancelled": {"error_kind": "cancelled"},
}
"""What the rules of the lifecycle change in the runs above."""


def as_repaired(row: dict[str, object]) -> dict[str, object]:
    """A run of before, as it is after the migrations."""
    status = str(row["status"])
    is_open = status in ("pending", "running")
    end = {"completed_at": None if is_open else row["started_at"]}
    return row | FRESH | dict.fromkeys(NOTHING) | end | REPAIRED[status] | {"task_id": row["flow_run_id"]}


FRESH = {"stepping": False, "retries": 0, "crashes": 0, "lost_starts": 0, "revoked": False}
NOTHING = (
    "lease_owner",
    "lease_until",
    "unrepeatable_step",
    "next_attempt_at",
    "crash_step",
    "reopened_from",
)


def test_runs_of_before_the_leases_are_kept(empty_database_url: str) -> None:
    """From 0001 with runs of every status: what was told of them stays, nobody has a lease, they go on."""
    migrations.upgrade(empty_database_url, "0001")
    with connect(empty_database_url) as connection:
        connection.execute(text(FIRST_ROWS))
    before = contents(empty_database_url)
    migrations.upgrade(empty_database_url)
    after = contents(empty_database_url)

    before["executions"] = [as_repaired(row) for row in before["executions"]]
    assert after == before

    database = Database(empty_database_url)
    try:
        for number in (2, 4, 5):
            row = database.run_sync(partial(executions.get, execution_id=number))
            assert row.flow_run_id is not None
            again = database.run_sync(
                partial(
                    begin,
                    flow_run_id=row.flow_run_id,
                    public_id=row.public_id,
                    workflow_id=1,
                    request=uuid4(),
                )
            )
            assert (again.status, again.attempt, again.initial) == (Status.RUNNING, number + 1, {"a": "d"})
    finally:
        database.close()

    migrations.downgrade(empty_database_url, "0001")
    assert [set(row) for row in contents(empty_database_url)["executions"]] == [
        set(row) - FRESH.keys() - set(NOTHING) - {"task_id"} for row in after["executions"]
    ]


def chain_ids(url: str) -> list[object]:
    """The ids of all chain entries."""
    return [row[0] for row in rows(url, "SELECT id FROM chain_entries ORDER BY id")]


ANOTHER_ENTRY = """
    INSERT INTO chain_entries (execution_id, step, attempt, node_id, node_type, status, timestamp,
                               execution_time, changes, stdout, stderr)
        VALUES (2, (SELECT max(step) + 1 FROM chain_entries), 1, '"a"', 'action', 'success', now(), 0, '{}',
                '""', '""')
"""


def test_chains_outgrow_32_bits(empty_database_url: str) -> None:
    """The entries that there are keep their ids, up and down; behind the last of 32 bits it goes on."""
    last = 2**31 - 1
    migrations.upgrade(empty_database_url, "0001")
    with connect(empty_database_url) as connection:
        connection.execute(text(FIRST_ROWS))
    migrations.upgrade(empty_database_url, "0002")
    with connect(empty_database_url) as connection:
        connection.execute(text("SELECT setval('chain_entries_id_seq', 7)"))
    migrations.upgrade(empty_database_url, "0003")
    with connect(empty_database_url) as connection:
        connection.execute(text(ANOTHER_ENTRY))
    migrations.downgrade(empty_database_url, "0002")
    assert chain_ids(empty_database_url) == [1, 8]

    migrations.upgrade(empty_database_url)
    with connect(empty_database_url) as connection:
        connection.execute(text("SELECT setval('chain_entries_id_seq', :last)"), {"last": last})
        connection.execute(text(ANOTHER_ENTRY))
    assert chain_ids(empty_database_url) == [1, 8, last + 1]
    database = Database(empty_database_url)
    try:
        entries = database.run_sync(partial(chain.entries, execution_id=2))
        assert [entry.id for entry in entries] == [1, 8, last + 1]
    finally:
        database.close()


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(migrated_database_url: str) -> None:
    """Every start may upgrade: the second time nothing happens."""
    migrations.upgrade(migrated_database_url)
    migrations.check(migrated_database_url)


def test_alembic_finds_no_difference_to_the_models(migrated_database_url: str) -> None:
    """Autogenerate has nothing to add to the migrated tables."""
    with connect(migrated_database_url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrated_tables_are_those_of_the_models(migrated_database_url: str, empty_database_url: str) -> None:
    """Columns, checks, keys and indexes are word for word the same, which Alembic compares in part only."""
    with connect(empty_database_url) as connection:
        Base.metadata.create_all(connection)
    assert rows(migrated_database_url, DEFINITIONS) == rows(empty_database_url, DEFINITIONS)


def test_every_foreign_key_has_an_index(migrated_database_url: str) -> None:
    """Deleting a row never scans the tables that refer to it."""
    assert rows(migrated_database_url, UNINDEXED_FOREIGN_KEYS) == []
    assert len(rows(migrated_database_url, "SELECT 1 FROM pg_constraint WHERE contype = 'f'")) >= 8


def test_values_are_not_compressed_twice(migrated_database_url: str) -> None:
    """PostgreSQL stores the bytes of a value as they are: NOVA has compressed what can be."""
    query = (
        "SELECT attstorage::text FROM pg_attribute"
        " WHERE attrelid = 'context_values'::regclass AND attname = 'data'"
    )
    assert rows(migrated_database_url, query) == [("e",)]


def test_processes_that_upgrade_at_once_do_not_collide(empty_database_url: str) -> None:
    """Four processes upgrade an empty database together; all succeed."""
    program = "import sys; from flows.store import migrations; migrations.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", program, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 4
    migrations.check(empty_database_url)


def test_check_says_what_to_do(empty_database_url: str) -> None:
    """No tables, or another revision than this version's: the error names the command that helps."""
    with pytest.raises(ConfigurationError, match=r"no tables of NOVA yet.*nova migrate.*nova up"):
        migrations.check(empty_database_url)

    migrations.upgrade(empty_database_url)
    with connect(empty_database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match=r"revision 9999.*newer NOVA"):
        migrations.check(empty_database_url)


def test_a_database_that_does_not_answer_is_said_so(free_port: int) -> None:
    """Nobody listens: DatabaseUnavailableError, not a driver's traceback."""
    url = f"postgresql://nova:secret-word@127.0.0.1:{free_port}/nova"
    calls: list[Callable[[], object]] = [
        lambda: migrations.upgrade(url),
        lambda: migrations.current(url),
        lambda: migrations.check(url),
    ]
    for call in calls:
        with pytest.raises(DatabaseUnavailableError) as caught:
            call()
        assert "secret-word" not in str(caught.value)
