"""Compile programs that a caller sent, in a child process of this file and the standard library alone.

Arguments: bytes of address space for the process, seconds of processor time for each program. In: one line of
JSON per program, `[mode, source]`. Out: one line of JSON per program, as soon as it is compiled: null if it
compiles, else `[problem, line, column]`. No program is run. A program that exceeds a limit or crashes the
compiler ends the process; the exit status says how.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Final

OUT_OF_MEMORY: Final = 3
"""Exit status of a process that ran out of memory."""

Problem = tuple[str, int | None, int | None]

_TOO_DEEP: Final[Problem] = ("it is nested too deeply for the compiler", None, None)
_MESSAGE: Final = 500
"""Characters of Python's message that are kept: it may repeat the program."""


def find_problem(mode: str, source: str) -> Problem | None:
    """Return the compiler's error with line and column, both from 1; None if the program compiles.

    `mode` is `exec` for code, `eval` for an expression.
    """
    try:
        compile(source, "<node>", mode, dont_inherit=True)  # else this module's `from __future__` would apply
    except SyntaxError as error:
        return (
            (error.msg or "invalid syntax")[:_MESSAGE],
            max(error.lineno or 1, 1),
            max(error.offset or 1, 1),
        )
    except (RecursionError, MemoryError):
        return _TOO_DEEP
    except (ValueError, OverflowError) as error:
        return str(error)[:_MESSAGE], None, None
    return None


def main() -> None:
    """Compile every program from stdin."""
    memory, seconds = map(int, sys.argv[1:])
    _limit_memory(memory)
    for line in sys.stdin.buffer:
        _limit_time(seconds)
        problem = find_problem(*json.loads(line))
        # Python's parser raises MemoryError for deep nesting, too: the memory used tells which it was.
        if problem is _TOO_DEEP and _peak() > memory // 2:
            os._exit(OUT_OF_MEMORY)
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


def _limit_memory(memory: int) -> None:
    """Limit this process's memory, and make it the first to be killed if the machine runs out."""
    _lower(resource.RLIMIT_CORE, 0)
    try:
        _lower(resource.RLIMIT_AS, memory)
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123  (pathlib takes long to import)
            file.write("1000")
    except (OSError, ValueError):
        pass  # not Linux: only the time is limited


def _limit_time(seconds: int) -> None:
    """Allow the next program so many seconds of processor time, plus up to one; then SIGXCPU ends it."""
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)


def _lower(what: int, limit: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _peak() -> int:
    """Return this process's peak address space in bytes; 0 if the system does not report it."""
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123
            lines = (line.split() for line in file)
            return next((int(line[1]) * 1024 for line in lines if line[0] == "VmPeak:"), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    main()
