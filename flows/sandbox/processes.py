"""Processes of this machine, as the local sandbox looks at them and ends them.

The runner has its own (`runner/processes.py`): it goes into E2B as it is, and imports nothing from here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

LINUX = sys.platform.startswith("linux")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and only waits to be collected does not."""
    try:
        os.kill(pid, 0)
        if LINUX:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def kill_tree(root: int) -> None:
    """Kill a process and all below it: all are stopped first, so that none can fork away.

    Where there is no /proc the process alone is killed.
    """
    stopped: set[int] = set()
    while fresh := _tree(root) - stopped:
        _send(fresh, signal.SIGSTOP)
        stopped |= fresh
    _send(stopped, signal.SIGKILL)


def _tree(root: int) -> set[int]:
    """The process and all living ones below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*") if LINUX else ():
        with contextlib.suppress(OSError, ValueError):
            state, parent = (folder / "stat").read_bytes().rpartition(b") ")[2].split(None, 2)[:2]
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(folder.name))
    found, todo = {root}, [root]
    while todo:
        below = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(below)
        todo += below
    return found


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
