"""`/files` and `filesystem.Filesystem`: read and write a sandbox's files as its account `user`."""

from __future__ import annotations

import base64
import contextlib
import email
import email.message
import gzip
import hashlib
import os
import shutil
import stat
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b_server.simulated_sandbox import SimulatedSandbox
from tests.e2b_server.wire import RpcError

ATTRIBUTE = "user.e2b."
"""Prefix of the extended attributes that hold a file's metadata."""
HEADER = "x-metadata-"


def problem(status: int, message: str) -> Response:
    """Return an error in the daemon's format."""
    return JSONResponse({"code": status, "message": message}, status)


def signed(sandbox: SimulatedSandbox, request: Request, operation: str) -> Response | None:
    """Check a request's token or signed URL; return the refusal, or None if it is allowed."""
    query = request.query_params
    if request.headers.get("x-access-token") == sandbox.token:
        return None
    if "signature" not in query:
        return problem(401, "missing signature query parameter")
    until = query.get("signature_expiration")
    parts = [
        query.get("path", ""),
        operation,
        query.get("username", ""),
        sandbox.token,
        *([until] if until else []),
    ]
    digest = hashlib.sha256(":".join(parts).encode("utf-8")).digest()
    expected = "v1_" + base64.b64encode(digest).rstrip(b"=").decode("ascii")
    if query["signature"] != expected:
        return problem(401, "invalid signature")
    if until and int(until) < time.time():
        return problem(401, "signature is already expired")
    return None


async def download(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Return a file, gzipped if the caller accepts that."""
    refusal = signed(sandbox, request, "read")
    if refusal is not None:
        return refusal
    given = request.query_params.get("path", "")
    path = sandbox.path(given)
    if not path.exists():
        return problem(404, f"path '{given}' does not exist")
    if not path.is_file():
        return problem(400, f"path '{given}' is a directory")
    data = path.read_bytes()
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(gzip.compress(data, 1), headers={"Content-Encoding": "gzip"})
    return Response(data, media_type="application/octet-stream")


async def upload(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Write files: one as the raw body, or several as a form."""
    refusal = signed(sandbox, request, "write")
    if refusal is not None:
        return refusal
    given = request.query_params.get("path")
    data = await request.body()
    kind = email.message.Message()
    kind["content-type"] = request.headers.get("content-type", "")
    if kind.get_content_type() == "multipart/form-data":
        found = [(given or name, part) for name, part in form_files(data, str(kind.get_param("boundary")))]
    else:
        packed = request.headers.get("content-encoding") == "gzip"
        found = [(given or "", gzip.decompress(data) if packed else data)]
    metadata = {
        name.lower().removeprefix(HEADER): value
        for name, value in request.headers.items()
        if name.lower().startswith(HEADER)
    }
    entries = []
    for name, data in found:
        path = sandbox.path(name)
        if path.is_dir():
            return problem(400, f"path '{name}' is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        write_metadata(path, metadata)
        entries.append({"name": path.name, "type": "file", "path": sandbox.shown(path), "metadata": metadata})
    return JSONResponse(entries)


def form_files(data: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """Return the names and contents of a form's files."""
    found = []
    for part in (b"\r\n" + data).split(b"\r\n--" + boundary.encode("ascii"))[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = email.message_from_bytes(head).get_filename()
        if name:
            found.append((urllib.parse.unquote(name), content))
    return found


def write_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Replace a file's metadata."""
    with contextlib.suppress(OSError, AttributeError):
        for name in os.listxattr(path):
            if name.startswith(ATTRIBUTE):
                os.removexattr(path, name)
        for name, value in metadata.items():
            os.setxattr(path, ATTRIBUTE + name, value.encode("ascii"))


def read_metadata(path: Path) -> dict[str, str]:
    """Return a file's metadata."""
    with contextlib.suppress(OSError, AttributeError):
        names = [name for name in os.listxattr(path) if name.startswith(ATTRIBUTE)]
        return {name.removeprefix(ATTRIBUTE): os.getxattr(path, name).decode("ascii") for name in names}
    return {}


def entry(sandbox: SimulatedSandbox, path: Path) -> dict[str, Any]:
    """Return the description of a file or folder; raises RpcError if it does not exist."""
    try:
        link = path.is_symlink()
        found = path.stat()
    except OSError:
        raise RpcError("not_found", f"path '{sandbox.shown(path)}' does not exist") from None
    folder = stat.S_ISDIR(found.st_mode)
    described: dict[str, Any] = {
        "name": path.name,
        "type": "FILE_TYPE_DIRECTORY" if folder else "FILE_TYPE_FILE",
        "path": sandbox.shown(path),
        "size": str(found.st_size),
        "mode": stat.S_IMODE(found.st_mode),
        "permissions": stat.filemode(found.st_mode),
        "owner": "user",
        "group": "user",
        "modifiedTime": datetime.fromtimestamp(found.st_mtime, UTC).isoformat().replace("+00:00", "Z"),
        "metadata": read_metadata(path),
    }
    if link:
        described["symlinkTarget"] = sandbox.shown(path.resolve())
    return described


def stat_(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Return the description of one file."""
    return {"entry": entry(sandbox, sandbox.path(body["path"]))}


def make_dir(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Create a folder and its parents."""
    path = sandbox.path(body["path"])
    if path.is_dir():
        raise RpcError("already_exists", f"directory already exists: {body['path']}")
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise RpcError("invalid_argument", "path already exists but it is not a directory") from None
    return {"entry": entry(sandbox, path)}


def move(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Rename a file or folder."""
    source, destination = sandbox.path(body["source"]), sandbox.path(body["destination"])
    if not source.exists():
        raise RpcError("not_found", f"source file not found: {body['source']}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    source.rename(destination)
    return {"entry": entry(sandbox, destination)}


def remove(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Remove a file or folder; one that is not there is no error."""
    path = sandbox.path(body["path"])
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return {}


def list_dir(sandbox: SimulatedSandbox, body: dict[str, Any]) -> dict[str, Any]:
    """Return the descriptions of a folder's entries, down to a depth."""
    top = sandbox.path(body["path"])
    if not top.exists():
        raise RpcError("not_found", f"path not found: {body['path']}")
    if not top.is_dir():
        raise RpcError("invalid_argument", f"path is not a directory: {body['path']}")
    found: list[dict[str, Any]] = []

    def walk(folder: Path, depth: int) -> None:
        for path in sorted(folder.iterdir()):
            found.append(entry(sandbox, path))
            if depth > 1 and path.is_dir() and not path.is_symlink():
                walk(path, depth - 1)

    walk(top, max(1, int(body.get("depth", 1))))
    return {"entries": found}


METHODS = {"Stat": stat_, "MakeDir": make_dir, "Move": move, "Remove": remove, "ListDir": list_dir}
