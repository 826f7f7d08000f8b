"""Child processes that compile nodes' programs, within limits, and what is said where one did not survive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.code_check import compiler
from flows.graphs.errors import Fault, InfrastructureError
from flows.graphs.validation.code import Program, compile_fault, unchecked_fault

log = logging.getLogger(__name__)

_SCRIPT: Final = Path(compiler.__file__)
_MODES: Final = {"code": "exec", "condition": "eval"}


@dataclass(frozen=True)
class Limits:
    """What a node's code may be, and what looking at it may take.

    Ordinary code of 64 KiB takes a twentieth of a second and 20 MB, the oddest that is no attack some 50 MB;
    700 bytes of nested `finally` take a gigabyte.
    """

    code: int
    """Bytes of UTF-8 that a node's code, or its condition, may have."""
    memory: int = 512 * 1024 * 1024
    """Bytes of address space that a child process may have."""
    seconds: int = 5
    """Seconds of processor time that one program may take."""
    patience: float = 30.0
    """Seconds by the clock that all programs of a graph may take together, once it is their turn."""


async def compile_programs(programs: Sequence[Program], limits: Limits) -> list[Fault | None]:
    """Compile programs in a child process; returns for each its fault, or None where it is sound.

    A program that ends the process is named, and another process goes on behind it. Raises
    InfrastructureError where none can be started.
    """
    verdicts: list[Fault | None] = []
    died_at = -1
    try:
        async with asyncio.timeout(limits.patience):
            while len(verdicts) < len(programs):
                status = await _compile_on(programs, verdicts, limits)
                at = len(verdicts)
                if at == len(programs):
                    break
                reason = _cause_of(status, limits)
                if reason is None:
                    log.warning("The process that compiles nodes' code ended with status %s.", status)
                    # Ended from outside, perhaps: once that is not the program's fault.
                    reason = f"the process that compiles it ended twice, with status {status}"
                    if died_at != at:
                        died_at = at
                        continue
                verdicts.append(unchecked_fault(programs[at], reason))
    except TimeoutError:
        left = programs[len(verdicts) :]
        verdicts += [_late(left, limits), *[None] * (len(left) - 1)]
    return verdicts


async def _compile_on(programs: Sequence[Program], verdicts: list[Fault | None], limits: Limits) -> int:
    """Compile the programs that have no verdict yet, and add theirs; returns how the process ended."""
    process = await _start(limits)
    feeding = asyncio.create_task(_feed(process, programs[len(verdicts) :]))
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            answer = json.loads(line)
            verdicts.append(compile_fault(programs[len(verdicts)], *answer) if answer else None)
            await asyncio.sleep(0)  # lines that are there already come without a pause for other requests
        return await process.wait()
    finally:
        feeding.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _start(limits: Limits) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            # Isolated: it sees no variable of ours, and imports nothing but the standard library.
            *(sys.executable, "-I", "-S", "-W", "ignore", str(_SCRIPT)),
            *(str(limits.memory), str(limits.seconds)),
            stdin=PIPE,
            stdout=PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise InfrastructureError(
            f"The process that compiles nodes' code cannot be started ({error.strerror})."
        ) from error


async def _feed(process: Process, programs: Sequence[Program]) -> None:
    assert process.stdin is not None
    # A process that ended takes no more; why it did is told by its status.
    with contextlib.suppress(OSError, RuntimeError):
        for program in programs:
            text = json.dumps([_MODES[program.field], program.source], ensure_ascii=False)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
            await asyncio.sleep(0)
        process.stdin.close()


def _cause_of(status: int, limits: Limits) -> str | None:
    """Say why a process ended before its work was done, where the program alone can have done that."""
    if status == compiler.OUT_OF_MEMORY:
        return f"it needs more than {limits.memory // 1024**2} MB"
    if status == -signal.SIGXCPU:
        return f"it needs longer than {limits.seconds} s"
    if -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
        return "Python's compiler crashes on it"
    return None


def _late(left: Sequence[Program], limits: Limits) -> Fault:
    also = f" and of {len(left) - 1} more" if len(left) > 1 else ""
    message = (
        f"The {left[0].field} of {left[0].name}{also} was not checked in the {limits.patience:g} s that a "
        "graph may take. Make it smaller, or send it again when NOVA has less to do."
    )
    return Fault("unchecked-code", message, left[0].node)
