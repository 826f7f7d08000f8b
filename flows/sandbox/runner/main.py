"""The runner's entry point; `BOOT` in `flows/sandbox/protocol.py` calls it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import tempfile
from typing import NoReturn

from .processes import PR_SET_CHILD_SUBREAPER, prctl
from .resident import Runner


def stop(*_: object) -> NoReturn:
    """End the runner on SIGTERM, in the same way as when stdin ends."""
    raise SystemExit(0)


def main() -> None:
    """Read the options, set up the process and serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", default="", help="a token that tells this runner from others")
    parser.add_argument("--folder", default="", help="parent of the nodes' folders; removed at the end")
    parser.add_argument("--user", default="", help="the account that nodes run under, when started as root")
    parser.add_argument("--output-limit", type=int, default=65536, help="bytes of each output kept per node")
    parser.add_argument("--processes", type=int, default=256, help="processes that a node may have")
    options = parser.parse_args()
    options.folder = options.folder or tempfile.mkdtemp(prefix="nova-")
    os.chmod(options.folder, 0o711)  # noqa: PTH101  (nodes run under another account and must reach their folders)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    wakeup, wake = os.pipe()
    for end in (wakeup, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    runner = Runner(stdin, stdout, options)
    owner = os.getpid()
    try:
        runner.serve(wakeup)
    except BrokenPipeError:
        pass
    except Exception as error:  # noqa: BLE001  (the worker gets the cause, then everything ends)
        with contextlib.suppress(OSError):
            runner.write({"error": f"{type(error).__name__}: {error}"})
    finally:
        if os.getpid() == owner:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with contextlib.suppress(RuntimeError):
                runner.kill_all()
            shutil.rmtree(options.folder, ignore_errors=True)
