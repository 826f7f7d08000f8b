"""Nodes' programs: what can be said of their code without Python, and how what Python says becomes a fault.

Nothing is parsed or compiled here. The compiler can take gigabytes, minutes, or its whole process with it, so
`flows.code_check` runs it elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from flows.graphs.errors import Fault
from flows.graphs.names import plain

ProgramField = Literal["code", "condition"]
PROGRAM_FIELDS: Final[tuple[ProgramField, ...]] = ("code", "condition")
"""The fields of a node that say what it runs."""

_UNREADABLE: Final = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Program:
    """The code of a node, or the condition of a decision, as it is to be compiled."""

    node: str | None
    name: str
    """How a sentence calls the node."""
    field: ProgramField
    source: str


def text_fault(program: Program, limit: int) -> Fault | None:
    """Return what is wrong with the text as such: longer than `limit` bytes of UTF-8, or not readable."""
    size = len(program.source.encode("utf-8", "surrogatepass"))
    if size > limit:
        message = (
            f"The {program.field} of {program.name} has {size:,} bytes; a node may have {limit:,} "
            "(NOVA_NODE_CODE_LIMIT). Move data out of it."
        )
        return Fault("code-too-long", message, program.node)
    if found := _UNREADABLE.search(program.source):
        # The compiler refuses both, in words that change with its version, and without a place.
        what = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        before = program.source[: found.start()]
        line, column = before.count("\n") + 1, found.start() - before.rfind("\n")
        return compile_fault(program, f"it contains {what}", line, column)
    return None


def compile_fault(program: Program, problem: str, line: int | None, column: int | None) -> Fault:
    """Say that the compiler refuses a program; line and column count from 1, None where there is no place."""
    place = f" (line {line}, column {column})" if line else ""
    is_not = "does not compile" if program.field == "code" else "is not a Python expression"
    message = f"The {program.field} of {program.name} {is_not}: {plain(problem)}{place}."
    return Fault(f"invalid-{program.field}", message, program.node, None, line, column)


def unchecked_fault(program: Program, reason: str) -> Fault:
    """Say that a program is refused because the compiler could not come to its end."""
    message = f"The {program.field} of {program.name} cannot be checked: {reason}. Make it smaller."
    return Fault("unchecked-code", message, program.node)
