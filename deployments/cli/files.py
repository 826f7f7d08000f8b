"""Workflows as files: JSON or YAML, so that they live in git."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from deployments.cli.remote import describe_fault
from flows.config.settings import get_settings
from flows.graphs.errors import InvalidInputError

FIELDS = ("name", "description", "priority", "max_concurrent_runs", "overlap")
"""Fields of a workflow in a file, besides its graph and schedules."""
_KNOWN = {*FIELDS, "graph_definition", "schedules"}
SCHEDULE_FIELDS = {"cron": str, "timezone": str, "parameters": dict, "active": bool}


def load(path: Path) -> dict[str, Any]:
    """Return a workflow file's content; its fields are checked, but not its graph.

    Raises InvalidInputError that names the file and the fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    data = _parse(path, text)
    if not isinstance(data, dict):
        raise InvalidInputError(f"{path} must hold one workflow: name, graph_definition, …")
    problems = [f"{key}: is not a field of a workflow" for key in data if key not in _KNOWN]
    if not isinstance(data.get("name"), str) or not data["name"].strip():
        problems.append("name: must be a text that is not empty")
    if "graph_definition" not in data:
        problems.append("graph_definition: is missing")
    problems += _schedule_problems(data.get("schedules", []))
    if problems:
        raise InvalidInputError("\n  ".join([f"{path} is not a workflow file:", *problems]))
    return data


def check_graph(path: Path, data: dict[str, Any]) -> list[str]:
    """Check the graph of a loaded file, without the API; returns warnings as lines.

    Raises InvalidInputError with every fault, by node, edge and line.
    """
    from flows.code_check.checker import GraphChecker
    from flows.code_check.compiler_process import Limits

    checker = GraphChecker(Limits(get_settings().node_code_limit))
    found = asyncio.run(checker.validate(data["graph_definition"]))
    if found.faults:
        lines = [describe_fault(vars(fault)) for fault in found.faults]
        raise InvalidInputError("\n  ".join([f"{path} has {len(lines)} fault(s):", *lines]))
    return [describe_fault(vars(fault)) for fault in found.warnings]


def dump(data: dict[str, Any], as_json: bool) -> str:
    """Return a workflow as the text of a file, from which `load` reads the same workflow."""
    if as_json:
        return json.dumps(data, indent=2) + "\n"
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # anchors are only useful when written by hand

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # Code as a block; what YAML would fold or drop (other line ends, control characters) in quotes.
        style = "|" if "\n" in value else None
        if not value.replace("\n", "").replace("\t", "").isprintable():
            style = '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        import yaml

        data = yaml.safe_load(text)
        if _size(data, {}) > (most := get_settings().max_body):
            raise InvalidInputError(
                f"{path} holds more than the {most:,} bytes that the API reads, its aliases written out."
            )
        json.dumps(data, allow_nan=False)  # YAML knows dates and sets, JSON does not
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from None
    return data


def _size(value: Any, known: dict[int, int]) -> int:
    """Return about how many bytes a value has as JSON; what aliases repeat counts each time."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # for a value that contains itself: writing it as JSON reports that
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = sum(1 + _size(part, known) for part in parts)
    return known[id(value)]


def _schedule_problems(schedules: Any) -> list[str]:
    if not isinstance(schedules, list):
        return ["schedules: must be a list"]
    problems = []
    for number, schedule in enumerate(schedules):
        where = f"schedules[{number}]"
        if not isinstance(schedule, dict):
            problems.append(f"{where}: must have the fields {', '.join(SCHEDULE_FIELDS)}")
            continue
        if "cron" not in schedule:
            problems.append(f"{where}.cron: is missing")
        for key, value in schedule.items():
            if key not in SCHEDULE_FIELDS:
                problems.append(f"{where}.{key}: is not a field of a schedule")
            elif not isinstance(value, SCHEDULE_FIELDS[key]):
                problems.append(f"{where}.{key}: must be a {SCHEDULE_FIELDS[key].__name__}")
    return problems
