"""Validation without the child process that compiles: the same steps, all in this one."""

from __future__ import annotations

from flows.code_check.compiler import find_problem
from flows.graphs.errors import InvalidGraphError
from flows.graphs.graph import Graph, Validation, judge_graph
from flows.graphs.validation.code import compile_fault
from flows.graphs.validation.inspection import inspect_graph

CODE_LIMIT = 64 * 1024
"""Bytes that a node's code may have in these tests."""


def validate_graph(data: object, code_limit: int = CODE_LIMIT) -> Validation:
    """Look at a graph as a caller sent it and name everything that is wrong."""
    inspection = inspect_graph(data, code_limit)
    problems = [
        (program, find_problem("exec" if program.field == "code" else "eval", program.source))
        for program in inspection.programs
    ]
    verdicts = [problem and compile_fault(program, *problem) for program, problem in problems]
    return judge_graph(data, inspection, verdicts)


def parse_graph(data: object) -> Graph:
    """Read a graph as a caller sent it; raises InvalidGraphError that names every fault."""
    validation = validate_graph(data)
    if validation.graph is None:
        raise InvalidGraphError(validation.faults)
    return validation.graph
