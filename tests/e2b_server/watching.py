"""Watch a folder by polling it; events are like those of `filesystem.Filesystem`."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.e2b_server.commands import failed
from tests.e2b_server.files import entry
from tests.e2b_server.simulated_sandbox import SimulatedSandbox
from tests.e2b_server.wire import RpcError, frame, only

POLL_INTERVAL = 0.02
"""Seconds between two polls of a watched folder."""

Files = dict[str, tuple[int, int, int]]


class Watcher:
    """One watched folder."""

    def __init__(self, sandbox: SimulatedSandbox, body: dict[str, Any]) -> None:
        self.sandbox = sandbox
        self.top = sandbox.path(body["path"])
        self.recursive = bool(body.get("recursive"))
        self.with_entry = bool(body.get("includeEntry"))
        if not self.top.exists():
            raise RpcError("not_found", f"path {body['path']} not found")
        if not self.top.is_dir():
            raise RpcError("invalid_argument", f"path {body['path']} not a directory")
        self.known = self.poll()

    def poll(self) -> Files:
        """Return the time of writing, the inode and the mode of every file below the folder."""
        found: Files = {}
        for folder, folders, names in os.walk(self.top):
            for name in [*folders, *names]:
                path = Path(folder) / name
                try:
                    state = path.lstat()
                except OSError:
                    continue
                written = (
                    0 if name in folders else state.st_mtime_ns
                )  # a folder's time of writing changes with its entries
                found[str(path.relative_to(self.top))] = (written, state.st_ino, state.st_mode)
            if not self.recursive:
                break
        return found

    def changes(self) -> list[dict[str, Any]]:
        """Return the events since the last poll."""
        before, self.known = self.known, self.poll()
        events = [self.event(name, "REMOVE") for name in before.keys() - self.known.keys()]
        for name, state in self.known.items():
            old = before.get(name)
            if old is None:
                events.append(self.event(name, "CREATE"))
                if state[0]:  # an upload sets the owner before it writes
                    events.append(self.event(name, "CHMOD"))
            if (old is None and state[0]) or (old is not None and old[:2] != state[:2]):
                events.append(self.event(name, "WRITE"))
            elif old is not None and old[2] != state[2]:
                events.append(self.event(name, "CHMOD"))
        return events

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """Return one change as an event."""
        event: dict[str, Any] = {"name": name, "type": f"EVENT_TYPE_{kind}"}
        if self.with_entry and kind != "REMOVE":
            try:
                event["entry"] = entry(self.sandbox, self.top / name)
            except RpcError:
                return event
        return event


async def watch_dir(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Stream a folder's events."""
    body = await only(request)
    try:
        watcher = Watcher(sandbox, body)
    except RpcError as error:
        return failed(error)

    async def stream() -> AsyncIterator[bytes]:
        yield frame({"start": {}})
        while sandbox.state == "running":
            await asyncio.sleep(POLL_INTERVAL)
            for event in watcher.changes():
                yield frame({"filesystem": event})
        yield frame({"error": RpcError("unavailable", "the sandbox is gone").body()}, last=True)

    return StreamingResponse(stream(), media_type="application/connect+json")


WATCHERS: dict[str, Watcher] = {}


def create_watcher(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Start to watch a folder; `get_watcher_events` returns the events."""
    name = secrets.token_hex(8)
    WATCHERS[name] = Watcher(sandbox, body)
    return {"watcherId": name}


def get_watcher_events(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Return the events since the last call."""
    watcher = WATCHERS.get(body["watcherId"])
    if watcher is None:
        raise RpcError("not_found", f"watcher {body['watcherId']} not found")
    return {"events": watcher.changes()}


def remove_watcher(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Stop watching."""
    WATCHERS.pop(body["watcherId"], None)
    return {}


METHODS = {
    "CreateWatcher": create_watcher,
    "GetWatcherEvents": get_watcher_events,
    "RemoveWatcher": remove_watcher,
}
