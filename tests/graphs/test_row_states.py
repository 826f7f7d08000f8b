"""The list of transitions, held to the functions that change rows: names, and what their docstrings say."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.graphs.lifecycle import Status
from flows.graphs.row_states import TRANSITIONS, Transition
from flows.store.transitions import attempts, interventions, recoveries, submissions

ROOT = Path(__file__).parents[2]
LEAVE_THE_STATE = {
    "confirm": "notes the flow run that Prefect made",
    "await_create": "leaves no row behind",
    "release": "frees a lease",
    "undo_recover": "frees a lease",
    "note_sandbox": "notes what an attempt is at",
    "mark_unrepeatable": "notes what an attempt is at",
    "step_done": "notes what an attempt is at",
    "lock_reopenable": "changes nothing",
}
"""Public functions that change no execution's state, and why."""


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions of the package, but for the parts that they share (`columns`)."""
    for module in (submissions, attempts, interventions, recoveries):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield name, function


def told(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """From which statuses to which a docstring says that its function leads."""
    sentence = re.search(r"\bFrom ([^.]*?) to ([^.]*)\.", inspect.getdoc(function) or "")
    assert sentence is not None, f"{function.__name__} does not say from which status it leads to which"
    origins, targets = (_statuses(part) for part in sentence.groups())
    return origins, targets or origins


def _statuses(part: str) -> tuple[str, ...]:
    if "any status" in part:
        return tuple(Status)
    return tuple(word for word in re.findall(r"\w+", part) if word in tuple(Status))


def test_every_function_that_changes_a_state_is_listed() -> None:
    """And each that is listed is there, once; what leaves the state is named with its reason."""
    names = [name for name, _ in functions()]
    listed = [each.name for each in TRANSITIONS]
    assert sorted(names) == sorted([*listed, *LEAVE_THE_STATE])
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda each: each.name)
def test_a_function_says_from_which_status_it_leads_to_which(transition: Transition) -> None:
    """Word for word what the list says."""
    assert told(dict(functions())[transition.name]) == (transition.origins, transition.targets)


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda each: each.name)
def test_every_transition_has_its_sentence(transition: Transition) -> None:
    """It stands in the README's diagram."""
    assert transition.sentence[0].isupper()
    assert transition.sentence.endswith(".")


def test_the_shared_parts_are_used_by_the_transitions_alone() -> None:
    """`columns` closes and opens rows; nobody else is to do it by them."""
    users = {
        path.relative_to(ROOT).as_posix()
        for folder in ("flows", "api", "deployments")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        if (node.module == "flows.store.transitions" and any(each.name == "columns" for each in node.names))
        or node.module == "flows.store.transitions.columns"
    }
    assert users == {
        f"flows/store/transitions/{name}.py"
        for name in ("attempts", "interventions", "recoveries", "submissions")
    }
