"""The process of one node: set it up, run the node's code, write the result."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import resource
import signal
import sys
import traceback
import types
from typing import Any, NoReturn

from .node import Node
from .processes import LINUX, PR_SET_PDEATHSIG, prctl
from .values import ENCODER, MISSING, InvalidValue, changes_of, size_of

RESULT = 3
"""The file descriptor that a node's result is written to."""


def failure_of(error: BaseException, filename: str) -> dict[str, str]:
    """Return an exception's type, message and traceback; the traceback begins in the node's own code."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != filename:
        frames = frames.tb_next
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001  (node code wrote that __str__)
        message = "<its message could not be read>"
    if isinstance(error, SystemExit):
        message = "exit() was called" + ("" if error.code is None else f" with {error.code!r}")
    elif isinstance(error, MemoryError):
        message = message or "out of memory"
    if isinstance(error, InvalidValue):
        return {"type": "InvalidValue", "message": message[:65536], "traceback": ""}
    try:
        trace = "".join(traceback.TracebackException(type(error), error, frames).format())
    except BaseException:  # noqa: BLE001
        trace = ""
    return {"type": type(error).__name__, "message": message[:65536], "traceback": trace[-65536:]}


def execute(
    job: dict[str, Any], values: dict[str, Any], texts: dict[str, bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Run one node's code on a copy of the context; return the answer's head and the changed keys."""
    filename, code = f"<{job['node_id']}>", job["code"]
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    context: Any = dict(values)
    module = types.ModuleType("__main__")
    names = module.__dict__
    names.update(__builtins__=__builtins__, context=context, run=job.get("run") or {})
    sys.modules["__main__"] = module
    head: dict[str, Any] = {}
    pid, depth = os.getpid(), sys.getrecursionlimit()
    try:
        if job["kind"] != "action":
            context.pop("branch_decision", None)
        if job["kind"] == "condition":
            names.update({k: v for k, v in context.items() if k not in ("context", "__builtins__")})
            answer = eval(compile(code.strip(), filename, "eval", dont_inherit=True), names)
        else:
            exec(compile(code, filename, "exec", dont_inherit=True), names)
            answer = MISSING
        if os.getpid() != pid:  # a process that the node forked ran to the end: only the node answers
            os._exit(0)
        sys.setrecursionlimit(max(depth, sys.getrecursionlimit()))
        context = names.get("context", MISSING)
        changes = changes_of(context, values, texts)
        left, limit = sum(size_of(*change) for change in changes.items()), job.get("changes_limit", 0)
        if left > limit > 0:
            text = f"the node changed {left:,} bytes of its context; at most {limit:,} are allowed"
            return {"failure": {"type": "ContextTooLarge", "message": text, "traceback": ""}}, {}
        if job["kind"] == "decision":
            if "branch_decision" not in context:
                lack = 'the decision did not set context["branch_decision"]'
                return {"failure": {"type": "NoDecision", "message": lack, "traceback": ""}}, {}
            answer = context["branch_decision"]
        if answer is not MISSING:
            head["truth"] = bool(answer)
            head["branch"] = str(answer) if isinstance(answer, str) else "true" if head["truth"] else "false"
    except BaseException as error:  # noqa: BLE001  (every failure of the node is reported)
        if os.getpid() != pid:
            os._exit(1)
        with contextlib.suppress(Exception):
            sys.setrecursionlimit(max(depth, sys.getrecursionlimit()))
        return {"failure": failure_of(error, filename)}, {}
    return head, changes


def become_node(node: Node, pipes: list[int], account: Any, processes: int) -> None:
    """Give the forked process the node's folder, streams, limits and account, and none of the runner's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(pipes[1], 1)
    os.dup2(pipes[2], 2)
    os.closerange(4, max(map(int, os.listdir("/proc/self/fd" if LINUX else "/dev/fd"))) + 1)  # noqa: PTH208
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024 if hard < 0 else min(1024, hard), hard))
    os.chdir(node.folder)
    if account is not None:
        resource.setrlimit(
            resource.RLIMIT_NPROC, (processes, processes)
        )  # the system counts processes per account: set only in the nodes' own
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.argv = [""]
    sys.path.insert(0, "")
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = io.open(number, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115, UP020
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def child(
    node: Node,
    values: dict[str, Any],
    texts: dict[str, bytes],
    pipes: list[int],
    account: Any,
    processes: int,
) -> NoReturn:
    """Set up the forked process, run the node, write its result and exit; never returns.

    `pipes` are the write ends for the result, stdout and stderr; `account` is a pwd entry or None.
    """
    write, leave = os.write, os._exit
    try:
        os.setsid()
        pipes = [os.dup(end) if end == RESULT else end for end in pipes]
        os.dup2(pipes[0], RESULT, inheritable=False)
        become_node(node, pipes, account, processes)
        head, changes = execute(node.job, values, texts)
        flush()
        body = list(changes.values())
        head["keys"] = [[name, len(text)] for name, text in changes.items()]
    except BaseException as error:  # noqa: BLE001  (out of memory, for example: it becomes the result)
        head, body = {"failure": failure_of(error, ""), "keys": []}, []
    try:
        line = ENCODER.encode(head).encode("ascii")
        for part in (b"%b %d %d\n" % (node.token, len(line), sum(map(len, body))), line, *body):
            view = memoryview(part)
            while view:
                view = view[write(RESULT, view[: 1 << 20]) :]
    finally:
        leave(0)


def flush() -> None:
    """Flush the node's output; the node may have closed or replaced its streams."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(BaseException):
            if stream is not None:
                stream.flush()
