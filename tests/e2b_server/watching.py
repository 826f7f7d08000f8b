"""Watching a folder: what changed between two looks, as `filesystem.Filesystem` tells it."""

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
from tests.e2b_server.places import SandboxSession
from tests.e2b_server.wire import RpcError, frame, only

LOOK_EVERY = 0.02
"""Seconds between two looks at a watched folder."""

Seen = dict[str, tuple[int, int, int]]


class Watcher:
    """One watched folder."""

    def __init__(self, place: SandboxSession, body: dict[str, Any]) -> None:
        self.place = place
        self.top = place.path(body["path"])
        self.recursive = bool(body.get("recursive"))
        self.with_entry = bool(body.get("includeEntry"))
        if not self.top.exists():
            raise RpcError("not_found", f"path {body['path']} not found")
        if not self.top.is_dir():
            raise RpcError("invalid_argument", f"path {body['path']} not a directory")
        self.seen = self.look()

    def look(self) -> Seen:
        """See every file below: when it was written, how large, with which rights."""
        found: Seen = {}
        for folder, folders, names in os.walk(self.top):
            for name in [*folders, *names]:
                path = Path(folder) / name
                try:
                    state = path.lstat()
                except OSError:
                    continue
                written = (
                    0 if name in folders else state.st_mtime_ns
                )  # a folder's own writes are its entries'
                found[str(path.relative_to(self.top))] = (written, state.st_ino, state.st_mode)
            if not self.recursive:
                break
        return found

    def changes(self) -> list[dict[str, Any]]:
        """What happened since the last look."""
        before, self.seen = self.seen, self.look()
        events = [self.event(name, "REMOVE") for name in before.keys() - self.seen.keys()]
        for name, state in self.seen.items():
            old = before.get(name)
            if old is None:
                events.append(self.event(name, "CREATE"))
                if state[0]:  # a file that is uploaded is handed to the account before it is written
                    events.append(self.event(name, "CHMOD"))
            if (old is None and state[0]) or (old is not None and old[:2] != state[:2]):
                events.append(self.event(name, "WRITE"))
            elif old is not None and old[2] != state[2]:
                events.append(self.event(name, "CHMOD"))
        return events

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """Describe one change."""
        told: dict[str, Any] = {"name": name, "type": f"EVENT_TYPE_{kind}"}
        if self.with_entry and kind != "REMOVE":
            try:
                told["entry"] = entry(self.place, self.top / name)
            except RpcError:
                return told
        return told


async def watch_dir(place: SandboxSession, request: Request) -> Response:
    """Stream what changes in a folder."""
    body = await only(request)
    try:
        watcher = Watcher(place, body)
    except RpcError as error:
        return failed(error)

    async def stream() -> AsyncIterator[bytes]:
        yield frame({"start": {}})
        while place.state == "running":
            await asyncio.sleep(LOOK_EVERY)
            for event in watcher.changes():
                yield frame({"filesystem": event})
        yield frame({"error": RpcError("unavailable", "the sandbox is gone").body()}, last=True)

    return StreamingResponse(stream(), media_type="application/connect+json")


WATCHERS: dict[str, Watcher] = {}


def create_watcher(place: SandboxSession, body: dict[str, Any]) -> dict[str, Any]:
    """Start watching a folder for who asks now and then."""
    name = secrets.token_hex(8)
    WATCHERS[name] = Watcher(place, body)
    return {"watcherId": name}


def get_watcher_events(place: SandboxSession, body: dict[str, Any]) -> dict[str, Any]:
    """What changed since this was asked last."""
    watcher = WATCHERS.get(body["watcherId"])
    if watcher is None:
        raise RpcError("not_found", f"watcher {body['watcherId']} not found")
    return {"events": watcher.changes()}


def remove_watcher(place: SandboxSession, body: dict[str, Any]) -> dict[str, Any]:
    """Stop watching."""
    WATCHERS.pop(body["watcherId"], None)
    return {}


METHODS = {
    "CreateWatcher": create_watcher,
    "GetWatcherEvents": get_watcher_events,
    "RemoveWatcher": remove_watcher,
}
