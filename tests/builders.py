"""Graphs for tests, as short as they can be written."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")

_numbers = itertools.count(1)


def action(node_id: str, code: str, **extra: Any) -> dict[str, Any]:
    """Build an action node."""
    return {"id": node_id, "type": "action", "code": code, **extra}


def decision(node_id: str, code: str, **extra: Any) -> dict[str, Any]:
    """Build a decision node with code."""
    return {"id": node_id, "type": "decision", "code": code, **extra}


def expression(node_id: str, condition: str) -> dict[str, Any]:
    """Build a decision node that is a Python expression."""
    return {"id": node_id, "type": "decision", "condition": condition}


def line(*nodes: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """Build a graph that goes from start through these nodes, one after the other, to end."""
    ids = ["start", *(node["id"] for node in nodes), "end"]
    return {
        "nodes": [{"id": "start", "type": "start"}, *nodes, {"id": "end", "type": "end"}],
        "edges": [{"from": a, "to": b} for a, b in itertools.pairwise(ids)],
        **extra,
    }


def fork(before: dict[str, Any], choice: dict[str, Any], **ways: dict[str, Any]) -> dict[str, Any]:
    """Build a graph: start, `before`, a decision, and one action per way (label → action), each to an end."""
    nodes = [{"id": "start", "type": "start"}, before, choice, *ways.values(), {"id": "end", "type": "end"}]
    edges = [{"from": "start", "to": before["id"]}, {"from": before["id"], "to": choice["id"]}]
    for label, node in ways.items():
        edges.append({"from": choice["id"], "to": node["id"], "condition": label})
        edges.append({"from": node["id"], "to": "end"})
    return {"nodes": nodes, "edges": edges}


def fresh_name(stem: str = "Workflow") -> str:
    """Return a workflow's name that no other test uses, in no other process of the session either."""
    return f"{stem} {os.environ.get('PYTEST_XDIST_WORKER', '')}{next(_numbers)}"


async def each(*items: T) -> AsyncIterator[T]:
    """The items one by one, as what is read from a database comes."""
    for item in items:
        yield item
