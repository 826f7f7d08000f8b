"""Runs of ten megabytes: none fails, and the database holds each value once."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

import psycopg2
import pytest

from tests.builders import action, line
from tests.nova_up import NovaUp

MEGABYTES = 10


def database_size(url: str) -> int:
    """Return the bytes of all of NOVA's tables, with indexes and TOAST."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        return int(cursor.fetchone()[0])  # type: ignore[index]


@pytest.mark.parametrize("runs", [3, pytest.param(10, marks=pytest.mark.long)])
def test_runs_of_ten_megabytes(
    nova: NovaUp, record_property: Callable[[str, object], None], runs: int
) -> None:
    """Runs with 10 MB of incompressible context each, through ten nodes, cost at most 1.2 times that."""
    workflow = nova.workflow(line(*(action(f"n{i}", f"context['step'] = {i}") for i in range(10))))
    alphabet = "".join(set(string.printable) - set('"\\\n\r\t\x0b\x0c'))
    before = database_size(nova.database_url)
    tasks = []
    for seed in range(runs):
        blob = "".join(random.Random(seed).choices(alphabet, k=MEGABYTES * 1_000_000))
        tasks.append((nova.execute(workflow, initial_context={"blob": blob}), blob))
    for task_id, blob in tasks:
        task = nova.finished(task_id, timeout=150)
        assert task["status"] == "SUCCESS", task["error"]
        assert task["result"]["final_context"] == {"blob": blob, "step": 9}
    grown = database_size(nova.database_url) - before
    record_property("database_growth_bytes", grown)
    assert grown <= 1.2 * runs * MEGABYTES * 1_000_000
