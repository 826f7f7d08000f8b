"""Chains of many steps: a page costs what it holds, and says the same as the whole."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from flows.store import chain
from flows.store.chain import Frame
from flows.store.database import Database
from flows.store.models import ChainEntry, Execution
from flows.store.values import Value
from tests.statements import recorded

KEYS = [
    *(
        "n",
        "pdf",
        "",
        "a\0b",
        "\ud800",
        "é😀",
        'say "x"',
        "back\\slash",
        '\\"',
        "ends in \\",
        '",":"',
        "\x7f",
    ),
    "{}",
]
"""Names that JSON escapes, and PostgreSQL's JSON refuses."""
STEPS = 400


@pytest.fixture
def long_run(database: Database, execution: Execution) -> Execution:
    """A run of 400 steps, each of which changes some keys; every seventh succeeds at its second attempt."""
    draw = random.Random(1)

    def write(session: Session) -> None:
        rows: list[dict[str, Any]] = []
        for step in range(STEPS):
            known = KEYS[: 1 + step * len(KEYS) // STEPS]
            changed = draw.sample(known, draw.randint(0, min(3, len(known))))
            row = {"execution_id": execution.id, "step": step, "node_id": "loop", "node_type": "action"}
            if step % 7 == 0:
                rows.append(row | {"attempt": 1, "status": "failed", "changes": {}})
            changes = {key: Value(f"{step} {key!r}".encode()).digest for key in changed}
            rows.append(row | {"attempt": 1 + (step % 7 == 0), "status": "success", "changes": changes})
        session.execute(insert(ChainEntry), rows)

    database.run_sync(write)
    return execution


def folded(entries: list[ChainEntry]) -> dict[str, str]:
    """The context after these rows, put together one by one."""
    context: dict[str, str] = {}
    for entry in entries:
        context.update(entry.changes)
    return context


def frames(database: Database, run: Execution, skip: int, limit: int) -> list[Frame]:
    """A page with its contexts."""

    def read(session: Session) -> list[Frame]:
        return list(chain.frames(session, run.id, chain.entries(session, run.id, skip, limit)))

    return database.run_sync(read)


def text(frame: Frame) -> str:
    """A frame, the order of its keys included."""
    return json.dumps(
        [frame.entry.step, frame.entry.attempt, list(frame.before.items()), list(frame.after.items())]
    )


def test_the_state_is_that_of_all_changes_before(database: Database, long_run: Execution) -> None:
    """Whatever its name each key has its last value, and they are in the order in which they came."""
    whole = database.run_sync(lambda s: chain.entries(s, long_run.id, 0, 10 * STEPS))
    assert set(folded(whole)) == set(KEYS)
    for step in (0, 1, 50, 201, STEPS - 1, None):
        before = [entry for entry in whole if step is None or entry.step < step]
        state = database.run_sync(partial(chain.state, execution_id=long_run.id, before_step=step))
        assert list(state.items()) == list(folded(before).items())


@pytest.mark.parametrize("size", [1, 37, 150])
def test_page_by_page_is_the_same_as_the_whole(database: Database, long_run: Execution, size: int) -> None:
    """Wherever a page begins: in the middle of a step's attempts, too."""
    whole = [text(frame) for frame in frames(database, long_run, 0, 10 * STEPS)]
    starts = range(0, len(whole), size) if size > 1 else range(0, len(whole), 23)
    for skip in starts:
        page = [text(frame) for frame in frames(database, long_run, skip, size)]
        assert page == whole[skip : skip + size]


def test_a_page_reads_its_own_rows(database: Database, long_run: Execution) -> None:
    """The last page of ten rows brings no more rows than the first: its own, and one for each key."""
    for skip in (0, 200, 440):
        with recorded(database) as found:
            assert len(frames(database, long_run, skip, 10)) == 10
        assert len(found) == 3
        assert sum(one.rows for one in found) <= 10 + 1 + len(KEYS)


def test_a_resume_reads_the_last_state(database: Database, long_run: Execution) -> None:
    """Not the changes that led to it."""
    with recorded(database) as found:
        state = database.run_sync(lambda s: chain.state(s, long_run.id))
    assert len(state) == len(KEYS)
    assert sum(one.rows for one in found) == 1 + len(KEYS)


def test_a_page_that_follows_another_goes_on_from_it(database: Database, long_run: Execution) -> None:
    """Who reads page after page reads each row once, and nothing besides."""
    whole = [text(frame) for frame in frames(database, long_run, 0, 10 * STEPS)]
    seen: list[Frame] = frames(database, long_run, 0, 20)

    def read_on(session: Session, last: Frame) -> list[Frame]:
        page = chain.entries_after(session, long_run.id, last.entry, 20)
        return list(chain.frames_after(last, page))

    with recorded(database) as found:
        while page := database.run_sync(partial(read_on, last=seen[-1])):
            seen += page
    assert [text(frame) for frame in seen] == whole
    assert sum(one.rows for one in found) == len(whole) - 20
