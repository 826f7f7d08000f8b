"""Whatever JSON and Python can hold goes in and comes back: NUL, surrogates, quotes, huge integers."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from flows.store import chain, executions, schedules, workflows
from flows.store.chain import Step
from flows.store.database import Database
from flows.store.models import Execution, Workflow
from flows.store.transitions import attempts
from flows.store.values import Value, load
from tests.leasing import lease_of

ODD_TEXTS = [
    *("\0", "\ud800", "\udfff\ud800", "'", '"', "\\", "%s %(x)s :x", "\x1b[0m", "😀", "\\u0000", "$$"),
    "x" * 9000,
]
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(ODD_TEXTS)
NUMBERS = st.integers(-(10**1000) + 1, 10**1000 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
THOROUGH = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def as_json(value: Any) -> Any:
    """The value as Python's `json` carries it: two halves of a surrogate pair become one character."""
    return json.loads(json.dumps(value))


@THOROUGH
@given(key=TEXTS, value=JSON)
def test_contexts(database: Database, execution: Execution, key: str, value: Any) -> None:
    """Keys and values of contexts."""
    step = database.run_sync(lambda s: chain.count(s, execution.id))
    data = json.dumps(value).encode("ascii")
    database.run_sync(
        partial(
            chain.append,
            lease=lease_of(execution),
            step=Step(step, 1, "n", "action", "success", changes={key: Value(data)}),
        )
    )

    def read(session: Session) -> bytes:
        digest = chain.state(session, execution.id)[as_json(key)]
        return load(session, execution.id, [digest])[digest].data

    assert database.run_sync(read) == data


@THOROUGH
@given(text=TEXTS, other=TEXTS)
def test_what_a_node_says(database: Database, execution: Execution, text: str, other: str) -> None:
    """Output, errors and names of a chain entry, errors of an execution."""
    step = database.run_sync(lambda s: chain.count(s, execution.id))
    said = Step(
        step,
        1,
        other,
        "action",
        "failed",
        error_type=text,
        error_message=other,
        traceback=text,
        stdout=other,
        stderr=text,
    )
    entry_id = database.run_sync(lambda s: chain.append(s, lease_of(execution), said)).id
    noted = partial(attempts.step_done, lease=lease_of(execution), succeeded=False, next_node=text)
    database.run_sync(noted)
    (entry,) = database.run_sync(lambda s: chain.entries(s, execution.id, step, 1))
    assert entry.id == entry_id
    assert (entry.error_type, entry.traceback, entry.stderr) == (as_json(text),) * 3
    assert (entry.node_id, entry.error_message, entry.stdout) == (as_json(other),) * 3
    assert database.run_sync(lambda s: executions.get(s, execution.id)).current_node == as_json(text)


@THOROUGH
@given(graph=st.dictionaries(TEXTS, JSON, max_size=3), description=TEXTS)
def test_graphs_descriptions_and_parameters(
    database: Database, workflow: Workflow, graph: dict[str, Any], description: str
) -> None:
    """Graphs with whatever an editor adds, descriptions, parameters of schedules."""
    database.run_sync(lambda s: workflows.update(s, workflow.id, graph=graph, description=description))
    made = database.run_sync(lambda s: schedules.add(s, workflow.id, cron="* * * * *", parameters=graph))
    read = database.run_sync(lambda s: workflows.get(s, workflow.id))
    assert read.current.graph == as_json(graph)
    assert read.description == as_json(description)
    assert database.run_sync(lambda s: schedules.get(s, workflow.id, made.id)).parameters == as_json(graph)
