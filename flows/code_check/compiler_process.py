"""Run the compiler in child processes within limits, and report the programs that end them."""

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
    """How large a node's code may be, and what compiling it may cost.

    Measured: ordinary code of 64 KiB takes 0.05 s and 20 MB, the oddest harmless code some 50 MB; 700 bytes
    of nested `finally` take a gigabyte.
    """

    code: int
    """Bytes of UTF-8 that a node's code or condition may have."""
    memory: int = 512 * 1024 * 1024
    """Bytes of address space of a child process."""
    seconds: int = 5
    """Seconds of processor time that one program may take."""
    patience: float = 30.0
    """Seconds of wall-clock time for all programs of a graph together; also for the wait before them."""


async def compile_programs(programs: Sequence[Program], limits: Limits) -> list[Fault | None]:
    """Compile programs in a child process; return for each its fault, or None if it compiles.

    A program that ends the process gets a fault, and a new process compiles the rest. Raises
    InfrastructureError if no process can be started.
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
                    # Something else may have killed it, so the program gets a second try.
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
    """Compile the programs without a verdict and append their verdicts; return the exit status."""
    process = await _start(limits)
    feeding = asyncio.create_task(_feed(process, programs[len(verdicts) :]))
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            answer = json.loads(line)
            verdicts.append(compile_fault(programs[len(verdicts)], *answer) if answer else None)
            await asyncio.sleep(0)  # buffered lines come without a pause: let other requests run
        return await process.wait()
    finally:
        feeding.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _start(limits: Limits) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            # Isolated: no environment variables, and no imports but the standard library.
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
    # The process may have ended already; its exit status tells why.
    with contextlib.suppress(OSError, RuntimeError):
        for program in programs:
            text = json.dumps([_MODES[program.field], program.source], ensure_ascii=False)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
            await asyncio.sleep(0)
        process.stdin.close()


def _cause_of(status: int, limits: Limits) -> str | None:
    """Return why the program ended the process; None if something else may have ended it."""
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
