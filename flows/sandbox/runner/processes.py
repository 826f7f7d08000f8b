"""Find and kill all processes that a node started, daemons included."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys

LINUX = sys.platform.startswith("linux")
F_SETPIPE_SZ = 1031
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Set a process option on Linux; does nothing elsewhere or if Linux refuses."""
    if LINUX:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def widen(pipe: int) -> None:
    """Give a pipe a buffer of 1 MiB on Linux if possible: large values then take fewer reads."""
    if LINUX:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, 1 << 20)


def descendants(root: int) -> set[int]:
    """Return all running processes below `root`, from /proc; none on systems without /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if LINUX else ():  # noqa: PTH208
        if name.isdigit():
            try:
                number = os.open(f"/proc/{name}/stat", os.O_RDONLY)
                try:
                    state, parent = os.read(number, 4096).rpartition(b") ")[2].split(None, 2)[:2]
                finally:
                    os.close(number)
            except (OSError, ValueError):
                continue
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    todo = [root]
    while todo:
        below = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(below)
        todo.extend(below)
    return found


def send_signal(pids: set[int], number: int) -> None:
    """Send a signal to each process; skip processes that have ended."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_below(root: int) -> set[int]:
    """Stop all processes below `root`, so that none can fork, then kill them; return their ids."""
    stopped: set[int] = set()
    while True:
        fresh = descendants(root) - stopped
        if not fresh:
            break
        send_signal(fresh, signal.SIGSTOP)
        stopped |= fresh
    send_signal(stopped, signal.SIGKILL)
    return stopped
