"""Does a node's code compile? Nothing is run, and nothing the code can hold gets out of here but a fault."""

from __future__ import annotations

import re
import threading
import warnings
from typing import Final, Literal

from flows.graphs.errors import Fault
from flows.graphs.names import plain

MAX_CODE: Final = 1024 * 1024
"""Bytes of UTF-8 that one node's code may have."""

_UNREADABLE: Final = re.compile("[\0\ud800-\udfff]")
# `catch_warnings` swaps a list that the whole process shares: two threads in it at once can leave it swapped.
_WARNINGS: Final = threading.Lock()


def check_code(node_id: str | None, name: str, source: str, mode: Literal["exec", "eval"]) -> Fault | None:
    """Compile a node's code (`exec`) or condition (`eval`); None when it is sound.

    `name` is how a sentence calls the node. The fault has line and column, from 1, where there is a place.
    """
    what, slug = ("code", "invalid-code") if mode == "exec" else ("condition", "invalid-condition")
    if len(source) > MAX_CODE or len(source.encode("utf-8", "surrogatepass")) > MAX_CODE:
        message = f"The {what} of {name} is longer than {MAX_CODE:,} bytes. Move data out of it."
        return Fault("code-too-long", message, node_id)
    problem, line, column = _problem(source, mode)
    if not problem:
        return None
    place = f" (line {line}, column {column})" if line else ""
    is_not = "does not compile" if mode == "exec" else "is not a Python expression"
    return Fault(slug, f"The {what} of {name} {is_not}: {problem}{place}.", node_id, None, line, column)


def _problem(source: str, mode: Literal["exec", "eval"]) -> tuple[str, int | None, int | None]:
    """Say what the compiler says: message ("" for none), line and column from 1."""
    if found := _UNREADABLE.search(source):
        # The compiler refuses both, in words that change with its version, and without a place.
        what = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        before = source[: found.start()]
        return f"it contains {what}", before.count("\n") + 1, found.start() - before.rfind("\n")
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<node>", mode, dont_inherit=True)
    except SyntaxError as error:
        line = max(error.lineno or 1, 1)
        return plain(error.msg or "invalid syntax"), line, max(error.offset or 1, 1)
    except (RecursionError, MemoryError):
        return "it is nested too deep for the compiler", None, None
    except (ValueError, OverflowError) as error:
        return plain(str(error)), None, None
    return "", None, None
