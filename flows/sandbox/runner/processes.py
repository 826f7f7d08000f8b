"""Finding and killing all the processes that a node started, the ones that ran away included."""

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
    """Ask Linux for a process option; elsewhere, or refused, do without."""
    if LINUX:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def widen(pipe: int) -> None:
    """Give a pipe a megabyte of room where Linux lets it, so that large values cross in fewer turns."""
    if LINUX:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, 1 << 20)


def descendants(root: int) -> set[int]:
    """Find all living processes below `root`, as /proc has them; none where there is no /proc."""
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
    """Send a signal to each; one that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_below(root: int) -> set[int]:
    """Stop all processes below `root`, so that none can fork away, then kill them; returns their ids."""
    stopped: set[int] = set()
    while True:
        fresh = descendants(root) - stopped
        if not fresh:
            break
        send_signal(fresh, signal.SIGSTOP)
        stopped |= fresh
    send_signal(stopped, signal.SIGKILL)
    return stopped
