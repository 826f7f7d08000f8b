"""Values: once each, compressed where it pays, and no more on disk than the run has made."""

from __future__ import annotations

import hashlib
import random
import uuid
from functools import partial
from typing import Any

from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.orm import Session

from flows.store import chain, values
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import ContextValue, Execution, Workflow
from flows.store.transitions import submissions
from flows.store.values import Value
from tests.leasing import begin, lease_of

MEGABYTE = 1024 * 1024


def put(database: Database, execution: Execution, stored: dict[str, Value]) -> dict[str, str]:
    """Store values."""
    return database.run_sync(lambda s: values.put(s, execution.id, stored))


def sizes(database: Database) -> list[tuple[int, bool]]:
    """Stored bytes of each value, and whether it is compressed; smallest first."""
    length = func.length(ContextValue.data)
    query = select(length, ContextValue.compressed).order_by(length)
    return [(size, packed) for size, packed in database.run_sync(lambda s: list(s.execute(query)))]


def incompressible(size: int, seed: int) -> bytes:
    """A JSON text of so many bytes that nothing makes smaller."""
    raw = random.Random(seed).randbytes(size - 2)
    # Any byte but those that JSON would escape; bytes above 127 stand for what a denser text would hold.
    return b'"' + raw.translate(bytes(33 if b in (34, 92) else b for b in range(256))) + b'"'


def test_values_come_back_as_they_went_in(database: Database, execution: Execution) -> None:
    """Under their hashes; the seal stays on; unknown hashes are left out."""
    stored = {"a": Value(b'"x"'), "b": Value(b"x" * 1000), "c": Value(b"gAAAA", sealed=True)}
    digests = put(database, execution, stored)
    assert digests == {key: hashlib.sha256(one.data).hexdigest() for key, one in stored.items()}
    loaded = database.run_sync(lambda s: values.load(s, execution.id, [*digests.values(), "0" * 64]))
    assert {key: loaded[digest] for key, digest in digests.items()} == stored
    assert len(loaded) == 3
    assert database.run_sync(lambda s: values.load(s, execution.id, [])) == {}
    assert put(database, execution, {}) == {}


def test_a_value_is_stored_once_per_execution(
    database: Database, execution: Execution, workflow: Workflow
) -> None:
    """Two keys, two steps, one value: one row. Another execution has its own."""
    put(database, execution, {"a": Value(b"1"), "b": Value(b"1")})
    put(database, execution, {"c": Value(b"1"), "d": Value(b"2")})
    assert len(sizes(database)) == 2
    other = database.run_sync(
        lambda s: submissions.create(
            s, workflow_id=workflow.id, client=None, priority="normal", initial={"a": Value(b"1")}
        )
    )
    assert len(sizes(database)) == 3
    assert database.run_sync(lambda s: values.load(s, other.id, [Value(b"2").digest])) == {}


def test_a_value_that_is_there_is_not_sent_again(database: Database, execution: Execution) -> None:
    """A PDF that a node hands back unchanged costs its hash, and no way to the server."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    put(database, execution, {"a": Value(b"1"), "b": Value(b"2")})
    event.listen(Engine, "before_cursor_execute", note)
    try:
        put(database, execution, {"a": Value(b"1"), "c": Value(b"2")})
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


def test_only_what_pays_is_compressed(database: Database, execution: Execution) -> None:
    """A repetitive text shrinks; noise and short texts are stored as they are."""
    put(
        database,
        execution,
        {
            "short": Value(b'"aaaaaaaaaaaaaaaaaaaa"'),
            "long": Value(b'"' + b"a" * 100_000 + b'"'),
            "noise": Value(incompressible(100_000, seed=1)),
        },
    )
    (short, medium, large) = sizes(database)
    assert short == (22, False)
    assert medium[0] < 2_000
    assert medium[1]
    assert large == (100_000, False)


def test_many_values_and_large_ones_together(database: Database, execution: Execution) -> None:
    """A thousand keys and some megabytes in one go."""
    stored = {f"k{number}": Value(str(number).encode()) for number in range(1000)}
    stored |= {f"big{number}": Value(incompressible(MEGABYTE, seed=number)) for number in range(3)}
    digests = put(database, execution, stored)
    loaded = database.run_sync(lambda s: values.load(s, execution.id, digests.values()))
    assert {key: loaded[digest] for key, digest in digests.items()} == stored


def test_runs_with_large_contexts_cost_their_size_once(database: Database, workflow: Workflow) -> None:
    """Two runs of 10 MB through ten nodes that hand it all back take 1.2 × 20 MB of disk at most."""

    def size(session: Session) -> int:
        tables = ("executions", "chain_entries", "context_values")
        total = func.pg_total_relation_size
        return sum(session.scalar(select(total(text(f"'{table}'::regclass")))) or 0 for table in tables)

    def run(session: Session, initial: dict[str, Value]) -> Execution:
        return begin(
            session,
            flow_run_id=uuid.uuid4(),
            public_id=None,
            workflow_id=workflow.id,
            client=None,
            initial=initial,
        )

    before = database.run_sync(size)
    for number in range(2):
        parts = {f"p{i}": Value(incompressible(2 * MEGABYTE, seed=10 * number + i)) for i in range(5)}
        execution = database.run_sync(partial(run, initial=parts))
        for step in range(10):
            changes = {**parts, "n": Value(str(step).encode())}
            work = Step(step, 1, f"n{step}", "action", "success", changes=changes)
            database.run_sync(partial(chain.append, lease=lease_of(execution), step=work))
    assert 20 * MEGABYTE < database.run_sync(size) - before <= 1.2 * 20 * MEGABYTE


def test_a_value_shows_no_content() -> None:
    """What is printed of a value, in a log or a traceback, is its size."""
    assert repr(Value(b'"private-word"')) == "Value(14 bytes)"
    assert str(Value(b"token", sealed=True)) == "Value(5 bytes, sealed)"


def test_small_values_are_loaded_ahead(database: Database, execution: Execution) -> None:
    """Large ones are not, nor more than a few; and what unpacks to a lot ends it."""
    small = {str(number): Value(b"%d" % number) for number in range(300)}
    large = Value(incompressible(values.AHEAD_EACH + 1, 1))
    bombs = {f"bomb{number}": Value(b'"%d%s"' % (number, b" " * MEGABYTE)) for number in range(9)}
    digests = put(database, execution, {"large": large, **small, **bombs})

    def ahead(names: list[str], most: int = MEGABYTE) -> dict[str, Value]:
        wanted = [digests[name] for name in names]
        return database.run_sync(lambda s: values.load_ahead(s, execution.id, wanted, most))

    assert ahead([]) == {}
    assert ahead(["large", "1", "2"]) == {digests[name]: small[name] for name in ("1", "2")}
    assert set(ahead(list(small))) == {digests[str(number)] for number in range(values.AHEAD)}
    assert len(ahead(list(bombs), 3 * MEGABYTE)) == 3
