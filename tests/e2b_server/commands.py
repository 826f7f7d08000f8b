"""`process.Process`: start programs, stream their output, write to their stdin, end them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.e2b_server.processes import CUT_OFF, Event, Process
from tests.e2b_server.simulated_sandbox import SimulatedSandbox
from tests.e2b_server.wire import RpcError, frame, frames, only

LONGEST = 128 * 1024
"""Bytes that one argument or environment value may have on Linux."""


def chosen(sandbox: SimulatedSandbox, body: dict[str, Any]) -> Process:
    """Return the process that a request names by pid or tag; raises RpcError."""
    selector = body.get("process", {})
    for process in sandbox.processes.values():
        if process.pid == selector.get("pid") or (process.tag and process.tag == selector.get("tag")):
            return process
    raise RpcError("not_found", f"process with {selector} not found")


async def start(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Start a program and stream its events."""
    body = await only(request)
    config = body["process"]
    # `-l` is left out: a login shell resets PATH.
    arguments = [sandbox.located(a) for a in config.get("args", ()) if a != "-l"]
    envs = {str(k): str(v) for k, v in config.get("envs", {}).items()}
    if any(len(text.encode("utf-8")) > LONGEST for text in [*arguments, *envs.values()]):
        return failed(RpcError("internal", "fork/exec /bin/bash: argument list too long"))
    cwd = config.get("cwd") or sandbox.mounted_home
    if not sandbox.path(cwd).is_dir():
        return failed(RpcError("invalid_argument", f"cwd '{cwd}' does not exist"))
    prefix = sandbox.prefix()
    command = [*prefix, *([sandbox.shown(sandbox.path(cwd))] if prefix else []), config["cmd"], *arguments]
    process = await Process.start(
        command,
        config,
        {**sandbox.environment(user), **envs},
        sandbox.path(cwd),
        stdin=bool(body.get("stdin", True)),
        tag=body.get("tag"),
    )
    sandbox.processes[process.pid] = process
    return follow(process, request, kill_late=True)


async def connect(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Stream the events of a running program."""
    body = await only(request)
    try:
        return follow(chosen(sandbox, body), request, kill_late=False)
    except RpcError as error:
        return failed(error)


def follow(process: Process, request: Request, *, kill_late: bool) -> Response:
    """Stream a process's events until its end or the request's deadline."""
    limit = request.headers.get("connect-timeout-ms")
    deadline = asyncio.get_running_loop().time() + int(limit) / 1000 if limit else None

    async def stream() -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout_at(deadline):
                async for event in process.follow():
                    if event is CUT_OFF:
                        break
                    yield frame({"event": event})
        except TimeoutError:
            if kill_late:
                process.kill(signal.SIGKILL)
            yield frame(
                {"error": RpcError("deadline_exceeded", "context deadline exceeded").body()}, last=True
            )
            return
        if process.over:
            yield frame({}, last=True)
        else:
            text = "the connection to sandbox ended before the stream completed"
            yield frame({"error": RpcError("unavailable", text).body()}, last=True)

    return StreamingResponse(stream(), media_type="application/connect+json")


def failed(error: RpcError) -> Response:
    """Return a stream with only an error."""
    return Response(frame({"error": error.body()}, last=True), media_type="application/connect+json")


async def list_(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """List the running programs."""
    await request.body()
    running = [p for p in sandbox.processes.values() if not p.over]
    return JSONResponse({"processes": [{"pid": p.pid, "config": p.config, "tag": p.tag} for p in running]})


async def send_input(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Write to a program's stdin."""
    body = await request.json()
    await feed(chosen(sandbox, body), body["input"])
    return JSONResponse({})


async def stream_input(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Write a stream to a program's stdin, in order."""
    process: Process | None = None
    try:
        async for message in frames(request):
            if "start" in message:
                process = chosen(sandbox, message["start"])
            elif "data" in message and process is not None:
                await feed(process, message["data"]["input"])
    except RpcError as error:
        with contextlib.suppress(Exception):
            await request.body()
        return failed(error)
    return Response(frame({}) + frame({}, last=True), media_type="application/connect+json")


async def feed(process: Process, piece: Event) -> None:
    """Write one piece of input; raises RpcError."""
    try:
        await process.write(base64.b64decode(piece.get("stdin", "")))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise RpcError("internal", f"error writing to stdin: {error}") from None


async def close_stdin(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Close a program's stdin."""
    chosen(sandbox, await request.json()).close_stdin()
    return JSONResponse({})


async def send_signal(sandbox: SimulatedSandbox, request: Request, user: str) -> Response:
    """Send a signal to a program."""
    body = await request.json()
    process = chosen(sandbox, body)
    number = signal.SIGKILL if body.get("signal") in ("SIGNAL_SIGKILL", 9) else signal.SIGTERM
    if not process.kill(number):
        raise RpcError("not_found", f"process {process.pid} is not running")
    return JSONResponse({})


METHODS = {
    "Start": start,
    "Connect": connect,
    "List": list_,
    "SendInput": send_input,
    "StreamInput": stream_input,
    "CloseStdin": close_stdin,
    "SendSignal": send_signal,
}
