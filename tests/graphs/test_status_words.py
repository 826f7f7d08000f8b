"""A status has one name in the code: no file writes it as a string but those that define it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flows.graphs.lifecycle import ErrorKind, Status, StepStatus

ROOT = Path(__file__).parents[2]
WORDS = {*Status, *StepStatus, ErrorKind.NOT_STARTED}
DEFINED_IN = (
    "flows/graphs/lifecycle.py",
    "flows/graphs/flow_run_state.py",
    "flows/store/migrations/versions/",
)
NO_STATUS = {
    ("flows/graphs/row_states.py", "not_started"): "the name of a rule",
    ("api/schemas.py", "success"): "the contract's word for what a completed run came to",
    ("api/routers/health.py", "running"): "what GET / says of NOVA itself",
    ("api/health_schemas.py", "running"): "what GET / says of NOVA itself",
}
"""Words that are written as strings and are no status of a run or a step: file and word → what they are."""
_IN_SQL = re.compile(f"'({'|'.join(WORDS)})'")


def strings(source: str) -> Iterator[str]:
    """Every string of a program, parts of f-strings too, but for docstrings and comments."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def words_in(source: str) -> set[str]:
    """The statuses that a program writes as strings: by themselves, or in SQL."""
    return {
        word
        for string in strings(source)
        for word in ({string} if string in WORDS else set(_IN_SQL.findall(string)))
    }


def test_no_status_is_written_as_a_string() -> None:
    """Enums say it: a misspelt word is found by the type checker, and a reader finds every use."""
    found = {
        (path.relative_to(ROOT).as_posix(), word)
        for folder in ("flows", "api", "deployments")
        for path in (ROOT / folder).rglob("*.py")
        for word in words_in(path.read_text("utf-8"))
    }
    written = {each for each in found if not each[0].startswith(DEFINED_IN)}
    assert written == NO_STATUS.keys()


def test_a_status_that_is_written_as_a_string_is_found() -> None:
    """By itself, in SQL, in an f-string; not in a sentence or in a docstring."""
    assert words_in('row.status == "failed"') == {"failed"}
    assert words_in("""text("status in ('pending', 'running')")""") == {"pending", "running"}
    assert words_in("""f"status = 'success' and step = {step}\"""") == {"success"}
    assert words_in('{"completed": 1}') == {"completed"}
    assert words_in('"""failed"""\nerror = "The run failed."  # \'failed\'') == set()
