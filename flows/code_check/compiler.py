"""Compiles programs that a caller sent: a child process, run from this file and the standard library alone.

Arguments: the bytes of address space that the process may have, and the seconds of processor time that each
program may take. In: a line of JSON per program, `[mode, source]`. Out: a line of JSON per program, as soon
as it is known: null where it is sound, else `[problem, line, column]`. Nothing is run. A program that is too
much for the compiler ends the process, and the exit status says how.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Final

OUT_OF_MEMORY: Final = 3
"""The exit status of a process whose memory did not suffice."""

Problem = tuple[str, int | None, int | None]

_TOO_DEEP: Final[Problem] = ("it is nested too deep for the compiler", None, None)
_MESSAGE: Final = 500
"""Characters that are told of what Python says: it may repeat the program."""


def find_problem(mode: str, source: str) -> Problem | None:
    """Return what the compiler says of a program, with line and column from 1; None when it is sound.

    `mode` is exec for code, eval for an expression.
    """
    try:
        compile(source, "<node>", mode, dont_inherit=True)  # without the futures of this module
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
    """Compile what stdin has."""
    memory, seconds = map(int, sys.argv[1:])
    _bound(memory)
    for line in sys.stdin.buffer:
        _allow(seconds)
        problem = find_problem(*json.loads(line))
        # The parser, too, calls it a MemoryError where a program is nested too deep for it.
        if problem is _TOO_DEEP and _peak() > memory // 2:
            os._exit(OUT_OF_MEMORY)
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


def _bound(memory: int) -> None:
    """Bound the memory of this process, and let it be the first to go where the machine has none left."""
    _lower(resource.RLIMIT_CORE, 0)
    try:
        _lower(resource.RLIMIT_AS, memory)
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123  (pathlib takes long to import)
            file.write("1000")
    except (OSError, ValueError):
        pass  # not on Linux: what is left is the bound of time


def _allow(seconds: int) -> None:
    """Give the next program so many seconds of processor time, and up to one more; SIGXCPU ends it then."""
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)


def _lower(what: int, limit: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _peak() -> int:
    """Return the most bytes of address space that this process had; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123
            lines = (line.split() for line in file)
            return next((int(line[1]) * 1024 for line in lines if line[0] == "VmPeak:"), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    main()
